import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import END, make_mixture, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trainers.mixture import file_digest, open_mixture
from trainers.phases import take, take_next
from transforms.epochs import effective

TEXTS = {"a": ["one cat", "", "dog 猫 🐈", f"it ends {END} not here", "x"], "b": ["tree " * 40, "river"]}


@pytest.fixture
def folder(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer", [t for texts in TEXTS.values() for t in texts])
    return make_mixture(tmp_path / "mixture", TEXTS, tokenizer)


def test_every_document_becomes_its_tokens_and_one_end_token(folder, tmp_path):
    corpus = open_mixture(folder, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    expected = [corpus.end_token]
    for text in TEXTS["a"] + TEXTS["b"]:
        expected += [*tokenizer.encode(text).ids, corpus.end_token]
    assert corpus.tokens.tolist() == expected
    assert expected.count(corpus.end_token) == 1 + 7  # the end token spelled out in a text is text
    assert [corpus.tokens[e - 1] for e in corpus.end] == [corpus.end_token] * 7
    assert corpus.length.sum() == len(expected) - 1
    assert corpus.names(np.array([3, 5])) == ["a/00000 row 3 (a-3)", "b/00000 row 0 (b-0)"]


@pytest.mark.parametrize("damage", ["changed", "vanished"])
def test_changed_and_vanished_shards_are_refused_by_name_and_digest(folder, tmp_path, damage):
    open_mixture(folder, tmp_path)  # a cache does not hide the damage
    shard = folder / "b" / "00000.parquet"
    expected = json.loads((folder / "manifest.json").read_text())["sources"]["b"]["files"][0]["digest"]
    if damage == "changed":
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=rf"b/00000\.parquet.*expects digest {expected}, found"):
        open_mixture(folder, tmp_path)


def test_another_tokenizer_is_refused(folder, tmp_path):
    make_tokenizer(tmp_path / "tokenizer", ["other words"], vocabulary=280)
    with pytest.raises(ValueError, match=r"tokenizer\.json.*digest"):
        open_mixture(folder, tmp_path)


def test_empty_sources_and_missing_manifests_are_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer", ["a b"])
    folder = make_mixture(tmp_path / "mixture", {"full": ["a"], "void": []}, tokenizer)
    with pytest.raises(ValueError, match="'void' is empty"):
        open_mixture(folder, tmp_path)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_mixture(tmp_path, tmp_path)


def test_tokens_are_made_once_and_shared(folder, tmp_path):
    open_mixture(folder, tmp_path / "cache")
    (written,) = (tmp_path / "cache").glob("*/tokens.bin")
    before = written.stat().st_mtime_ns
    open_mixture(folder, tmp_path / "cache")
    assert [p.stat().st_mtime_ns for p in Path(tmp_path / "cache").glob("*/tokens.bin")] == [before]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1), st.floats(0.01, 4), st.randoms(use_true_random=False))
def test_a_pass_takes_the_tokens_that_the_epochs_ask_for(tokens, epochs, random):
    draw = np.array(random.sample(range(10**6), len(tokens)), np.uint64)
    counts = np.array(tokens, np.int64)
    copies = take(counts, draw, epochs)
    whole = int(epochs)
    assert set(copies.tolist()) <= {whole, whole + 1}
    asked = (epochs - whole) * counts.sum()
    extra = [(d, n) for d, n, c in zip(draw, tokens, copies, strict=True) if c > whole]
    assert asked - 0.5 <= sum(n for _, n in extra) <= asked + max(tokens) + 0.5
    kept = [d for d, c in zip(draw, copies, strict=True) if c == whole]
    assert not extra or not kept or max(d for d, _ in extra) < min(kept)


def slowly(length, uses, tokens):
    """`take_next` token by token: the least used document, of these the first."""
    copies, cut, kept = [0] * len(length), -1, 0
    while tokens > 0:
        level = [u + c for u, c in zip(uses, copies, strict=True)]
        place = level.index(min(level))
        copies[place] += 1
        if tokens < length[place]:
            cut, kept = place, tokens
        tokens -= length[place]
    return copies, cut, kept


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4)), min_size=1, max_size=12),
    st.lists(st.integers(0, 700), max_size=4),
)
def test_a_phase_takes_exactly_what_is_asked_of_those_used_least(documents, asked):
    length, uses = (np.array(column, np.int64) for column in zip(*documents, strict=True))
    for tokens in asked:
        copies, cut, kept = take_next(length, uses, tokens)
        expected = slowly(length.tolist(), uses.tolist(), tokens)
        assert (copies.tolist(), cut, kept) == expected
        assert (copies * length).sum() - (length[cut] - kept if cut >= 0 else 0) == tokens
        uses = uses + copies
        assert uses.max() - uses.min() <= max(1, max(u for _, u in documents) - min(u for _, u in documents))


