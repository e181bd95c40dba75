"""Supervised fine-tuning data, from the shards of a mixture to the batches of a run."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import END, make_mixture, make_tokenizer, toy_text
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainers.config import TrainConfig
from trainers.data import Batch, Batches, gather
from trainers.formats import Format
from trainers.learner import Learner
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, new_model
from trainers.run import Run

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY = ModelConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
TURN = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(pa.string())})


def toy_sft(root: Path, seed: int = 0) -> Path:
    """A mixture of two sources with the columns that every format needs."""
    generator = np.random.default_rng(seed)
    sources, columns = {}, {}
    for name, documents in (("asked", 40), ("told", 25)):
        prompts, answers, more = (toy_text(generator, documents, mean) for mean in (12, 20, 6))
        talks = [
            [("system", "one old cat")] * (i % 3 == 0)
            + [("user", prompt), ("assistant", answer)]
            + [("user", "and then?"), ("assistant", last)] * (i % 2)
            for i, (prompt, answer, last) in enumerate(zip(prompts, answers, more, strict=True))
        ]
        messages = pa.array(
            [[{"role": role, "content": said} for role, said in talk] for talk in talks], pa.list_(TURN)
        )
        sources[name] = answers
        worth = generator.choice([0.5, 1.0, 2.0], documents)
        columns[name] = {"prompt": [*prompts[:-1], None], "messages": messages, "worth": worth}
    texts = [text for texts in sources.values() for text in texts]
    tokenizer = make_tokenizer(root / "tokenizer", texts, special=("<|im_start|>", "<|im_end|>"))
    config = {"eos_token": END, "chat_template": CHATML, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    return make_mixture(root / "mixture", sources, tokenizer, epochs={"told": 2.0}, columns=columns)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return toy_sft(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def corpus(mixture):
    return open_mixture(mixture, mixture.parent / "cache", Format(kind="messages"))


def rows(mixture: Path, source: str) -> list[dict]:
    return pq.read_table(mixture / source / "00000.parquet").to_pylist()


def document(corpus, place: int) -> tuple[list[int], list[int], list[float]]:
    """inputs, targets and weights of one document."""
    batch = gather(corpus, np.array([place]), corpus.start[[place]], corpus.length[[place]])
    return batch.inputs.tolist(), batch.targets.tolist(), batch.weights.tolist()


def test_prompts_are_context_and_completions_are_learned(mixture, tmp_path):
    corpus = open_mixture(mixture, tmp_path, Format(kind="prompt_completion"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(mixture.parent / "tokenizer")
    end = tokenizer.eos_token_id
    for place, row in enumerate(rows(mixture, "asked")):
        prompt = tokenizer(row["prompt"] or "")["input_ids"]
        completion = [*tokenizer(row["text"])["input_ids"], end]
        inputs, targets, weights = document(corpus, place)
        assert inputs == [end, *prompt, *completion[:-1]] and targets == [*prompt, *completion]
        assert weights == [0.0] * len(prompt) + [1.0] * len(completion)
        assert corpus.targets[place] == len(completion)


def test_prompts_and_completions_as_turns(mixture, tmp_path):
    corpus = open_mixture(mixture, tmp_path, Format(kind="prompt_completion", chat=True))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(mixture.parent / "tokenizer")
    for place, row in enumerate(rows(mixture, "asked")):
        talk = [{"role": "user", "content": row["prompt"] or ""}, {"role": "assistant", "content": row["text"]}]
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt
        inputs, targets, weights = document(corpus, place)
        assert inputs == ids[:-1] and targets == ids[1:]  # nothing stands before a conversation
        assert weights == [0.0] * (len(prompt) - 1) + [1.0] * (len(ids) - len(prompt) - 1) + [0.0]  # the line break
        assert targets[-2] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_loss_of_a_conversation_is_that_of_transformers(mixture, corpus):
    """By hand: the same ids through the same model, -100 wherever no assistant speaks."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(mixture.parent / "tokenizer")
    model = new_model(TINY, corpus, 256, seed=0).eval()
    config = LlamaConfig(**{k: v for k, v in model.config.to_dict().items() if not k.startswith("_")})
    plain = LlamaForCausalLM(config).eval()
    plain.load_state_dict(model.state_dict())
    for place, row in enumerate(rows(mixture, "asked")[:6]):
        talk = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        labels = [-100] * len(ids)
        for turn, message in enumerate(talk):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(talk[:turn], add_generation_prompt=True, return_dict=False)
                until = tokenizer.apply_chat_template(talk[: turn + 1], return_dict=False)
                labels[len(before) : len(until) - 1] = ids[len(before) : len(until) - 1]
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            batch = gather(corpus, np.array([place]), corpus.start[[place]], corpus.length[[place]])
            found = Learner(model)(batch, 0.0).loss / batch.weight
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert batch.weight == sum(label != -100 for label in labels) == corpus.targets[place]


