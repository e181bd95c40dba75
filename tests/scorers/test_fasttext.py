"""The fastText scorer gives the library's own probabilities, whatever is in the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scorers._fasttext_file import read
from scorers.fasttext import END, FastText, one_line, probabilities
from trainers.fit_fasttext import _zeroed_memory
from transforms.batch import Batch


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def own(model: Any, text: str, label: str) -> float:
    """The library's prediction of one document, as a list of one."""
    labels, values = model.predict([text.replace("\n", " ").replace("\r", " ")], k=2)
    return float(np.clip(dict(zip(labels[0], values[0], strict=True)).get(label, 0.0), 0, 1))


@pytest.fixture(scope="module")
def model(toy_fasttext: Path) -> Any:
    return fasttext.load_model(str(toy_fasttext / "model.bin"))


def test_scores_are_the_librarys_own(toy_fasttext: Path, model: Any, toy_texts: dict[str, list[str]]) -> None:
    texts = [*toy_texts["books"][:30], *toy_texts["junk"], *toy_texts["forum"]]
    scores = FastText(model=toy_fasttext).score(batch_of(texts)).field("score").to_pylist()
    assert scores == [own(model, text, "__label__good") for text in texts]
    assert np.mean(scores[:30]) > np.mean(scores[30:60]) + 0.2, "it tells prose from menus"


@given(st.lists(st.text(max_size=60), max_size=8))
def test_any_text_scores_as_the_library_does(model: Any, texts: list[str]) -> None:
    found = probabilities(model, texts, "__label__good")
    assert found.tolist() == [own(model, text, "__label__good") for text in texts]
    assert ((found >= 0) & (found <= 1)).all()


def test_line_ends_are_spaces() -> None:
    assert one_line("a\nb\r\nc\rd\u2028e") == "a b  c d\u2028e"


def test_a_bare_model_needs_the_name_of_its_label(toy_fasttext: Path, model: Any, tmp_path: Path) -> None:
    shutil.copy(toy_fasttext / "model.bin", tmp_path / "bare.bin")
    with pytest.raises(ValidationError, match="`positive` must name a label"):
        FastText(model=tmp_path / "bare.bin")
    other = FastText(model=tmp_path / "bare.bin", positive="__label__other")
    texts = ["menu a wooden boat 3", "the mayor sold a bag of flour."]
    assert other.score(batch_of(texts)).field("score").to_pylist() == [
        own(model, text, "__label__other") for text in texts
    ]
    with pytest.raises(ValidationError, match="has no label '__label__goood'; its labels are __label__"):
        FastText(model=tmp_path / "bare.bin", positive="__label__goood")
    with pytest.raises(ValidationError, match=r"no fastText model at .*nowhere"):
        FastText(model=tmp_path / "nowhere")


def test_the_card_names_the_positive_label(toy_fasttext: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_fasttext, tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text()) | {"positive": "__label__other"}
    (tmp_path / "m" / "card.json").write_text(json.dumps(card))
    texts = ["menu a wooden boat", "the mayor sold seven lamps."]
    turned = FastText(model=tmp_path / "m").score(batch_of(texts)).field("score").to_numpy()
    assert turned + FastText(model=toy_fasttext).score(batch_of(texts)).field("score").to_numpy() == pytest.approx(
        [1, 1], abs=1e-4
    )


def test_the_label_of_the_card_is_a_parameter(toy_fasttext: Path, tmp_path: Path) -> None:
    """Also beside a bare file, whose digest does not cover the card."""
    shutil.copytree(toy_fasttext, tmp_path / "m")
    scorer = FastText(model=tmp_path / "m" / "model.bin")
    assert scorer.model_dump()["positive"] == "__label__good"
    (tmp_path / "m" / "card.json").write_text('{"positive": "__label__other"}')
    assert FastText(model=tmp_path / "m" / "model.bin").model_dump()["positive"] == "__label__other"
    (tmp_path / "m" / "card.json").write_text("{}")
    with pytest.raises(ValidationError, match="names no `positive` label"):
        FastText(model=tmp_path / "m" / "model.bin")


