"""Reweighing: planted corners by hand, planted groups and copied keys with small models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_copying
import toy_groups
from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toy_batches import make_batch

from trainers.data import Batch
from trainers.model import load_model
from trainers.reweigh import QTuning, SSToken
from trainers.token_scores import Answers, Step, losses_and_attention, losses_and_entropies, piece_keys
from transforms import quadrants
from transforms.quadrants import sample_stage

LOSS = {"noise": 4.0, "mistake": 4.0, "known": 0.2, "hesitant": 0.2}
ENTROPY = {"noise": 3.0, "mistake": 0.3, "known": 0.3, "hesitant": 3.0}


def planted(names: list[str]) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Pieces of twelve targets, all trained but two, at the losses and entropies of their corners."""
    batch = make_batch([12] * len(names))
    weights = np.tile(np.array([0, 0] + [1] * 10, np.float32), len(names))
    jitter = np.random.default_rng(1).uniform(-0.05, 0.05, len(weights))
    loss, entropy = (np.repeat([of[n] for n in names], 12) + jitter for of in (LOSS, ENTROPY))
    return replace(batch, weights=weights), loss, entropy


def test_four_samples_one_of_each_corner() -> None:
    batch, loss, entropy = planted(["noise", "mistake", "known", "hesitant"])
    loss[12 + 5 : 12 + 8] = 7.0  # three corrupted tokens in a row inside the mistake
    loss[12 + 2 : 12 + 5] = loss[12 + 8 : 24] = 3.0
    new = QTuning(samples=0.5, tokens=0.7).decide(batch, loss, entropy).reshape(4, 12)
    assert not new[0].any() and not new[2].any(), "noise and what is known go"
    assert new[3].tolist() == [0, 0] + [1] * 10, "hesitant ones stay whole"
    assert np.flatnonzero(new[1]).tolist() == [2, 3, 4, 8, 9, 10, 11], "without the three and the prompt"
    high = QTuning(samples=0.5, tokens=0.3, keep="high").decide(batch, loss, entropy).reshape(4, 12)
    assert np.flatnonzero(high[1]).tolist() == [5, 6, 7] and np.array_equal(high[3], new[3])


def test_samples_that_fill_up_are_kept_whole() -> None:
    batch, loss, entropy = planted(["noise"] * 4 + ["known"] * 4)
    new = QTuning(samples=0.5, tokens=0.5).decide(batch, loss, entropy).reshape(8, 12)
    stage = sample_stage(*(Answers.of(batch).means(x) for x in (loss, entropy)), 0.5, piece_keys(batch))
    assert stage.filled.sum() > 0 and (new.any(1) == stage.keep).all()
    assert (new[stage.filled, 2:] == 1).all()


def test_weights_stay_what_they_were_where_kept() -> None:
    batch, loss, entropy = planted(["mistake", "hesitant", "known", "noise"])
    batch.weights[:] *= 0.25
    new = QTuning(samples=0.5).decide(batch, loss, entropy)
    assert set(new.tolist()) == {0.0, 0.25} and (new[batch.weights == 0] == 0).all()
    assert (new[:12] > 0).sum() == 5 and (new[12:24] > 0).sum() == 10


def test_the_order_of_pieces_and_ties_do_not_matter() -> None:
    batch, loss, entropy = planted(["known", "noise"] * 20)
    loss, entropy = np.round(loss), np.round(entropy)  # ties everywhere
    new = QTuning(samples=0.2).decide(batch, loss, entropy).reshape(-1, 12)
    assert (new.any(1)).sum() == 8
    order = np.random.default_rng(2).permutation(40)
    places = (order[:, None] * 12 + np.arange(12)).ravel()
    again = QTuning(samples=0.2).decide(batch.pieces(order), loss[places], entropy[places])
    assert np.array_equal(again.reshape(-1, 12), new[order])


def test_pieces_without_answers_stay_out() -> None:
    batch = make_batch([30, 12, 12, 9])
    draw = np.random.default_rng(3)
    loss, entropy = draw.uniform(0, 3, (2, len(batch.targets)))
    new = QTuning(samples=1.0, tokens=1.0).decide(batch, loss, entropy)
    assert np.array_equal(new, batch.weights)
    assert len(replace(batch, weights=new).trained().lengths) == 3
    everything = QTuning(samples=1.0, tokens=1.0).decide(replace(batch, weights=None), loss, entropy)
    assert (everything == 1).all()


@pytest.fixture(scope="module")
def tuned():
    facts = toy_groups.Facts.make(0)
    model = toy_groups.base_model(facts, 0)
    return model, *facts.tuning(np.random.default_rng(100), 256)


