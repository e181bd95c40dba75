"""Clusters of duplicates: edges from hash buckets, connected components, and the one survivor of each cluster.

Two ways to the same components, labelled by their smallest node:

- In one process, `connected_components`: union-find. 8 bytes per node; edges (16 bytes each) may come in blocks
  through `union`, so that only one block is in memory.
- Beyond it, keyed rounds: `mirror`, shuffle by key, `large_star`, then `orient`, shuffle by key, `small_star`
  (Kiveris et al. 2014, "Connected components in MapReduce and beyond"), until a round leaves `edges_digest` as it was.
  Every step is a pure function of one partition that holds all edges of its keys: 16 bytes per edge, about 5 times that
  while sorting. The number of rounds grows with the logarithm of the longest path.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.hashing import mix

Edges = tuple[np.ndarray, np.ndarray]


def edges_from_bands(band_hash: np.ndarray, node: np.ndarray) -> Edges:
    """Star edges (node, smallest node of its bucket) of every bucket with two nodes or more.

    band_hash: uint64 [documents] or [documents, bands]; node: integers [documents]. A bucket is the rows of equal hash
    in one column; columns are worked on one after the other, at 48 bytes per document. At most one edge per document
    and band, in no stated order.
    """
    if len(band_hash) != len(node):
        raise ValueError(f"{len(band_hash)} rows of band hashes for {len(node)} nodes: give one row per node")
    u, v = [node[:0]], [node[:0]]
    for column in band_hash.T if band_hash.ndim == 2 else [band_hash]:
        smallest = _smallest(column, node)
        away = node != smallest
        u.append(node[away])
        v.append(smallest[away])
    return np.concatenate(u), np.concatenate(v)


def bucket_stars(key: np.ndarray, node: np.ndarray) -> tuple[Edges, np.ndarray, np.ndarray]:
    """(star edges as of `edges_from_bands`, distinct keys, smallest node of each) of the rows of one column.

    key: uint64 [rows]; node: integers [rows]. Keys are in ascending order. 48 bytes per row.
    """
    order = np.argsort(key)
    ordered, node = key[order], node[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(key) else np.empty(0, np.int64)
    centre = np.minimum.reduceat(node, first) if len(key) else node
    smallest = np.repeat(centre, np.diff(first, append=len(key)))
    away = node != smallest
    return (node[away], smallest[away]), ordered[first], centre


def connected_components(u: np.ndarray, v: np.ndarray, nodes: int) -> np.ndarray:
    """Smallest node of each node's component: int64 [nodes].

    u, v: integers [edges] in 0..nodes-1, either direction, repeats and loops allowed. Raises ValueError on a node
    outside.
    """
    parent = np.arange(nodes, dtype=np.int64)
    union(parent, u, v)
    return flatten(parent)


def union(parent: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
    """Join the ends of a block of edges in `parent` (int64 [nodes], np.arange(nodes) at first), in place."""
    if len(u) != len(v):
        raise ValueError(f"edges need two ends each: got {len(u)} and {len(v)}")
    for end in (u, v):
        if len(end) and not (int(end.min()) >= 0 and int(end.max()) < len(parent)):
            raise ValueError(f"edge to node {end.min()} or {end.max()}: nodes are 0 to {len(parent) - 1}")
    _union(parent, u.astype(np.int64, copy=False), v.astype(np.int64, copy=False))


@njit(cache=True, nogil=True)
def _root(parent, x):  # type: ignore[no-untyped-def]
    while parent[x] != x:
        parent[x] = parent[parent[x]]  # path halving
        x = parent[x]
    return x


@njit(cache=True, nogil=True)
def _union(parent, u, v):  # type: ignore[no-untyped-def]
    for i in range(len(u)):
        a, b = _root(parent, u[i]), _root(parent, v[i])
        if a < b:
            parent[b] = a
        else:
            parent[a] = b


@njit(cache=True, nogil=True)
def flatten(parent):  # type: ignore[no-untyped-def]
    """Labels from parents, in place: a parent is never larger than its child, so one sweep upwards is enough."""
    for x in range(len(parent)):
        parent[x] = parent[parent[x]]
    return parent


@njit(cache=True, nogil=True)
def clustered(labels):  # type: ignore[no-untyped-def]
    """bool [nodes]: whether the node's component, labelled by its smallest node, holds another one. 1 byte per node."""
    together = np.zeros(len(labels), np.bool_)
    for x in range(len(labels)):
        if labels[x] != x:
            together[x] = together[labels[x]] = True
    return together


def label_edges(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nodes, labels) of edges between any integers of one type: the sorted distinct nodes, the smallest node of each
    one's component."""
    nodes, ends = np.unique(np.concatenate([u, v]), return_inverse=True)
    return nodes, nodes[connected_components(ends[: len(u)], ends[len(u) :], len(nodes))]


def mirror(u: np.ndarray, v: np.ndarray) -> Edges:
    """(key, other) in both directions: what `large_star` takes after a shuffle by key."""
    return np.concatenate([u, v]), np.concatenate([v, u])


def orient(u: np.ndarray, v: np.ndarray) -> Edges:
    """(key, other) with the larger end as the key: what `small_star` takes after a shuffle by key."""
    return np.maximum(u, v), np.minimum(u, v)


