"""English words that are not split by rule: contractions and their parts, abbreviations, units, emoticons.

The forms follow spaCy's blank English tokenizer (Honnibal et al.), so that word counts compare with those of pipelines
that use it. Every form with an apostrophe is also known with the typographic one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PRONOUNS = ("i", "you", "he", "she", "it", "we", "they")
_PLURAL = ("these", "those")
_QUESTIONS = ("who", "what", "when", "where", "why", "how", "there", "that", "this", *_PLURAL)
_MODALS = ("could", "might", "must", "should", "would")
_NOT = (*_MODALS, "ca", "do", "does", "did", "had", "may", "need", "ought", "sha", "wo")
_NOT_ONLY = ("ai", "are", "is", "was", "were", "have", "has", "dare")  # no "aren't've"
_AMBIGUOUS = {"ill", "its", "hell", "shell", "shed", "were", "well", "whore"}  # words in their own right

_SPLIT = "y'|all y|all how|'d|'y not|'ve not|ve can|not gon|na got|ta let|'s c'm|on"
# Words that hold what would be split, in lower case and with a capital; then those of one form.
_EITHER_CASE = """
doin' goin' nothin' nuthin' ol' somethin' lovin' havin' ma'am o'clock 'cause 'cos 'coz 'cuz 's ‘s co. e.g. i.e.
"""
_WHOLE = """
'em 'll 'nuff 'bout 're 'd and/or w/o a.m. p.m. E.G. I.E. Ph.D. D.C. v.s. vs. ä. ö. ü. C++ ' '' \\t \\n <space> \\")
Mt. Mr. Mrs. Ms. Dr. St. Jr. Prof. Rep. Rev. Sen. Gen. Gov. Adm. Inc. Ltd. Corp. Bros. Messrs. Md. Mo. Mont.
Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec.
Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Mich. Minn. Miss.
N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Okla. Ore. Pa. S.C. Tenn. Va. Wash. Wis.
"""
_FACES = """
:) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-((
:((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o
:* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_-
-__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.)
(>_<) (*_*) ><(((*>
"""
_UNITS = """
km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar
mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар
Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тб كم كم² م م² سم مم غرام جرام جم كغ ملغ كوب
"""


def _contractions() -> Iterator[tuple[str, ...]]:
    """Stem and endings, in lower case and with their apostrophes."""
    for pronoun in _PRONOUNS:
        if pronoun == "i":
            yield from ((pronoun, "'m"), (pronoun, "'m", "a"))
        endings = ["'ll", "'d"]
        endings += ["'ve"] if pronoun in ("i", "you", "we", "they") else ["'s"]
        endings += ["'re"] if pronoun in ("you", "we", "they") else []
        yield from ((pronoun, e) for e in endings)
        yield from ((pronoun, e, "'ve") for e in ("'ll", "'d"))
    for word in _QUESTIONS:
        endings = ["'ll", "'d"] + (["'s"] if word not in _PLURAL else [])
        endings += ["'re", "'ve"] if word not in ("that", "this") else []
        yield from ((word, e) for e in endings)
        yield from ((word, e, "'ve") for e in ("'ll", "'d"))
    yield from ((verb, "n't") for verb in (*_NOT, *_NOT_ONLY))
    yield from ((verb, "n't", "'ve") for verb in _NOT)
    yield from ((verb, "'ve") for verb in _MODALS)


def units() -> list[str]:
    """Units of measurement, which come off the digits before them."""
    return _UNITS.split()


def exceptions() -> dict[str, tuple[str, ...]]:
    """Every word that is treated by list: word -> its parts in order."""
    found: dict[str, tuple[str, ...]] = {}
    for parts in _contractions():
        for form in (parts, (parts[0].title(), *parts[1:])):
            found["".join(form)] = form
            bare = tuple(part.replace("'", "") for part in form)
            if "".join(bare).lower() not in _AMBIGUOUS:
                found["".join(bare)] = bare
    for entry in _SPLIT.split():
        parts = tuple(entry.split("|"))
        forms = [parts] if parts[0] in ("y'", "y") else [parts, (parts[0].capitalize(), *parts[1:])]
        found.update({"".join(form): form for form in forms})
    for hour in range(1, 13):
        found.update({f"{hour}{half}": (str(hour), half) for half in ("am", "pm", "a.m.", "p.m.")})
    found.update({f"°{scale}.": ("°", scale, ".") for scale in "cfkCFK"})
    capital = [re.sub(r"\w", lambda letter: letter.group().upper(), word, count=1) for word in _EITHER_CASE.split()]
    single = [f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyz"]
    whole = [*_EITHER_CASE.split(), *capital, *_WHOLE.split(), *_FACES.split(), *single]
    found.update({word: (word,) for word in whole})
    curly = {word.replace("'", "’"): tuple(p.replace("'", "’") for p in parts) for word, parts in found.items()}
    return curly | found