def test_q_tuning_finds_planted_groups_and_corrupted_tokens(tuned) -> None:
    model, batch, kind, corrupt = tuned
    loss, entropy = losses_and_entropies(model, batch, Step())
    answers = Answers.of(batch)
    stage = sample_stage(answers.means(loss), answers.means(entropy), 0.5, piece_keys(batch))
    corner = {toy_groups.MISTAKE: quadrants.MISTAKE, toy_groups.HESITANT: quadrants.HESITANT}
    for group, own in corner.items():
        inside = stage.quadrant == own
        assert (kind[inside] == group).mean() > 0.8 and inside[kind == group].mean() > 0.6
    assert not stage.keep[kind == toy_groups.KNOWN].any()
    new = QTuning(samples=0.5, tokens=0.75).weights(model, batch, Step())
    mistakes = np.repeat(stage.quadrant == quadrants.MISTAKE, batch.lengths) & (batch.weights > 0)
    pruned = mistakes & (new == 0)
    assert (pruned[mistakes]).mean() == pytest.approx(0.25)
    precision, recall = corrupt[pruned].mean(), pruned[corrupt & mistakes].mean()
    assert precision > 0.5 and recall > 0.5, "by chance both are 0.25"


def test_decisions_do_not_depend_on_parts(tuned) -> None:
    model, batch, _, _ = tuned
    whole = QTuning(samples=0.5).weights(model, batch, Step())
    assert np.array_equal(QTuning(samples=0.5).weights(model, batch, Step(part_tokens=500)), whole)


def auroc(high: np.ndarray, low: np.ndarray) -> float:
    return float((high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean())


@pytest.fixture(scope="module")
def copying(tmp_path_factory) -> tuple[Path, object, Batch, np.ndarray]:
    before, after = toy_copying.before_and_after(0)
    folder = tmp_path_factory.mktemp("history") / "model"
    before.save_pretrained(folder)
    words = {str(token): token for token in range(before.config.vocab_size)}
    Tokenizer(WordLevel(words, unk_token="0")).save(str(folder / "tokenizer.json"))
    return folder, after, toy_copying.samples(np.random.default_rng(50), 100), toy_copying.kinds(100)


def test_sstoken_prefers_copied_keys_to_filler_and_filler_to_noise(copying) -> None:
    folder, model, batch, kind = copying
    rule = SSToken(history=folder)
    kept = {}
    for share in np.linspace(0.05, 1, 20):
        new = rule.model_copy(update={"tokens": float(share)}).weights(model, batch, Step(tokens=1))
        kept[share] = new > 0
    rank = sum(k.astype(int) for k in kept.values())  # in how many of the shares a token is
    key, filler, noise = (rank[kind == k] for k in (toy_copying.KEY, toy_copying.FILLER, toy_copying.NOISE))
    assert auroc(key, filler) > 0.9 and auroc(filler, noise) > 0.7 and auroc(key, noise) > 0.95
    third = kept[min(kept, key=lambda s: abs(s - 0.3))]
    assert third[kind == toy_copying.KEY].mean() > 0.7 and third[kind == toy_copying.NOISE].mean() < 0.15


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 1.0])
def test_sstoken_keeps_an_exact_count_of_each_sample(share: float) -> None:
    batch = make_batch([41, 30, 12, 9])
    draw = np.random.default_rng(4)
    rule = SSToken.model_construct(tokens=share, gamma=0.5, warmup=0.0)
    new = rule.decide(batch, *draw.uniform(0, 1, (3, len(batch.targets))), progress=1.0)
    for old, kept in zip(*(np.split(w, np.cumsum(batch.lengths)[:-1]) for w in (batch.weights, new)), strict=True):
        assert (kept > 0).sum() == math.ceil(round(share * (old > 0).sum(), 9))
        assert not kept[old == 0].any()


def test_sstoken_starts_with_attention_alone_if_told_so(copying) -> None:
    folder, model, batch, _ = copying
    warm = SSToken(history=folder, warmup=0.1)
    attention = SSToken(history=folder, gamma=0.0).weights(model, batch, Step())
    both = SSToken(history=folder).weights(model, batch, Step())
    assert np.array_equal(warm.weights(model, batch, Step(tokens=9, budget=100)), attention)
    assert np.array_equal(warm.weights(model, batch, Step(tokens=10, budget=100)), both)
    assert not np.array_equal(attention, both)


def test_sstoken_at_gamma_one_follows_progress(copying) -> None:
    """The sign: what the model has learned since the history goes in, what it was better at then goes out."""
    folder, model, batch, _ = copying
    then, _ = losses_and_entropies(load_model(folder), batch, Step())
    now, _ = losses_and_attention(model, batch, Step())
    kept = SSToken(history=folder, gamma=1.0, tokens=0.25).weights(model, batch, Step()) > 0
    own = (batch.weights > 0).reshape(100, -1)
    progress = np.where(own, (then - now).reshape(100, -1), -np.inf)
    worst_kept = np.where(kept.reshape(100, -1), progress, np.inf).min(1)
    best_left = np.where(kept.reshape(100, -1) | ~own, -np.inf, progress).max(1)
    assert (worst_kept >= best_left).all() and (worst_kept > 1).all()


def test_parameters_are_checked(tmp_path) -> None:
    for wrong in ({"samples": 0}, {"tokens": 1.5}, {"smoothing": -1}, {"keep": "some"}, {"window": 2}):
        with pytest.raises(ValidationError):
            QTuning(**wrong)
    with pytest.raises(ValidationError, match=r"config\.json"):
        SSToken(history=tmp_path)
