"""Personal data: planted truth among look-alikes, forms against slow references, hostile runs, nothing else masked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.cut import cut
from transforms.pii import KINDS, Kind, count, find, is_phone, masks, phone_shapes
from transforms.pii_forms import IBAN_LENGTHS

KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow+AgEAAoIBAQ/c3" * 8 + "\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
TRUE: dict[Kind, list[str]] = {
    "email": [
        "jane.doe+x@mail.example.co.uk",
        "a_b%c@example.org",
        "X@sub-domain.museum",
        "müller@firma.de",
        "o'brien@163.com",
    ],
    "ipv4": ["93.184.216.34", "52.14.15.16", "11.0.0.1", "172.32.0.1", "223.255.255.255"],
    "ipv6": ["2001:4860:4860::8888", "2a00:1450:4001:81b:0:0:0:200E", "2606:4700::6810:84e5"],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
    ],
    "card": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005", "30569309025904"],
    "phone": [
        "(650) 253-0000",
        "650-253-0000",
        "1-650-253-0000",
        "+44 20 7946 0958",
        "+49 30 901820",
        "+1 (650) 253-0000",
    ],
    "secret": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "xoxb-123456789012-abcdefghijkl",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "sk_live_abcdefGHIJKL0123456789",
        "sk-proj-abcDEF1234567890abcDEF1234567890",
        JWT,
        KEY,
    ],
}
FALSE = [
    *("icon@2x.png", "@me@host.org", "a@b.c", "root@localhost", "@decorator", "user@10.0.0.1", "a.@x.com", "@x.com"),
    *("q@k.transpose(-2,-1)", "W@x.shape", "a@b.T.to(device)", "lodash@4.17.21.tgz", "git@github.com:a/b.git"),
    *("4222222222222", "tokenizer: Qwen2-7B-Instruct-GPTQ-Int4", "max_tokens: gpt-4-32k-0613-preview"),
    *("secretary: room-4B-17C-Floor3-North", "TOKENIZERS=Qwen2-7B-Instruct-GPTQ-Int4", "pwd: /usr/Local/x1/y2/z3/app"),
    "sk-learn-is-a-Very-Nice-Library-2024-For-People",
    *("192.168.1.1", "10.1.2.3", "127.0.0.1", "172.16.0.1", "224.0.0.1", "256.1.1.1", "8.8.8.8", "1.2.3.4", "1.2.30.4"),
    *(
        "v52.14.15.16",
        "version 52.14.15.16",
        "==52.14.15.16",
        "52.14.15.16.17",
        "52.14.15",
        "libc-52.14.15.16",
        "52.014.15.16",
    ),
    *("Chrome/52.14.15.16", "52.14.15.16-2", "52.14.15.16-beta", "release: 52.14.15.16", "ver. 52.14.15.16"),
    *(
        "fe80::1:2",
        "2001:db8::1:2",
        "12:30:45",
        "std::vector",
        "2002:102:304::1",
        "::1",
        "2024:01",
        "3fff:1:2::3",
        "2a00::1",
    ),
    *("DE89 3704 0044 0532 0130 01", "GB82WEST1234569876543", "XX89370400440532013000", "xDE89370400440532013000"),
    *("4111 1111 1111 1112", "1234567812345670", "4111 1111-1111 1111", "0.4111111111111111", "id/4111111111111111"),
    *(
        "2024-05-12 10:30",
        "978-3-16-148410-0",
        "555-0100",
        "100-200-3000",
        "$650.253.0000",
        "650 253 0000",
        "650.253-0000",
    ),
    *("+99 123 456 789", "1.650.253.0000.7", "+35236450.6", "6502530000"),
    *(
        "AKIAIOSFODNN7EXAMPL",
        "AKIAIOSFODNN7EXAMPLES",
        "ghp_short",
        "sk-estimator-doc-link-container-item-1",
        "eyJhbGci.eyJ.x",
    ),
    *("token = get_token_from_request(1234)", "token: TOK_STREAM_HOP1_B64_22", "secret: /etc/app01/keys02/db03/main"),
    *(
        "password: hunter2",
        "colour = Zk93jf02mXq8LpT4",
        "secret = aaaaaaaaaaaaaaaaaaaaaaa111",
        "'-----BEGIN PRIVATE KEY-----'",
    ),
]


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def spans(text: str, kind: Kind) -> list[str]:
    batch = batch_of([text])
    found = find(batch, [kind])
    return [bytes(batch.bytes[a:b]).decode() for a, b, _ in zip(*found, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_alone_and_among_others(kind: Kind) -> None:
    for text in TRUE[kind]:
        for around in ("{}", "see {}, or not", "<{}>", "wo: {}.", "邮{} ü", '"{}"\n'):
            batch = batch_of(["", around.format(text)])
            found = find(batch)
            assert [KINDS[k] for k in found.kind] == [kind], (around, text)
            assert bytes(batch.bytes[found.start[0] : found.end[0]]).decode() == text


@pytest.mark.parametrize("text", FALSE)
def test_look_alikes_are_not_found(text: str) -> None:
    assert len(find(batch_of([f"it is {text} here"])).start) == 0
    assert len(find(batch_of([text])).start) == 0


_ASSIGNMENTS = [
    *('api_key = "{}"', "TOKEN={}", "'password': '{}'", "client_secret := {}", "aws-access_key: {}\n", "api key: {}"),
    *(
        "tokenValue: {}",
        "SECRET_2={}",
        "DB_PWD={}",
        "Authorization: Bearer {}",
        '"auth": "bearer {}"',
        "credentials={}",
        "secretKey: {}",
        "secretkey={}",
        "secret key: {}",
        "PASSWORD1={}",
    ),
]


def test_values_assigned_to_secret_names() -> None:
    for text in _ASSIGNMENTS:
        for value in ("Zk93jf02mXq8LpT4", "9f86d081884c7d659a2feaa0c55ad015", "u7Tq+1/xB2b9PdeW=="):
            assert spans(text.format(value), "secret") == [value], text


BODY = "MIIEow+AgEAAoIBAQ/c3mQ9"
HEADERS = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0F1E2D\n\n"


@pytest.mark.parametrize(
    "key",
    [
        f"-----BEGIN PRIVATE KEY-----\n{BODY * 3}\n-----END PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{HEADERS}{BODY * 3}\r\n  {BODY}==\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\\n{BODY * 3}\\n{BODY}\\n-----END PRIVATE KEY-----",
        f"-----BEGIN EC PRIVATE KEY----- {BODY * 3} {BODY} -----END EC PRIVATE KEY-----",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: v2\n\n{BODY * 9}\n=aB3d\n-----END PGP PRIVATE KEY BLOCK-----",
    ],
)
def test_private_keys_are_masked_whole_and_nothing_around_them(key: str) -> None:
    assert spans(f"-----BEGIN PRIVATE KEY----- opens a file: {key} and -----END PRIVATE KEY-----", "secret") == [key]


@pytest.mark.parametrize(
    "text",
    [
        f"A key opens with -----BEGIN PRIVATE KEY-----, then: {BODY * 4}\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY----- " + "are the words before it " * 9 + "-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n" + "Some: word, and one more\n" * 9 + "-----END PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{BODY * 4}\n-----END CERTIFICATE-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{BODY * 4}\n-----END DSA PRIVATE KEY-----",
        f"-----BEGIN PUBLIC KEY-----\n{BODY * 4}\n-----END PUBLIC KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{BODY * 4}\n-----END PRIVATE KEY",
    ],
)
def test_what_only_speaks_of_private_keys_stays(text: str) -> None:
    assert spans(text, "secret") == []


def test_ends_of_addresses() -> None:
    for text, wanted in [
        ("john@example.com--John", ["john@example.com"]),
        ("x@a.org- y, 日本x@my--site.com, b'c@d.de' 'd'e@f.de", ["x@a.org", "x@my--site.com", "c@d.de", "d'e@f.de"]),
        ("user@126.com, user@139.com.cn, digit@4.17.com", ["user@126.com", "user@139.com.cn"]),
        ("digit@git.org, git@git.org, 3×a@b.de Ünal.Åström@b.de", ["digit@git.org", "a@b.de", "Ünal.Åström@b.de"]),
    ]:
        assert spans(text, "email") == wanted


@given(
    st.lists(
        st.lists(st.sampled_from([(k, t) for k in KINDS for t in TRUE[k]] + [(None, t) for t in FALSE]), max_size=6)
    )
)
def test_planted_counts(documents: list[list[tuple[Kind | None, str]]]) -> None:
    """Between things of any kind a line of words stands: what is found does not depend on the neighbours."""
    batch = batch_of(["\nnothing of the kind here;\n".join(t for _, t in document) for document in documents])
    wanted = [[sum(k == kind for k, _ in document) for document in documents] for kind in KINDS]
    assert count(batch, find(batch)).tolist() == wanted


@given(st.lists(st.one_of(st.sampled_from([t for k in KINDS for t in TRUE[k]]), st.text(max_size=8)), max_size=12))
def test_masking_leaves_everything_else(parts: list[str]) -> None:
    text = "".join(parts)
    batch = batch_of(["before", text, ""])
    found = find(batch)
    assert (found.start[1:] >= found.end[:-1]).all() and (found.end > found.start).all()
    masked = cut(batch, masks(batch, found)).to_pylist()
    data, place, wanted = text.encode(), 0, b""
    for a, b, k in zip(found.start - 6, found.end - 6, found.kind, strict=True):
        wanted += data[place:a] + f"<{KINDS[k].upper()}>".encode()
        place = b
    assert masked == ["before", (wanted + data[place:]).decode(), ""]


def apart(found: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first of spans that overlap, the longest of those that begin together."""
    chosen: list[tuple[int, int]] = []
    for a, b in sorted(found, key=lambda s: (s[0], -s[1])):
        if not chosen or a >= chosen[-1][1]:
            chosen.append((a, b))
    return chosen


