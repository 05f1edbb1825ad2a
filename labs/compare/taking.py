"""What lab 6 sets going: contenders made ready, one prompt put to each of them, vLLM watched at work."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lib.bench.contenders import Contender, prepare
from lib.bench.load import Target, closed_loop, raise_death, run_load
from lib.bench.metrics import Metrics, measure
from lib.course.result import Note, Progress, note, outcome, part_of
from lib.engines.address import http_client
from lib.engines.base import Engine
from lib.engines.chat import translated
from lib.engines.vllm import SUFFIX, VllmEngine, VllmOptions
from lib.engines.wire import Exchange, record
from lib.errors import BancadaError, EngineRefused
from lib.vllm.batching import Watch, watched
from lib.workbench import Workbench

PARALLEL = (1, 4, 16)
SHOWN_LINES = 12
HEALTH_S = 30.0


@dataclass(frozen=True)
class Ready:
    """Who can take part, and why the others cannot."""

    contenders: tuple[Contender, ...]
    notes: tuple[Note, ...]


def ready(workbench: Workbench, names: Sequence[str], model: str, slots: int) -> Generator[Progress, None, Ready]:
    """Make every engine ready that can be; raises the reason of the last one where none can."""
    contenders, notes = [], []
    last: BancadaError | None = None
    for done, name in enumerate(dict.fromkeys(names)):
        try:
            work = outcome(prepare(workbench, name, model, slots))
            contenders.append((yield from part_of(work, done, len(names))))
        except BancadaError as error:
            last = error
            notes.append(out(name, error))
    if not contenders and last is not None:
        raise last
    return Ready(tuple(contenders), tuple(notes))


def out(name: str, error: BancadaError) -> Note:
    """That an engine is out, and why, in the reader's language."""
    return note("out", engine=(name,), why=error.record())


@dataclass(frozen=True)
class Spoken:
    """One prompt's way through an engine: what went over the wire, and what it says."""

    contender: Contender
    exchange: Exchange
    text: str
    arrivals_s: tuple[float, ...]
    prompt_tokens: int | None
    completion_tokens: int | None
    finish: str | None

    @property
    def wire(self) -> str:
        """Request and answer as they went, the beginning and the end of the stream; no key."""
        head = f"POST {self.exchange.route}\n{json.dumps(dict(self.exchange.body), ensure_ascii=False, indent=2)}"
        lines = [f"{1000 * one.at_s:7.1f} ms  {one.text}" for one in self.exchange.lines]
        if len(lines) > SHOWN_LINES:
            half = SHOWN_LINES // 2
            lines = [*lines[:half], f"   … {len(lines) - SHOWN_LINES} …", *lines[-half:]]
        return "\n".join([head, "", f"{self.exchange.status} {self.exchange.content_type}", *lines])


@dataclass(frozen=True)
class Heard:
    """What the engines said so far, and who could not."""

    spoken: tuple[Spoken, ...]
    lost: tuple[Note, ...]


def speak_all(contenders: Sequence[Contender], prompt: str, max_tokens: int) -> Generator[Progress | Heard, None, None]:
    """``speak`` to each, and what has been heard after each; raises the last one's reason where nobody can."""
    heard = Heard((), ())
    last: BancadaError | None = None
    for done, one in enumerate(contenders):
        try:
            said = yield from part_of(outcome(speak(one, prompt, max_tokens)), done, len(contenders))
            heard = replace(heard, spoken=(*heard.spoken, said))
        except BancadaError as error:
            last = error
            heard = replace(heard, lost=(*heard.lost, out(one.id, error)))
        if heard.spoken:
            yield heard
    if not heard.spoken and last is not None:
        raise last


