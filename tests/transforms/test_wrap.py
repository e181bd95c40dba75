"""WRAP against a table of facts: behind the server is a rewriter that knows the pages' grammar, with planted faults."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from toy_chat import build_chat_model
from toy_rephrasing import FAULTS, HARMLESS, STYLES, fault, page, read, recall, reply, write
from toy_server import Status, ToyServer

from transforms.acceptance import MEASURES, REASONS
from transforms.batch import Batch
from transforms.generation.cache import Cache
from transforms.rewriters import FAILED, OK, REJECTED, Piece, find
from transforms.rewriters._prompts import load, styles
from transforms.rewriters.wrap import TOO_LONG, Wrap
from transforms.sentences import sentences

pytest.importorskip("httpx")
PAGES = [page(random.Random(k)) for k in range(60)]
SILENT = {"one fact lost", "one fact wrong", "facts of the wrong towns"}  # what the bounds let through by default


def batch_of(texts: list[str]) -> Batch:
    ids = [f"doc{k}" for k in range(len(texts))]
    return Batch(pa.record_batch({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())}))


def wrap(server: ToyServer, words: Path, **parameters: Any) -> Wrap:
    engine = {"engine": "openai", "base_url": server.url, "model": "toy", "tries": 1}
    return Wrap(**{"engine": engine, "tokenizer": words, "style": "medium", "chunk_tokens": 600} | parameters)


@pytest.fixture(scope="module", params=STYLES)
def rewritten(request: Any, toy_tokenizer: Path) -> Iterator[tuple[str, Wrap, list[Piece]]]:
    with ToyServer(reply=lambda prompt: reply(prompt, request.param)) as server:
        rewriter = wrap(server, toy_tokenizer, style=request.param)
        yield request.param, rewriter, rewriter.rewrite(batch_of([text for text, _ in PAGES]))


def passage_of(piece: Piece) -> str:
    place = piece.extra["passage"]
    return PAGES[piece.document][0].encode()[place["start"] : place["end"]].decode()


def test_passages_hold_all_facts_and_cut_no_sentence(rewritten: tuple[str, Wrap, list[Piece]]) -> None:
    _, rewriter, pieces = rewritten
    texts = [text for text, _ in PAGES]
    batch = batch_of(texts)
    spans = sentences(batch)
    assert [(p.document, p.chunk) for p in pieces] == sorted({(p.document, p.chunk) for p in pieces})
    for document, (_, facts) in enumerate(PAGES):
        own = [piece for piece in pieces if piece.document == document]
        found = [read(passage_of(piece)) for piece in own]
        assert [fact for some in found for fact in some] == facts
        ends = spans.end[spans.offsets[document] : spans.offsets[document + 1]] - batch.offsets[document]
        for piece in own:
            text = texts[document].encode()
            assert any(text[piece.extra["passage"]["end"] : end].strip() == b"" for end in ends)
    lengths = rewriter.lengths([passage_of(piece) for piece in pieces])
    assert lengths.tolist() == [piece.extra["passage"]["source_tokens"] for piece in pieces] and lengths.max() <= 600


def test_faults_are_refused_and_harmless_additions_taken_off(rewritten: tuple[str, Wrap, list[Piece]]) -> None:
    style, _, pieces = rewritten
    refused: dict[str, Counter[str | None]] = {what: Counter() for what in [*HARMLESS, *FAULTS]}
    for piece in pieces:
        passage, what = passage_of(piece), fault(passage_of(piece))
        refused[what][piece.reason] += 1
        if what in HARMLESS:
            assert piece.text == write(read(passage), style)
    assert sum(map(Counter.total, refused.values())) == len(pieces) > 120
    false = sum(count for what in HARMLESS for reason, count in refused[what].items() if reason)
    found = Counter({what: sum(n for reason, n in refused[what].items() if reason) for what in FAULTS})
    silent = [what for what in FAULTS if what not in SILENT]
    total = sum(refused[what].total() for what in silent)
    assert false <= 0.05 * sum(refused[what].total() for what in HARMLESS)
    assert sum(found[what] for what in silent) >= 0.9 * total
    named = sum(refused[what][reason] for what in silent for reason in FAULTS[what][1])
    assert named >= 0.85 * total, "mostly by a reason that fits"


def test_what_is_accepted_states_the_facts(rewritten: tuple[str, Wrap, list[Piece]]) -> None:
    style, _, pieces = rewritten
    written = [(piece, recall(read(passage_of(piece)), piece.text or "", style)) for piece in pieces]
    everything = float(np.mean([share for _, share in written]))
    accepted = float(np.mean([share for piece, share in written if piece.status == OK]))
    assert accepted > 0.95 and everything < 0.8


def test_strict_bounds_find_a_single_lost_fact(toy_tokenizer: Path) -> None:
    with ToyServer(reply=lambda prompt: reply(prompt, "medium")) as server:
        strict = {"numbers": 1.0, "names": 1.0}
        pieces = wrap(server, toy_tokenizer, acceptance=strict).rewrite(batch_of([text for text, _ in PAGES]))
    lost = [piece.status for piece in pieces if fault(passage_of(piece)) == "one fact lost"]
    assert lost.count(REJECTED) >= 0.9 * len(lost) > 0


def test_how_it_is_asked_and_what_is_told(toy_tokenizer: Path) -> None:
    texts = ["Alpha is one. Beta is two.", " \n", "Gamma {text} is three."]
    with ToyServer(reply=lambda prompt: (prompt.rpartition("\n")[2][::-1], "stop")) as server:
        rewriter = wrap(server, toy_tokenizer, chunk_tokens=12, temperature=0.7, top_p=0.8, seed=5, style="hard")
        pieces = rewriter.rewrite(batch_of(texts))
        seen = {seen.prompt: seen.body for seen in server.seen}
    assert [(p.document, p.chunk) for p in pieces] == [(0, 0), (0, 1), (2, 0)]
    prompts = [
        load("wrap", "hard").user.replace("{text}", part) for part in ("Alpha is one.", "Beta is two.", texts[2])
    ]
    assert sorted(seen) == sorted(prompts)
    for prompt, piece, key in zip(
        prompts, pieces, ["doc0:wrap/hard:0", "doc0:wrap/hard:1", "doc2:wrap/hard:0"], strict=True
    ):
        body = seen[prompt]
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.8, 24)
        assert piece.seed == body["seed"] == rewriter.sampling.request_seed(key)
        assert (piece.prompt, piece.finish_reason) == ("wrap/hard@1", "stop") and piece.prompt_tokens > 20
    told = rewriter.provenance()
    assert told["model"] == "toy" and told["revision"] == rewriter.engine.identity and '"top_p":0.8' in told["sampling"]
    (struct,) = rewriter.fields()
    assert [{field.name for field in struct.type}] * 3 == [set(piece.extra["passage"]) for piece in pieces]
    assert set(MEASURES) < {field.name for field in struct.type}
    assert pa.array([piece.extra["passage"] for piece in pieces], struct.type).null_count == 0


def test_everything_gets_a_status(toy_tokenizer: Path) -> None:
    """An answer, a refusal by the server, and a sentence that is too long to be asked for."""
    texts = ["The mill is old.", "The mill is new.", "word " * 400]
    prompts = [load("wrap", "medium").user.replace("{text}", text.strip()) for text in texts]
    script = {prompts[1]: [Status(400, said="no")]}
    with ToyServer(script, reply=lambda prompt: ("An old mill.", "stop")) as server:
        rewriter = wrap(server, toy_tokenizer, chunk_tokens=50, max_tokens=100, temperature=0.5)
        pieces = rewriter.rewrite(batch_of(texts))
        assert len(server.seen) == 2
    told = [(p.status, p.reason, p.text) for p in pieces]
    assert told == [(OK, None, "An old mill."), (FAILED, "HTTP 400", None), (FAILED, TOO_LONG, None)]
    assert pieces[1].seed is not None and pieces[2].seed is None
    assert [set(p.extra["passage"]) - set(MEASURES) for p in pieces] == [{"start", "end", "source_tokens"}] * 3


def test_results_do_not_depend_on_batches_and_nothing_is_asked_twice(toy_tokenizer: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in PAGES[:6]]
    with ToyServer(reply=lambda prompt: reply(prompt, "medium")) as server:
        rewriter = wrap(server, toy_tokenizer, cache=tmp_path / "answers.sqlite", seed=1)
        whole = rewriter.rewrite(batch_of(texts))
        asked = len(server.seen)
        records = batch_of(texts).records
        single = [p for k in range(6) for p in rewriter.rewrite(Batch(records.slice(k, 1)))]
        bounds = {"numbers": 1.0, "length": (0.6, 1.4)}
        stricter = wrap(server, toy_tokenizer, cache=tmp_path / "answers.sqlite", seed=1, acceptance=bounds)
        stricter.rewrite(batch_of(texts))
        assert len(server.seen) == asked == len(whole)
    assert [(p.chunk, p.text, p.reason, p.seed) for p in single] == [(p.chunk, p.text, p.reason, p.seed) for p in whole]
    Cache(tmp_path / "answers.sqlite").close()


def test_a_model_of_ones_own_with_the_engine_of_this_process(tmp_path: Path) -> None:
    """A random model writes nonsense; every passage gets a status, and the counts add up."""
    model = build_chat_model(tmp_path / "model", window=1024)
    parameters = {"engine": {"model": model}, "style": "easy", "chunk_tokens": 60, "max_tokens": 8, "seed": 3}
    rewriter = pickle.loads(pickle.dumps(Wrap(**parameters)))
    rewriter.setup()
    texts = ["The quick brown fox. It jumps over the lazy dog. " * 3, "", "Yes or no? Perhaps not at all.", "a" * 2000]
    pieces = rewriter.rewrite(batch_of(texts))
    statuses = Counter(piece.status for piece in pieces)
    assert statuses.total() == len(pieces) and {p.document for p in pieces} == {0, 2, 3}
    assert all(p.reason in REASONS for p in pieces if p.status == REJECTED)
    assert [(p.document, p.reason) for p in pieces if p.status == FAILED] == [(3, TOO_LONG)]
    assert len(pieces) == 4 and statuses[REJECTED] == 3, "eight tokens are never enough"
    assert all(p.output_tokens <= 8 and p.finish_reason in ("stop", "length") for p in pieces if p.text is not None)
    again = Wrap(**parameters).rewrite(batch_of(texts))
    assert [p.text for p in again] == [p.text for p in pieces]
    assert rewriter.provenance()["revision"] == rewriter.engine.identity


def own_prompt(folder: Path, text: str) -> Path:
    file = folder / "pirate.yaml"
    file.write_text(text)
    return file


def test_a_prompt_of_ones_own(toy_tokenizer: Path, tmp_path: Path) -> None:
    settings = "settings: {chunk_tokens: 30, unit: lines, acceptance: {length: null, names: null}}\n"
    file = own_prompt(tmp_path, f"version: 3\nsystem: You are a pirate.\n{settings}user: 'Say it at sea: {{text}}'\n")
    with ToyServer(reply=lambda prompt: ("Arr.", "stop")) as server:
        rewriter = wrap(server, toy_tokenizer, style=None, prompt=file, chunk_tokens=None, acceptance={"numbers": 0.2})
        (piece,) = rewriter.rewrite(batch_of(["A {b} c."]))
        assert server.seen[0].body["messages"] == [
            {"role": "system", "content": "You are a pirate."},
            {"role": "user", "content": "Say it at sea: A {b} c."},
        ]
    assert (piece.prompt, piece.status) == ("pirate@3", OK)
    held = rewriter.settings
    assert (held.chunk_tokens, held.unit, rewriter.sampling.max_tokens) == (30, "lines", 60)
    bounds = held.acceptance
    assert (bounds.length, bounds.names, bounds.numbers, bounds.copied) == (None, None, 0.2, 0.8)


BROKEN = {
    "version: 1\nuser: no place\n": "places to fill are none; expected {text}",
    "version: 1\nuser: '{text} {other}'\n": r"\{other\}, \{text\}; expected \{text\}",
    "user: '{text}'\n": "expected version",
    "version: one\nuser: '{text}'\n": "'version' is unknown or of a wrong type",
    "version: 1\nuser: '{text}'\nusr: x\n": "'usr' is unknown",
    "version: 1\nuser: [\n": "cannot be read as a prompt",
    "- 1\n": "expected version",
    "version: 1\nuser: '{text}'\nsettings: {chunk: 3}\n": "chunk",
    "version: 1\nuser: '{text}'\nsettings: {acceptance: {length: 3}}\n": "length",
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_prompts_are_refused(text: str, toy_tokenizer: Path, tmp_path: Path) -> None:
    with ToyServer() as server, pytest.raises(ValidationError, match=BROKEN[text]):
        wrap(server, toy_tokenizer, style=None, prompt=own_prompt(tmp_path, text))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"style": None}, r"give a style \(.*medium.*\) or the file of a prompt"),
        ({"prompt": Path("x.yaml")}, "give a style"),
        ({"style": "media"}, "no style 'media'; there are .*medium"),
        ({"style": "../wrap/medium"}, "no style"),
        ({"style": None, "prompt": Path("nowhere.yaml")}, "nowhere.yaml cannot be read"),
        ({"tokenizer": None}, "tokenizer: must be given"),
        ({"chunk_tokens": 0}, "greater than or equal to 1"),
        ({"tone": "x"}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str, toy_tokenizer: Path) -> None:
    with ToyServer() as server, pytest.raises(ValidationError, match=message):
        wrap(server, toy_tokenizer, **parameters)


@pytest.mark.parametrize("style", styles("wrap"))
def test_every_style_that_comes_along_is_whole(style: str, toy_tokenizer: Path) -> None:
    with ToyServer() as server:
        rewriter = wrap(server, toy_tokenizer, style=style, chunk_tokens=None)
    assert find("wrap") is Wrap and str(rewriter.asked) == f"wrap/{style}@{ {'math': 2}.get(style, 1) }"
    assert rewriter.settings.chunk_tokens <= rewriter.sampling.max_tokens <= 4096
    assert rewriter.asked.messages(text="{text} {x}")[-1][1].endswith("{text} {x}")
