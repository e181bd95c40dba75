"""Parts of URLs, registrable domains and lists of domains: whole columns, each distinct host looked at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.batch import Batch
from transforms.text import hash_bytes, hash_pieces

_FORM = (
    r"^\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#@\s]*@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/?#:@\[\]\s]+)"
    r"(?::[0-9]*)?(?P<path>[/?#]\S*)?\s*$"
)


class Parts(NamedTuple):
    """large_string [urls] in lower case, null where there is no URL; hosts without user, port, "www." and last dot."""

    scheme: pa.LargeStringArray
    host: pa.LargeStringArray
    path: pa.LargeStringArray


def split(urls: pa.LargeStringArray) -> Parts:
    """Parts of URLs that have a scheme and a host; `path` is what follows the host, with query and fragment."""
    found = pc.extract_regex(urls, _FORM)
    scheme, host, path = (pc.utf8_lower(pc.struct_field(found, name)) for name in ("scheme", "host", "path"))
    host = without_www(pc.utf8_rtrim(host, "."))
    return Parts(scheme, pc.if_else(pc.equal(host, ""), None, host), path)


def without_www(hosts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Hosts without "www.", but where a public suffix would be left: www.gov.uk is a site, gov.uk is not."""
    shorter = pc.replace_substring_regex(hosts, r"^www\.([^.]+\.)", r"\1")
    encoded = shorter.dictionary_encode()
    suffix = [host is not None and _suffixes().is_public(host) for host in encoded.dictionary.to_pylist()]
    return pc.if_else(pc.fill_null(pa.array(suffix, pa.bool_()).take(encoded.indices), False), hosts, shorter)


@functools.cache
def _suffixes():  # type: ignore[no-untyped-def]  # PublicSuffixList; imported only where it is used
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False)


def domains(hosts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The registrable domain of each host by the public suffix list, private part included; null where there is none.

    So "a.b.example.co.uk" gives "example.co.uk" and "me.github.io" itself; an IP address or an unknown end gives null.
    """
    encoded = hosts.dictionary_encode()
    known = [None if host is None else _domain(host) for host in encoded.dictionary.to_pylist()]
    return pa.array(known, pa.large_string()).take(encoded.indices)


@functools.lru_cache(1 << 18)
def _domain(host: str) -> str | None:
    if not host.isascii():
        try:
            labels = host.encode("idna").decode()
        except UnicodeError:
            return None
        found = _suffixes().privatesuffix(labels)
        return None if found is None else ".".join(host.split(".")[-1 - found.count(".") :])
    return _suffixes().privatesuffix(host)


def hashes(names: pa.LargeStringArray) -> np.ndarray:
    """Sorted uint64: hashes of names of domains, for `listed`."""
    batch = Batch(pa.record_batch({"text": names}))
    return np.unique(hash_pieces(batch.bytes, batch.offsets[:-1], batch.offsets[1:]))


def listed(hosts: pa.LargeStringArray, known: np.ndarray) -> pa.BooleanArray:
    """Whether the hash of the host, or of a domain above it, is among `known`; null where the host is null."""
    encoded = hosts.dictionary_encode()
    batch = Batch(pa.record_batch({"text": encoded.dictionary.cast(pa.large_string())}))
    return pa.array(_listed(batch.bytes, batch.offsets, known)).take(encoded.indices)


@njit(cache=True, nogil=True)
def _listed(data: np.ndarray, offsets: np.ndarray, known: np.ndarray) -> np.ndarray:
    out = np.zeros(offsets.size - 1, np.bool_)
    for d in range(offsets.size - 1):
        lo, hi = offsets[d], min(offsets[d + 1], offsets[d] + 253)  # no host is longer
        if hi < offsets[d + 1]:
            continue
        for i in range(lo, hi):
            if i == lo or data[i - 1] == 46:
                value = hash_bytes(data, i, hi)
                place = np.searchsorted(known, value)
                if place < known.size and known[place] == value:
                    out[d] = True
    return out
