from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_mixture, make_tokenizer, toy_text

from trainers import data
from trainers.data import Batches, plan_pass
from trainers.mixture import open_mixture


@pytest.fixture(scope="module")
def corpus(toy, tmp_path_factory):
    return open_mixture(toy / "mixture", tmp_path_factory.mktemp("cache"))


def taken(corpus, plan):
    """How often a plan reads each token of the corpus."""
    counts = np.zeros(len(corpus.tokens), int)
    for start, length in zip(plan.start, plan.length, strict=True):
        counts[start : start + length] += 1
    return counts


def test_a_pass_reads_every_token_of_every_document_as_often_as_asked(corpus):
    counts = taken(corpus, plan_pass(corpus, 64, seed=3, number=0))
    expected = np.concatenate([[0], np.repeat(corpus.copies, corpus.length)])
    assert counts.tolist() == expected.tolist()
    assert set(corpus.copies[corpus.source == 0]) == {2, 3} and set(corpus.copies[corpus.source == 1]) == {1}


def test_inputs_are_the_tokens_before_the_targets_and_positions_restart(corpus):
    batch = Batches(corpus, 64, 8, seed=0).batch(0)
    pieces = np.split(np.arange(len(batch.inputs)), np.cumsum(batch.lengths)[:-1])
    stream = corpus.tokens.astype(np.int64)
    for document, own in zip(batch.documents, pieces, strict=True):
        text = stream[corpus.start[document] - 1 : corpus.end[document]].tolist()
        inputs, targets = batch.inputs[own].tolist(), batch.targets[own].tolist()
        assert inputs[1:] == targets[:-1]
        whole = [*inputs, targets[-1]]
        assert any(text[i : i + len(whole)] == whole for i in range(len(text)))
        assert batch.positions[own].tolist() == list(range(len(own)))
    assert all(np.diff(batch.lengths) <= 0)
    assert batch.lengths.sum() <= 8 * 64


def test_batches_are_a_pure_function_of_the_step(corpus):
    forward, jumping = Batches(corpus, 64, 8, seed=1), Batches(corpus, 64, 8, seed=1)
    batches = [forward.batch(step) for step in range(130)]  # more than one pass
    assert sum(len(b.targets) for b in batches) > 1.5 * (corpus.length * corpus.copies).sum()
    for step in (129, 0, 77, 128, 5):
        again = jumping.batch(step)
        for field in ("inputs", "targets", "lengths", "documents"):
            assert np.array_equal(getattr(again, field), getattr(batches[step], field))


def test_passes_and_seeds_have_different_orders_and_equal_content(corpus):
    plans = [plan_pass(corpus, 64, seed, number) for seed, number in ((0, 0), (0, 1), (1, 0), (-1, 0))]
    assert len({plan.document.tobytes() for plan in plans}) == 4
    assert len({taken(corpus, plan).tobytes() for plan in plans}) == 1


def test_order_does_not_depend_on_the_files_the_documents_lie_in(tmp_path):
    generator = np.random.default_rng(5)
    texts = {"a": toy_text(generator, 50), "b": toy_text(generator, 50)}
    tokenizer = make_tokenizer(tmp_path / "tokenizer", texts["a"])
    one = open_mixture(make_mixture(tmp_path / "one", texts, tokenizer, epochs={"a": 1.5}), tmp_path / "c")
    turned = {"b": texts["b"], "a": texts["a"]}
    many = open_mixture(make_mixture(tmp_path / "many", turned, tokenizer, epochs={"a": 1.5}, files=4), tmp_path / "c")
    for step in range(20):
        a, b = Batches(one, 32, 4, seed=0).batch(step), Batches(many, 32, 4, seed=0).batch(step)
        assert a.inputs.tolist() == b.inputs.tolist() and a.lengths.tolist() == b.lengths.tolist()


def test_sources_are_spread_and_repeats_lie_about_an_epoch_apart(corpus, monkeypatch):
    monkeypatch.setattr(data, "WINDOW", 32)
    even = replace(corpus, copies=np.full(len(corpus), 4))
    plan = plan_pass(even, 64, seed=0, number=0)
    quarters = np.array_split(plan.document, 4)
    for quarter in quarters:  # a copy of nearly every document in each quarter of the pass
        assert len(set(quarter.tolist())) > 0.85 * len(corpus)
    share = [np.mean(even.source[quarter] == 0) for quarter in quarters]
    assert max(share) - min(share) < 0.06


def test_phases_follow_each_other(corpus):
    later = replace(corpus, phase=np.array([1, 0], np.int32))
    plan = plan_pass(later, 64, seed=0, number=0)
    source = later.source[plan.document]
    assert all(np.diff((source == 0).astype(int)) >= 0) and 0 < source.mean() < 1


def test_parts_cut_a_batch_between_pieces(corpus):
    batch = Batches(corpus, 64, 8, seed=0).batch(0)
    parts = batch.parts(128)
    assert len(parts) > 2
    for field in ("inputs", "targets", "lengths", "documents"):
        assert np.concatenate([getattr(p, field) for p in parts]).tolist() == getattr(batch, field).tolist()
    assert all(len(p.inputs) == p.lengths.sum() < 128 + 64 for p in parts)
    assert len(batch.parts(10**6)) == 1


def test_report_counts_the_pass(corpus):
    report = Batches(corpus, 64, 8, seed=0).plan_report()
    assert report["tokens"] == (corpus.length * corpus.copies).sum() == sum(
        source["pass_tokens"] for source in corpus.report().values()
    )
    assert report["documents_split"] == (corpus.length > 64).sum() and report["documents_truncated"] == 0
    assert 0.9 < report["fill"] <= 1
    assert Counter(corpus.source.tolist()) == {0: 60, 1: 200}
