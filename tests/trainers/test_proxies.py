from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_tokenizer, toy_text
from toy_topics import sample

from trainers.config import TrainConfig
from trainers.data import Batches
from trainers.model import ModelConfig
from trainers.proxies import Pool, make, measure, mixture, pool, train

SIZE = ModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
CONFIG = TrainConfig(model=SIZE, tokens=3000, row_length=64, batch_tokens=128, lr=1e-2, precision="fp32")


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    generator = np.random.default_rng(0)
    counts = {"large": 400, "small": 100, "target": 30}
    return {name: sample(name, toy_text(generator, n, 30)) for name, n in counts.items()}


@pytest.fixture(scope="module")
def found(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    out = tmp_path_factory.mktemp("pool")
    tokenizer = make_tokenizer(out / "given", [t for table in tables.values() for t in table["text"].to_pylist()])
    with pool(tables, ("large", "small"), tokenizer, out) as opened:
        yield opened


def test_documents_are_learned_or_measured_on_never_both(found: Pool, tables: dict[str, pa.Table]) -> None:
    learned, held = (set(corpus.documents["id"].to_pylist()) for corpus in (found.learn, found.held))
    assert not learned & held
    assert learned | held == {i for table in tables.values() for i in table["id"].to_pylist()}
    assert found.learn.sources == ["large", "small"]
    counts = {name: int((found.held.source == n).sum()) for n, name in enumerate(found.held.sources)}
    assert counts == {"large": 40, "small": 10, "target": 30}


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_sizes_of_whole_sources_are_told_by_the_draws(share: float, tmp_path: Path) -> None:
    texts = ["the cat sees a dog" for _ in range(3000)]
    tables = {"all": sample("all", texts), "part": sample("part", texts, share=share)}
    with pool(tables, ("all", "part"), None, tmp_path) as opened:
        error = 4 / np.sqrt(3000 * share) * np.sqrt(1 - share) + 0.001
        assert opened.tokens["part"] == pytest.approx(opened.tokens["all"], rel=error)
        whole = opened.learn.length.mean() * 3000
        assert opened.tokens["all"] == pytest.approx(whole, rel=0.001)


def test_a_mixture_has_its_shares_to_the_token(found: Pool) -> None:
    shares = {"large": 0.3, "small": 0.7}
    corpus = mixture(found.learn, shares, CONFIG)
    batches = Batches(corpus, 64, 1, 0)
    report = batches.plan_report()
    assert report["tokens"] == 3000
    assert {name: s["pass_tokens"] for name, s in corpus.report().items()} == {"large": 900, "small": 2100}


def test_a_mixture_of_some_documents_has_no_others(found: Pool) -> None:
    among = np.arange(len(found.learn)) % 2 == 1
    corpus = mixture(found.learn, {"small": 1.0}, CONFIG, among)
    assert corpus.copies[among].sum() > 0
    assert corpus.copies[~among].sum() == 0


def test_training_lowers_the_loss_and_is_the_same_every_time(found: Pool) -> None:
    corpus = mixture(found.learn, {"large": 0.5, "small": 0.5}, CONFIG)
    before = measure(make(CONFIG, corpus), found.held, CONFIG)
    first, second = (measure(train(make(CONFIG, corpus), corpus, CONFIG), found.held, CONFIG) for _ in range(2))
    assert first == second
    assert first.keys() == {"large", "small", "target"}
    assert all(first[name] < before[name] - 0.2 for name in first)


def test_a_loss_that_is_no_number_is_told(found: Pool) -> None:
    config = CONFIG.model_copy(update={"lr": 1e30})
    with pytest.raises(ValueError, match=r"lower proxy\.lr"):
        train(make(config, found.learn), mixture(found.learn, {"large": 1.0}, config), config)


def test_too_few_documents_are_told(tmp_path: Path) -> None:
    tables = {"a": sample("a", ["one"] * 50), "b": sample("b", ["two"] * 19)}
    with (
        pytest.raises(ValueError, match="source 'b' gives 19 documents, expected at least 20"),
        pool(tables, ("a", "b"), None, tmp_path),
    ):
        pass
