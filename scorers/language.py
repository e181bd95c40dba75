"""Language and script of a document: py3langid's model (139 languages, in its wheel) and a count of letters by script.

The model looks at 1,536 bytes of a document at most, so a document of 100 MB costs no more than one of 2 KB; scripts
are counted over the whole document. docs/language.md compares libraries and says what a confidence is worth.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from scorers import Scorer
from scorers._rules import RULE_FIELDS, ratio

if TYPE_CHECKING:
    from transforms.batch import Batch
    from transforms.langid import Model


class Language(Scorer):
    """`language`, `confidence`, `script` and `script_share`; null where a document has no letters.

    `languages` restricts the choice to these codes (as `no` for Norwegian Bokmål, `zxx` for what is no language:
    numbers, markup, identifiers). With `keep`, a document has `passed` where its language is one of these and
    `confidence` at least `min_confidence`.
    """

    name: ClassVar[str] = "language"
    package: ClassVar[str] = "py3langid"
    languages: tuple[str, ...] | None = Field(None, min_length=2)
    keep: tuple[str, ...] | None = Field(None, min_length=1)
    min_confidence: float = Field(0.65, ge=0, le=1)

    @field_validator("languages", "keep")
    @classmethod
    def _known(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if given and importlib.util.find_spec(cls.package):
            known = sorted(set(_load()[0]))
            if unknown := [code for code in given if code not in known]:
                raise ValueError(f"{', '.join(unknown)}: not among the codes the model knows, {', '.join(known)}")
        return given

    def fields(self) -> pa.StructType:
        unit = f"ISO 15924 code of the script of most letters (Unicode {unicodedata.unidata_version})"
        own = [
            pa.field("language", pa.string(), metadata={"unit": "ISO 639-1 code, 639-3 where there is none"}),
            pa.field("confidence", pa.float64(), metadata={"unit": "probability of the language, by the model"}),
            pa.field("script", pa.string(), metadata={"unit": unit}),
            pa.field("script_share", pa.float64(), metadata={"unit": "letters of the script / letters"}),
        ]
        return pa.struct(RULE_FIELDS + own if self.keep else own)

    @cached_property
    def _loaded(self) -> tuple[np.ndarray, Model]:
        """The labels, and the model with the columns of `languages` alone."""
        labels, model = _load()
        wanted = [i for i, label in enumerate(labels) if self.languages is None or label in self.languages]
        weights = np.ascontiguousarray(model.weights[:, wanted], np.float32)
        return np.array(labels)[wanted], model._replace(weights=weights, prior=model.prior[wanted])

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms import langid, scripts

        latin, han = scripts.codes().index("Latn"), scripts.codes().index("Hani")
        counted = scripts.count_scripts(batch.bytes, batch.offsets, scripts.table(), latin, han, len(scripts.codes()))
        script, of_it, letters = counted
        none = letters == 0
        codes, confidence = langid.detect(langid.sample(batch.bytes, batch.offsets), *self._loaded)
        columns = {
            "language": pa.array(codes, pa.string(), mask=none),
            "confidence": pa.array(confidence, mask=none),
            "script": pa.array(np.array(scripts.codes())[script], pa.string(), mask=none),
            "script_share": pa.array(ratio(of_it, letters), mask=none),
        }
        if self.keep:
            columns |= self._judge(codes, confidence, none)
        return pa.StructArray.from_arrays([columns[field.name] for field in self.fields()], fields=list(self.fields()))

    def _judge(self, codes: np.ndarray, confidence: np.ndarray, none: np.ndarray) -> dict[str, pa.Array]:
        other, unsure = ~np.isin(codes, self.keep or ()), confidence < self.min_confidence
        passed = ~(none | other | unsure)
        reason = np.select([none, other], ["no_letters", "other_language"], "unsure")
        return {"passed": pa.array(passed), "reason": pa.array(reason, pa.string(), mask=passed)}


def _load() -> tuple[list[str], Model]:
    from transforms import langid

    return langid.load()