def emails(text: str) -> Iterator[tuple[int, int]]:
    for at in re.finditer("@", text):
        i, end = at.start(), domain_end(text, at.end())
        quote = "" if text[end : end + 1] == "'" else "'"
        characters = rf"[A-Za-z0-9._%+{quote}\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u037f-]*\Z"
        whole = re.findall(characters, text[:i])[0]
        local = whole.lstrip("._%+-'")
        before = text[: i - len(local)]
        fits = 0 < len(whole.encode()) <= 64 and text[i - 1] not in ".'" and not before.endswith("@")
        if end and fits and local and local.lower() != "git":
            yield i - len(local), end


def domain_end(text: str, i: int) -> int:
    """0: none."""
    run = re.match(r"[A-Za-z0-9.-]*", text[i:])[0]  # type: ignore[index]
    begin, good = i, 0
    if re.match(r"\d{1,7}\.\d", run):
        return 0
    for k, label in enumerate(run.split(".")):
        stop = begin + len(label)
        dashes = [m.start() for m in re.finditer("-(?![A-Za-z0-9])", text) if begin <= m.start() < stop]
        whole = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", label)
        for place in [*dashes, *([stop] if whole else [])]:
            last = text[begin:place]
            if k and re.fullmatch("[A-Za-z]{2,24}", last) and last.lower() not in ("js", "png", "shape", "xn"):
                good = place
        if not whole:
            return good
        begin = stop + 1
    return 0 if text[begin - 1 : begin] in ("@", "(") else good


