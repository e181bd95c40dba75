import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers import checkpoint
from trainers.config import TrainConfig
from trainers.data import Batches
from trainers.half import HalfFineTuning
from trainers.learner import Learner
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, make_model, training_flops
from trainers.optimiser import make_optimiser
from trainers.run import Run, backward
from trainers.train import main, train

TINY = ModelConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
CONFIG = TrainConfig(model=TINY, tokens=200_000, lr=1e-2, row_length=64, batch_tokens=1024, threads=1, precision="fp32")


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("training") / "mixture" / "seed0"
    return out, train(CONFIG, toy / "mixture", out, toy / "heldout")


def test_it_learns_the_words_but_not_what_is_random(run, toy):
    _, result = run
    texts = [text for name in ("small", "large") for text in read_texts(toy / "heldout" / name)]
    words = " ".join(texts).split()
    overall = result.evaluation["overall"]
    per_word = overall["nats_per_token"] * overall["tokens"] / len(words)
    # Words are drawn evenly and independently: no model can predict them better than this.
    floor = math.log(len(WORDS))
    assert floor < per_word < floor + 0.4


def test_data_report_log_and_result_agree(run):
    out, result = run
    report = json.loads((out / "data.json").read_text())
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    assert lines[-1]["tokens"] == result.tokens == sum(result.tokens_by_source.values()) == report["budget"]
    assert lines[-2]["tokens"] < report["budget"] == 200_000
    expected = {name: source["pass_tokens"] / report["tokens"] for name, source in report["sources"].items()}
    for name, tokens in result.tokens_by_source.items():
        assert tokens / result.tokens == pytest.approx(expected[name], abs=0.03)
    assert all(line["lr"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_model_folder_loads_with_transformers_and_gives_the_evaluated_loss(run, toy, tmp_path):
    out, _ = run
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer.eos_token == "<|endoftext|>" and model.config.eos_token_id == tokenizer.eos_token_id
    held = open_mixture(toy / "heldout", tmp_path)
    short = np.flatnonzero(held.length <= 64)
    nats = tokens = 0.0
    texts = [t for name in ("small", "large") for t in read_texts(toy / "heldout" / name)]
    for i in short:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(texts[i])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    losses = evaluation_rows(out)
    assert nats == pytest.approx(sum(losses[i]["nats"] for i in short), rel=1e-4)
    assert tokens == sum(losses[i]["tokens"] for i in short)


def read_texts(folder):
    return pq.read_table(folder / "00000.parquet")["text"].to_pylist()


def evaluation_rows(out):
    return pq.read_table(out / "evaluation.parquet").to_pylist()


def test_a_finished_run_is_returned_and_another_config_refused(run, toy):
    out, result = run
    before = (out / "result.json").stat().st_mtime_ns
    assert train(CONFIG, toy / "mixture", out, toy / "heldout") == result
    assert train(CONFIG.model_copy(update={"checkpoint_every": 3}), toy / "mixture", out, toy / "heldout") == result
    assert (out / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"lr: there 0\.01, now 0\.1"):
        train(CONFIG.model_copy(update={"lr": 0.1}), toy / "mixture", out, toy / "heldout")
    with pytest.raises(ValueError, match="data: there"):
        train(CONFIG, toy / "heldout", out, toy / "heldout")


def test_training_goes_on_from_a_model_folder(run, toy, tmp_path):
    out, result = run
    config = CONFIG.model_copy(update={"start": out / "model", "tokens": 8_000, "lr": 1e-4})
    again = train(config, toy / "mixture", tmp_path / "seed0", toy / "heldout")
    difference = again.evaluation["overall"]["nats_per_token"] - result.evaluation["overall"]["nats_per_token"]
    assert abs(difference) < 0.1


def test_loss_that_is_no_number_stops_and_names_documents(toy, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"checkpoint_every": 5})
    step = Run._step

    def poisoned(run):
        if run.step == 12:
            run.model.get_input_embeddings().weight.data[:, 0] = float("nan")
        return step(run)

    monkeypatch.setattr(Run, "_step", poisoned)
    expected = r"loss nan.*step 13.*step-000000010.*large/00000 row \d+ \(large-\d+\)"
    with pytest.raises(FloatingPointError, match=expected):
        train(config, toy / "mixture", tmp_path / "seed0")
    _, state = checkpoint.newest(tmp_path / "seed0" / "checkpoints")
    assert state["step"] == 10
    assert not (tmp_path / "seed0" / "result.json").exists()


def test_accumulation_does_not_change_the_gradient(toy, tmp_path):
    corpus = open_mixture(toy / "mixture", tmp_path)
    batch = Batches(corpus, 64, 16, 0).batch(0)
    found = []
    for part in (128, 10**6):
        config = CONFIG.model_copy(update={"part_tokens": part})
        model = make_model(config, corpus, "cpu")
        loss, _, norm = backward(Learner(model), batch, config)
        found.append((loss, norm, [p.grad for p in model.parameters()]))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0][2], found[1][2], strict=True))


