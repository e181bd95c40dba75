"""The toy corpus and the models that scorers need, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from toy_corpus import Toy, build_toy

settings.register_profile("corpusmill", deadline=None)  # kernels compile on their first call
settings.load_profile("corpusmill")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return build_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_texts(toy: Toy) -> dict[str, list[str]]:
    """Admitted texts by source."""
    found = {}
    for source in toy.documents:
        files = sorted((toy.folder / source).rglob("*.parquet"))
        texts = [t for file in files for t in pq.read_table(file, columns=["text"]).column("text").to_pylist()]
        found[source] = [t for t in texts if t and t.strip()]
    return found


@pytest.fixture(scope="session")
def toy_tokenizer(toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte-level BPE tokenizer of 400 tokens."""
    from trainers.fit_tokenizer import fit_tokenizer

    return fit_tokenizer(toy_texts["books"], tmp_path_factory.mktemp("tokenizer"), 400)


@pytest.fixture(scope="session")
def toy_fasttext(toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fastText classifier of prose against menus."""
    from trainers.fit_fasttext import FastTextParameters, fit_fasttext

    out = tmp_path_factory.mktemp("fasttext")
    fit_fasttext(toy_texts["books"], toy_texts["junk"], out, FastTextParameters(bucket=1000, dim=8, epoch=20))
    return out


@pytest.fixture(scope="session")
def toy_causal(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal language model: a Llama of two layers with random weights and the toy tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    out = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**size, vocab_size=400, max_position_embeddings=256, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (out / file).write_bytes((toy_tokenizer / file).read_bytes())
    return out


@pytest.fixture(scope="session")
def toy_damaged(toy_causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without half of its outputs."""
    import torch
    from transformers import AutoModelForCausalLM

    out = tmp_path_factory.mktemp("damaged")
    model = AutoModelForCausalLM.from_pretrained(toy_causal)
    with torch.no_grad():
        model.get_output_embeddings().weight[::2] = 0
    model.save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (out / file).write_bytes((toy_causal / file).read_bytes())
    return out


@pytest.fixture(scope="session")
def toy_family(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """Folders of six causal models that know the toy grammar ever better, and how well, by words guessed right."""
    import toy_grammar

    folders = toy_grammar.family(tmp_path_factory.mktemp("family"), 40, [3, 6, 12, 24, 48, 96])
    return [(folder, toy_grammar.accuracy(folder)) for folder in folders]


@pytest.fixture(scope="session")
def toy_classifier(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT of two layers and two labels with random weights; its window is 64 tokens."""
    from toy_classifier import make_classifier

    return make_classifier(tmp_path_factory.mktemp("classifier"), toy_tokenizer)


@pytest.fixture(scope="session")
def toy_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an encoder of six words: a BERT of two layers with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    out = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "one", "two", "three", "four", "five", "six"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(out)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=7, max_position_embeddings=64, **size)).save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def toy_target(toy_texts: dict[str, list[str]]) -> dict[str, Any]:
    """Samples for fits that compare with a target: prose, and a pool of prose and menus."""
    import pyarrow as pa

    texts = {"target": toy_texts["books"], "pool": toy_texts["forum"] + toy_texts["junk"]}
    return {n: pa.table({"draw": pa.array(range(len(t)), pa.uint64()), "text": t}) for n, t in texts.items()}


@pytest.fixture(scope="session")
def toy_got_d(toy_target: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a GOT-D model."""
    from trainers.fit_got_d import FitGotD

    out = tmp_path_factory.mktemp("got_d")
    FitGotD(target="true").fit(toy_target, out, 0)
    return out


@pytest.fixture(scope="session")
def toy_dp4tl(toy_target: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a DP4TL model of five clusters."""
    from trainers.fit_dp4tl import FitDp4tl

    out = tmp_path_factory.mktemp("dp4tl")
    FitDp4tl(target="true", clusters=5).fit(toy_target, out, 0)
    return out


@pytest.fixture(scope="session")
def toy_paser(toy_target: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a PASER model of three clusters."""
    import pyarrow as pa

    from trainers.fit_paser import FitPaser

    out = tmp_path_factory.mktemp("paser")
    pool = toy_target["pool"]
    columns = {"sample": "jsd", "candidates": "ies"}
    given = {name: pool.append_column(column, pa.array([0.1] * len(pool))) for name, column in columns.items()}
    FitPaser(budget=20, clusters=3).fit(given, out, 0)
    return out


@pytest.fixture(scope="session")
def toy_influence(toy_causal: Path, toy_target: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an influence model of a few probes."""
    from trainers.fit_influence import FitInfluence

    out = tmp_path_factory.mktemp("influence")
    samples = {**toy_target, "target": toy_target["target"].slice(0, 8)}
    FitInfluence(target="true", model=toy_causal, window=32).fit(samples, out, 0)
    return out


@pytest.fixture
def recipe_of(toy_tokenizer: Path) -> Callable[..., dict[str, Any]]:
    """A small recipe over the sources given: one scorer, a mixture of all documents."""

    def made(sources: dict[str, Any], **changes: Any) -> dict[str, Any]:
        base = {"name": "test", "sources": sources, "score": {"fineweb": {}}, "tokenizer": str(toy_tokenizer)}
        return {**base, "mix": {"all": {"where": "true"}}, **changes}

    return made
