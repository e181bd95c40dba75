"""Scripts of letters: a table from the names of characters in ``unicodedata``, built once per process (about 150 ms),
and a kernel that counts the letters of a document by script, about 1 GB/s on ASCII and 400 MB/s on other text.

Python has no table of the Script property, but a letter's name begins with its script. The table equals the property
for every letter it names; letters it leaves out (modifier letters, mathematical alphabets, signs that scripts share)
belong to no script here. Its Unicode version is that of Python: ``unicodedata.unidata_version``.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numba import njit

from transforms.characters import LIMIT
from transforms.text import decode

# ISO 15924 code and the words that the names of its letters begin with.
SCRIPTS = """
Adlm ADLAM|Aghb CAUCASIAN ALBANIAN|Ahom AHOM|Arab ARABIC|Armi IMPERIAL ARAMAIC|Armn ARMENIAN|Avst AVESTAN|Bali BALINESE
Bamu BAMUM|Bass BASSA VAH|Batk BATAK|Beng BENGALI|Bhks BHAIKSUKI|Bopo BOPOMOFO|Brah BRAHMI|Bugi BUGINESE|Buhd BUHID
Cakm CHAKMA|Cans CANADIAN SYLLABICS|Cari CARIAN|Cham CHAM|Cher CHEROKEE|Chrs CHORASMIAN|Copt COPTIC|Cpmn CYPRO-MINOAN
Cprt CYPRIOT|Cyrl CYRILLIC|Deva DEVANAGARI|Diak DIVES AKURU|Dogr DOGRA|Dsrt DESERET|Dupl DUPLOYAN|Egyp EGYPTIAN
Elba ELBASAN|Elym ELYMAIC|Ethi ETHIOPIC|Geor GEORGIAN|Glag GLAGOLITIC|Gong GUNJALA GONDI|Gonm MASARAM GONDI|Goth GOTHIC
Gran GRANTHA|Grek GREEK|Gujr GUJARATI|Guru GURMUKHI|Hang HANGUL|Hani CJK|Hano HANUNOO|Hatr HATRAN|Hebr HEBREW
Hira HIRAGANA|Hira HENTAIGANA|Hluw ANATOLIAN|Hmng PAHAWH HMONG|Hmnp NYIAKENG PUACHUE|Hung OLD HUNGARIAN|Ital OLD ITALIC
Java JAVANESE|Kali KAYAH LI|Kana KATAKANA|Khar KHAROSHTHI|Khmr KHMER|Khoj KHOJKI|Kits KHITAN|Knda KANNADA|Kthi KAITHI
Lana TAI THAM|Laoo LAO|Latn LATIN|Lepc LEPCHA|Limb LIMBU|Lina LINEAR A|Linb LINEAR B|Lisu LISU|Lyci LYCIAN|Lydi LYDIAN
Mahj MAHAJANI|Maka MAKASAR|Mand MANDAIC|Mani MANICHAEAN|Marc MARCHEN|Medf MEDEFAIDRIN|Mend MENDE KIKAKUI
Merc MEROITIC CURSIVE|Mero MEROITIC HIEROGLYPHIC|Mlym MALAYALAM|Modi MODI|Mong MONGOLIAN|Mroo MRO|Mtei MEETEI MAYEK
Mult MULTANI|Mymr MYANMAR|Nand NANDINAGARI|Narb OLD NORTH ARABIAN|Nbat NABATAEAN|Newa NEWA|Nkoo NKO|Nshu NUSHU
Ogam OGHAM|Olck OL CHIKI|Orkh OLD TURKIC|Orya ORIYA|Osge OSAGE|Osma OSMANYA|Ougr OLD UYGHUR|Palm PALMYRENE|Pauc PAU CIN
Perm OLD PERMIC|Phag PHAGS-PA|Phli INSCRIPTIONAL PAHLAVI|Phlp PSALTER PAHLAVI|Phnx PHOENICIAN|Plrd MIAO
Prti INSCRIPTIONAL PARTHIAN|Rjng REJANG|Rohg HANIFI ROHINGYA|Runr RUNIC|Samr SAMARITAN|Sarb OLD SOUTH ARABIAN
Saur SAURASHTRA|Shaw SHAVIAN|Shrd SHARADA|Sidd SIDDHAM|Sind KHUDAWADI|Sinh SINHALA|Sogd SOGDIAN|Sogo OLD SOGDIAN
Sora SORA SOMPENG|Soyo SOYOMBO|Sund SUNDANESE|Sylo SYLOTI NAGRI|Syrc SYRIAC|Tagb TAGBANWA|Takr TAKRI|Tale TAI LE
Talu NEW TAI|Taml TAMIL|Tang TANGUT|Tavt TAI VIET|Telu TELUGU|Tfng TIFINAGH|Tglg TAGALOG|Thaa THAANA|Thai THAI
Tibt TIBETAN|Tirh TIRHUTA|Tnsa TANGSA|Toto TOTO|Ugar UGARITIC|Vaii VAI|Vith VITHKUQI|Wara WARANG CITI|Wcho WANCHO
Xpeo OLD PERSIAN|Xsux CUNEIFORM|Yezi YEZIDI|Yiii YI|Zanb ZANABAZAR
"""
UNNAMED = range(0x17000, 0x18D09)  # Tangut ideographs and components have no names in Python
COMMON = (0x374, 0x640, 0xA9CF, 0xFF9E, 0xFF9F)  # letters that several scripts share


@functools.cache
def codes() -> tuple[str, ...]:
    """ISO 15924 codes, in the order of the table's numbers; 0 stands for no script."""
    return ("", *sorted({entry[:4] for entry in SCRIPTS.replace("\n", "|").split("|") if entry}))


