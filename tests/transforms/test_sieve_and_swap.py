"""Sieve-&-Swap: planted transcripts, every reason a segment goes, and that neither order nor company counts."""

from __future__ import annotations

import pickle
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sieve_and_swap as planted

from transforms.batch import Batch
from transforms.facts import names, numbers, words
from transforms.nearest import TfIdf, sorted_texts
from transforms.rewriters import find
from transforms.rewriters.sieve_and_swap import REASONS, SieveAndSwap

SENTENCES = {
    "a": "Preheat the oven to 180 degrees.",
    "b": "Add 2 eggs and whisk until smooth.",
    "c": "Serve with Parmesan and fresh basil.",
    "d": "Let the dough rest under a towel.",
}
TALK = [
    "hello and welcome back everyone",
    "first preheat the oven to 180 degrees",
    "then add two eggs and whisk until smooth",
    "again add two eggs and whisk",
    "my oven was a gift from my aunt",
    "add 5 eggs and whisk until smooth",
    "serve with Pecorino and fresh basil",
    "serve with parmesan and basil",
]


def bank(folder: Path, sentences: dict[str, str], files: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"text": list(sentences.values()), "id": list(sentences)})
    for number, part in enumerate(np.array_split(np.arange(len(table)), files)):
        pq.write_table(table.take(pa.array(part)), folder / f"{number}.parquet")
    return folder


def batch(*texts: str) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


@pytest.fixture
def rewriter(tmp_path: Path) -> Any:
    folder = bank(tmp_path / "bank", SENTENCES)
    return lambda **given_: SieveAndSwap(**{"bank": folder, "threshold": 0.3, **given_})


def counts(swaps: dict[str, Any]) -> dict[str, int]:
    return {name: n for name, n in swaps.items() if name != "kept" and n}


def test_segments_become_sentences_in_their_order_and_every_other_is_counted(rewriter: Any) -> None:
    (piece,) = rewriter(most_reuse=1).rewrite(batch("\n".join(TALK)))
    assert piece.text == "\n".join(SENTENCES[name] for name in "abc") and piece.status == "ok"
    swaps = piece.extra["swaps"]
    told = {"segments": 8, "irrelevant": 2, "repeated": 1, "numbers_differ": 1, "names_differ": 1}
    assert counts(swaps) == told
    assert [(place, name) for place, _, name in swaps["kept"]] == [(1, "a"), (2, "b"), (7, "c")]
    assert all(0.3 <= cosine <= 1 for _, cosine, _ in swaps["kept"])
    assert swaps["segments"] == len(swaps["kept"]) + sum(swaps[reason.replace(" ", "_")] for reason in REASONS)


def test_without_checks_facts_change_and_sentences_repeat(rewriter: Any) -> None:
    (piece,) = rewriter(overlap=False).rewrite(batch("\n".join(TALK)))
    assert piece.text == "\n".join(SENTENCES[name] for name in "abbbcc")
    assert counts(piece.extra["swaps"]) == {"segments": 8, "irrelevant": 2}


def test_a_document_of_which_nothing_is_left_is_told_by_its_nearest_segment(rewriter: Any) -> None:
    texts = ["hello everyone", "hello\nadd 5 eggs and whisk until smooth", "serve with Pecorino and basil", "…"]
    found = rewriter().rewrite(batch(*texts))
    told = ["irrelevant", "numbers differ", "names differ", "irrelevant"]
    assert [(piece.document, piece.status, piece.reason, piece.text) for piece in found] == [
        (number, "rejected", reason, None) for number, reason in enumerate(told)
    ]


def test_of_segments_with_one_sentence_the_nearest_stay_and_then_the_earliest(rewriter: Any) -> None:
    talk = ["add 2 eggs", "add 2 eggs and whisk until smooth", "add 2 eggs and whisk", "add 2 eggs and whisk"]
    for most, kept in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (None, [0, 1, 2, 3])):
        (piece,) = rewriter(threshold=0.1, most_reuse=most).rewrite(batch("\n".join(talk)))
        assert [place for place, _, _ in piece.extra["swaps"]["kept"]] == kept


