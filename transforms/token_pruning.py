"""Which tokens of a sample to learn and how much each counts: rules over flat arrays, one entry per trained token.

Sample i holds the entries `offsets[i]:offsets[i + 1]`. No rule looks beyond a sample, so results do not depend on what
lies beside it. Ties go to the earlier token. Cost: a sort of the tokens; `key_tokens` walks a trie, at most the length
of the longest name per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit

HIGHEST = 700.0  # nats; exp of more does not fit a float64


def keep_share(scores: np.ndarray, offsets: np.ndarray, share: float, keep: Literal["low", "high"]) -> np.ndarray:
    """bool [tokens]: the ceil(share · n) tokens of each sample of n with the lowest, or the highest, scores.

    Raises ValueError for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} tokens to keep; give a number from 0 to 1")
    count = np.diff(offsets)
    sample = np.repeat(np.arange(len(count)), count)
    order = np.lexsort((scores if keep == "low" else -scores, sample))  # stable: the earlier of equal ones first
    rank = np.arange(len(scores)) - np.repeat(offsets[:-1], count)
    wanted = np.ceil(np.round(share * count, 9))  # 0.07 · 100 is a little more than 7
    kept = np.zeros(len(scores), bool)
    kept[order] = rank < np.repeat(wanted, count)
    return kept


def smoothed_perplexity(loss: np.ndarray, offsets: np.ndarray, smoothing: float) -> np.ndarray:
    """float64 [tokens]: s_i = (1 - λ) PPL_i + λ (PPL_{i-1} + PPL_{i+1}) with PPL = exp(loss) (arXiv 2509.23873, eq. of
    stage 2). `loss` in nats, λ = `smoothing`. A neighbour that the sample does not have counts as the token itself.
    """
    perplexity = np.exp(np.minimum(loss.astype(np.float64), HIGHEST))
    before, after = np.roll(perplexity, 1), np.roll(perplexity, -1)
    some = np.diff(offsets) > 0
    first, last = offsets[:-1][some], offsets[1:][some] - 1
    before[first], after[last] = perplexity[first], perplexity[last]
    return (1 - smoothing) * perplexity + smoothing * (before + after)


def self_modulated(
    history: np.ndarray, current: np.ndarray, attention: np.ndarray, offsets: np.ndarray, gamma: float
) -> np.ndarray:
    """float64 [tokens]: γ · minmax(history - current) + (1 - γ) · attention, the score of ssToken (arXiv 2510.18250).

    history, current: losses in nats under an older model and this one; the difference is above 0 where this one has
    improved. It is scaled to 0..1 within each sample. attention: share of it that goes to the prompt, 0..1.
    """
    gain = history.astype(np.float64) - current
    count = np.diff(offsets)
    some = offsets[:-1][count > 0]
    if not len(some):
        return gain
    least = np.repeat(np.minimum.reduceat(gain, some), count[count > 0])
    most = np.repeat(np.maximum.reduceat(gain, some), count[count > 0])
    return gamma * (gain - least) / (most - least + 1e-8) + (1 - gamma) * attention


