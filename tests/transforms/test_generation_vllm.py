"""The vLLM engine, on the real one: `tests/vllm_environment.sh` makes an environment that has it and runs these."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy_chat import build_chat_model

from transforms.generation.cache import Cache, generate_cached
from transforms.generation.engine import EngineUnavailable, Guided, Request, Sampling, failures
from transforms.generation.openai import OpenAI
from transforms.generation.transformers import Transformers
from transforms.generation.vllm import VLLM

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
WORDS = ["fox", "dog", "jumps", "over", "yes", "no", "perhaps", "pack", "my", "box", "with", "five", "jugs", "a", "it"]
KILLED = """
import os, sys
from pathlib import Path
from transforms.generation.cache import Cache, generate_cached
from transforms.generation.engine import Request, Sampling
from transforms.generation.vllm import VLLM

class Told(VLLM):
    def stream(self, requests, sampling):
        for finished in super().stream(requests, sampling):
            yield finished  # comes back when these are committed
            os.write(told, b"".join(b"%d\\n" % int(requests[place].key) for place, _ in finished))

if __name__ == "__main__":
    told = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)
    asked = [Request(key=str(k), prompt=f"number {k}") for k in range(600)]
    engine = Told(model=Path(sys.argv[1]), dtype="float32")
    generate_cached(engine, Cache(Path(sys.argv[2])), asked, Sampling(max_tokens=100))
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> VLLM:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return VLLM(model=build_chat_model(tmp_path_factory.mktemp("chat")), dtype="float32")


def requests(count: int) -> list[Request]:
    return [Request(key=f"{k}", prompt=" ".join(WORDS[k % 7 : 8 + k % 5])) for k in range(count)]


def test_greedy_answers_are_those_of_transformers(engine: VLLM) -> None:
    asked = [*requests(60), Request("empty", prompt="")]
    asked += [Request(f"talk {word}", messages=(("system", "be <|end|> brief"), ("user", word))) for word in WORDS]
    light = Transformers(model=engine.model)
    for tokens, alike in (
        (1, 0.95),
        (30, 0.6),
    ):  # where two are about as good, the last bits decide, and all that follows
        sampling = Sampling(max_tokens=tokens)
        answers, expected = engine.generate(asked, sampling), light.generate(asked, sampling)
        assert [a.prompt_tokens for a in answers] == [e.prompt_tokens for e in expected]
        assert sum(a == e for a, e in zip(answers, expected, strict=True)) >= alike * len(asked)
    assert len({answer.text for answer in answers}) > 10


def test_a_draw_depends_on_seed_and_key_alone(engine: VLLM) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.95, top_k=50)
    asked = requests(100)
    answers = engine.generate(asked, sampling)
    assert len({answer.text for answer in answers}) > 90
    again = engine.generate(asked[20:40], sampling)
    assert sum(a == b for a, b in zip(again, answers[20:40], strict=True)) >= 16
    other = engine.generate(asked, sampling.model_copy(update={"seed": 1}))
    assert sum(a != b for a, b in zip(answers, other, strict=True)) > 90


def test_more_prompts_than_a_step_reads_are_drawn_for_by_their_seeds(engine: VLLM) -> None:
    """20,000 tokens of prompts at once: reading one of them in parts would end vLLM on a CPU."""
    asked = [Request(key=f"{k}", prompt=f"{k} " + " ".join(WORDS * 4)) for k in range(120)]
    answers = engine.generate(asked, Sampling(max_tokens=4, temperature=1.0))
    assert sum(answer.prompt_tokens for answer in answers) > 15_000 and not failures(answers)


@pytest.mark.parametrize(
    ("guided", "allowed"),
    [
        (Guided(choice=("yes", "no", "perhaps")), {"yes", "no", "perhaps"}),
        (Guided(regex="[ab]{2}"), {"aa", "ab", "ba", "bb"}),
        (Guided(grammar='root ::= "fox" | "dog"'), {"fox", "dog"}),
    ],
    ids=["choice", "regex", "grammar"],
)
def test_outputs_keep_to_what_guides_them(engine: VLLM, guided: Guided, allowed: set[str]) -> None:
    answers = engine.generate(requests(100), Sampling(max_tokens=20, temperature=2.0, guided=guided))
    assert {answer.text for answer in answers} == allowed
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_a_grammar_that_is_none_is_an_error_of_the_recipe(engine: VLLM) -> None:
    with pytest.raises(ValueError, match=r"vLLM refuses.*grammar"):
        engine.generate(requests(3), Sampling(max_tokens=5, guided=Guided(grammar="root ::= (((")))
    assert not failures(engine.generate(requests(3), Sampling(max_tokens=5)))


