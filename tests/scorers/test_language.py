"""Languages, scripts and what passes; the answers are those of py3langid's own code."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import ValidationError

from scorers import make
from scorers.language import Language, _load
from transforms.batch import Batch
from transforms.langid import SHORT

PLANTED = {
    "en": "The harbour was quiet that morning, and nobody had yet opened the shutters of the small houses.",
    "de": "Am Hafen war es an diesem Morgen still, und niemand hatte die Läden der kleinen Häuser geöffnet.",
    "fr": "Le port était calme ce matin-là, et personne n'avait encore ouvert les volets des petites maisons.",
    "es": "El puerto estaba tranquilo aquella mañana y nadie había abierto aún las ventanas de las casas.",
    "pl": "Tego ranka w porcie było cicho i nikt jeszcze nie otworzył okiennic małych domów.",
    "ru": "В то утро в гавани было тихо, и никто ещё не открыл ставни маленьких домов.",
    "el": "Το λιμάνι ήταν ήσυχο εκείνο το πρωί και κανείς δεν είχε ανοίξει ακόμη τα παντζούρια.",
    "ja": "その朝、港は静かで、小さな家々の雨戸はまだ誰も開けていなかった。",
    "zh": "那天早晨港口很安静,还没有人打开小屋的百叶窗。",
    "hi": "उस सुबह बंदरगाह शांत था और अभी तक किसी ने छोटे घरों की खिड़कियाँ नहीं खोली थीं।",
}


def rows(scorer: Language, texts: list[str]) -> list[dict]:
    return scorer.score(Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))).to_pylist()


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def test_planted_languages_and_scripts() -> None:
    found = rows(Language(), list(PLANTED.values()))
    assert [row["language"] for row in found] == list(PLANTED)
    assert all(row["confidence"] > 0.65 for row in found)
    scripts = [row["script"] for row in found]
    assert scripts == ["Latn"] * 5 + ["Cyrl", "Grek", "Hira", "Hani", "Deva"]
    assert rows(Language(), ["one два"])[0]["script_share"] == 0.5


WORDS = st.sampled_from([word for text in PLANTED.values() for word in text.split()])


@settings(max_examples=60)
@given(words=st.lists(WORDS, min_size=1, max_size=60), upper=st.booleans())
def test_answers_are_the_librarys_own(identifier: LanguageIdentifier, words: list[str], upper: bool) -> None:
    text = " ".join(words)
    text = (text.upper() if upper else text).encode()[:1500].decode(errors="ignore")
    row = rows(Language(), [text])[0]
    code, confidence = identifier.classify(text)
    if abs(sorted(p for _, p in identifier.rank(text))[-2] - confidence) > 1e-3:
        assert row["language"] == SHORT.get(code, code)
    assert row["confidence"] == pytest.approx(confidence, abs=1e-3)


def test_without_letters_all_is_null() -> None:
    nothing = {"language": None, "confidence": None, "script": None, "script_share": None}
    assert rows(Language(), ["", " \n", "12,345 + 6!", "🎉💾"]) == [nothing] * 4
    judged = rows(Language(keep=("en",)), ["123"])[0]
    assert (judged["passed"], judged["reason"]) == (False, "no_letters")


def test_a_long_document_is_judged_by_pieces_from_all_of_it() -> None:
    """English at the beginning, German from there on."""
    text = PLANTED["en"] + "\n" + (PLANTED["de"] + "\n") * 10_000
    row = rows(Language(), [text])[0]
    assert row["language"] == "de" and row["script"] == "Latn" and row["script_share"] == 1


def test_languages_restrict_the_choice() -> None:
    texts = [PLANTED["de"], PLANTED["pl"]]
    found = rows(Language(languages=("en", "nl", "cs")), texts)
    assert [row["language"] for row in found] == ["nl", "cs"]
    assert [row["language"] for row in rows(Language(languages=("sr", "de", "pl")), texts)] == ["de", "pl"]


def test_keep_passes_sure_documents_of_these_languages() -> None:
    texts = [PLANTED["en"], PLANTED["de"], PLANTED["fr"], "la"]
    kept = Language(keep=("en", "de"))
    unsure = Language(keep=tuple(_load()[0]), min_confidence=1)
    assert [r["reason"] for r in rows(kept, texts[:3])] == [None, None, "other_language"]
    assert [r["passed"] for r in rows(kept, texts[:3])] == [True, True, False]
    assert rows(unsure, texts[3:])[0]["reason"] == "unsure"
    assert "passed" not in [field.name for field in Language().fields()]


@pytest.mark.parametrize("given", [{"keep": ["eng"]}, {"languages": ["en", "klingon"]}])
def test_unknown_codes_are_refused(given: dict) -> None:
    with pytest.raises(ValidationError, match=r"not among the codes the model knows, .*zh"):
        make("language", given)


@pytest.mark.parametrize("given", [{"keep": []}, {"languages": ["en"]}, {"min_confidence": 2}])
def test_empty_choices_are_refused(given: dict) -> None:
    with pytest.raises(ValidationError):
        make("language", given)


def test_codes_are_iso_639() -> None:
    assert _load() is _load(), "read once in a process"
    labels = set(_load()[0])
    assert {"en", "de", "zh", "no", "zxx"} <= labels and all(len(code) in (2, 3) for code in labels)
