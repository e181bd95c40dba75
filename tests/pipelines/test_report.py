"""The report of real runs: hostile documents stay text, nothing comes from outside, what is not there is left out."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.recipe import parse
from pipelines.report import write_report
from pipelines.report_data import Facts, Threshold, around, comparisons, histograms, largest_clusters, with_texts
from pipelines.run import run
from sql.views import QueryError, query

pytest.importorskip("plotly")
HOSTILE = "</pre></script><script>alert('planted')</script><img src=x onerror=alert(1)>"
SOURCE = "web <b>&"
WORDS = [
    "the",
    "old",
    "river",
    "keeps",
    "a",
    "red",
    "stone",
    "near",
    "one",
    "tree",
    "and",
    "then",
    "finds",
    "another",
    "under",
    "blue",
    "snow",
    "by",
    "night",
]


def text(k: int) -> str:
    lines = [" ".join(WORDS[(k * 3 + i * j) % len(WORDS)] for j in range(5 + k % 11)) for i in range(3 + k % 5)]
    return f"{k} {HOSTILE if k % 2 else ''}\n" + "\n".join(f"{line}." for line in lines)


def write(path: Path, texts: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"text": texts, "id": [f"<script>{k}" for k in range(len(texts))]}), path, row_group_size=16
    )


def recipe(corpus: Path, **more: object) -> dict:
    sources = {SOURCE: f"{corpus}/web/*.parquet", "books": f"{corpus}/books/*.parquet"}
    return {"name": "toy", "sources": sources, "score": {"fineweb": {}}, "quarantine": 1.0, **more}


WHOLE = {
    "dedupe": {"exact": {}},
    "holdout": {"share": 0.2, "clusters": "exact"},
    "fit": {"tokenizer": {"method": "tokenizer", "vocabulary": 300}},
    "tokenizer": "fit:tokenizer",
    "select": {"long": "characters >= 150", "lists": "fineweb.list_ratio <= quantile(fineweb.list_ratio, 0.8)"},
    "mix": {"curated": {}, "random": {"where": "true"}},
}
MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TRAIN = {
    "mixtures": ["curated", "random"],
    "seeds": [0],
    "config": {"model": MODEL, "row_length": 64, "batch_tokens": 512, "tokens": 4096},
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "web" / "0.parquet", [text(k) for k in range(60)] + [text(1)] * 4)
    write(folder / "books" / "0.parquet", [text(k) for k in range(100, 130)])
    (folder / "books" / "<i>bad.parquet").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="session")
def finished(corpus: Path) -> Path:
    """A run with everything: two mixtures trained measured, reported."""
    pytest.importorskip("torch")
    run(parse(recipe(corpus, **WHOLE, train=TRAIN)), str(corpus / "finished"))
    return corpus / "finished"


@pytest.fixture(scope="session")
def selected(corpus: Path) -> Path:
    run(parse(recipe(corpus, **WHOLE)), str(corpus / "selected"), until="select")
    return corpus / "selected"


class Page(HTMLParser):
    """Elements, their attributes, and the text of a page without its scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text.append(data)

    def sections(self) -> list[str]:
        return [a["id"] for tag, a in self.elements if tag == "section" and "id" in a]


def page(folder: Path) -> Page:
    return Page(Path(write_report(str(folder))).read_text())


def test_every_section_of_a_finished_run(finished):
    found = page(finished)
    expected = [
        "outcome",
        "flow",
        "scores",
        "selection",
        "dedupe",
        "mixtures",
        "training",
        "samples",
        "models",
        "provenance",
    ]
    assert found.sections() == expected
    words = " ".join(found.text)
    assert re.search(r"curated (is better than|did not win)", words)
    assert "<i>bad.parquet" in words, "the quarantined shard is named, as text"
    digest = query(
        str(finished), "SELECT DISTINCT mixture_digest AS d FROM mixtures WHERE mixture = 'curated'"
    ).to_pylist()[0]["d"]
    assert digest in words