def phased(folder, phases, bits=None):
    """A copy of a mixture whose manifest has these phases: [{source: tokens}]; and a column of who qualifies for which.

    bits: of a source and rows, a number.
    """
    made = shutil.copytree(folder, folder.with_name(f"{folder.name}-phased-{len(list(folder.parent.iterdir()))}"))
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["phases"] = [
        {"where": f"{k if bits else 0}", "sources": {name: {"asked": n} for name, n in phase.items()}}
        for k, phase in enumerate(phases)
    ]
    for name, source in manifest["sources"].items() if bits else ():
        for file in source["files"]:
            table = pq.read_table(made / file["path"], partitioning=None)
            held = pa.array([bits(name, row) for row in table["row"].to_pylist()], pa.uint64())
            pq.write_table(table.append_column("phases", held), made / file["path"])
            file["digest"] = file_digest(made / file["path"])
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def test_phases_go_on_in_order_of_draw_and_repeat_only_what_all_have_had(folder, tmp_path):
    plain = open_mixture(folder, tmp_path)
    own = np.flatnonzero(plain.source == 0)
    order = own[np.argsort(plain.documents["draw"].to_numpy()[own])]
    lengths = plain.length[order].tolist()
    first, second = sum(lengths[:2]) - 1, sum(lengths[2:]) + lengths[0]  # the second document is cut by a token
    corpus = open_mixture(phased(folder, [{"a": first}, {"a": second, "b": 9}]), tmp_path)
    assert corpus.phases[0].copies[order].tolist() == [1, 1, 0, 0, 0]
    assert corpus.phases[0].cut.tolist() == [order[1]] and corpus.phases[0].kept.tolist() == [lengths[1] - 1]
    assert corpus.phases[1].copies[order].tolist() == [1, 0, 1, 1, 1]
    assert [p.asked.tolist() for p in corpus.phases] == [[first, 0], [second, 9]]
    assert corpus.copies[order].tolist() == [2, 1, 1, 1, 1]
    report = corpus.report()
    assert report["a"]["pass_tokens"] == first + second and report["b"]["pass_tokens"] == 9
    unique = sum(lengths) - 1
    assert report["a"]["effective_tokens"] == pytest.approx(unique - lengths[0] + effective(2 * lengths[0], lengths[0]))
    assert corpus.digest != plain.digest
    assert corpus.digest != open_mixture(phased(folder, [{"a": first + 1}, {"a": second, "b": 9}]), tmp_path).digest


def test_a_phase_takes_only_what_qualifies_for_it(folder, tmp_path):
    made = phased(folder, [{"a": 10**3}, {"a": 500}, {"b": 7}], bits=lambda name, row: 0b101 if row != 2 else 0b110)
    corpus = open_mixture(made, tmp_path)
    row, a = corpus.documents["row"].to_numpy(), corpus.source == 0
    assert set(row[corpus.phases[0].copies > 0]) == {0, 1, 3, 4} and set(row[corpus.phases[1].copies > 0]) == {2}
    assert (corpus.phases[1].copies * corpus.length).sum() - 500 < corpus.length[a][2]
    made = phased(folder, [{"a": 10}, {"b": 7}], bits=lambda name, row: 0b01)
    with pytest.raises(ValueError, match="phase 1 is to take 7 tokens of 'b' and no document of it qualifies"):
        open_mixture(made, tmp_path)
    with pytest.raises(ValueError, match="phase 0 names c, which is under no source"):
        open_mixture(phased(folder, [{"c": 10}]), tmp_path)


@pytest.mark.parametrize("named", ["a", {"content": "a"}])
def test_the_config_names_the_end_token(folder, tmp_path, named):
    plain = open_mixture(folder, tmp_path)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": named}))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    corpus = open_mixture(folder, tmp_path)
    assert corpus.end_token == tokenizer.token_to_id("a") == corpus.tokens[0] != plain.tokens[0]
    assert corpus.digest != plain.digest
    config.write_text(json.dumps({"eos_token": "<none>"}))
    with pytest.raises(ValueError, match=r"tokenizer\.json has no token <none> to end documents with"):
        open_mixture(folder, tmp_path)


@pytest.mark.parametrize("spoil", [lambda text: text[:-40], lambda text: "[]", lambda text: '{"sources": {}}'])
def test_a_manifest_that_is_not_whole_is_named(toy, tmp_path, spoil):
    shutil.copytree(toy / "mixture", tmp_path / "mixture")
    manifest = tmp_path / "mixture" / "manifest.json"
    manifest.write_text(spoil(manifest.read_text()))
    with pytest.raises(ValueError, match=r"manifest.json is no whole manifest .*make it anew with `corpusmill mix`"):
        open_mixture(tmp_path / "mixture", tmp_path / "cache")