def ipv4s(text: str) -> Iterator[tuple[int, int]]:
    behind = r"(?<![A-Za-z0-9_.])(?<![A-Za-z][-/])(?<![0-9]:)"
    ahead = r"(?![A-Za-z0-9_]|\.[A-Za-z0-9]|-(?![0-9]+\.)[A-Za-z0-9])"
    form = re.compile(behind + r"[1-9][0-9]{0,2}(?:\.(?:0|[1-9][0-9]{0,2})){3}" + ahead)
    for i in range(len(text)):
        if not (match := form.match(text, i)):
            continue
        parts = [int(part) for part in match[0].split(".")]
        if max(parts) > 255 or max(parts[:2]) < 10:
            continue
        address = ipaddress.IPv4Address(match[0])
        word = re.search(r"([A-Za-z]{1,8})[^A-Za-z0-9\u0080-\U0010ffff]{0,4}\Z", text[:i])
        version = (word and word[1].lower() in ("v", "ver")) or re.search(r"[^A-Za-z0-9 ]= {0,4}\Z", text[:i])
        if address.is_global and not address.is_multicast and not version:
            yield match.span()


def ipv6s(text: str) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"(?<![A-Za-z0-9_:.])[0-9A-Fa-f]{4}:[0-9A-Fa-f:]*", text):
        whole, rest = match[0], text[match.end() :]
        if re.search(r"(^|[^:]|::):\Z", whole) and rest.startswith(" "):
            whole, rest = whole[:-1], ":"
        try:
            address = ipaddress.IPv6Address(whole)
        except ValueError:
            continue
        ends = not re.match(r"[A-Za-z0-9_]|\.[A-Za-z0-9]", rest)
        if ends and address.is_global and int(address) >> 125 == 1 and len(re.findall("[^:]+", whole)) > 2:
            yield match.start(), match.start() + len(whole)


def ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"(?<![A-Za-z0-9])(?=([A-Z]{2}[0-9]{2}(?: ?[A-Z0-9])+))", text):
        length = int(IBAN_LENGTHS[ord(match[1][0]) - 65, ord(match[1][1]) - 65])
        whole = text[match.start() : match.start() + length]
        groups = text[match.start() : match.start() + length + (length - 1) // 4]
        for form in (whole, groups):
            plain = form.replace(" ", "")
            spaced = " ".join(plain[k : k + 4] for k in range(0, length, 4))
            after = text[match.start() + len(form) :][:1]
            if len(plain) != length or form not in (plain, spaced) or not re.fullmatch("[A-Z0-9]+", plain):
                continue
            number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
            if length and int(number) % 97 == 1 and not re.match("[A-Za-z0-9]", after):
                yield match.start(), match.start() + len(form)


def cards(text: str) -> Iterator[tuple[int, int]]:
    behind, ahead = r"(?<![A-Za-z0-9_+/])(?<![A-Za-z0-9][.-])", r"(?![A-Za-z0-9_@]|[.-][0-9])"
    fours = r"[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    for form in [r"[0-9]{12,19}", r"[0-9]{4}([ -])[0-9]{6}\1[0-9]{4,5}", fours, fours + r"\1[0-9]{3}"]:
        for i in range(len(text)):
            match = re.compile(behind + form + ahead).match(text, i)
            if match and luhn(re.sub(r"\D", "", match[0])):
                yield match.span()


def luhn(digits: str) -> bool:
    total = sum(sum(divmod(int(d) * (1 + k % 2), 10)) for k, d in enumerate(reversed(digits)))
    ranges = (
        r"4(\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(0[0-5]|[689]\d)\d{11}"
        r"|6(011|5\d\d|2\d\d)\d{12,15}"
    )
    return total % 10 == 0 and bool(re.fullmatch(ranges, digits))


REFERENCES: dict[Kind, tuple[Callable[[str], Iterator[tuple[int, int]]], str, list[str]]] = {
    "email": (
        emails,
        "ab1.@-_%é×日'( \n",
        [
            "@b1.com",
            "a.js",
            "x@y.de",
            "@png.png",
            "git@",
            "@4.1",
            "@16.com",
            ".com--",
            ".xn--a",
            "q@k.shape",
            "'a@b.de'",
        ],
    ),
    "ipv4": (ipv4s, "0123456789.-:/=v _é", ["52.14.15.16", "10.1.1.", ".255", "192.168.", "ver ", "==", "-1.2.3.4"]),
    "ipv6": (ipv6s, "0123fF:.g ", ["2a00:", "::", ":1", "2001:db8:", ":ffff", "3ffe:1:2:3:4:5:6:7"]),
    "iban": (ibans, "DENO0123 x", ["DE89370400440532013000", "NO93 8601 1117 947", "BE68 5390 0754 7034", " 00", "DE"]),
    "card": (
        cards,
        "0124 -.x/@",
        ["4111 1111 1111 1111", "378282246310005", "3782-822463-10005", " 1111", "4222222222222"],
    ),
}


@pytest.mark.parametrize("kind", list(REFERENCES))
def test_forms_equal_a_slow_reference(kind: Kind) -> None:
    reference, alphabet, pieces = REFERENCES[kind]

    @settings(max_examples=300)
    @given(st.lists(st.one_of(st.text(alphabet, max_size=6), st.sampled_from(pieces)), max_size=8).map("".join))
    def equal(text: str) -> None:
        assert spans(text, kind) == [text[a:b] for a, b in apart(reference(text))]

    equal()


def test_ipv6_ranges_are_those_of_the_registry() -> None:
    """As Python knows it, but for the tunnels of 2002::/16."""
    draw = np.random.default_rng(4)
    for first in (*draw.integers(0x2003, 0x3FFF, 200).tolist(), 0x2001, 0x2002, 0x3FFF, 0x1FFF, 0x4000, 0xFE80, 0xFC00):
        second = int(draw.integers(0x1000, 0xFFFF)) if first != 0x2001 else 0xDB8
        text = f"{first:x}:{second:x}::{int(draw.integers(1, 0xFFFF)):x}"
        wanted = ipaddress.ip_address(text).is_global and 0x2000 <= first < 0x4000 and first != 0x2002
        assert bool(spans(text, "ipv6")) == wanted, text


def test_regions_write_their_own_way() -> None:
    own = {"US": "(650) 253-0000", "DE": "030 901820", "GB": "07400 123456", "FR": "01 42 68 53 00"}
    batch = batch_of([f"it is {number}, as is +33 1 42 68 53 00" for number in own.values()])
    found = {region: count(batch, find(batch, ["phone"], region))[KINDS.index("phone")] for region in (None, *own)}
    assert found[None].tolist() == [1, 1, 1, 1] and found["US"].tolist() == [2, 1, 1, 1]
    assert [found[region][k] for k, region in enumerate(own)] == [2, 2, 2, 2]
    assert phone_shapes("US").tolist() == [0x334, 0x434, 0x1334] and len(phone_shapes(None)) == 0
    assert is_phone("650-253-0000", "US") and not is_phone("650-253-0000", None) and not is_phone("()", "US")


def test_spaces_alone_want_a_word_or_a_zero() -> None:
    assert spans("650 253 0000", "phone") == [] and spans("call 650 253 0000", "phone") == ["650 253 0000"]
    assert spans("Tel.: 650 253 0000 x", "phone") == ["650 253 0000"]


DATES = [
    *("2024-11-05", "2024/12/01", "2024.11.05", "2024-1-05", "05.11.2024", "5/11/2024"),
    *("31-12-1999", "12/31/1999", "22.04.2015", "1. 05. 2024", "22.04.2015-24.04.2015", "2010-2018"),
    *("2010/2018", "1998 - 2004", "(2010-2018)", "(1999) 2004", "2010.2018", "05.11.2024 10:30"),
    *("2024-11-05 10:30:59", "2024-11-05 1030", "30 2024-11-05", "1914-1918", "11/2024", "2024-11"),
    *("05.2024", "2018-19", "01.01.1970"),
]


def test_dates_are_phone_numbers_nowhere() -> None:
    from phonenumbers import SUPPORTED_REGIONS

    batch = batch_of([around.format(date) for date in DATES for around in ("{}", "released {}, then", "tel. {}\n")])
    for region in sorted(SUPPORTED_REGIONS):
        found = find(batch, ["phone"], region)
        texts = [bytes(batch.bytes[a:b]).decode() for a, b in zip(found.start, found.end, strict=True)]
        assert texts == [], region
    for number, region in [("02-2010-2018", "TW"), ("tel. 2210 2018", "CR"), ("+45 20 12 20 24", "DK")]:
        assert find(batch_of([number]), ["phone"], region).start.size == 1


def test_what_overlaps_counts_once() -> None:
    text = f"token={JWT} and secret: 650-253-0000-Zk93jf02mXq8LpT4"
    assert spans(text, "phone") == ["650-253-0000"]
    assert spans(text, "secret") == [JWT, "650-253-0000-Zk93jf02mXq8LpT4"]
    assert find(batch_of([text])).kind.tolist() == [KINDS.index("secret")] * 2


def test_documents_do_not_run_into_each_other() -> None:
    for whole in [
        "jane@example.org",
        "93.184.216.34",
        "4111111111111111",
        "GB82WEST12345698765432",
        KEY,
        "+44 20 7946 0958",
    ]:
        for k in range(1, len(whole)):
            parts = [whole[:k], whole[k:]]
            alone = [count(batch_of([part]), find(batch_of([part]))).sum() for part in parts]
            assert count(batch_of(parts), find(batch_of(parts))).sum(axis=0).tolist() == alone


def test_any_single_character_and_hostile_runs_take_linear_time() -> None:
    """1 MB each, which would take hours where anything grew with the square."""
    for run in [
        *"@.:=-+(0 29a/Ae_",
        "a@",
        "@a.",
        "eyJ",
        "=a",
        "secret=",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "1.2.3.4.",
        "2001:",
        "4111 ",
        "DE89 ",
        "+1 ",
        "sk-",
        "eyJaaaaaaaaaa.",
        "\u00a0",
        "12-",
    ]:
        text = run * (1_000_000 // len(run.encode()))
        assert find(batch_of([text])).start.size < 300_000
