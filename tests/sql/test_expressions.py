"""SQL expressions: what they name, what is refused before any work, and that values stay in the order of documents."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sql.expressions import Expression, ExpressionError, evaluate, is_number
from sql.operators import Cut, Operator

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
        ("top_k(n)", "k, a number of at least 0, or share := a number from 0 to 1"),
        ("top_k(n, -1)", "k cannot be -1. top_k takes"),
        ("top_k(n, n)", "k cannot be n. top_k takes"),
        ("top_k(n, inf)", "k cannot be inf. top_k takes"),
        ("top_k(n, 2.5)", "2.5 is not whole"),
        ("top_k(n, 3, share := 0.1)", "top_k takes an expression and k, a number of at least 0, or share"),
        ("top_k(n, share := 1.1)", "share cannot be 1.1"),
        ("top_k(n, 3, wieght := n)", "wieght is no argument of it; it knows value, k, weight, by, share"),
        ("top_k(n, 3, k := 4)", "k is given twice"),
        ("top_k(n, 1, n, source, 0.1, 7)", "number 6 is no argument of it"),
        ("top_k(DISTINCT n, 3)", "top_k takes an expression"),
        ("top_k(n, 3 ORDER BY n)", "top_k takes an expression"),
        ("top_k(n, 3) OVER ()", "window gives no single value"),
        ("top_k(text, 3)", 'top_k needs a number, and "text" is string'),
        ("top_k(n, 3, weight := source)", 'the weight of top_k needs a number, and "source" is string'),
        ("top_k(n, 3, by := nn)", 'Candidate bindings: "n"'),
        ("top_k(n, 3, by := max(n))", "an aggregate sees one split"),
        ("top_k(random(), 3)", "random changes with each call"),
        ("top_k(quantile(n, 0.5), 3)", "a top_k of a quantile cannot be found"),
        ("quantile(n, 0.5, weight := CAST(top_k(n, 3) AS INT)) > 3", "a quantile of a top_k cannot be found"),
        ("gumbel_top_k(n, 3)", "and a temperature of at least 0"),
        ("gumbel_top_k(n, 3, -1)", "temperature cannot be -1"),
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
    first, second = expression.operators
    assert (first, second.share) == (Operator("quantile", "quality.score", share=0.9), 0.25)
    median = Operator("quantile", "v", share=0.5)
    table = pa.table({"v": [0.1 + 0.2]})
    for value in (0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), 2**53 + 1, 2**64 - 1):
        resolved = Expression("v = quantile(v, 0.5)").resolved({median: Cut(value)})
        found = evaluate({"same": resolved}, pa.table({"v": [float(value)]})).column("same").to_pylist()
        assert found == [True], value
    assert evaluate({"x": Expression("v = quantile(v, 0.5)").resolved({median: Cut(None)})}, table)[
        "x"
    ].to_pylist() == [None]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("top_k(n, 5e6, tokens)", "top_k(n, 5000000, weight := tokens)"),
        ("TOP_K(n, BY := source, SHARE := .25)", 'top_k(n, by := "source", share := 0.25)'),
        ("top_k(K => 5_000, value => -n)", "top_k((-(n)), 5000)"),
        ("gumbel_top_k(n, 7, 0.5)", "gumbel_top_k(n, 7, temperature := 0.5)"),
        ("quantile(n, 0.123456789, n / 2)", "quantile(n, 0.123456789, weight := (n / 2))"),
    ],
)
def test_operators_are_read_by_place_and_by_name(text: str, written: str) -> None:
    (operator,) = Expression(text).operators
    assert str(operator) == written
    assert Expression(written).operators == (operator,)


def test_cuts_part_equal_values_by_draw_and_are_never_null() -> None:
    (operator,) = Expression("top_k(v, 2)").operators
    draws = pa.array([5, 7, 2**64 - 1, 0, 0], pa.uint64())
    table = pa.table({"v": [1.0, 1.0, 3.0, float("nan"), None], "draw": draws})
    for cut, taken in [
        (Cut(1.0, 5), [True, False, True, False, False]),
        (Cut(3.0), [False, False, True, False, False]),
        (Cut(None), [False] * 5),
    ]:
        for text in ("top_k(v, 2)", "NOT top_k(v, 2)"):
            found = evaluate({"x": Expression(text).resolved({operator: cut})}, table).column("x").to_pylist()
            assert found == [t != text.startswith("NOT") for t in taken]


@given(st.floats(allow_nan=False))
def test_every_float_survives_as_a_literal(value: float) -> None:
    resolved = Expression("quantile(v, 0.5)").resolved({Operator("quantile", "v", share=0.5): Cut(value)})
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