def answer_inputs(trained: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool [inputs]: whether an input is part of an answer, that is, was a trained target one place before.

    trained: bool [targets], target i follows input i. The first input of a sample counts as its prompt.
    """
    answer = np.roll(trained, 1)
    answer[offsets[:-1][np.diff(offsets) > 0]] = False
    return answer


@dataclass(frozen=True)
class Tries:
    """Tries over token ids, one per list of names. Node n has the edges `edges[n]:edges[n + 1]`."""

    root: np.ndarray  # int64 [lists]
    edges: np.ndarray  # int64 [nodes + 1]
    token: np.ndarray  # int64 [edges], rising within a node
    child: np.ndarray  # int64 [edges]
    ends: np.ndarray  # bool [nodes], a name ends here


def build_tries(lists: Sequence[Sequence[Sequence[int]]]) -> Tries:
    """lists: token ids of the names of each list; a name may come in several spellings (with a space before it, …)."""
    nodes: list[dict[int, int]] = []
    ends: list[bool] = []
    roots = []

    def add() -> int:
        nodes.append({})
        ends.append(False)
        return len(nodes) - 1

    for names in lists:
        roots.append(add())
        for name in names:
            node = roots[-1]
            for token in name:
                if token not in nodes[node]:
                    nodes[node][token] = add()
                node = nodes[node][token]
            ends[node] = ends[node] or len(name) > 0
    edges = np.cumsum([0, *map(len, nodes)])
    flat = [edge for node in nodes for edge in sorted(node.items())]
    pairs = np.array(flat, np.int64).reshape(-1, 2)
    return Tries(np.array(roots, np.int64), edges, pairs[:, 0].copy(), pairs[:, 1].copy(), np.array(ends, bool))


def key_tokens(
    tokens: np.ndarray, offsets: np.ndarray, lists: np.ndarray, tries: Tries, inside: np.ndarray
) -> np.ndarray:
    """bool [tokens]: the tokens at which a name is decided among the names of its list (TL-Training, arXiv 2412.15495).

    Of every name that stands in a sample these are its first token, each token before which the names go apart, and
    the token after it where a longer name begins with it.

    Args:
        tokens: int [tokens].
        lists: int64 [samples], which list of `tries` a sample chooses from; -1 for none.
        inside: uint8 [vocabulary], bit 1: the token starts like the inside of a word, bit 2: it ends like one. Names
            stand between tokens that do not touch them so.
    """
    found = np.zeros(len(tokens), np.bool_)
    arrays = (tries.root, tries.edges, tries.token, tries.child, tries.ends)
    _mark_names(tokens, offsets, lists, *arrays, inside, found)
    return found


@njit(cache=True, nogil=True)
def _mark_names(tokens, offsets, lists, root, edges, edge_token, child, ends, inside, found):  # type: ignore[no-untyped-def]
    for sample in range(len(offsets) - 1):
        stop = offsets[sample + 1]
        for start in range(offsets[sample], stop if lists[sample] >= 0 else offsets[sample]):
            if start > offsets[sample] and inside[tokens[start - 1]] & 2 and inside[tokens[start]] & 1:
                continue
            node, at, end = root[lists[sample]], start, start
            while at < stop:  # the longest name that ends where a word does
                edge = edges[node] + np.searchsorted(edge_token[edges[node] : edges[node + 1]], tokens[at])
                if edge == edges[node + 1] or edge_token[edge] != tokens[at]:
                    break
                node, at = child[edge], at + 1
                free = at == stop or not (inside[tokens[at - 1]] & 2 and inside[tokens[at]] & 1)
                if ends[node] and free:
                    end = at
            node = root[lists[sample]]
            for place in range(start, min(end + 1, stop) if end > start else start):
                choices = edges[node + 1] - edges[node] + (ends[node] and place < end)
                if place == start or choices > 1 or (place == end and choices > 0):
                    found[place] = True
                if place < end:
                    node = child[
                        edges[node] + np.searchsorted(edge_token[edges[node] : edges[node + 1]], tokens[place])
                    ]


def key_weights(key: np.ndarray, offsets: np.ndarray, most: float = 9.0) -> np.ndarray:
    """float32 [tokens]: weight min(others / keys, most) for the key tokens of a sample that are fewer than its others,
    1 for all else (arXiv 2412.15495). key: bool [tokens]."""
    count = np.diff(offsets)
    before = np.concatenate([[0], np.cumsum(key)])
    keys = before[offsets[1:]] - before[offsets[:-1]]
    weight = np.where((keys > 0) & (keys < count - keys), np.minimum((count - keys) / np.maximum(keys, 1), most), 1.0)
    return np.where(key, np.repeat(weight, count), 1.0).astype(np.float32)
