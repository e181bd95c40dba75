"""MinHash: equals a slow reference; estimates without bias; banding finds what the theory says; edge documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from transforms.batch import Batch
from transforms.components import connected_components, edges_from_bands
from transforms.folding import folded_words
from transforms.minhash import PRESETS, MinHash, jaccard

MASK = (1 << 64) - 1
TEXT = st.text(st.one_of(st.sampled_from("ab c.中0é\n"), st.characters(codec="utf-8")))


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def finish(x: int) -> int:
    x = ((x ^ x >> 33) * 0xFF51AFD7ED558CCD) & MASK
    x = ((x ^ x >> 33) * 0xC4CEB9FE1A85EC53) & MASK
    return x ^ x >> 33


def polynomial(units: list[int], h: int = 0) -> int:
    for unit in units:
        h = (h * 0xA0761D6478BD642F + unit) & MASK
    return finish(h)


def shingle_list(units: list[int], n: int, raw: bytes) -> list[int]:
    if not units:
        h = 0x8EBC6AF09C88C6E3
        for byte in raw:
            h = finish((h + byte) & MASK)
        return [finish(h)]
    if len(units) < n:
        return [polynomial(units, 0xE7037ED1A0B428DB)]
    return [polynomial(units[i : i + n]) for i in range(len(units) - n + 1)]


def shingle_set(units: list[int], n: int, raw: bytes) -> set[int]:
    return set(shingle_list(units, n, raw))


def signature(shingles: set[int], parameters: MinHash) -> list[int]:
    start = finish(parameters.seed + 0xA0761D6478BD642F & MASK)
    draws = [finish((start + i) & MASK) >> 32 for i in range(2 * parameters.permutations)]
    pairs = zip(draws[: parameters.permutations], draws[parameters.permutations :], strict=True)
    return [min(((a | 1) * (x >> 32) + b) % 2**32 for x in shingles) for a, b in pairs]


def units_of(text: str, parameters: MinHash) -> list[int]:
    if parameters.unit == "character" and not parameters.normalise:
        return [finish(ord(c)) for c in text]
    return folded_words(batch_of([text])).hash.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=4), st.integers(1, 6), st.booleans())
def test_equals_reference(texts: list[str], n: int, words: bool) -> None:
    parameters = MinHash(ngram=n, unit="word" if words else "character", bands=3, rows=2, normalise=words)
    batch = batch_of(texts)
    expected = [shingle_set(units_of(text, parameters), n, text.encode()) for text in texts]
    hashes, offsets = parameters.shingles(batch)
    assert hashes.tolist() == [x for s in expected for x in sorted(s)]
    assert offsets.tolist() == [sum(map(len, expected[:i])) for i in range(len(texts) + 1)]
    assert parameters.signatures(batch).tolist() == [signature(s, parameters) for s in expected]
    bands, content = parameters.sketch(batch)
    np.testing.assert_array_equal(bands, parameters.band_hashes(parameters.signatures(batch)))
    assert content.tolist() == [finish(sum(shingle_list(units_of(t, parameters), n, t.encode())) & MASK) for t in texts]


@pytest.mark.parametrize("name", PRESETS)
def test_blocks_join_without_a_seam(name: str) -> None:
    """Documents of several blocks of 4096 units, with a space or nothing at the seam."""
    parameters = PRESETS[name].model_copy(update={"bands": 2, "rows": 2})
    random = np.random.default_rng(0)
    for length in (4000, 4095, 4096, 4097, 4100, 4101, 4119, 4120, 9000):
        words = [chr(97 + c) for c in random.integers(0, 26, length)]
        text = (" " if parameters.unit == "word" else "").join(words)
        expected = shingle_set(units_of(text, parameters), parameters.ngram, text.encode())
        hashes, _ = parameters.shingles(batch_of([text]))
        assert hashes.tolist() == sorted(expected)
        assert parameters.signatures(batch_of([text])).tolist() == [signature(expected, parameters)]


def planted_pairs(pairs: int, words: int, shares: np.ndarray, seed: int) -> Batch:
    """Documents 2i and 2i+1 of random words; a share of the words of the second is new."""
    random = np.random.default_rng(seed)
    first = random.integers(0, 2**40, (pairs, words))
    second = np.where(random.random((pairs, words)) < shares[:, None], random.integers(0, 2**40, (pairs, words)), first)
    letters = np.stack([first, second], axis=1).reshape(2 * pairs, words)
    digits = np.stack([(letters >> (4 * place)) & 15 for place in range(10)], axis=-1) + ord("a")
    spaced = np.concatenate([digits, np.full((*letters.shape, 1), ord(" "))], axis=-1).astype(np.uint8)
    return batch_of([row.tobytes().decode() for row in spaced])


def ends(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2)


def test_estimate_is_unbiased_with_binomial_variance() -> None:
    pairs, parameters = 1500, MinHash(ngram=1, bands=64, rows=4)
    shares = np.repeat([0.05, 0.1, 0.2, 0.4, 0.7], pairs // 5)
    batch = planted_pairs(pairs, 120, shares, 1)
    u, v = ends(pairs)
    true = jaccard(parameters.shingles(batch), u, v)
    rows = parameters.signatures(batch)
    error = (rows[u] == rows[v]).mean(axis=1) - true
    for share in np.unique(shares):
        some = shares == share
        spread = np.sqrt(true[some] * (1 - true[some]) / parameters.permutations)
        standard = error[some] / spread
        assert abs(standard.mean()) < 4 / np.sqrt(some.sum())
        assert 0.88 < standard.std() < 1.12  # permutations that were not independent would spread more


def test_rows_agree_with_each_other_no_more_than_chance() -> None:
    """Correlation between every two permutations' hits over many pairs."""
    pairs, parameters = 4000, MinHash(ngram=1, bands=14, rows=8)
    batch = planted_pairs(pairs, 60, np.full(pairs, 0.25), 2)
    u, v = ends(pairs)
    rows = parameters.signatures(batch)
    true = jaccard(parameters.shingles(batch), u, v)
    hits = (rows[u] == rows[v]) - true[:, None]
    correlation = np.corrcoef(hits.T)[np.triu_indices(parameters.permutations, 1)]
    assert abs(correlation.mean()) < 0.002
    assert np.abs(correlation).max() < 6 / np.sqrt(pairs)