def large_star(key: np.ndarray, other: np.ndarray) -> Edges:
    """Link each node's larger neighbours to the smallest of the node and its neighbours.

    key, other: [edges], all edges of a key in this block. Distinct edges, larger end first.
    """
    target = _smallest(key, np.minimum(key, other))
    larger = other > key
    return _distinct(other[larger], target[larger])


def small_star(key: np.ndarray, other: np.ndarray) -> Edges:
    """Link each node and its smaller neighbours to the smallest of them.

    key, other: [edges] with other <= key, all edges of a key in this block. Distinct edges, larger end first.
    """
    target = _smallest(key, other)
    u, v = np.concatenate([other, key]), np.concatenate([target, target])
    return _distinct(u[u != v], v[u != v])


def _smallest(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """For every row the smallest value among the rows of its key."""
    if len(key) == 0:
        return value
    order = np.argsort(key)
    ordered = key[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    result = np.empty_like(value)
    result[order] = np.repeat(np.minimum.reduceat(value[order], first), np.diff(first, append=len(key)))
    return result


def _distinct(u: np.ndarray, v: np.ndarray) -> Edges:
    order = np.lexsort((v, u))
    u, v = u[order], v[order]
    new = np.ones(len(u), bool)
    new[1:] = (u[1:] != u[:-1]) | (v[1:] != v[:-1])
    return u[new], v[new]


def edges_digest(u: np.ndarray, v: np.ndarray) -> tuple[int, int]:
    """(edges, sum of their hashes modulo 2^64). Digests of partitions add up; equal sums mean equal sets of edges."""
    return len(u), int(_digest(u.astype(np.uint64, copy=False), v.astype(np.uint64, copy=False)))


@njit(cache=True, nogil=True)
def _digest(u, v):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for i in range(len(u)):
        total += mix(mix(u[i]) + v[i])
    return total


def star_rounds(u: np.ndarray, v: np.ndarray, limit: int = 64) -> Edges:
    """Edges (node, smallest node of its component), one per node that is not itself the smallest, by rounds.

    The rounds as one partition; each step may be cut into blocks by key. Raises RuntimeError if `limit` rounds are not
    enough.
    """
    u, v = small_star(*orient(u, v))
    before = edges_digest(u, v)
    for _ in range(limit):
        u, v = small_star(*orient(*large_star(*mirror(u, v))))
        now = edges_digest(u, v)
        if now == before:
            return u, v
        before = now
    raise RuntimeError(f"components still change after {limit} rounds ({len(u)} edges): raise the limit")


def cluster_sizes(labels: np.ndarray) -> np.ndarray:
    """Number of documents in each document's cluster: int64 [documents]."""
    _, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    return count[inverse].astype(np.int64)


def survivors(labels: np.ndarray, priority: np.ndarray, *keys: np.ndarray | pa.Array) -> np.ndarray:
    """Which document of each cluster stays: bool [documents], exactly one per label.

    The highest priority (float64; NaN is the lowest) stays; among equals the lowest of the first key, then of the next:
    usually id, then source, shard and row, since ids may repeat. Keys are Arrow arrays of strings or numpy arrays.
    Raises ValueError where all keys are equal, as the order of the documents must not decide.
    """
    rank = np.where(np.isnan(priority), np.inf, -np.asarray(priority, np.float64))
    columns = [_ordinal(key) for key in keys]
    order = np.lexsort((*reversed(columns), rank, labels))
    keep = np.zeros(len(labels), bool)
    first = np.ones(len(labels), bool)
    first[1:] = labels[order[1:]] != labels[order[:-1]]
    contested = np.flatnonzero(first[:-1] & ~first[1:])
    best, next_best = order[contested], order[contested + 1]
    same = rank[best] == rank[next_best]
    for column in columns:
        same &= column[best] == column[next_best]
    if same.any():
        i, j = best[same][0], next_best[same][0]
        raise ValueError(f"documents {i} and {j} of a cluster tie in priority and all {len(keys)} keys: add a key")
    keep[order[first]] = True
    return keep


def ranks(*keys: np.ndarray | pa.Array) -> np.ndarray:
    """Place of each document in the order of the keys (as in `survivors`): int64 [documents], 0 to documents - 1.

    Raises ValueError where two documents are equal in all keys.
    """
    columns = [_ordinal(key) for key in keys]
    order = np.lexsort(columns[::-1])
    same = np.ones(max(0, len(order) - 1), bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    if same.any():
        i = int(np.flatnonzero(same)[0])
        raise ValueError(f"documents {order[i]} and {order[i + 1]} are equal in all {len(keys)} keys: add a key")
    result = np.empty(len(order), np.int64)
    result[order] = np.arange(len(order))
    return result


def _ordinal(key: np.ndarray | pa.Array) -> np.ndarray:
    """Integers that sort as the key does."""
    if isinstance(key, np.ndarray) and key.dtype.kind in "iu":
        return key
    values = pa.array(key) if isinstance(key, np.ndarray) else key
    return pc.rank(values, tiebreaker="dense").to_numpy()
