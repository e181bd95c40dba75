"""Accuracy and speed of language detection on labelled text, for our scorer and the libraries that are installed.

    python benchmarks/language.py --labels FILE.parquet [--json]

FILE has `text` and `language` (ISO 639-1, or 639-3 where there is none). Every text is cut at a space to 20, 100 and
1,000 characters; accuracy is the mean over languages, so that each counts alike. `all` are the languages of FILE,
`common` those that every library of the comparison knows. Seconds are those of the processor, in one thread. The last
line is JSON. Compared where installed: py3langid, pycld2, cld3-py (gcld3), lingua-language-detector.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

import scorers
from transforms.batch import Batch

LENGTHS = (20, 100, 1000)
SAME = {"nb": "no", "iw": "he", "fil": "tl", "jw": "jv", "kik": "ki"}
Detect = Callable[[list[str]], list[str]]
CONFIDENCES = (0.5, 0.65, 0.8, 0.9)


def corpusmill() -> tuple[Detect, set[str]]:
    scorer = scorers.make("language")
    scorer.setup()

    def detect(texts: list[str]) -> list[str]:
        return scorer.score(batch_of(texts)).field("language").to_pylist()

    from scorers.language import _load

    return detect, set(_load()[0])


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def py3langid() -> tuple[Detect, set[str]]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda texts: [identifier.classify(text)[0] for text in texts], set(identifier.labels)


def pycld2() -> tuple[Detect, set[str]]:
    import pycld2

    def plain(text: str) -> str:  # the library refuses control characters
        return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)

    def detect(texts: list[str]) -> list[str]:
        return [pycld2.detect(plain(text), isPlainText=True, bestEffort=True)[2][0][1] for text in texts]

    return detect, {code for _, code in pycld2.LANGUAGES}


def gcld3() -> tuple[Detect, set[str]]:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(0, 1000)
    return lambda texts: [identifier.FindLanguage(text).language for text in texts], set()  # it lists none


def lingua() -> tuple[Detect, set[str]]:
    from lingua import Language, LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()

    def detect(texts: list[str]) -> list[str]:
        found = [detector.detect_language_of(text) for text in texts]
        return [language.iso_code_639_1.name.lower() if language else "" for language in found]

    return detect, {language.iso_code_639_1.name.lower() for language in Language.all()}


def plain_code(code: str | None) -> str:
    """A code without region and script, aliases as one."""
    short = (code or "").split("-")[0]
    return SAME.get(short, short)


def cut(text: str, length: int) -> str:
    """The first `length` characters, or up to the last space in their second half."""
    space = text.rfind(" ", length // 2, length + 1)
    return text if len(text) <= length else text[: space if space > 0 else length]


def measure(detect: Detect, texts: list[str], labels: np.ndarray, common: list[str]) -> dict[str, float]:
    """Accuracy and speed on these texts."""
    detect(texts[:5])
    started = time.process_time()
    found = detect(texts)
    seconds = time.process_time() - started
    right = np.array([plain_code(code) for code in found]) == labels
    share = {language: right[labels == language].mean() for language in np.unique(labels)}
    return {
        "all": float(np.mean(list(share.values()))),
        "common": float(np.mean([share[language] for language in common])),
        "docs_s": len(texts) / seconds,
        "mb_s": sum(len(text.encode()) for text in texts) / seconds / 1e6,
    }


def worth(texts: list[str], labels: np.ndarray) -> dict[str, list[float]]:
    """For each confidence: the share of texts that reach it, and the share of these that are right."""
    scorer = scorers.make("language")
    columns = scorer.score(batch_of(texts)).flatten()
    right = np.array([plain_code(code) for code in columns[0].to_pylist()]) == labels
    confidence = columns[1].fill_null(0).to_numpy()
    return {str(c): [float((confidence >= c).mean()), float(right[confidence >= c].mean())] for c in CONFIDENCES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, help="Parquet file with `text` and `language`")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    table = pq.read_table(arguments.labels, columns=["text", "language"]).drop_null()
    labels = np.array([plain_code(code) for code in table["language"].to_pylist()])
    texts = {length: [cut(text, length) for text in table["text"].to_pylist()] for length in LENGTHS}
    others = [f for f in (py3langid, pycld2, gcld3, lingua) if importlib.util.find_spec(f.__name__)]
    made = {f.__name__: f() for f in (corpusmill, *others)}
    known = [{plain_code(code) for code in codes} for _, codes in made.values() if codes]
    common = sorted(set(labels.tolist()).intersection(*known))
    result: dict[str, object] = {"documents": len(labels), "languages": len(set(labels)), "common": len(common)}
    for name, (detect, _) in made.items():
        by_length = {str(length): measure(detect, cuts, labels, common) for length, cuts in texts.items()}
        result[name] = by_length
        if not arguments.json:
            for length, figures in by_length.items():
                print(f"{name:12} {length:>5}", *(f"{key} {value:,.3f}" for key, value in figures.items()), sep="  ")
    known_here = np.isin(labels, list(known[0]))
    result["confidence"] = {
        str(n): worth([t for t, k in zip(cuts, known_here, strict=True) if k], labels[known_here])
        for n, cuts in texts.items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