def test_stop_texts_end_an_output_and_are_no_part_of_it(engine: VLLM) -> None:
    (free,) = engine.generate(requests(1), Sampling(max_tokens=40))
    stop = free.text[10:12]
    (cut,) = engine.generate(requests(1), Sampling(max_tokens=40, stop=(stop,)))
    assert cut.text == free.text[: free.text.index(stop)] and cut.finish_reason == "stop"


def test_the_window_bounds_prompt_and_output(engine: VLLM) -> None:
    asked = [Request("a", prompt="fox " * 40), Request("b", prompt="the quick brown fox " * 300)]
    fits, not_ = engine.generate(asked, Sampling(max_tokens=5000))
    assert fits.prompt_tokens + fits.output_tokens <= 256 and fits.error is None
    assert failures([not_]) == {"prompt too long": 1}


def test_threads_share_one_engine(engine: VLLM) -> None:
    sampling = Sampling(max_tokens=20)
    parts = [requests(90)[k::3] for k in range(3)]
    expected = [engine.generate(part, sampling) for part in parts]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda part: engine.generate(part, sampling), parts))
    same = [a == b for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    assert sum(same) >= 0.8 * len(same)
    assert VLLM(model=engine.model, dtype="float32")._shared is engine._shared


def test_a_stream_that_is_dropped_leaves_the_engine_in_order(engine: VLLM) -> None:
    stream = engine.stream(requests(600), Sampling(max_tokens=100))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not failures(engine.generate(requests(5), Sampling(max_tokens=5)))
    assert not engine._shared.owners and not engine._shared.core.has_unfinished_requests()


def test_a_killed_run_leaves_no_process_and_sends_nothing_twice(engine: VLLM, tmp_path: Path) -> None:
    script, path = tmp_path / "killed.py", tmp_path / "cache.sqlite"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told_file = tmp_path / "told"
    command = [sys.executable, str(script), str(engine.model), str(path), str(told_file)]
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    while run.poll() is None and not (told_file.exists() and told_file.stat().st_size):
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    told = {int(line) for line in told_file.read_text().splitlines()}
    assert told, (tmp_path / "log").read_text()[-2000:]
    (kept,) = sqlite3.connect(path).execute("SELECT count(*) FROM answers").fetchone()
    assert len(told) <= kept < 600
    asked = [Request(key=str(k), prompt=f"number {k}") for k in range(600)]
    sent: list[str] = []

    class Counted(VLLM):
        def stream(self, requests, sampling):  # type: ignore[no-untyped-def]
            sent.extend(request.key for request in requests)
            return engine.stream(requests, sampling)

    answers = generate_cached(Counted(**dict(engine)), Cache(path), asked, Sampling(max_tokens=100))
    assert len(answers) == 600 and not failures(answers)
    assert len(sent) == 600 - kept and not told & {int(key) for key in sent}
    deadline = time.monotonic() + 60  # what the run had started ends with it
    while (left := in_session(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def test_the_openai_engine_speaks_with_vllms_server(engine: VLLM, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(engine.model),
        "--port",
        str(port),
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--dtype",
        "float32",
        "--generation-config",
        "vllm",
        "--served-model-name",
        "toy",
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        asked = [Request(r.key, prompt=f"<|begin|>{r.prompt}") for r in requests(30)]  # this tokenizer adds none itself
        asked += [Request("talk", messages=(("system", "be brief"), ("user", "yes or no?")))]
        remote = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", model="toy")
        wait_for(f"http://127.0.0.1:{port}/health", server)
        sampling = Sampling(max_tokens=20)
        found, expected = remote.generate(asked, sampling), engine.generate(asked, sampling)
        assert not failures(found), (tmp_path / "log").read_text()[-2000:]
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 0.9 * len(asked)
        warm = Sampling(max_tokens=9, temperature=1.5, top_k=200, guided=Guided(choice=("yes", "no")))
        assert {answer.text for answer in remote.generate(requests(30), warm)} == {"yes", "no"}
        long = remote.generate([Request("long", prompt="fox " * 600)], sampling)
        assert failures(long) == {"HTTP 400": 1}
        with pytest.raises(EngineUnavailable, match="404"):
            OpenAI(base_url=remote.base_url, model="other").generate(asked, sampling)
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.5)


def in_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found