def speak(contender: Contender, prompt: str, max_tokens: int) -> Generator[Progress, None, Spoken]:
    """Load the engine, warm it up, put the prompt to it and keep every line; raises EngineError kinds."""
    engine = contender.make()
    try:
        for moved in engine.ensure(contender.model):
            yield Progress(0, 1, moved.what, contender.id)
        yield from run_load(Target(engine, contender.model, name=contender.id), closed_loop(1), ["Hello"], 2)
        yield Progress(1, 2, "ask", contender.id)
        client = engine.client(contender.model)
        body = {
            "model": contender.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        base = str(client.base_url).rstrip("/")
        exchange = record(base, "/chat/completions", body, {"Authorization": f"Bearer {client.api_key}"})
        return _spoken(contender, exchange)
    finally:
        engine.release(contender.model)


def _spoken(contender: Contender, exchange: Exchange) -> Spoken:
    if exchange.status != 200:
        raise EngineRefused(why=f"{exchange.status} {exchange.lines[0].text if exchange.lines else ''}"[:300])
    text, finish = "", None
    arrivals: list[float] = []
    usage: dict[str, int] = {}
    for line in exchange.lines:
        for chunk in _chunks(line.text):
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or []:
                finish = choice.get("finish_reason") or finish
                if piece := (choice.get("delta") or {}).get("content"):
                    text += piece
                    arrivals.append(line.at_s)
    if not arrivals:
        raise EngineRefused(why="it wrote no text")
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Spoken(contender, exchange, text, tuple(arrivals), *counts, finish)


def _chunks(line: str) -> list[dict[str, Any]]:
    with suppress(ValueError):
        found = json.loads(line.removeprefix("data:").strip())
        return [found] if isinstance(found, dict) else []
    return []


@dataclass(frozen=True)
class Batched:
    """vLLM from its start to sixteen clients; ``at`` by number of clients, ``cut_s`` when each of them began."""

    load_s: float
    health_ms: float
    models: tuple[str, ...]
    at: dict[int, Metrics]
    cut_s: dict[int, float]
    watch: Watch
    memory_bytes: int | None


def batched(
    workbench: Workbench, model: str, sequences: int, prompts: Sequence[str], max_tokens: int
) -> Generator[Progress | Batched, None, None]:
    """Start vLLM, ask for its health and its models, and let 1, 4 and 16 clients chat while its metrics are read.

    What there is comes after each number of clients.
    """
    options = VllmOptions(sequences=sequences)
    engine = VllmEngine(workbench.settings.home, workbench.logs, workbench.toolchains, options)
    served = f"{model}{SUFFIX}"
    try:
        started = time.perf_counter()
        yield from part_of(outcome(ensured(engine, served)), 0, 2)
        load_s = time.perf_counter() - started
        address = engine.status().address or ""
        health_ms = _health_ms(address)
        models = tuple(one.id for one in engine.client(served).models.list())
        target = Target(engine, served, {"extra_body": {"ignore_eos": True}}, name="vllm")
        yield from run_load(target, closed_loop(1), ["Hello"], 8)
        at: dict[int, Metrics] = {}
        cut_s: dict[int, float] = {}
        with watched(address) as watch:
            begun = time.perf_counter()
            for done, clients in enumerate(PARALLEL):
                cut_s[clients] = time.perf_counter() - begun
                work = run_load(target, closed_loop(clients, 2 * clients), prompts, max_tokens)
                answers = yield from part_of(outcome(work), len(PARALLEL) + done, 2 * len(PARALLEL))
                raise_death(answers)
                at[clients] = measure(answers, max_tokens)
                memory = engine.status().memory_bytes
                yield Batched(load_s, health_ms, models, dict(at), dict(cut_s), Watch(list(watch.looks)), memory)
    finally:
        engine.release()


def ensured(engine: Engine, model: str) -> Generator[Progress, None, bool]:
    """``ensure`` as a part of several."""
    yield from engine.ensure(model)
    return True


def _health_ms(address: str) -> float:
    with translated(HEALTH_S, address), http_client(address, HEALTH_S) as client:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            client.get(f"{address}/health").raise_for_status()
            times.append(1000 * (time.perf_counter() - started))
        return sorted(times)[2]