def test_a_foreign_folder_holds_one_model(toy_fasttext: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with pytest.raises(ValidationError, match=r"it holds no \.bin and no \.ftz file"):
        FastText(model=tmp_path / "hub", positive="__label__good")
    shutil.copy(toy_fasttext / "model.bin", tmp_path / "hub" / "published-classifier.bin")
    texts = ["menu a wooden boat", "the mayor sold seven lamps."]
    found = FastText(model=tmp_path / "hub", positive="__label__good").score(batch_of(texts))
    assert found == FastText(model=toy_fasttext).score(batch_of(texts))
    shutil.copy(toy_fasttext / "model.bin", tmp_path / "hub" / "another.bin")
    with pytest.raises(ValidationError, match=r"it holds another\.bin, published-classifier\.bin"):
        FastText(model=tmp_path / "hub", positive="__label__good")


def by_hand(model: Any, text: str, unit: str) -> dict[str, Any]:
    """What a document's lines or paragraphs should give: a loop over them, each predicted alone."""
    pieces: list[str] = [""]
    for line in text.split("\n"):
        if unit == "line" or not line.strip():
            pieces.append(line)
        else:
            pieces[-1] = f"{pieces[-1]}\n{line}" if pieces[-1].strip() else line
    pieces = [piece for piece in pieces if piece.strip()]
    if not pieces:
        return {"score": None, "lowest": None, "highest": None, "count": 0}
    scores = np.array([own(model, piece, "__label__good") for piece in pieces])
    mean = np.average(scores, weights=list(map(len, pieces)))
    return {"score": mean, "lowest": scores.min(), "highest": scores.max(), "count": len(pieces)}


WRITING = st.text(st.sampled_from("\n\n\n\r \t\u3000éaz.日") | st.characters(categories=["L", "N", "P"]), max_size=60)


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@given(texts=st.lists(WRITING, max_size=6))
def test_lines_and_paragraphs_are_predicted_one_by_one(
    toy_fasttext: Path, model: Any, unit: Any, texts: list[str]
) -> None:
    found = FastText(model=toy_fasttext, unit=unit).score(batch_of(texts)).to_pylist()
    for row, text in zip(found, texts, strict=True):
        expected = by_hand(model, text, unit)
        close = {n: pytest.approx(v, rel=1e-12) if v is not None else None for n, v in expected.items()}
        assert row == close


def test_a_line_of_junk_is_found(toy_fasttext: Path, toy_texts: dict[str, list[str]]) -> None:
    """Planted: of two documents alike but for one line, `lowest` tells, wherever they stand in the batch."""
    prose = "\n\n".join(toy_texts["books"][40:44])
    spoiled = f"{prose}\n\n{toy_texts['junk'][0]}"
    scorer = FastText(model=toy_fasttext, unit="paragraph")
    blank, whole, worse = scorer.score(batch_of(["\n \n", prose, spoiled])).to_pylist()
    assert blank == {"score": None, "lowest": None, "highest": None, "count": 0}
    assert (whole["count"], worse["count"]) == (4, 5) and whole["highest"] == worse["highest"]
    assert worse["lowest"] < 0.5 < whole["lowest"] and worse["lowest"] < worse["score"] < whole["score"]
    alone = scorer.score(batch_of(["x"] * 7 + [spoiled])).to_pylist()[-1]
    assert alone == worse
    assert [f.name for f in scorer.fields()] == ["score", "lowest", "highest", "count"]
    assert all(f.metadata[b"unit"] for f in scorer.fields())


@pytest.mark.parametrize("newline", ["", " ", " | "])
def test_line_ends_as_asked(toy_fasttext: Path, model: Any, tmp_path: Path, newline: str) -> None:
    shutil.copy(toy_fasttext / "model.bin", tmp_path / "bare.bin")
    scorer = FastText(model=tmp_path / "bare.bin", positive="__label__good", newline=newline)
    texts = ["the mayor\nsold a\n\nwooden boat", "menu\nmenu"]
    expected = [own(model, text.replace("\n", newline), "__label__good") for text in texts]
    assert scorer.score(batch_of(texts)).field("score").to_pylist() == expected
    joined = FastText(model=tmp_path / "bare.bin", positive="__label__good").score(batch_of(texts))
    assert (joined.field("score").to_pylist() == expected) == (newline == " "), "a space unless told"


def test_the_line_ends_of_the_card_hold(toy_fasttext: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_fasttext, tmp_path / "m")
    assert FastText(model=tmp_path / "m").newline == " " == FastText(model=tmp_path / "m", newline=" ").newline
    with pytest.raises(ValidationError, match=r"newline: '' was given, but .*card.json records ' '"):
        FastText(model=tmp_path / "m", newline="")
    (tmp_path / "m" / "card.json").write_text('{"positive": "__label__good", "newline": ""}')
    assert FastText(model=tmp_path / "m").newline == ""
    with pytest.raises(ValidationError, match="holds a line end"):
        FastText(model=tmp_path / "m", newline="\n")
    for content, message in (("{", "cannot be read as JSON"), ("[1]", "holds no JSON object")):
        (tmp_path / "m" / "card.json").write_text(content)
        with pytest.raises(ValidationError, match=message):
            FastText(model=tmp_path / "m")


@pytest.fixture(scope="module")
def published(toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as others publish them: a bare file of three labels whose `</s>` has a weight."""
    folder = tmp_path_factory.mktemp("published")
    lines = [f"__label__{name} {one_line(text)}" for name in toy_texts for text in toy_texts[name]]
    (folder / "train.txt").write_text("\n".join(lines))
    with _zeroed_memory():
        model = fasttext.train_supervised(
            str(folder / "train.txt"), dim=8, bucket=1000, epoch=5, wordNgrams=2, thread=1, verbose=0
        )
    (folder / "train.txt").unlink()
    model.save_model(str(folder / "published.bin"))
    return folder


def test_any_of_several_labels(published: Path, toy_texts: dict[str, list[str]]) -> None:
    model = fasttext.load_model(str(published / "published.bin"))
    texts = [toy_texts[name][0] for name in toy_texts]
    columns = []
    for name in toy_texts:
        columns.append(FastText(model=published, positive=f"__label__{name}").score(batch_of(texts)).field("score"))
        found = [dict(zip(*[r[0] for r in model.predict([one_line(t)], k=3)], strict=True)) for t in texts]
        assert columns[-1].to_pylist() == [float(min(row[f"__label__{name}"], 1)) for row in found]
    assert sum(np.array(c) for c in columns) == pytest.approx(np.ones(3), abs=1e-4)
    with pytest.raises(ValidationError, match=r"so `positive` must name a label of .*__label__forum"):
        FastText(model=published)


def test_the_end_of_sentence_is_taken_out(published: Path, toy_fasttext: Path) -> None:
    """As a model that was zeroed by other means; in one that our fit zeroed nothing changes."""
    texts = ["the mayor", "menu", "a wooden boat " * 30]
    scorers = [FastText(model=published, positive="__label__junk", zero_end_of_sentence=zero) for zero in (False, True)]
    left, taken = (scorer.score(batch_of(texts)).field("score").to_pylist() for scorer in scorers)
    model = fasttext.load_model(str(published / "published.bin"))
    matrix = np.array(model.get_input_matrix())
    assert matrix[model.get_word_id(END)].any()
    assert left == [own_of(model, text) for text in texts]
    matrix[model.get_word_id(END)] = 0
    model.set_matrices(matrix, np.array(model.get_output_matrix()))
    assert taken == [own_of(model, text) for text in texts] != left
    zeroed = FastText(model=toy_fasttext, zero_end_of_sentence=True).score(batch_of(texts))
    assert zeroed == FastText(model=toy_fasttext).score(batch_of(texts))


def own_of(model: Any, text: str) -> float:
    labels, values = model.predict([text], k=3)
    return float(min(dict(zip(labels[0], values[0], strict=True))["__label__junk"], 1))


@pytest.mark.parametrize("form", [{"qnorm": True}, {"qnorm": False}, {"cutoff": 300}])
def test_quantised_models_are_read_and_not_changed(
    published: Path, toy_texts: dict[str, list[str]], tmp_path: Path, form: dict[str, Any]
) -> None:
    model = fasttext.load_model(str(published / "published.bin"))
    (tmp_path / "train.txt").write_text("\n".join(f"__label__junk {one_line(t)}" for t in toy_texts["junk"]))
    model.quantize(input=str(tmp_path / "train.txt"), **form)
    model.save_model(str(tmp_path / "small.ftz"))
    header = read(tmp_path / "small.ftz")
    assert header.quantised and sorted(header.labels) == sorted(model.labels)
    texts = [toy_texts["junk"][0], toy_texts["forum"][0]]
    found = FastText(model=tmp_path, positive="__label__junk").score(batch_of(texts)).field("score").to_pylist()
    assert found == [own_of(model, one_line(text)) for text in texts]
    with pytest.raises(ValidationError, match="is quantised and cannot be changed"):
        FastText(model=tmp_path, positive="__label__junk", zero_end_of_sentence=True)
    refuses_every_part_of(tmp_path / "small.ftz")


def test_broken_files_are_refused_before_any_work(published: Path, tmp_path: Path) -> None:
    assert read(published / "published.bin").labels == tuple(
        fasttext.load_model(str(published / "published.bin")).labels
    )
    refuses_every_part_of(published / "published.bin")
    (tmp_path / "page.bin").write_text("<html>You need to log in to fetch this model.</html>" * 9)
    with pytest.raises(ValidationError, match="does not start with fastText's number"):
        FastText(model=tmp_path / "page.bin", positive="__label__good")
    (tmp_path / "words.txt").write_text("a b c d e f g\n" * 50)
    with _zeroed_memory():
        vectors = fasttext.train_unsupervised(str(tmp_path / "words.txt"), dim=4, bucket=10, thread=1, verbose=0)
    vectors.save_model(str(tmp_path / "vectors.bin"))
    with pytest.raises(ValidationError, match="holds word vectors; expected a classifier"):
        FastText(model=tmp_path / "vectors.bin", positive="__label__good")


def refuses_every_part_of(file: Path) -> None:
    """A file that ends early, wherever, is refused; the whole is not."""
    whole = file.read_bytes()
    assert read(file).labels
    cut = file.with_name("cut.bin")
    for size in [0, 1, 8, 91, 92, *np.linspace(93, len(whole) - 1, 40).astype(int)]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ValidationError, match=r"cut\.bin is (truncated|no fastText model)"):
            FastText(model=cut, positive="__label__junk")
    cut.unlink()