@pytest.mark.parametrize("name", ["fineweb", "curator"])
def test_recall_follows_the_theory_of_banding(name: str) -> None:
    parameters, pairs = PRESETS[name], 16_000
    shares = np.linspace(0, 0.16, pairs)
    batch = planted_pairs(pairs, 80, shares, 3)
    u, v = ends(pairs)
    true = jaccard(parameters.shingles(batch), u, v)
    bands = parameters.band_hashes(parameters.signatures(batch))
    found = (bands[u] == bands[v]).any(axis=1)
    for low, high in ((0.3, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 1.0)):
        some = (true >= low) & (true < high)
        expected = np.array([parameters.recall(s) for s in true[some]]).mean()
        assert some.sum() > 400
        assert abs(found[some].mean() - expected) < 0.02, (low, high)
    unrelated = bands[u[:-1]][:, :, None] == bands[v[1:]][:, None, :]
    assert not unrelated.any()


def test_error_equals_that_of_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch")
    pairs, parameters = 150, MinHash(ngram=1, bands=16, rows=8)
    batch = planted_pairs(pairs, 100, np.full(pairs, 0.3), 4)
    hashes, offsets = parameters.shingles(batch)
    u, v = ends(pairs)
    true = jaccard((hashes, offsets), u, v)
    theirs = []
    for i in range(2 * pairs):
        sketch = datasketch.MinHash(num_perm=128, hashfunc=lambda x: int.from_bytes(x[:4], "little"))
        sketch.update_batch([x.tobytes() for x in hashes[offsets[i] : offsets[i + 1]]])
        theirs.append(sketch)
    rows = parameters.signatures(batch)
    ours = np.abs((rows[u] == rows[v]).mean(axis=1) - true).mean()
    peer = np.abs([theirs[a].jaccard(theirs[b]) - s for a, b, s in zip(u, v, true, strict=True)]).mean()
    assert ours < 1.25 * peer


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.integers(0, 60)), min_size=2, max_size=6))
def test_jaccard_equals_sets(sets: list[set[int]]) -> None:
    sets += [set(range(1000)), {5}]  # far apart in size
    hashes = np.concatenate([np.array(sorted(s), np.uint64) for s in sets])
    offsets = np.cumsum([0, *map(len, sets)])
    u, v = (x.ravel() for x in np.indices((len(sets), len(sets))))
    expected = [len(sets[a] & sets[b]) / max(1, len(sets[a] | sets[b])) if sets[a] | sets[b] else 1.0
                for a, b in zip(u, v, strict=True)]  # fmt: skip
    np.testing.assert_allclose(jaccard((hashes, offsets), u, v), expected)
    last, start = hashes[offsets[-2] :], np.zeros(len(sets), np.int64)
    against = jaccard((hashes, offsets), np.arange(len(sets)), start, (last, np.array([0, len(last)])))
    np.testing.assert_allclose(against, expected[len(sets) - 1 :: len(sets)])


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_threshold_gives_the_best_bands(threshold: float) -> None:
    """False positives below the threshold plus false negatives above it, by brute force over all bands and rows."""
    pytest.importorskip("datasketch")
    grid = (np.arange(2000) + 0.5) / 2000

    def loss(bands: int, rows: int) -> float:
        chance = 1 - (1 - grid**rows) ** bands
        return float(np.where(grid < threshold, chance, 1 - chance).mean())

    best = min((loss(b, r), b, r) for b in range(1, 129) for r in range(1, 128 // b + 1))
    chosen = MinHash.from_threshold(threshold, 128, ngram=3)
    assert (chosen.bands, chosen.rows, chosen.ngram) == (*best[1:], 3)


def test_parameters() -> None:
    assert (PRESETS["fineweb"].bands, PRESETS["fineweb"].rows, PRESETS["fineweb"].ngram) == (14, 8, 5)
    assert (PRESETS["curator"].bands, PRESETS["curator"].rows, PRESETS["curator"].ngram) == (20, 13, 24)
    assert PRESETS["fineweb"].threshold == pytest.approx(0.719, abs=1e-3)
    assert PRESETS["fineweb"].recall(0.8) == pytest.approx(0.924, abs=1e-3)
    for wrong in ({"ngram": 0}, {"band": 3}, {"unit": "line"}, {"rows": 0}):
        with pytest.raises(ValidationError):
            MinHash(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give 0 < threshold < 1"):
        MinHash.from_threshold(1.5)
    with pytest.raises(ValueError, match=r"need uint32 \[documents, 112\]"):
        MinHash().band_hashes(np.zeros((3, 111), np.uint32))


SCRIPTS = ["שלום עולם ", "مرحبا بالعالم ٣٫٥ ", "नमस्ते दुनिया ", "你好世界", "สวัสดีชาวโลก", "안녕 세상 ", "Γειά σου Κόσμε ",
           "ሰላም ልዑል ", "😀🎉👍🏽 ", "გამარჯობა ", "Привет, мир! "]  # fmt: skip
EDGES = ["", " ", "\n\n", "...", "!?", "one", "one two three four", "word " * 1_000_000, "x" * 5_000_000,
         "long word " * 2_000_000, "a\0b", *(text * 9 for text in SCRIPTS)]  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_edge_documents(name: str) -> None:
    """Each meets its own copy in every band, and no other document in any."""
    parameters = PRESETS[name]
    batch = batch_of(EDGES + EDGES)
    bands = parameters.band_hashes(parameters.signatures(batch))
    assert bands.shape == (2 * len(EDGES), parameters.bands)
    u, v = edges_from_bands(bands, np.arange(len(bands)))
    labels = connected_components(u, v, len(bands))
    assert labels.tolist() == [*range(len(EDGES))] * 2
    _, offsets = parameters.shingles(batch)
    assert (np.diff(offsets) >= 1).all()


def test_identical_documents_and_none() -> None:
    parameters = MinHash()
    signatures = parameters.signatures(batch_of(["the same words in every one of them"] * 10_000))
    assert (signatures == signatures[0]).all()
    assert parameters.signatures(batch_of([])).shape == (0, 112)
    assert parameters.band_hashes(parameters.signatures(batch_of([]))).shape == (0, 14)


def test_incremental_equals_all_at_once() -> None:
    parameters = MinHash()
    texts = [" ".join(f"w{(i // 2 * 31 + j) % 997}x" for j in range(50)).translate({48 + d: 97 + d for d in range(10)})
             for i in range(60)]  # fmt: skip
    old, new = texts[:37], texts[37:]
    apart = np.concatenate([parameters.band_hashes(parameters.signatures(batch_of(part))) for part in (old, new)])
    together = parameters.band_hashes(parameters.signatures(batch_of(texts)))
    np.testing.assert_array_equal(apart, together)
    labels = connected_components(*edges_from_bands(apart, np.arange(60)), 60)
    assert labels.tolist() == [i // 2 * 2 for i in range(60)]


def test_seed_changes_signatures() -> None:
    batch = batch_of(["some words to be hashed by two seeds"])
    rows = [MinHash(seed=seed).signatures(batch) for seed in (0, 1, 1)]
    assert not (rows[0] == rows[1]).any() and (rows[1] == rows[2]).all()
