"""SQL expressions: what they name, what is refused before any work, and that values stay in the order of documents."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sql.expressions import Expression, ExpressionError, Quantile, evaluate, is_number

COLUMNS = pa.schema(
    {
        "text": pa.large_string(),
        "source": pa.string(),
        "n": pa.int64(),
        "draw": pa.uint64(),
        "tags": pa.list_(pa.string()),
        'Weird "name': pa.int64(),
        "quality": pa.struct([("score", pa.float64()), ("passed", pa.bool_())]),
    }
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("quality.score > 0.5", {"quality"}),
        ("documents.quality.score > n", {"quality", "n"}),
        ("DOCUMENTS.n > 1", {"n"}),
        ("lower(text) LIKE '%x%' AND source IN ('a', 'b')", {"text", "source"}),
        ("quality.score >= quantile(n / 2, 0.9)", {"quality", "n"}),
        ('"Weird ""name" > 3 /* note */', {'Weird "name'}),
        ("list_contains(tags, 'x') -- note\n AND true", {"tags"}),
        ("true", set()),
    ],
)
def test_names_are_the_columns_it_needs(text: str, names: set[str]) -> None:
    expression = Expression(text)
    assert expression.names == names
    assert pa.types.is_boolean(expression.check(COLUMNS))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty; write `true`"),
        ("n >", "is not an SQL expression"),
        ("n > 1 -- note", "no comment may stand at its end"),
        ("n > 1; DROP TABLE x", "is not an SQL expression"),
        ("true) FROM documents WHERE (false", "is not an SQL expression"),
        ("1) FROM documents; SELECT (2", "must be one SQL expression"),
        ("1), (2", "must be one SQL expression"),
        ("nn > 1", 'Candidate bindings: "n"'),
        ("quality.scor > 1", '"score"'),
        ("lowr(text) = 'a'", "lower"),
        ("text > 3", "Cannot compare"),
        ("n > avg(n)", "aggregate"),
        ("count(*) > 3", "an aggregate sees one split, use quantile"),
        ("max(n) > 3", "an aggregate sees one split, use quantile"),
        ("row_number() OVER () < 9", "window gives no single value"),
        ("n > (SELECT max(n) FROM documents)", "subquery gives no single value"),
        ("unnest(tags) = 'a'", "unnest gives no single value"),
        ("*", "star gives no single value"),
        ("random() < 0.5", "random changes with each call"),
        ("current_date > '2020-01-01'", "current_date changes with each call"),
        ("now() > '2020-01-01'", "now changes with each call"),
        ("n > quantile(n, 1.5)", "a number from 0 to 1"),
        ("n > quantile(n)", "a number from 0 to 1"),
        ("n > quantile(n, n)", "a number from 0 to 1"),
        ("n > quantile(DISTINCT n, 0.5)", "a number from 0 to 1"),
        ("n > quantile(n, 0.5) FILTER (WHERE n > 3)", "a number from 0 to 1"),
        ("n > quantile(quantile(n, 0.5), 0.5)", "a quantile of a quantile"),
        ("n > quantile(text, 0.5)", 'quantile needs a number, and "text" is string'),
        ("n > quantile(nn, 0.5)", 'Candidate bindings: "n"'),
        ("n > quantile(avg(n), 0.5)", "an aggregate sees one split"),
    ],
)
def test_what_cannot_be_selected_by_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Expression(text).check(COLUMNS)
    assert reason.lower() in str(error.value).lower()


def test_quantiles_are_found_once_and_resolved_to_the_bit() -> None:
    expression = Expression(
        "quality.score >= QUANTILE(quality.score, 0.9) OR n < quantile(n * 2, .25) AND quantile(quality.score, 0.9) > 0"
    )
    first, second = expression.quantiles
    assert (first, second.share) == (Quantile("quality.score", 0.9), 0.25)
    table = pa.table({"v": [0.1 + 0.2]})
    for value in (0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), 2**53 + 1, 2**64 - 1):
        resolved = Expression("v = quantile(v, 0.5)").resolved({Quantile("v", 0.5): value})
        found = evaluate({"same": resolved}, pa.table({"v": [float(value)]})).column("same").to_pylist()
        assert found == [True], value
    assert evaluate({"x": Expression("v = quantile(v, 0.5)").resolved({Quantile("v", 0.5): None})}, table)[
        "x"
    ].to_pylist() == [None]


@given(st.floats(allow_nan=False))
def test_every_float_survives_as_a_literal(value: float) -> None:
    resolved = Expression("quantile(v, 0.5)").resolved({Quantile("v", 0.5): value})
    found = evaluate({"x": resolved}, pa.table({"v": [0.0]})).column("x").to_pylist()
    assert repr(found) == repr([value])


@given(st.lists(st.none() | st.integers(-5, 5), max_size=50))
def test_values_keep_the_order_of_documents(values: list[int | None]) -> None:
    table = pa.table({"n": pa.array(values, pa.int64())})
    found = evaluate({'say "n"': "n", "N": "n > 0", "n": "n + 1", "a": "true"}, table)
    assert found.column_names == ['say "n"', "N", "n", "a"]
    assert found.column(0).to_pylist() == values
    assert found.column(1).to_pylist() == [None if v is None else v > 0 for v in values]
    assert found.column(3).to_pylist() == [True] * len(values)


def test_errors_on_values_name_the_expression() -> None:
    with pytest.raises(ExpressionError, match=r"CAST\(text AS INT\) > 3: Conversion Error"):
        evaluate({"x": "CAST(text AS INT) > 3"}, pa.table({"text": ["x"]}))


def test_threads_do_not_see_each_others_documents() -> None:
    wrong: list[Any] = []

    def work(k: int) -> None:
        for _ in range(30):
            if evaluate({"x": "n"}, pa.table({"n": [k] * 100})).column("x").to_pylist() != [k] * 100:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_numbers() -> None:
    assert all(map(is_number, (pa.int8(), pa.uint64(), pa.float32(), pa.decimal128(5, 1), pa.bool_())))
    assert not any(map(is_number, (pa.string(), pa.date32(), pa.list_(pa.int8()))))