def test_only_matrices_decay(toy, tmp_path):
    model = make_model(CONFIG, open_mixture(toy / "mixture", tmp_path), "cpu")
    groups = make_optimiser(Learner(model), CONFIG).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)].split(".")[-2] for p in groups[0]["params"]}
    rest = {names[id(p)].split(".")[-2] for p in groups[1]["params"]}
    assert decayed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert rest == {"embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"}
    assert groups[0]["weight_decay"] == 0.1 and groups[1]["weight_decay"] == 0


def test_command_tells_mistakes_with_exit_code_2(tmp_path, capsys):
    (tmp_path / "job.json").write_text('{"config": {"learning_rate": 1}, "mixture": "m", "out": "o"}')
    assert main([str(tmp_path / "job.json")]) == 2
    assert "learning_rate" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing.json")]) == 2
    with pytest.raises(ValidationError, match="multiple of num_attention_heads"):
        ModelConfig(hidden_size=30, num_attention_heads=4)


def test_a_stage_goes_on_with_weights_and_moments_of_the_run_before_and_a_model_alone_without(run, toy, tmp_path):
    before, _ = run
    _, state = checkpoint.newest(before / "checkpoints")
    corpus = open_mixture(toy / "heldout", tmp_path)  # another mixture of the same tokenizer
    stages = {}
    for name, start in (("run", before), ("model", before / "model")):
        (tmp_path / name).mkdir()
        stages[name] = Run(CONFIG.model_copy(update={"start": start, "tokens": 5000}), corpus, tmp_path / name, {})
        stages[name].resume()
    steps = {float(s["step"]) for s in stages["run"].optimiser.state.values()}
    assert steps == {state["step"]} and not stages["model"].optimiser.state
    saved = load_file(next((before / "checkpoints").glob(f"step-*{state['step']}")) / "optimiser.safetensors")
    for name, parameter in stages["run"].learner.named_parameters():
        assert torch.equal(stages["run"].optimiser.state[parameter]["exp_avg"], saved[f"exp_avg:{name}"])
        assert torch.equal(parameter, stages["model"].learner.get_parameter(name))
    for stage in stages.values():
        stage.train()
    assert json.loads((tmp_path / "run" / "data.json").read_text())["budget"] == 5000
    first = {name: stage.log.lines()[1]["loss"] for name, stage in stages.items()}
    assert first["run"] != first["model"]  # the second step shows what the first one did


def test_tensorboard_has_the_numbers_of_the_log(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, result = run
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "tokens_s", "flop_s"):
        told = {e.step: e.value for e in events.Scalars(name)}
        assert told == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-5)
    assert events.Scalars("by_source/large")[-1].value == result.tokens_by_source["large"]


def test_flops_are_those_of_the_matrices_and_of_attention(toy, tmp_path):
    model = make_model(CONFIG, open_mixture(toy / "mixture", tmp_path), "cpu")
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64  # queries and output, keys and values, MLP
    head = 300 * 32
    lengths = np.array([10, 3])
    pairs = (10**2 + 3**2) / 2  # that see each other
    attention = 3 * 2 * 2 * 32 * pairs  # forward and backward, scores and values, times 2, of a layer
    assert training_flops(model)(lengths) == 6 * 13 * (2 * layer + head) + 2 * attention


def test_a_stage_that_trains_other_parameters_begins_with_a_new_optimiser(run, toy, tmp_path, caplog):
    before, _ = run
    half = CONFIG.model_copy(update={"start": before, "tokens": 3000, "half": HalfFineTuning()})
    stage = Run(half, open_mixture(toy / "mixture", tmp_path), tmp_path, {})
    with caplog.at_level("WARNING"):
        stage.resume()
    assert not stage.optimiser.state and "the optimiser begins anew" in caplog.text


def test_held_out_loss_on_the_way_goes_from_the_start_to_the_evaluation(toy, tmp_path):
    out = tmp_path / "seed0"
    config = CONFIG.model_copy(update={"tokens": 20_000, "evaluate_every": 5, "tensorboard": False})
    result = train(config, toy / "mixture", out, toy / "heldout")
    lines = [json.loads(line) for line in (out / "heldout.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(0, result.steps + 1, 5)) and lines[0]["tokens"] == 0
    first, last = (line["nats_per_token"]["large"] for line in (lines[0], lines[-1]))
    assert first == pytest.approx(math.log(300), abs=0.2) and last < first - 1
    assert result.steps % 5 == 0
    assert last == pytest.approx(result.evaluation["sources"]["large"]["nats_per_token"], abs=1e-5)
