"""components: both ways equal scipy's on graphs of every awkward shape; survivors follow the rule, never the order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components

from transforms import components
from transforms.components import (
    cluster_sizes,
    connected_components,
    edges_digest,
    edges_from_bands,
    label_edges,
    large_star,
    mirror,
    orient,
    small_star,
    star_rounds,
    survivors,
    union,
)


def reference(u: np.ndarray, v: np.ndarray, nodes: int) -> np.ndarray:
    _, component = scipy_components(coo_array((np.ones(len(u), np.int8), (u, v)), shape=(nodes, nodes)), directed=False)
    smallest = np.full(nodes, nodes)
    np.minimum.at(smallest, component, np.arange(nodes))
    return smallest[component]


def by_rounds(u: np.ndarray, v: np.ndarray, nodes: int) -> np.ndarray:
    labels = np.arange(nodes)
    node, smallest = star_rounds(u, v)
    assert len(np.unique(node)) == len(node)
    labels[node] = smallest
    return labels


def random_graph(nodes: int, edges: int) -> tuple[np.ndarray, np.ndarray, int]:
    random = np.random.default_rng(edges)
    return random.integers(0, nodes, edges), random.integers(0, nodes, edges), nodes


def path(nodes: int, shuffled: bool) -> tuple[np.ndarray, np.ndarray, int]:
    place = np.random.default_rng(0).permutation(nodes) if shuffled else np.arange(nodes)
    return place[:-1], place[1:], nodes


def star(nodes: int, centre: int) -> tuple[np.ndarray, np.ndarray, int]:
    return np.full(nodes, centre), np.arange(nodes), nodes


GRAPHS = {
    "sparse": random_graph(2_000_000, 1_000_000),
    "dense": random_graph(300_000, 1_000_000),
    "path": path(100_000, False),
    "path backwards": tuple(path(100_000, False)[i] for i in (1, 0, 2)),
    "path shuffled": path(100_000, True),
    "star": star(100_000, 0),
    "star with the largest in the middle": star(100_000, 99_999),
    "no edges": (np.empty(0, np.int64), np.empty(0, np.int64), 3),
    "loops": (np.array([1, 1]), np.array([1, 1]), 2),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_both_ways_equal_scipy(name: str) -> None:
    u, v, nodes = GRAPHS[name]
    expected = reference(u, v, nodes)
    np.testing.assert_array_equal(connected_components(u, v, nodes), expected)
    np.testing.assert_array_equal(by_rounds(u, v, nodes), expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12))))
def test_small_graphs(edges: list[tuple[int, int]]) -> None:
    u, v = np.array(edges, np.int64).reshape(-1, 2).T
    expected = reference(u, v, 13)
    np.testing.assert_array_equal(connected_components(u, v, 13), expected)
    np.testing.assert_array_equal(by_rounds(u, v, 13), expected)


def test_rounds_in_partitions_equal_one_block() -> None:
    """Every step cut by key into five partitions, as a shuffle would."""
    u, v, nodes = random_graph(3000, 3000)

    def shuffled(step, key, other):  # type: ignore[no-untyped-def]
        parts = [step(key[key % 5 == part], other[key % 5 == part]) for part in range(5)]
        return [np.concatenate(ends) for ends in zip(*parts, strict=True)], parts

    (u, v), parts = shuffled(small_star, *orient(u, v))
    digests = [tuple(np.sum([edges_digest(*part) for part in parts], axis=0))]
    while len(digests) < 2 or digests[-1] != digests[-2]:
        (u, v), _ = shuffled(large_star, *mirror(u, v))
        (u, v), parts = shuffled(small_star, *orient(u, v))
        digests.append((len(u), sum(edges_digest(*part)[1] for part in parts) % 2**64))
        assert len(digests) < 30
    labels = np.arange(nodes)
    labels[u] = v
    np.testing.assert_array_equal(labels, connected_components(*random_graph(3000, 3000)))


def test_rounds_that_do_not_end_raise() -> None:
    with pytest.raises(RuntimeError, match="still change after 3 rounds"):
        star_rounds(*path(10_000, True)[:2], limit=3)


def test_cluster_of_identical_documents() -> None:
    node = np.random.default_rng(1).permutation(100_000)
    bands = np.tile(np.arange(14, dtype=np.uint64), (100_000, 1))
    u, v = edges_from_bands(bands, node)
    assert len(u) == 14 * 99_999 and not v.any()
    assert not connected_components(u, v, 100_000).any()
    np.testing.assert_array_equal(by_rounds(u, v, 100_000), 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_bands_equal_all_pairs(rows: list[tuple[int, int]]) -> None:
    bands = np.array(rows, np.uint64).reshape(-1, 2)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i) for b in (0, 1) if rows[i][b] == rows[j][b]]
    i, j = np.array(pairs, np.int64).reshape(-1, 2).T
    u, v = edges_from_bands(bands, np.arange(len(rows)))
    assert (u > v).all()
    np.testing.assert_array_equal(connected_components(u, v, len(rows)), connected_components(i, j, len(rows)))


def test_blocks_of_edges_equal_all_at_once() -> None:
    u, v, nodes = random_graph(10_000, 8_000)
    parent = np.arange(nodes)
    for start in range(0, len(u), 1000):
        union(parent, u[start : start + 1000], v[start : start + 1000])
    np.testing.assert_array_equal(components.flatten(parent), connected_components(u, v, nodes))


def test_nodes_may_be_any_integers() -> None:
    far = np.array([2**63 + 5, 7, 2**64 - 1, 2**40], np.uint64)
    nodes, labels = label_edges(far[[0, 1]], far[[2, 3]])
    assert nodes.tolist() == sorted(far.tolist())
    assert labels.tolist() == [7, 7, 2**63 + 5, 2**63 + 5]
    u, v = star_rounds(far[[0, 1]], far[[2, 3]])
    assert set(zip(u.tolist(), v.tolist(), strict=True)) == {(2**40, 7), (2**64 - 1, 2**63 + 5)}


def test_node_outside_is_refused() -> None:
    for bad in (-1, 5):
        with pytest.raises(ValueError, match="nodes are 0 to 4"):
            connected_components(np.array([0]), np.array([bad]), 5)


IDS = st.text("ab", max_size=2)
PRIORITIES = st.sampled_from([0.0, 1.0, float("nan"), float("-inf")])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), PRIORITIES, IDS), min_size=1), st.randoms())
def test_survivors(rows: list[tuple[int, float, str]], random) -> None:  # type: ignore[no-untyped-def]
    documents = [(*row, place) for place, row in enumerate(rows)]
    expected = {}
    for label in {row[0] for row in rows}:
        rank = [((-p if p == p else np.inf), name, place) for lab, p, name, place in documents if lab == label]
        expected[label] = min(rank)[2]
    random.shuffle(documents)
    labels, priority, ids, place = (list(column) for column in zip(*documents, strict=True))
    keep = survivors(np.array(labels), np.array(priority), pa.array(ids), np.array(place))
    kept = dict(zip(np.array(labels)[keep].tolist(), np.array(place)[keep].tolist(), strict=True))
    assert keep.sum() == len(expected) and kept == expected
    assert cluster_sizes(np.array(labels)).tolist() == [labels.count(label) for label in labels]


def test_survivors_never_decide_by_order() -> None:
    labels, priority = np.array([0, 0, 0]), np.array([1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="documents 0 and 1 of a cluster tie"):
        survivors(labels, priority, pa.array(["x", "x", "a"]))
    assert survivors(labels, priority, np.array([b"y", b"x", b"a"])).tolist() == [False, True, False]
    assert survivors(labels[:0], priority[:0], pa.array([], pa.string())).tolist() == []