@functools.cache
def table() -> np.ndarray:
    """uint8 [LIMIT]: the script of every letter of the first two planes, 0 for what is no letter or of no script."""
    entries = [entry for entry in SCRIPTS.replace("\n", "|").split("|") if entry]
    number = {entry[5:]: codes().index(entry[:4]) for entry in entries}

    def script(code: int) -> int:
        if unicodedata.category(chr(code))[0] != "L" or code in COMMON:
            return 0
        words = unicodedata.name(chr(code), "").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ").split()
        unnamed = number["TANGUT"] if code in UNNAMED else 0
        found = (number[name] for n in (3, 2, 1) if (name := " ".join(words[:n])) in number)
        return next(found, unnamed)

    made = np.fromiter(map(script, range(LIMIT)), np.uint8, LIMIT)
    made.flags.writeable = False
    return made


@njit(cache=True, nogil=True)
def count_scripts(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, latin: int, ideograph: int, scripts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The script most letters of a document are of (uint8 [documents], the first of equals, 0 where there are no
    letters), the letters of it and those of all scripts (int64 [documents]). Planes 2 and 3 count as ideographs."""
    documents = offsets.size - 1
    most = np.zeros(documents, np.uint8)
    of_it, of_all = np.zeros(documents, np.int64), np.zeros(documents, np.int64)
    counts = np.empty(scripts, np.int64)
    for d in range(documents):
        counts[:] = 0
        ascii_letters, i, stop = 0, offsets[d], offsets[d + 1]
        while i < stop:
            if data[i] < 0x80:
                ascii_letters += 97 <= (data[i] | 0x20) <= 122
                i += 1
                continue
            code, length = decode(data, i, stop)
            counts[table[code] if code < LIMIT else (ideograph if code < 2 * LIMIT else 0)] += 1
            i += length
        counts[0] = 0
        counts[latin] += ascii_letters
        best = counts.argmax()
        of_it[d], of_all[d] = counts[best], counts.sum()
        most[d] = best if counts[best] else 0
    return most, of_it, of_all
