"""Masked thought hides answers among the inputs and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_batches import make_batch

from trainers.masked_thought import MaskedThought
from trainers.token_scores import Step
from trainers.tokenise import load_tokenizer

MASK = 999  # no token of the batches
BATCH = make_batch([2000, 1500, 700, 31, 31, 1, 12])
END = Step(step=90, tokens=90, budget=100)


def answers(batch) -> np.ndarray:
    """The obvious reference: inputs that were trained targets one place before, in the same piece."""
    found, at = [], 0
    for length in batch.lengths:
        found += [i > 0 and batch.weights[at + i - 1] > 0 for i in range(length)]
        at += length
    return np.array(found)


def hidden(batch, step=END, **settings) -> np.ndarray:
    return MaskedThought(**settings).corrupt(batch, step, MASK).inputs == MASK


def test_labels_and_prompts_are_untouched() -> None:
    found = MaskedThought(probability=0.5).corrupt(BATCH, END, MASK)
    assert found.targets is BATCH.targets and found.weights is BATCH.weights and found.lengths is BATCH.lengths
    changed = found.inputs != BATCH.inputs
    assert (found.inputs[changed] == MASK).all() and changed.any()
    assert not changed[~answers(BATCH)].any()
    whole = MaskedThought(probability=1).corrupt(BATCH, END, MASK)
    assert np.array_equal(whole.inputs == MASK, answers(BATCH))
    assert not hidden(BATCH, probability=0).any()


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9])
def test_the_rate_is_that_asked_for(probability: float) -> None:
    batch = make_batch([20_000, 10_000, 10])
    n = answers(batch).sum()
    sigma = math.sqrt(probability * (1 - probability) / n)
    for step in range(90, 100):
        rate = hidden(batch, replace(END, step=step), probability=probability).sum() / n
        assert abs(rate - probability) < 4 * sigma


def test_the_probability_rises_to_its_value() -> None:
    given = MaskedThought(probability=0.4, warmup=0.5)
    assert [given.probability_at(x) for x in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)] == [0, 0.1, 0.2, 0.4, 0.4, 0.4]
    assert MaskedThought(probability=0.4, warmup=0).probability_at(0.0) == 0.4
    assert MaskedThought().probability_at(1 / 3) == pytest.approx(0.2)
    assert not hidden(BATCH, Step(tokens=0, budget=100)).any()
    rates = [hidden(BATCH, Step(tokens=t, budget=100)).sum() for t in (10, 30, 60, 99)]
    assert rates == sorted(rates) and rates[0] > 0


def test_draws_depend_on_seed_step_and_piece_alone() -> None:
    first = hidden(BATCH)
    assert np.array_equal(first, hidden(BATCH)), "a resumed run hides the same"
    assert (first != hidden(BATCH, replace(END, step=91))).any() and (
        first != hidden(BATCH, replace(END, seed=1))
    ).any()
    edges = np.cumsum([0, *BATCH.lengths])
    order = np.array([4, 1, 6, 2])
    alone = hidden(BATCH.pieces(order))
    assert np.array_equal(alone, np.concatenate([first[edges[i] : edges[i + 1]] for i in order]))
    longest = first[:2000].reshape(-1, 10)[:, 6:]
    assert len(np.unique(longest, axis=0)) > 10, "places of a piece are drawn one by one"


def test_without_weights_every_token_is_an_answer() -> None:
    found = hidden(replace(BATCH, weights=None), probability=1)
    assert np.array_equal(np.flatnonzero(~found), np.cumsum(BATCH.lengths) - BATCH.lengths)


def test_the_token_is_one_of_the_tokenizer(toy) -> None:
    tokenizer, end = load_tokenizer(toy / "tokenizer")
    assert MaskedThought().mask_id(toy / "tokenizer") == end
    assert MaskedThought(token="a").mask_id(toy / "tokenizer") == tokenizer.token_to_id("a")
    with pytest.raises(ValueError, match="no token '<mask>'"):
        MaskedThought(token="<mask>").mask_id(toy / "tokenizer")