def test_reciprocal_segments_are_nearest_to_their_sentence_too(tmp_path: Path) -> None:
    sentences = {"x": "Chop the red onions finely.", "y": "Chop the red onions finely and fry them in butter."}
    talk = ["chop the onions", "chop the red onions finely and fry them", "fry them in butter", "fry them"]
    folder = bank(tmp_path / "bank", sentences)
    both = [
        SieveAndSwap(bank=folder, threshold=0.1, reciprocal=wanted).rewrite(batch("\n".join(talk)))[0]
        for wanted in (False, True)
    ]
    texts = sorted_texts(pa.array(list(sentences.values())))["text"].combine_chunks()
    rows, cosines = TfIdf(texts).nearest(pa.array(talk, pa.large_string()))
    matrix = TfIdf(texts).cosines(pa.array(talk, pa.large_string()), np.arange(2))
    slow = [i for i in range(4) if cosines[i] >= 0.1 and matrix[i, rows[i]] == max(matrix[:, rows[i]])]
    assert rows.tolist() == [1, 0, 0, 0] and matrix[1, 1] > matrix[0, 1], "another one is nearer to its sentence"
    assert [place for place, _, _ in both[0].extra["swaps"]["kept"]] == [0, 1, 2, 3]
    assert [place for place, _, _ in both[1].extra["swaps"]["kept"]] == slow and len(slow) == 1
    assert counts(both[1].extra["swaps"]) == {"segments": 4, "not_reciprocal": 3}


@pytest.mark.parametrize(
    ("unit", "text", "wanted"),
    [
        ("lines", "Preheat the oven to 180 degrees!\n\nhi\r\nlet the dough rest", "ad"),
        ("sentences", "Hello, Mr. Smith. Preheat the oven to 180 degrees! Let the dough rest.", "ad"),
        ("paragraphs", "preheat the oven\nto 180 degrees\n \nhello\n\nlet the dough\nrest", "ad"),
    ],
)
def test_units(rewriter: Any, unit: str, text: str, wanted: str) -> None:
    (piece,) = rewriter(unit=unit).rewrite(batch(text))
    between = {"lines": "\n", "sentences": " ", "paragraphs": "\n\n"}[unit]
    assert piece.text == between.join(SENTENCES[name] for name in wanted)
    assert piece.extra["swaps"]["segments"] == 3


def test_neither_order_nor_files_nor_company_nor_pickling_counts(tmp_path: Path) -> None:
    import random

    draw = random.Random(3)
    sentences = planted.bank(60, draw)
    talk = [segment.text for segment in planted.transcript(sentences, 90, 0.15, draw)]
    texts = ["\n".join(talk[a : a + 9]) for a in range(0, 90, 9)]
    named = {f"{number:02}": sentence for number, sentence in enumerate(sentences)}
    turned = dict(reversed(named.items())) | {"zz": ""}
    given_ = {"threshold": 0.15, "reciprocal": True, "most_reuse": 1}
    first = SieveAndSwap(bank=bank(tmp_path / "one", named), **given_).rewrite(batch(*texts))
    other = SieveAndSwap(bank=bank(tmp_path / "other", turned, files=3), **given_)
    other.setup()
    other = pickle.loads(pickle.dumps(other))
    assert sum(piece.status == "ok" for piece in first) > 5
    for k in (1, 3, 10):
        parts = [texts[a : a + k] for a in range(0, 10, k)]
        found = [piece for part in parts for piece in other.rewrite(batch(*part))]
        assert [(p.text, p.status, p.extra) for p in found] == [(p.text, p.status, p.extra) for p in first]


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from([*TALK, "", " ", "\t…"]), max_size=6) | st.text(), max_size=4), st.booleans())
def test_any_text(tmp_path_factory: pytest.TempPathFactory, given_: list[Any], overlap: bool) -> None:
    """What is kept is a sentence that is near enough, with the facts of its segment; nothing is lost uncounted."""
    folder = bank(tmp_path_factory.getbasetemp() / "any", SENTENCES)
    texts = [part if isinstance(part, str) else "\n".join(part) for part in given_]
    found = SieveAndSwap(bank=folder, threshold=0.3, overlap=overlap, most_reuse=2).rewrite(batch(*texts))
    assert [piece.document for piece in found] == list(range(len(texts)))
    for piece, text in zip(found, texts, strict=True):
        segments = [line.strip() for line in text.split("\n") if line.strip()]
        swaps = piece.extra["swaps"]
        kept = [(segments[place], SENTENCES[name]) for place, _, name in swaps["kept"]]
        assert swaps["segments"] == len(segments) == len(kept) + sum(swaps[r.replace(" ", "_")] for r in REASONS)
        assert (piece.text or "") == "\n".join(sentence for _, sentence in kept)
        assert (piece.status == "ok") == bool(kept) == (piece.reason is None)
        for segment, sentence in kept if overlap else ():
            assert numbers(segment) <= numbers(sentence) and names(segment) <= words(sentence)


