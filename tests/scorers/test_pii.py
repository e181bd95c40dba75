"""The PII scorer counts what stands in a document; a wrong region is a mistake found at once."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pydantic import ValidationError

from scorers import make
from transforms.batch import Batch


def test_counts_per_kind() -> None:
    texts = [
        "a@b.org, c@d.com at 93.184.216.34",
        "nothing",
        "DE89370400440532013000, 4111111111111111, +44 20 7946 0958",
    ]
    found = make("pii").score(Batch(pa.record_batch({"text": texts}))).to_pylist()
    none = dict.fromkeys(("email", "ipv4", "ipv6", "iban", "card", "phone", "secret", "total"), 0)
    assert found == [
        none | {"email": 2, "ipv4": 1, "total": 3},
        none,
        none | {"iban": 1, "card": 1, "phone": 1, "total": 3},
    ]


def test_numbers_as_written_at_home_need_the_region() -> None:
    batch = Batch(pa.record_batch({"text": ["ring 07400 123456"]}))
    counts = [make("pii", {"region": region}).score(batch).field("phone").to_pylist() for region in ("US", "GB", None)]
    assert counts == [[0], [1], [0]]


def test_unknown_regions_are_refused() -> None:
    with pytest.raises(ValidationError, match="no region 'UK'; give a country in two capitals"):
        make("pii", {"region": "UK"})
