"""Rules of token pruning against obvious references, sample by sample."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.token_pruning import (
    answer_inputs,
    build_tries,
    keep_share,
    key_tokens,
    key_weights,
    self_modulated,
    smoothed_perplexity,
)


def flat(samples: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, samples)])
    return np.array([x for sample in samples for x in sample], float), offsets


samples = st.lists(st.lists(st.integers(0, 4).map(float), max_size=9), max_size=6)


@given(samples, st.integers(0, 100), st.sampled_from(["low", "high"]))
def test_the_share_kept_is_exact_and_ties_go_to_the_earlier_token(values, percent, keep) -> None:
    scores, offsets = flat(values)
    expected = []
    for sample in values:
        signed = [x if keep == "low" else -x for x in sample]
        order = sorted(range(len(sample)), key=lambda i: (signed[i], i))
        wanted = order[: math.ceil(Fraction(percent, 100) * len(sample))]
        expected += [i in wanted for i in range(len(sample))]
    assert keep_share(scores, offsets, percent / 100, keep).tolist() == expected


def test_shares_are_checked() -> None:
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share of"):
            keep_share(np.ones(3), np.array([0, 3]), share, "low")


@given(samples, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_smoothing_equals_the_formula(values, smoothing) -> None:
    loss, offsets = flat(values)
    expected = []
    for sample in values:
        p = [math.exp(x) for x in sample]
        for i in range(len(p)):
            before, after = p[max(i - 1, 0)], p[min(i + 1, len(p) - 1)]
            neighbours = (before if i > 0 else p[i]) + (after if i + 1 < len(p) else p[i])
            expected.append((1 - smoothing) * p[i] + smoothing * neighbours)
    assert np.allclose(smoothed_perplexity(loss, offsets, smoothing), expected)


def test_smoothing_keeps_a_spike_and_drops_a_run_of_spikes() -> None:
    """Two tokens alone are as perplexing as three in a row are, or a little more; the run goes first."""
    loss = np.full(20, 0.1)
    loss[[3, 7]] = 2.05
    loss[[12, 13, 14]] = 2.0
    offsets = np.array([0, 20])
    plain = keep_share(smoothed_perplexity(loss, offsets, 0.0), offsets, 0.85, "low")
    assert np.flatnonzero(~plain).tolist() == [3, 7, 14], "without neighbours the highest go"
    smooth = keep_share(smoothed_perplexity(loss, offsets, 0.5), offsets, 0.85, "low")
    assert np.flatnonzero(~smooth).tolist() == [12, 13, 14]
    reverse = keep_share(smoothed_perplexity(loss, offsets, 0.5), offsets, 0.15, "high")
    assert np.array_equal(reverse, ~smooth)


def test_losses_that_overflow_are_the_highest() -> None:
    found = smoothed_perplexity(np.array([np.inf, 1.0, 2e4]), np.array([0, 3]), 0.5)
    assert np.isfinite(found).all() and found[0] > 1e300 and found[2] > 1e300


def test_progress_is_history_minus_current() -> None:
    """The token whose loss fell scores highest, the one whose loss rose lowest; samples are scaled by themselves."""
    history = np.array([3.0, 3.0, 3.0, 30.0, 3.0])
    current = np.array([1.0, 3.0, 5.0, 1.0, 2.0])
    found = self_modulated(history, current, np.zeros(5), np.array([0, 3, 5]), 1.0)
    assert np.allclose(found, [1.0, 0.5, 0.0, 1.0, 0.0], atol=1e-6)


def test_gamma_at_its_ends_is_progress_or_attention_alone() -> None:
    draw = np.random.default_rng(0)
    history, current, attention = draw.uniform(0, 5, (3, 40))
    offsets = np.array([0, 15, 15, 40])
    for a, b in ((0, 15), (15, 40)):
        progress = self_modulated(history, current, attention, offsets, 1.0)[a:b]
        assert np.array_equal(np.argsort(progress), np.argsort((history - current)[a:b]))
    assert np.array_equal(self_modulated(history, current, attention, offsets, 0.0), attention)
    same = self_modulated(current, current, attention, offsets, 0.5)
    assert np.array_equal(same, 0.5 * attention), "no progress yet: attention decides"


def test_answers_are_inputs_one_place_after_their_targets() -> None:
    trained = np.array([0, 0, 1, 1, 0, 1, 1, 1], bool)
    found = answer_inputs(trained, np.array([0, 5, 5, 8]))
    assert found.tolist() == [False, False, False, True, True, False, True, True]


# Tokens: 1 get, 2 _, 3 user, 4 usage, 5 name, 6 set, 7 (, 8 prose, 9 users
INSIDE = np.array([0, 3, 3, 3, 3, 3, 3, 0, 0, 3], np.uint8)
NAMES = [[1, 2, 3], [1, 2, 4], [1, 2, 3, 2, 5], [6, 2, 3]]  # get_user, get_usage, get_user_name, set_user


def marked(text: list[int], lists: list[list[list[int]]] | None = None) -> list[int]:
    tries = build_tries([NAMES] if lists is None else lists)
    found = key_tokens(np.array(text), np.array([0, len(text)]), np.zeros(1, np.int64), tries, INSIDE)
    return np.flatnonzero(found).tolist()


def test_key_tokens_are_where_the_trie_branches() -> None:
    assert marked([8, 1, 2, 3, 7, 8]) == [1, 3, 4], "first, user or usage, and whether the name goes on"
    assert marked([8, 1, 2, 4, 7, 8]) == [1, 3]
    assert marked([8, 1, 2, 3, 2, 5, 7]) == [1, 3, 4], "the longer name branches off after get_user"
    assert marked([6, 2, 3, 7]) == [0], "nothing else begins with set"
    assert marked([1, 2, 3]) == [0, 2], "a name at the end of a sample"
    assert marked([1, 2, 3, 7, 6, 2, 3, 7]) == [0, 2, 3, 4]


def test_names_inside_other_words_do_not_count() -> None:
    assert marked([1, 2, 9, 7]) == [] and marked([1, 2, 3, 3, 7]) == [] and marked([3, 1, 2, 3, 7]) == []
    assert marked([1, 2, 7, 8]) == [], "a name that was begun is none"


def test_samples_choose_from_their_own_lists_and_end_where_they_end() -> None:
    tries = build_tries([NAMES, [[6, 2, 3]], []])
    text = np.array([1, 2, 3, 6, 2, 3, 6, 2, 3, 6, 2, 3, 6, 2])
    offsets = np.array([0, 3, 6, 9, 12, 14])
    found = key_tokens(text, offsets, np.array([0, 1, 2, -1, 1]), tries, INSIDE)
    assert np.flatnonzero(found).tolist() == [0, 2, 3]


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=5), st.data())
def test_a_name_alone_is_marked_where_the_definition_says(names, data) -> None:
    """Key: the first token, and the one after each shared beginning of length m > 0."""
    gold = data.draw(st.sampled_from(names))
    text = [*gold, 7]
    expected = {0}
    for other in names:
        m = next((i for i, (a, b) in enumerate(zip(gold, other, strict=False)) if a != b), min(len(gold), len(other)))
        if m > 0 and other != gold:
            expected.add(m)
    assert marked(text, [names]) == sorted(expected)


def test_key_weights() -> None:
    key = np.zeros(60, bool)
    key[[0, 10, 11, 30, 31, 32, 33, 34]] = True
    #  one of ten; two of twenty; five of eight; none of twenty-two
    found = key_weights(key, np.array([0, 10, 30, 38, 60]))
    assert found[0] == 9.0 and found[10] == found[11] == 9.0
    assert set(found[30:].tolist()) == {1.0} and set(found[~key].tolist()) == {1.0}
    assert key_weights(np.array([True, False, False, False]), np.array([0, 4])).tolist() == [3, 1, 1, 1]
    assert key_weights(np.eye(1, 50, dtype=bool)[0], np.array([0, 50])).max() == 9, "at most 9"
    assert key_weights(np.eye(1, 50, dtype=bool)[0], np.array([0, 50]), most=4).max() == 4
