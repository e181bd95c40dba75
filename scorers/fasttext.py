"""A fastText classifier's probability of a label, of whole documents or of their lines or paragraphs.

The speed is the library's own list prediction (about 20 to 45 MB/s and core); preparing the texts takes 2 % of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from scorers import Scorer, _fasttext_file
from transforms.batch import Batch
from transforms.model_folder import read_card

AT_ONCE, PIECES_AT_ONCE = 4 << 20, 1 << 14  # bytes and texts that are Python objects at a time
END = "</s>"  # the word that fastText puts at each line's end, and at which it stops reading
BETWEEN_PARAGRAPHS = r"\n[\s\v\p{Z}]*\n"


class FastText(Scorer):
    r"""Joulin et al. 2016 (arXiv 1607.01759): the probability of the label `positive`, clipped to [0, 1].

    `model` is a `.bin` or `.ftz` file, or a folder with one, and with `card.json` if `corpusmill` fitted it. Where a
    card names them, `positive` and `newline` need not be given.

    `unit`: a `document` is predicted as one text. `line` and `paragraph` (between blank lines) predict each piece that
    is not blank, and give the mean weighted by characters, the lowest and the highest probability and how many there
    are; a document without any has nulls.

    `newline` stands for each "\n" within a text; fastText takes any other white space as a space itself. It should be
    what the model was trained with: a space for nearly all; DCLM's and PreSelect's (arXiv 2503.00808) too, though the
    latter's own filtering glued the words around line ends together (`newline: ""`).

    `zero_end_of_sentence` takes the weight of fastText's `</s>` out, which counts for more in short texts (PreSelect).
    Leave it false to get a foreign model's published scores; where it was zeroed in fitting it changes nothing.

    A literal `</s>` in a text ends it, as everywhere in fastText. A text of no known word, where the model lacks
    `</s>` too, has no prediction and gets 0.
    """

    name: ClassVar[str] = "fasttext"
    package: ClassVar[str] = "fasttext"
    model: Path
    positive: str | None = None
    unit: Literal["document", "line", "paragraph"] = "document"
    newline: str | None = None
    zero_end_of_sentence: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> FastText:
        """What the card tells becomes a parameter like one given: keys depend on it."""
        file = _fasttext_file.locate(self.model)
        header = _fasttext_file.read(file)
        card = read_card(file.parent)
        positive = card.get("positive") if self.positive is None else self.positive
        if not isinstance(positive, str):
            raise ValueError(f"{_no_label(file)}, so `positive` must name a label of {_some(header.labels)}")
        if positive not in header.labels:
            raise ValueError(f"{file} has no label {positive!r}; its labels are {_some(header.labels)}")
        if self.zero_end_of_sentence and header.quantised:
            raise ValueError(f"zero_end_of_sentence: {file} is quantised and cannot be changed; give the full model")
        self.__dict__["positive"] = positive
        self.__dict__["newline"] = _newline(self.newline, card.get("newline"), file)
        return self

    def fields(self) -> pa.StructType:
        if self.unit == "document":
            return pa.struct([pa.field("score", pa.float64(), metadata={"unit": "probability of the positive label"})])
        units = {
            "score": f"probability of the positive label, mean over {self.unit}s weighted by characters",
            "lowest": f"probability of the positive label, of the {self.unit} with the lowest",
            "highest": f"probability of the positive label, of the {self.unit} with the highest",
        }
        count = pa.field("count", pa.int64(), metadata={"unit": f"{self.unit}s that are not blank"})
        return pa.struct([*(pa.field(n, pa.float64(), metadata={"unit": u}) for n, u in units.items()), count])

    @cached_property
    def _loaded(self) -> Any:
        import fasttext

        model = fasttext.load_model(str(_fasttext_file.locate(self.model)))
        if self.zero_end_of_sentence:
            zero(model, END)
        return model

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        if self.unit == "document":
            columns = [pa.array(self._probabilities(batch.text))]
        else:
            pieces, documents = _pieces(batch.text, self.unit)
            characters = pc.utf8_length(pieces).to_numpy()
            columns = _summary(self._probabilities(pieces), characters, documents, len(batch))
        return pa.StructArray.from_arrays(columns, fields=list(self.fields()))

    def _probabilities(self, texts: pa.LargeStringArray) -> np.ndarray:
        assert self.positive is not None and self.newline is not None  # set when it was made
        return probabilities(self._loaded, texts, self.positive, self.newline)


def _no_label(model: Path) -> str:
    card = model.parent / "card.json"
    return f"{card} names no `positive` label" if card.is_file() else f"{model} has no card.json beside it"


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")


def _newline(given: str | None, recorded: Any, model: Path) -> str:
    """What replaces a line end: as given, as the card records, or a space."""
    if given is not None and "\n" in given:
        raise ValueError(f"newline: {given!r} holds a line end, at which fastText stops reading")
    if given is not None and isinstance(recorded, str) and given != recorded:
        raise ValueError(
            f"newline: {given!r} was given, but {model.parent / 'card.json'} records {recorded!r}, which the model was "
            "trained with; leave `newline` out"
        )
    return given if given is not None else recorded if isinstance(recorded, str) else " "


def one_line(text: str) -> str:
    """The convention for line ends in fitting: each becomes a space."""
    return text.replace("\n", " ").replace("\r", " ")


def zero(model: Any, word: str) -> None:
    """Set a word's vector to zero, in a loaded model that is not quantised."""
    at = model.get_word_id(word)
    if at < 0:
        return
    np.asarray(model.f.getInputMatrix())[at] = 0  # a view of the model's memory, not a copy of gigabytes
    if model.get_input_vector(at).any():
        raise RuntimeError(f"fastText gave a copy of its matrix, so {word!r} could not be zeroed; install fasttext 0.9")


