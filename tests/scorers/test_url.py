"""Parts of URLs against Python's own reading, registrable domains, blocklists, words, and shards without URLs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scorers import make
from scorers.url import URL, read_domains
from transforms.batch import Batch
from transforms.url import hashes, listed, split

PLANTED = {  # URL -> scheme, host, domain
    "https://www.Example.co.uk:8080/a?x#y": ("https", "example.co.uk", "example.co.uk"),
    "HTTP://user:pw@a.b.example.org.": ("http", "a.b.example.org", "example.org"),
    "http://me.github.io/": ("http", "me.github.io", "me.github.io"),
    "ftp://1.2.3.4/x": ("ftp", "1.2.3.4", None),
    "http://[2001:DB8::1]:80/x": ("http", "[2001:db8::1]", None),
    "http://bücher.example.de/ü": ("http", "bücher.example.de", "example.de"),
    "https://www.com/": ("https", "www.com", "www.com"),
    "http://localhost/": ("http", "localhost", None),
    "not a url": (None, None, None),
    "mailto:x@y.org": (None, None, None),
    "http:///path": (None, None, None),
    "": (None, None, None),
}


def batch_of(urls: pa.Array | list[str | None]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(["x"] * len(urls), pa.large_string()), "url": urls}))


def test_planted_urls() -> None:
    found = make("url").score(batch_of([*PLANTED, None])).to_pylist()
    assert [(r["scheme"], r["host"], r["domain"]) for r in found] == [*PLANTED.values(), (None, None, None)]
    assert all(r["passed"] and r["reason"] is None for r in found)
    known = [scheme is not None for scheme, _, _ in PLANTED.values()]
    assert [r["blocked"] for r in found] == [*(False if k else None for k in known), None]
    assert [r["words"] for r in found] == [*(0 if k else None for k in known), None]


HOST = st.from_regex(r"[a-zA-Z0-9-]{1,8}(\.[a-zA-Z0-9-]{1,6}){1,3}", fullmatch=True)


@given(
    st.sampled_from(["http", "HTTPS", "ftp"]),
    HOST,
    st.sampled_from(["", ":80", ":"]),
    st.from_regex(r"([/?#][!-~]{0,20})?", fullmatch=True),
)
def test_hosts_equal_pythons(scheme: str, host: str, port: str, rest: str) -> None:
    url = f"{scheme}://{host}{port}{rest}"
    wanted = urlsplit(url)
    found = split(pa.array([url], pa.large_string()))
    name = (wanted.hostname or "").rstrip(".")
    short = name[4:] if name.startswith("www.") and "." in name[4:] else name
    assert (found.scheme[0].as_py(), found.host[0].as_py()) == (wanted.scheme, short)
    assert (found.path[0].as_py() or "") == rest.lower()


def test_www_before_a_public_suffix_is_part_of_the_site(tmp_path: Path) -> None:
    """What would be left without it is no site but an ending under which many live."""
    (tmp_path / "list.txt").write_text("www.gov.uk\nwww.blocked.org\n")
    urls = ["https://www.gov.uk/tax", "https://hmrc.gov.uk/", "https://blocked.org/", "https://www.example.org/"]
    batch = Batch(pa.record_batch({"text": [""] * 4, "url": urls}))
    found = make("url", {"blocklist": tmp_path / "list.txt"}).score(batch)
    assert found.field("host").to_pylist() == ["www.gov.uk", "hmrc.gov.uk", "blocked.org", "example.org"]
    assert found.field("domain").to_pylist() == ["www.gov.uk", "hmrc.gov.uk", "blocked.org", "example.org"]
    assert found.field("blocked").to_pylist() == [True, False, True, False]


@given(st.text(max_size=30))
def test_any_text_has_an_answer(url: str) -> None:
    row = make("url").score(batch_of([url, "http://" + url])).to_pylist()
    assert len(row) == 2 and row[0]["passed"] == (row[0]["reason"] is None)


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), max_size=8),
    st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)),
)
def test_a_listed_domain_blocks_what_is_below(hosts: list[str], domains: set[str]) -> None:
    wanted = [any(host == d or host.endswith(f".{d}") for d in domains) for host in hosts]
    known = hashes(pa.array(sorted(domains), pa.large_string()))
    assert listed(pa.array(hosts, pa.large_string()), known).to_pylist() == wanted


def test_blocklists(tmp_path: Path) -> None:
    (tmp_path / "adult").mkdir()
    (tmp_path / "adult" / "domains").write_text("# a list\nbad.org\n\nWWW.Worse.com\n5.6.7.8\r\n")
    (tmp_path / "more.txt").write_text("casino.example.net.\n")
    (tmp_path / "adult" / "urls").write_text("not/read\n")
    urls = [
        "http://bad.org/",
        "http://x.y.bad.org",
        "http://notbad.org",
        "http://worse.com",
        "http://5.6.7.8/",
        "http://example.net",
        None,
    ]
    scorer = URL(blocklist=tmp_path, words=())
    scorer.setup()
    found = scorer.score(batch_of(urls)).to_pylist()
    assert [r["blocked"] for r in found] == [True, True, False, True, True, False, None]
    assert [r["reason"] for r in found] == ["blocked", "blocked", None, "blocked", "blocked", None, None]
    assert len(read_domains(tmp_path)) == 4


def test_words_stand_between_other_characters() -> None:
    urls = [
        "http://casino.org/poker_slots",
        "http://casinos-x.org/",
        "http://mycasino.org/pokerface",
        "http://sussex.ac.uk/sex/sex/sex",
    ]
    found = make("url").score(batch_of(urls)).to_pylist()
    assert [r["words"] for r in found] == [3, 1, 0, 3]
    assert [r["reason"] for r in found] == ["words", None, None, "words"]
    own = make("url", {"words": ["ac"], "max_words": 0}).score(batch_of(urls)).to_pylist()
    assert [r["reason"] for r in own] == [None, None, None, "words"]


def test_mistakes(tmp_path: Path) -> None:
    for text, message in [("", "holds no domains"), ("a.org\nhttp://b.org/x\n", "'http://b.org/x' is no domain")]:
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValidationError, match=re.escape(message)):
            URL(blocklist=tmp_path / "list.txt")
    with pytest.raises(ValidationError, match=r"no blocklist at .*nowhere"):
        URL(blocklist=tmp_path / "nowhere")
    with pytest.raises(ValidationError, match=r"'\(a\+\)\+' is not of lower case letters"):
        URL(words=("(a+)+",))


def test_columns_of_any_kind_and_none() -> None:
    urls = ["http://a.org/", "http://a.org/", None]
    for column in [
        pa.array(urls).dictionary_encode(),
        pa.array([b"http://a.org/", b"http://a.org/", None]),
        pa.array(urls, pa.string_view()),
    ]:
        assert make("url").score(batch_of(column)).field("host").to_pylist() == ["a.org", "a.org", None]
    assert make("url").score(batch_of(pa.array([1, 2, 3]))).field("host").to_pylist() == [None] * 3
    without = Batch(pa.record_batch({"text": ["x"]}))
    assert make("url").score(without).field("host").to_pylist() == [None]
