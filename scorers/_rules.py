"""What the rule sets share: a struct of features with the first rule that fails."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

RULE_FIELDS = [
    pa.field("passed", pa.bool_(), metadata={"unit": "no rule failed"}),
    pa.field("reason", pa.string(), metadata={"unit": "first rule that failed, null where passed"}),
]


def rule_struct(units: dict[str, str], types: Mapping[str, pa.DataType] = MappingProxyType({})) -> pa.StructType:
    """`passed`, `reason` and one field for each feature, with its unit; float64 where `types` says nothing else."""
    features = [pa.field(n, types.get(n, pa.float64()), metadata={"unit": unit}) for n, unit in units.items()]
    return pa.struct(RULE_FIELDS + features)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64: part / whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(len(whole), np.float64), where=whole > 0)


def judge(
    type: pa.StructType, features: dict[str, np.ndarray], empty: np.ndarray, failed: dict[str, np.ndarray]
) -> pa.StructArray:
    """The struct column: features (null for empty documents), `passed`, and as `reason` the first rule that failed.

    Args:
        features: name -> [documents]. empty: bool [documents], fails as "empty" before any rule.
        failed: rule -> bool [documents], in the order the rules are published in.
    """
    rules = {"empty": empty, **failed}
    masks = np.stack(list(rules.values()))
    passed = ~masks.any(axis=0)
    reason = pa.array(list(rules)).take(pa.array(masks.argmax(axis=0), mask=passed))
    columns = {"passed": pa.array(passed), "reason": reason}
    columns |= {name: pa.array(values, type.field(name).type, mask=empty) for name, values in features.items()}
    return pa.StructArray.from_arrays([columns[field.name] for field in type], fields=list(type))
