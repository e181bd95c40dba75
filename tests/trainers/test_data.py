import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise

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
    even = replace(corpus, phases=[replace(corpus.phases[0], copies=np.full(len(corpus), 4))])
    plan = plan_pass(even, 64, seed=0, number=0)
    quarters = np.array_split(plan.document, 4)
    for quarter in quarters:  # a copy of nearly every document in each quarter of the pass
        assert len(set(quarter.tolist())) > 0.85 * len(corpus)
    share = [np.mean(even.source[quarter] == 0) for quarter in quarters]
    assert max(share) - min(share) < 0.06


def test_phases_of_sources_follow_each_other(toy, tmp_path):
    """In a manifest without `phases`, where sources have numbers."""
    manifest = json.loads((toy / "mixture" / "manifest.json").read_text())
    manifest["sources"]["small"]["phase"] = 1
    folder = shutil.copytree(toy / "mixture", toy / "mixture-later")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    later = open_mixture(folder, tmp_path)
    plan = plan_pass(later, 64, seed=0, number=0)
    source = later.source[plan.document]
    assert all(np.diff((source == 0).astype(int)) >= 0) and 0 < source.mean() < 1
    assert plan.phases.tolist()[0] == 0 < plan.phases[1] < plan.phases[2] == plan.rows


PHASES = [{"small": 1000, "large": 5001}, {"large": 333}, {"small": 4444, "large": 2222}]


def phased(folder, phases, into):
    """A copy of a mixture with these phases."""
    made = shutil.copytree(folder, into)
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["phases"] = [{"sources": {name: {"asked": n} for name, n in phase.items()}} for phase in phases]
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


@pytest.fixture(scope="module")
def in_phases(toy, tmp_path_factory):
    made = phased(toy / "mixture", PHASES, toy / "mixture-phases")
    return open_mixture(made, tmp_path_factory.mktemp("cache"))


def read(corpus, batches):
    """Tokens by source in batches."""
    counts = np.zeros(len(corpus.sources), int)
    for batch in batches:
        np.add.at(counts, corpus.source[batch.documents], batch.lengths)
    return counts


@pytest.mark.parametrize("row_length", [2, 7, 64, 100_000])
def test_borders_of_phases_are_exact(in_phases, row_length):
    plan = plan_pass(in_phases, row_length, seed=2, number=1)
    single = Batches(in_phases, row_length, 1, seed=2)
    skipped = plan_pass(in_phases, row_length, seed=2, number=0).rows
    assert plan.phases[-1] == plan.rows
    for (first, last), asked in zip(pairwise(plan.phases.tolist()), PHASES, strict=True):
        found = read(in_phases, (single.batch(skipped + row) for row in range(first, last)))
        assert dict(zip(in_phases.sources, found.tolist(), strict=True)) == {"small": 0, "large": 0, **asked}
    assert plan.length.sum() == sum(sum(phase.values()) for phase in PHASES)


@pytest.mark.parametrize("rows", [1, 5, 64, 10_000])
def test_a_run_reads_what_it_says_it_will(in_phases, rows):
    total = sum(sum(phase.values()) for phase in PHASES)
    for budget in (1, 6001, 6002, total, total + 1, round(2.6 * total)):
        batches = Batches(in_phases, 64, rows, seed=0)
        told = batches.realised(budget)
        made, tokens, step = [], 0, 0
        while tokens < budget:
            made.append(batches.batch(step, budget - tokens))
            tokens, step = tokens + len(made[-1].targets), step + 1
        assert sum(phase["tokens"] for phase in told) == tokens == budget
        by_source = [sum(p["sources"].get(name, {"tokens": 0})["tokens"] for p in told) for name in in_phases.sources]
        assert by_source == read(in_phases, made).tolist()
        if budget == 6001:
            assert [phase["tokens"] for phase in told] == [6001, 0, 0], "the first phase, to the token"


def test_a_phase_continues_where_the_one_before_stopped(in_phases):
    first, last = (in_phases.phases[k].copies > 0 for k in (0, 2))
    large = in_phases.source == 1
    assert in_phases.length[large].sum() > 5001 + 333 + 2222 + 2 * in_phases.length.max()
    assert not (first & last & large).any(), "nothing repeats while there is more"
    assert np.ptp(in_phases.copies[~large]) == 1, "nobody comes a third time before all have come twice"


def test_phases_do_not_depend_on_files_and_go_on_in_the_middle(toy, tmp_path):
    generator = np.random.default_rng(6)
    texts = {"a": toy_text(generator, 40), "b": toy_text(generator, 40)}
    tokenizer = make_tokenizer(tmp_path / "tokenizer", texts["a"])
    asked = [{"a": 900, "b": 500}, {"a": 1500, "b": 100}]
    one = phased(make_mixture(tmp_path / "one", texts, tokenizer), asked, tmp_path / "one-phases")
    turned = {"b": texts["b"], "a": texts["a"]}
    many = phased(make_mixture(tmp_path / "many", turned, tokenizer, files=4), asked, tmp_path / "many-phases")
    forward = Batches(open_mixture(one, tmp_path / "c"), 32, 3, seed=0)
    made = [forward.batch(step) for step in range(60)]
    for step in (25, 59, 0, 16, 17):  # a process that goes on from any step reads the same
        again = Batches(open_mixture(many, tmp_path / "c"), 32, 3, seed=0).batch(step)
        assert again.inputs.tolist() == made[step].inputs.tolist()
        assert again.lengths.tolist() == made[step].lengths.tolist()


def test_report_of_phases(in_phases):
    report = Batches(in_phases, 64, 8, seed=0).plan_report()
    assert [phase["tokens"] for phase in report["phases"]] == [6001, 333, 6666]
    for phase, asked in zip(report["phases"], PHASES, strict=True):
        assert phase["asked"] == sum(asked.values())
        for name, tokens in asked.items():
            entry = phase["sources"][name]
            assert entry["asked"] == entry["tokens"] == tokens and 0 <= entry["cut_off"] < in_phases.length.max()
    assert report["tokens"] == sum(source["pass_tokens"] for source in in_phases.report().values())
    assert report["documents_truncated"] == sum(len(phase.cut) for phase in in_phases.phases) > 0


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
    assert (
        report["tokens"]
        == (corpus.length * corpus.copies).sum()
        == sum(source["pass_tokens"] for source in corpus.report().values())
    )
    assert report["documents_split"] == (corpus.length > 64).sum() and report["documents_truncated"] == 0
    assert 0.9 < report["fill"] <= 1
    assert Counter(corpus.source.tolist()) == {0: 60, 1: 200}