def test_what_others_say_changes_no_label(mixture, corpus, tmp_path):
    """Other words of system and user: the same targets of weight, in the same order."""
    sources, columns = {}, {}
    for name in ("asked", "told"):
        table = pq.read_table(mixture / name / "00000.parquet")
        talks = table["messages"].to_pylist()
        for talk in talks:
            for message in talk:
                if message["role"] != "assistant":
                    message["content"] = f"dog {message['content'][::-1]}<|im_end|>猫"
        sources[name] = table["text"].to_pylist()
        columns[name] = {"messages": pa.array(talks, pa.list_(TURN))}
    other = make_mixture(mixture.parent / "other", sources, mixture.parent / "tokenizer", columns=columns)
    changed = open_mixture(other, tmp_path, Format(kind="messages"))
    assert changed.targets.tolist() == corpus.targets.tolist() and len(changed.tokens) > len(corpus.tokens)
    for place in range(len(corpus)):
        learned = []
        for which in (corpus, changed):
            _, targets, weights = document(which, place)
            learned.append([t for t, w in zip(targets, weights, strict=True) if w])
        assert learned[0] == learned[1]


def test_packed_and_alone_give_the_same_loss_and_gradient(corpus):
    model = new_model(TINY, corpus, 256, seed=1)
    learner = Learner(model)
    batch = Batches(corpus, 256, 3, seed=0).batch(0)
    assert len(batch.lengths) > 5 and 0 < batch.weight < len(batch.targets)

    def gradient(parts: list[Batch]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        losses = [learner(part, 0.0).loss for part in parts]
        total = sum(losses)
        total.backward()
        return total.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    packed, alone = (
        gradient(parts) for parts in ([batch], [batch.pieces(np.array([i])) for i in range(len(batch.lengths))])
    )
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    assert torch.allclose(packed[1], alone[1], rtol=1e-3, atol=1e-5)
    trained = batch.trained()
    assert gradient([trained])[0] == pytest.approx(packed[0], rel=1e-5)


def test_a_killed_run_goes_on_with_the_same_bits(corpus, tmp_path, monkeypatch):
    config = TrainConfig(
        model=TINY, row_length=64, batch_tokens=256, tokens=3000, threads=1, precision="fp32", tensorboard=False
    ).model_copy(update={"checkpoint_every": 4})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    run = Run(config, corpus, straight, {})
    run.resume()
    run.train()
    step = Run._step

    def dies(self):
        if self.step == 6:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Run, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        first = Run(config, corpus, killed, {})
        first.resume()
        first.train()
    monkeypatch.undo()
    second = Run(config, corpus, killed, {})
    second.resume()
    assert second.step == 4
    second.train()
    assert run.step == second.step > 8
    for a, b in zip(run.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    report = json.loads((killed / "data.json").read_text())
    assert report["sources"]["told"]["pass_targets"] == 2 * report["sources"]["told"]["targets"] > 0
    assert report["sources"]["asked"]["tokens"] > report["sources"]["asked"]["targets"]


def test_documents_without_anything_to_learn_are_left_out_and_counted(mixture, tmp_path):
    talks = [
        [{"role": "user", "content": "a red cat " * 9}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}],
        None,
        [{"role": "user", "content": "where"}, {"role": "assistant", "content": "there"}],
    ]
    columns = {"s": {"messages": [json.dumps(talk) for talk in talks]}}
    tokenizer = mixture.parent / "tokenizer"
    folder = make_mixture(mixture.parent / "few", {"s": ["x"] * 4}, tokenizer, columns=columns)
    corpus = open_mixture(folder, tmp_path, Format(kind="messages"))
    assert corpus.targets[[0, 1, 2]].tolist() == [0, 1, 0] and corpus.copies.tolist() == [0, 1, 0, 1]
    batches = Batches(corpus, 64, 1, seed=0)
    assert batches.plan_report()["documents_without_targets"] == 2
    seen = [batches.batch(step) for step in range(6)]
    assert {1, 3} == {int(d) for batch in seen for d in batch.documents} and all(batch.weight > 0 for batch in seen)
    assert corpus.report()["s"] | {"documents": 4, "targets": int(corpus.targets.sum())} == corpus.report()["s"]
    silent = make_mixture(
        mixture.parent / "none", {"s": ["x"]}, tokenizer, columns={"s": {"messages": [json.dumps(talks[0])]}}
    )
    with pytest.raises(ValueError, match="no document of source 's' has anything to learn as messages"):
        open_mixture(silent, tmp_path, Format(kind="messages"))


@pytest.mark.parametrize("long", ["split", "truncate", "drop"])
def test_long_documents(mixture, tmp_path, long):
    length = 24
    corpus = open_mixture(mixture, tmp_path, Format(kind="prompt_completion", long=long))
    batches = Batches(corpus, length, 4, seed=0)
    report = batches.plan_report()
    read: dict[int, Counter] = {}
    for step in range(report["rows"] // 4):
        batch = batches.batch(step)
        pieces = zip(batch.documents.tolist(), np.split(batch.weights, np.cumsum(batch.lengths)[:-1]), strict=True)
        for place, weights in pieces:
            assert len(weights) <= length and weights.sum() > 0  # no step is empty
            read.setdefault(place, Counter())[len(weights)] += 1
    learned = [document(corpus, place)[2] for place in range(len(corpus))]
    first = np.array([sum(weights[:length]) for weights in learned])
    exceeds = corpus.length > length
    assert exceeds.sum() > 10 and (exceeds & (first == 0)).sum() > 2  # among them prompts that fill a row
    expected = {
        "split": {"documents_truncated": sum(sum(w[:length]) == 0 for w in learned), "documents_dropped": 0},
        "truncate": {"documents_split": 0, "documents_truncated": int((exceeds & (first > 0)).sum())}
        | {"documents_dropped": int((first == 0).sum())}
        | {"tokens_truncated": int((corpus.length - length)[exceeds & (first > 0)].sum())},
        "drop": {"documents_split": 0, "documents_truncated": 0, "documents_dropped": int(exceeds.sum())}
        | {"tokens_truncated": 0},
    }[long]
    assert report | expected == report
    if long == "truncate":
        assert not any(read.get(place) for place in np.flatnonzero(first == 0).tolist())
        assert set(read[int(np.flatnonzero(exceeds & (first > 0))[0])]) == {length}
    if long == "drop":
        assert not any(read.get(place) for place in np.flatnonzero(exceeds).tolist())
    again = Batches(corpus, length, 4, seed=0)
    for step in (9, 0, 4):
        assert again.batch(step).inputs.tolist() == batches.batch(step).inputs.tolist()


def test_rows_too_short_for_any_target_are_refused(mixture, tmp_path):
    corpus = open_mixture(mixture, tmp_path, Format(kind="messages"))
    with pytest.raises(ValueError, match="anything to learn within 3 tokens; raise row_length"):
        Batches(corpus, 3, 1, seed=0).batch(0)


def write_weights(folder: Path, corpus, change=lambda columns: columns, **card) -> tuple[Path, list[np.ndarray]]:
    """Random weights of all documents of a corpus in two files, in another order."""
    folder.mkdir()
    generator = np.random.default_rng(3)
    own = [generator.choice([0.0, 0.5, 1.0, 3.0], n).astype(np.float32) for n in corpus.length]
    order = generator.permutation(len(own))
    place = corpus.documents.select(["source", "shard", "row"]).take(pa.array(order)).to_pydict()
    columns = change(place | {"weights": [own[i].tolist() for i in order]})
    for number, part in enumerate((slice(0, 11), slice(11, None))):
        table = pa.table({name: values[part] for name, values in columns.items()})
        weights = table["weights"].cast(pa.list_(pa.float32()))
        pq.write_table(table.set_column(3, "weights", weights), folder / f"{number}.parquet")
    tokenizer = json.loads((corpus.tokenizer.parent / "mixture" / "manifest.json").read_text())["tokenizer"]["digest"]
    (folder / "weights.json").write_text(json.dumps({"tokenizer": tokenizer} | card))
    return folder, own


def test_weights_made_beforehand_and_of_documents_are_multiplied(mixture, corpus, tmp_path):
    folder, own = write_weights(tmp_path / "weights", corpus)
    weighed = open_mixture(mixture, tmp_path, Format(kind="messages", weights=folder))
    both = open_mixture(mixture, tmp_path, Format(kind="messages", weights=folder, document_weight="worth"))
    worth = [row["worth"] for name in ("asked", "told") for row in rows(mixture, name)]
    assert weighed.weights.dtype == np.float32 and corpus.weights.dtype == np.uint8
    for place in range(len(corpus)):
        answers = np.array(document(corpus, place)[2])
        assert document(weighed, place)[2] == (answers * own[place]).tolist()
        assert document(both, place)[2] == (answers * own[place] * worth[place]).tolist()
        assert weighed.targets[place] == ((answers * own[place]) > 0).sum()
    text = open_mixture(mixture, tmp_path, Format(document_weight="worth"))
    assert document(text, 3)[2] == [worth[3]] * text.length[3]
    digests = {which.digest for which in (corpus, weighed, both, text)}
    assert len(digests) == 4


def test_weights_that_do_not_fit_are_refused(mixture, corpus, tmp_path):
    def opened(name, change=lambda columns: columns, **card):
        folder, _ = write_weights(tmp_path / name, corpus, change, **card)
        open_mixture(mixture, tmp_path / "cache", Format(kind="messages", weights=folder))

    digest = json.loads((mixture / "manifest.json").read_text())["tokenizer"]["digest"]
    with pytest.raises(ValueError, match=rf"digest 0abc; the mixture's has {digest}"):
        opened("tokenizer", tokenizer="0abc")
    with pytest.raises(ValueError, match=r"no weights for 1 documents, such as \w+/00000 row \d+ \(\w+-\d+\)"):
        opened("missing", lambda c: {name: values[1:] for name, values in c.items()})
    with pytest.raises(ValueError, match="weights twice for 1 documents"):
        opened("twice", lambda c: {name: [*values, values[20]] for name, values in c.items()})
    with pytest.raises(ValueError, match=r"row \d+ \(\w+-\d+\) has \d+ weights, expected \d+"):
        opened("short", lambda c: c | {"weights": [*c["weights"][:-1], c["weights"][-1][:-1]]})
    with pytest.raises(ValueError, match=r"row \d+ .* has the weight -1.0"):
        opened("negative", lambda c: c | {"weights": [[-1.0] * len(c["weights"][0]), *c["weights"][1:]]})
    with pytest.raises(ValueError, match="holds no token weights"):
        open_mixture(mixture, tmp_path, Format(weights=tmp_path))


def test_documents_and_columns_that_do_not_fit_are_named(mixture, tmp_path):
    tokenizer = mixture.parent / "tokenizer"
    columns = {"s": {"messages": ['[{"role": "user", "content": "a"}]', '[{"role": "gpt", "content": "b"}]']}}
    columns["s"]["worth"] = [1.0, float("nan")]
    folder = make_mixture(mixture.parent / "bad", {"s": ["x", "y"]}, tokenizer, columns=columns)
    with pytest.raises(ValueError, match=r"s/00000 row 1 \(s-1\): turn 0 has the role 'gpt'"):
        open_mixture(folder, tmp_path, Format(kind="messages"))
    with pytest.raises(ValueError, match=r"s/00000 row 1 \(s-1\): worth is nan, expected a number from 0"):
        open_mixture(folder, tmp_path, Format(document_weight="worth"))
    with pytest.raises(ValueError, match=r"00000.parquet has no column 'prompt', which the format reads; it has id"):
        open_mixture(folder, tmp_path, Format(kind="prompt_completion"))


def test_tokens_are_shared_by_runs_of_one_format_and_template_only(mixture, corpus, tmp_path):
    config = mixture.parent / "tokenizer" / "tokenizer_config.json"
    before = config.read_text()
    assert open_mixture(mixture, tmp_path, Format(kind="messages", long="drop")).digest == corpus.digest
    last = open_mixture(mixture, tmp_path, Format(kind="messages", turns="last"))
    assert last.digest != corpus.digest and last.targets.sum() < corpus.targets.sum()
    try:
        config.write_text(before.replace("<|im_end|>", "<|endoftext|>"))
        assert open_mixture(mixture, tmp_path, Format(kind="messages")).digest != corpus.digest
        config.write_text(json.dumps(json.loads(before) | {"chat_template": None}))
        default = open_mixture(mixture, tmp_path, Format(kind="messages"))
    finally:
        config.write_text(before)
    assert default.digest != corpus.digest
    ends = default.tokens[np.flatnonzero(default.weights)] == default.end_token
    turns = [m["role"] for name in ("asked", "told") for row in rows(mixture, name) for m in row["messages"]]
    assert ends.sum() == turns.count("assistant")


def test_plain_text_has_no_weights(mixture, tmp_path):
    text = open_mixture(mixture, tmp_path)
    assert text.weights is None and text.lead == 0 and text.long == "split"
    assert text.targets.tolist() == text.length.tolist() and not list(tmp_path.glob("*/weights.bin"))
    ones = replace(text, weights=np.ones(len(text.tokens), np.float32))
    for step in range(3):
        a, b = (Batches(which, 32, 4, seed=0).batch(step) for which in (text, ones))
        assert a.inputs.tolist() == b.inputs.tolist() and a.weight == b.weight