def test_planted_transcripts(tmp_path: Path) -> None:
    """500 instructions, half of 1,000 segments chatter; a threshold that sieves well is there, and swaps are right."""
    asked = Namespace(bank=500, segments=1000, noise=0.15, encoder=None, seed=1)
    found = planted.measure(asked, tmp_path)["thresholds"]
    at = found["0.15"]
    assert at["precision"] > 0.98 and at["recall"] > 0.93 and at["top1"] > 0.95
    assert found["0.4"]["recall"] < 0.5 < found["0.05"]["recall"] and found["0.05"]["precision"] < 0.9
    assert at["changed"]["unchecked"] > 0.03 and at["changed"]["checked"] == 0 and at["refused"] < 0.02


def test_an_encoder_in_place_of_tf_idf(tmp_path: Path, toy_encoder: Path) -> None:
    folder = bank(tmp_path / "bank", {"a": "one two", "b": "three four five"})
    made = SieveAndSwap(bank=folder, threshold=0.98, encoder=toy_encoder)
    (piece,) = made.rewrite(batch("three four five\nsix\none two"))
    assert piece.text == "three four five\none two" and counts(piece.extra["swaps"]) == {"segments": 3, "irrelevant": 1}


def test_a_bank_without_ids(tmp_path: Path, rewriter: Any) -> None:
    pq.write_table(pa.table({"text": [None, "Add the salt.", " "]}), tmp_path / "plain.parquet")
    (piece,) = rewriter(bank=tmp_path / "plain.parquet").rewrite(batch("add the salt"))
    assert piece.text == "Add the salt." and piece.extra["swaps"]["kept"][0][2] == "Add the salt."


def test_mistakes_are_told(tmp_path: Path, rewriter: Any) -> None:
    (tmp_path / "no.parquet").write_text("x")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "body.parquet")
    pq.write_table(pa.table({"text": [" ", None]}), tmp_path / "blank.parquet")
    (tmp_path / "empty").mkdir()
    for given_, message in (
        ({"bank": tmp_path / "nowhere"}, "nowhere is no Parquet file of sentences, nor a folder with any"),
        ({"bank": tmp_path / "empty"}, "empty is no Parquet file of sentences, nor a folder with any"),
        ({"bank": tmp_path / "no.parquet"}, r"no\.parquet cannot be read as Parquet"),
        ({"bank": tmp_path / "body.parquet"}, r"body\.parquet has no column 'text'.*it has body"),
        ({"threshold": 0}, "greater than 0"),
        ({"most_reuse": 0}, "greater than or equal to 1"),
        ({"encoder": tmp_path / "empty"}, "empty"),
    ):
        with pytest.raises(ValidationError, match=message):
            rewriter(**given_)
    with pytest.raises(ValueError, match=r"blank\.parquet holds no sentence"):
        rewriter(bank=tmp_path / "blank.parquet").setup()


def test_it_is_found_by_name_and_its_column_is_arrow(rewriter: Any) -> None:
    assert find("sieve_and_swap") is SieveAndSwap
    made = rewriter()
    (field,) = made.fields()
    pieces = made.rewrite(batch("\n".join(TALK), "nothing"))
    column = pa.array([piece.extra["swaps"] for piece in pieces], field.type)
    assert column.to_pylist()[0]["kept"][0] | {"segment": 1, "id": "a"} == column.to_pylist()[0]["kept"][0]