def probabilities(model: Any, texts: pa.LargeStringArray | list[str], positive: str, newline: str = " ") -> np.ndarray:
    r"""float64 [texts]: probability of the label `positive`, clipped to [0, 1] (fastText's sums can exceed 1 by 1e-5).

    Calls the function behind the library's list prediction, which takes texts that end in "\n" as UTF-8. All labels
    are asked for: 1 - p of the other of two is not the same number, since fastText adds 1e-5 to each.
    """
    column = pa.array(texts, pa.large_string()) if isinstance(texts, list) else texts
    scores = np.zeros(len(column))
    count, at = len(model.labels), 0
    for group in _groups(column):
        labels, found = model.f.multilinePredict(_terminated(group, newline), count, 0.0, "strict")
        each = (p[row.index(positive)] if positive in row else 0.0 for row, p in zip(labels, found, strict=True))
        scores[at : at + len(group)] = np.fromiter(each, np.float64, len(group))
        at += len(group)
    return np.clip(scores, 0, 1)


def _groups(texts: pa.LargeStringArray) -> Iterator[pa.LargeStringArray]:
    """The texts a few megabytes at a time, or one that is larger."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy())
    at = 0
    while at < len(texts):
        full = int(np.searchsorted(ends, AT_ONCE + (ends[at - 1] if at else 0), side="right"))
        stop = max(at + 1, min(full, at + PIECES_AT_ONCE))
        yield texts.slice(at, stop - at)
        at = stop


def _terminated(texts: pa.LargeStringArray, newline: str) -> list[bytes]:
    r"""UTF-8 of the texts with `newline` in place of line ends, and one "\n" at the end."""
    instead = newline.encode()
    return [text.replace(b"\n", instead) + b"\n" for text in texts.cast(pa.large_binary()).to_pylist()]


def _pieces(texts: pa.LargeStringArray, unit: str) -> tuple[pa.LargeStringArray, np.ndarray]:
    """The lines or paragraphs that are not blank, and the number of the document of each, int64 [pieces]."""
    split = pc.split_pattern(texts, "\n") if unit == "line" else pc.split_pattern_regex(texts, BETWEEN_PARAGRAPHS)
    pieces, documents = pc.list_flatten(split), pc.list_parent_indices(split)
    visible = pc.not_equal(pc.utf8_ltrim_whitespace(pieces), pa.scalar("", pa.large_string()))
    return pieces.filter(visible), documents.filter(visible).to_numpy()


def _summary(scores: np.ndarray, characters: np.ndarray, documents: np.ndarray, count: int) -> list[pa.Array]:
    """Mean weighted by characters, lowest, highest and number of the pieces of each of `count` documents."""
    pieces = np.bincount(documents, minlength=count)
    without = pieces == 0
    first = (np.cumsum(pieces) - pieces)[~without]
    lowest, highest, mean = np.zeros(count), np.zeros(count), np.zeros(count)
    if len(scores):
        lowest[~without] = np.minimum.reduceat(scores, first)
        highest[~without] = np.maximum.reduceat(scores, first)
        weight = np.bincount(documents, characters, count)[~without]
        mean[~without] = np.bincount(documents, characters * scores, count)[~without] / weight
    mean = np.clip(mean, lowest, highest)
    return [*(pa.array(values, mask=without) for values in (mean, lowest, highest)), pa.array(pieces)]
