"""Counts of personal data and keys: addresses, phones, bank accounts, cards, secrets. Costs 3 to 8 ms per MB.

The step `clean` puts placeholders in the place of the same spans (`clean: pii`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from pydantic import field_validator

from scorers import Scorer

if TYPE_CHECKING:
    from transforms.batch import Batch

UNITS = {
    "email": "e-mail addresses",
    "ipv4": "public IPv4 addresses",
    "ipv6": "public IPv6 addresses",
    "iban": "bank accounts (IBAN)",
    "card": "payment card numbers",
    "phone": "phone numbers",
    "secret": "private keys, tokens and random values assigned to secret names",
    "total": "all of them",
}


def known_region(region: str | None) -> str | None:
    """The region, if it is one that `phonenumbers` knows; raises ValueError."""
    if region is not None:
        from phonenumbers import SUPPORTED_REGIONS

        if region not in SUPPORTED_REGIONS:
            raise ValueError(f"no region {region!r}; give a country in two capitals, as US or DE, or null for none")
    return region


class PII(Scorer):
    """How often personal data of each kind stands in a document; what counts: see `transforms.pii` and its imports.

    `region`: country whose phone numbers count also as they are written at home, without "+" and country code.
    """

    name: ClassVar[str] = "pii"
    package: ClassVar[str | None] = "phonenumbers"
    region: str | None = "US"

    _region = field_validator("region")(known_region)

    def fields(self) -> pa.StructType:
        return pa.struct([pa.field(name, pa.int32(), metadata={"unit": unit}) for name, unit in UNITS.items()])

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.pii import count, find

        counts = count(batch, find(batch, region=self.region))
        columns = [pa.array(c, pa.int32()) for c in (*counts, counts.sum(axis=0))]
        return pa.StructArray.from_arrays(columns, fields=list(self.fields()))