def test_hostile_documents_stay_text(finished):
    found = page(finished)
    assert HOSTILE in "".join(found.text), "a sample shows the document as it is"
    assert not [
        tag for tag, attributes in found.elements if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    html = (finished / "report.html").read_text()
    assert "<script>alert" not in html
    assert "<b>&" not in html
    assert "<script>0" not in html


def test_nothing_is_loaded_from_outside(finished):
    for tag, attributes in page(finished).elements:
        assert "src" not in attributes, tag
        assert tag not in ("link", "iframe", "base", "object", "embed")
        assert attributes.get("href", "#").startswith("#")
    html = (finished / "report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in html


def test_what_is_not_there_is_left_out(corpus, selected):
    assert page(selected).sections() == ["flow", "scores", "selection", "dedupe", "samples", "models", "provenance"]
    bare = parse(recipe(corpus))
    run(bare, str(corpus / "bare"), until="score")
    assert page(corpus / "bare").sections() == ["flow", "scores", "selection", "samples", "provenance"]
    (corpus / "bare" / "summary.json").unlink()
    assert "flow" in page(corpus / "bare").sections()
    with pytest.raises(QueryError):
        write_report(str(corpus / "web"))


def test_a_run_of_which_nothing_could_be_read(tmp_path):
    (tmp_path / "0.parquet").write_bytes(b"nothing")
    run(parse({"name": "r", "sources": {"a": f"{tmp_path}/*.parquet"}, "quarantine": 1.0}), str(tmp_path / "run"))
    found = page(tmp_path / "run")
    assert found.sections() == ["provenance"]
    assert "0.parquet" in " ".join(found.text)


def test_histograms_count_every_document(selected):
    facts = Facts(str(selected))
    (kept,), (everything,) = (
        query(str(selected), f"SELECT count(*) AS n FROM documents {w}").to_pylist()
        for w in ("WHERE selection.keep", "")
    )
    found = histograms(facts, facts.thresholds())
    assert {h.column for h in found} >= {"characters", "fineweb.list_ratio", "tokens.count"}
    for h in found:
        assert sum(h.kept) == kept["n"]
        assert sum(h.kept) + sum(h.refused) + h.missing == everything["n"]
    assert next(h for h in found if h.column == "fineweb.list_ratio").unit == "line breaks / words"


def test_thresholds_are_those_of_recipe_and_scorer(selected):
    facts = Facts(str(selected))
    found = facts.thresholds()
    value = query(str(selected), "SELECT DISTINCT quantile(fineweb.list_ratio, 0.8) AS q FROM documents").to_pylist()[
        0
    ]["q"]
    assert found[:2] == [
        Threshold("long", "characters", ">=", 150.0),
        Threshold("lists", "fineweb.list_ratio", "<=", value),
    ]
    assert Threshold("fineweb", "fineweb.line_punct_ratio", ">=", 0.12) in found
    assert Threshold("fineweb", "fineweb.list_ratio", "<=", 0.3) in found


def test_comparisons_of_a_condition(selected):
    connection = Facts(str(selected)).connection
    text = "(a.b < 3 OR 4 <= c) AND d BETWEEN 1 AND CAST('2.5' AS DOUBLE) AND e = 'x' AND f > g"
    assert list(comparisons(connection, text)) == [
        ("a.b", "<", 3.0),
        ("c", ">=", 4.0),
        ("d", ">=", 1.0),
        ("d", "<=", 2.5),
    ]


def test_samples_are_the_nearest(selected):
    facts = Facts(str(selected))
    below, above = around(facts, Threshold("long", "characters", ">=", 150.0))
    lengths = sorted(r["n"] for r in query(str(selected), "SELECT characters AS n FROM documents").to_pylist())
    assert [s.value for s in below] == sorted((n for n in lengths if n < 150), reverse=True)[:3]
    assert [s.value for s in above] == [n for n in lengths if n >= 150][:3]
    for s in with_texts(facts, above):
        assert len(s.text) == min(s.value, 600)
    at, beyond = around(facts, Threshold("long", "characters", "<=", float(above[0].value)))
    assert at[0].value == above[0].value < beyond[0].value


def test_largest_clusters(selected):
    facts = Facts(str(selected))
    (largest,) = with_texts(facts, largest_clusters(facts, "exact"))
    assert largest.value == 5
    assert largest.text == text(1)[:600]


def test_shards_may_have_moved_away(selected, tmp_path):
    """Their texts are missing then, and nothing else."""
    copy = tmp_path / "run"
    shutil.copytree(selected, copy)
    shards = (copy / "shards.json").read_text().replace("/web/", "/gone/")
    (copy / "shards.json").write_text(shards)
    found = page(copy)
    assert "samples" in found.sections()
    assert "the text cannot be read" in " ".join(found.text)
    assert yaml.safe_load((copy / "recipe.yaml").read_text())["name"] == "toy"
