"""What the steps of lab 4 measure on whichever engine answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labs.ollama.served import Served, no_server, ollama, until
from lib.course.result import Listing, Note, Progress, note, outcome, part_of
from lib.engines.address import shown
from lib.engines.chat import broken_off, stream_chat
from lib.engines.embedded import CacheType, EmbeddedEngine
from lib.engines.snippets import KEY, ChatRequest, curl, javascript, python
from lib.engines.wire import Exchange, piece_of, record
from lib.errors import (
    BadParameter,
    BancadaError,
    EngineAway,
    EngineDidNotStart,
    EngineDied,
    EngineRefused,
    EngineSilent,
    ModelInUse,
    PromptTooLong,
)
from lib.gguf.header import read_header
from lib.models.memory import estimate
from lib.ollama import models as ollama_models
from lib.ollama.modelfile import Modelfile
from lib.scratch import scratch
from lib.workbench import Workbench

MAX_TOKENS = 48
SENTENCE = "The ferry leaves the harbour at noon and comes back before dark. "
SHARES = (0.25, 0.5, 0.9, 1.4, 2.0, 3.0)
CACHES: tuple[tuple[CacheType, bool], ...] = (
    ("f16", False),
    ("f16", True),
    ("q8_0", True),
    ("q4_0", True),
    ("q8_0", False),
)
SHORT_TOKENS = 512
EMBEDDERS = "all-minilm, nomic-embed-text, embeddinggemma …"
UNLOAD_S = 20.0
USUAL = "5m"
PROGRAM_S = 120.0


def says(text: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def modelfile_costs(
    served: Served, modelfile: Modelfile, question: str
) -> Generator[Progress, None, tuple[dict[str, int], tuple[Listing, ...]]]:
    """The prompt's tokens by the engine's own count with each part of a Modelfile, and both answers."""
    system = [{"role": "system", "content": modelfile.system}] if modelfile.system else []
    talks = {
        "without": says(question),
        "system": [*system, *says(question)],
        "with": [*system, *modelfile.messages, *says(question)],
    }
    costs, listings = {}, []
    for done, (name, talk) in enumerate(talks.items()):
        yield Progress(done, len(talks), "ask", served.model)
        options = _openai_options(modelfile.parameters)
        given = {"max_tokens": MAX_TOKENS, "seed": 1} | options | served.quiet
        *_, reply = stream_chat(served.engine.client(served.model), served.model, talk, **given)
        costs[name] = reply.prompt_tokens or 0
        if name != "system":
            listings.append(Listing(f"answer_{name}", reply.text))
    return costs, tuple(listings)


# What OpenAI's API has a name for; the rest is Ollama's own and is set when the model is created.
_OPENAI = {"temperature": "temperature", "top_p": "top_p", "seed": "seed", "num_predict": "max_tokens", "stop": "stop"}


def _openai_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    given = {_OPENAI[name]: value for name, value in parameters.items() if name in _OPENAI}
    if given.get("max_tokens", 1) <= 0:  # Ollama's -1 is “without end”
        del given["max_tokens"]
    return given


def exchanges(
    workbench: Workbench, served: Served, prompt: str, max_tokens: int
) -> Generator[Progress, None, list[Exchange]]:
    """The same question at temperature 0 over every route of the engine, whole lines kept."""
    address = str(served.engine.status().address)
    options = {"temperature": 0, "num_predict": max_tokens, "seed": 1}
    chat = {"model": served.model, "messages": says(prompt), "stream": True}
    openai = (
        chat
        | served.quiet
        | {
            "temperature": 0,
            "max_tokens": max_tokens,
            "seed": 1,
            "stream_options": {"include_usage": True},
        }
    )
    routes: dict[str, dict[str, Any]] = {"/v1/chat/completions": openai}
    if served.is_ollama:
        quiet = {} if served.think is None else {"think": served.think}
        native = {"/api/chat": chat | quiet | {"options": options}}
        asked = {"model": served.model, "prompt": prompt, "stream": True, "options": options}
        raw = {"/api/generate": asked | quiet}
        routes = native | raw | routes
    else:
        # llama.cpp's own route takes a finished text; the template is a request of its own.
        templated = record(address, "/apply-template", {"messages": says(prompt)}, _headers(served)).objects
        text = templated[0]["prompt"]
        llama = {"prompt": text, "stream": True, "temperature": 0, "n_predict": max_tokens, "seed": 1}
        routes = {"/completion": llama} | routes
    found = []
    for done, (route, body) in enumerate(routes.items()):
        yield Progress(done, len(routes), "ask", route)
        found.append(record(address, route, body, _headers(served)))
        _refuse_errors(found[-1])
    return found


def _refuse_errors(exchange: Exchange) -> None:
    """Raises EngineRefused for another status than 200, and for an error in a line under it."""
    first = exchange.lines[0].text[:200] if exchange.lines else ""
    if exchange.status != 200:
        raise EngineRefused(why=f"{exchange.route}: {exchange.status} {first}")
    objects = exchange.objects
    for one in objects:
        if error := one.get("error"):
            raise EngineRefused(why=f"{exchange.route}: {error.get('message') if isinstance(error, dict) else error}")
    # Each API has a last word of its own: Ollama's, llama.cpp's, OpenAI's.
    last = exchange.lines[-1].text if exchange.lines else ""
    if not any(one.get("done") or one.get("stop") for one in objects) and "[DONE]" not in last:
        how = f"the answer of {exchange.route} ended without a last word"
        raise broken_off("".join(piece_of(one) for one in objects)) or EngineDied(how=how)


def _headers(served: Served) -> dict[str, str]:
    return served.engine.headers() if isinstance(served.engine, EmbeddedEngine) else {}


@dataclass(frozen=True)
class Embeddings:
    """A vector a text, the engine that made them, and how long that took."""

    vectors: list[list[float]]
    engine: str
    seconds: float
    notes: tuple[Note, ...]


def embeddings(workbench: Workbench, name: str, texts: Sequence[str]) -> Generator[Progress, None, Embeddings]:
    """A vector for each text; without a server from the default model, in an engine of its own."""
    if len(texts) < 2:
        raise BadParameter(name="texts", value=len(texts), allowed="2 … 12")
    host = workbench.settings.ollama_host
    try:
        served = yield from ollama(workbench, name)
        started = time.perf_counter()
        vectors = _embedded(host, served.model, texts)
        return Embeddings(vectors, "ollama", time.perf_counter() - started, served.notes)
    except EngineAway as error:
        notes = (no_server(error), note("embeds_in_its_stead", model=workbench.settings.default_model))
    model = workbench.settings.default_model
    engine = workbench.fresh_engine(SHORT_TOKENS, embeddings=True)
    try:
        yield from engine.ensure(model)
        started = time.perf_counter()
        answer = engine.client(model).embeddings.create(model=model, input=list(texts))
        vectors = [list(one.embedding) for one in answer.data]
        return Embeddings(vectors, "embedded", time.perf_counter() - started, notes)
    finally:
        engine.release()


def _embedded(host: str, model: str, texts: Sequence[str]) -> list[list[float]]:
    """A vector for each text; raises BadParameter for a model that the server does not let embed."""
    try:
        return ollama_models.embed(host, model, texts)
    except EngineRefused as error:
        can = ollama_models.details(host, model).capabilities
        if not can or "embedding" in can:
            raise
        raise BadParameter(name="name", value=model, allowed=EMBEDDERS) from error


def tries(
    served: Served, prompt: str, temperatures: Sequence[float], top_p: float, seed: int, many: int
) -> Generator[Progress, None, pd.DataFrame]:
    """``many`` answers at each temperature with seeds of their own, then at the highest one with ``seed`` alone."""
    plan = [(one, seed + at, False) for one in temperatures for at in range(many)]
    plan += [(max(temperatures), seed, True) for _ in range(min(many, 3))]
    client, rows = served.engine.client(served.model), []
    for done, (temperature, number, same) in enumerate(plan):
        yield Progress(done, len(plan), "ask", f"T = {temperature:g}")
        given: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": number, "max_tokens": 16}
        *_, reply = stream_chat(client, served.model, says(prompt), **given, **served.quiet)
        rows.append((temperature, number, same, " ".join(reply.text.split())))
    return pd.DataFrame(rows, columns=["temperature", "seed", "same_seed", "answer"])


@dataclass(frozen=True)
class Found:
    """A table, the engine it was measured on, and what there is to say."""

    table: pd.DataFrame
    engine: str
    notes: tuple[Note, ...]


def longer_and_longer(
    workbench: Workbench, name: str, num_ctx: int, code_word: str
) -> Generator[Progress, None, Found]:
    """Texts up to three times the context: tokens sent, tokens that the server counted, and whether it remembers."""
    try:
        served = yield from ollama(workbench, name)
    except EngineAway as error:
        return (yield from _refused_instead(workbench, num_ctx, code_word, error))
    host = workbench.settings.ollama_host
    given = {"temperature": 0, "num_ctx": num_ctx, "num_predict": 12}

    def ask(text: str) -> tuple[int, str]:
        *_, reply = ollama_models.chat(host, served.model, says(text), given, think=served.think)
        return reply.prompt_tokens, reply.text

    table = yield from _grown(ask, (EngineRefused, PromptTooLong), num_ctx, code_word)
    lost = (table["sent_tokens"] - table["counted_tokens"])[~table["refused"]].sum() > 0
    found = "cut_silently" if lost else "server_refused" if table["refused"].any() else "nothing_cut"
    return Found(table, "ollama", (*served.notes, note(found)))


def _refused_instead(
    workbench: Workbench, num_ctx: int, code_word: str, error: EngineAway
) -> Generator[Progress, None, Found]:
    model = workbench.settings.default_model
    engine = workbench.fresh_engine(num_ctx)

    def ask(text: str) -> tuple[int, str]:
        *_, reply = stream_chat(engine.client(model), model, says(text), max_tokens=12, temperature=0)
        return reply.prompt_tokens or 0, reply.text

    try:
        yield from engine.ensure(model)
        table = yield from _grown(ask, (PromptTooLong,), num_ctx, code_word)
    finally:
        engine.release()
    return Found(table, "embedded", (no_server(error), note("refused_instead")))


def _grown(
    ask: Callable[[str], tuple[int, str]], refusals: tuple[type[BancadaError], ...], num_ctx: int, code_word: str
) -> Generator[Progress, None, pd.DataFrame]:
    """One row a length, up to three times the context; ``ask`` gives the tokens that were counted and the answer."""
    # The engine's own count of short texts tells what a sentence takes: a server has no route that only counts.
    one, two = ask(_text(code_word, 1))[0], ask(_text(code_word, 2))[0]
    rows = []
    for done, share in enumerate(SHARES):
        yield Progress(done, len(SHARES), "ask", f"{share:g} × {num_ctx}")
        sentences = max(1, round((share * num_ctx - one) / max(1, two - one)))
        refused, knows = False, False
        try:
            counted, answer = ask(_text(code_word, sentences))
            knows = code_word.lower() in answer.lower()
        except refusals as error:
            refused, answer = True, str(error.parameters.get("why", ""))
            counted = int(str(error.parameters.get("prompt_tokens", 0)))
        rows.append((one + (sentences - 1) * (two - one), counted, refused, knows, " ".join(answer.split())))
    return pd.DataFrame(rows, columns=["sent_tokens", "counted_tokens", "refused", "remembers", "answer"])


def _text(code_word: str, sentences: int) -> str:
    return f"The code word is {code_word}. {SENTENCE * sentences}What is the code word?"


@dataclass(frozen=True)
class Kept:
    """Three asks, the memory that the model holds in between, and what became of it after the last."""

    table: pd.DataFrame
    engine: str
    held_bytes: int | None
    stays: bool | None
    notes: tuple[Note, ...]


def cold_and_warm(workbench: Workbench, name: str, keep: str) -> Generator[Progress, None, Kept]:
    """Ask cold, warm, and after the model was let go; the last ask carries ``keep``. Raises ModelInUse.

    Ollama keeps what a request said until another one says otherwise: the usual five minutes are put back at the end.
    """
    host = workbench.settings.ollama_host
    try:
        served = yield from ollama(workbench, name)
    except EngineAway as error:
        return (yield from _started_instead(workbench, error))
    name = served.model
    rows: list[tuple[str, float, float, float]] = []
    held: int | None = None
    for done, ask in enumerate(("cold", "warm", "cold_again")):
        yield Progress(done, 3, "ask", name)
        if ask != "warm":
            ollama_models.unload(host, name)
            _until_unloaded(host, name)
        kept = _keep(keep) if done == 2 else None
        asked, given = says("Hello"), {"num_predict": 16, "temperature": 0}
        *_, reply = ollama_models.chat(host, name, asked, given, kept, served.think)
        rows.append((ask, reply.load_s, reply.prompt_s, reply.completion_s))
        held = next((one.size_bytes for one in ollama_models.loaded(host) if one.name == name), held)
    if keep == "0":
        _until_unloaded(host, name)  # the server lets go when the answer is over, not before
    now = next((one for one in ollama_models.loaded(host) if one.name == name), None)
    if now is None:
        told = note("gone")
    else:
        ends = until(now.until)
        told = note("stays_until", until=ends) if ends else note("stays_for_ever", name=name)
        ollama_models.keep(host, name, USUAL)
    return Kept(_asks(rows), "ollama", held, now is not None, (*served.notes, told))


def _keep(text: str) -> str | int:
    """A duration with a unit stays text; a bare number is seconds."""
    return int(text) if text.lstrip("-").isdigit() else text


def _until_unloaded(host: str, name: str) -> None:
    """Wait until a model is gone; raises ModelInUse when somebody keeps it busy."""
    ends = time.monotonic() + UNLOAD_S
    while any(one.name == name for one in ollama_models.loaded(host)):
        if time.monotonic() >= ends:
            raise ModelInUse(model=name)
        time.sleep(0.1)


def _started_instead(workbench: Workbench, error: EngineAway) -> Generator[Progress, None, Kept]:
    model, engine = workbench.settings.default_model, workbench.fresh_engine(2048)
    rows, held = [], None
    yield from workbench.models.fetch(model)  # a download is no cold start
    try:
        for ask in ("cold", "warm", "cold_again"):
            if ask != "warm":
                engine.release()
            started = time.perf_counter()
            yield from engine.ensure(model)
            load_s = time.perf_counter() - started
            *_, reply = stream_chat(engine.client(model), model, says("Hello"), max_tokens=16, temperature=0)
            rows.append((ask, load_s, reply.ttft_s or 0, reply.duration_s - (reply.ttft_s or 0)))
            held = engine.status().memory_bytes
    finally:
        engine.release()
    notes = (no_server(error), note("started_instead", model=model))
    return Kept(_asks(rows), "embedded", held, None, notes)


def _asks(rows: Sequence[tuple[str, float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["ask", "load_s", "prompt_s", "write_s"])


@dataclass(frozen=True)
class Cache:
    """A cache type with flash attention on or off: its bytes for a context, forecast and measured, and the speed."""

    cache_type: str
    flash_attention: bool
    forecast_bytes: int
    cache_bytes: int | None
    memory_bytes: int | None
    tokens_per_s: float | None
    error: BancadaError | None = None


def caches(workbench: Workbench, context_tokens: int) -> Generator[Progress, None, list[Cache]]:
    """Every cache type in an engine of its own, at a short and at the wanted context.

    The difference between the two is what the context takes: everything else is the same in both.
    """
    found = []
    for done, (kind, flash) in enumerate(CACHES):
        found.append((yield from part_of(outcome(_cache(workbench, context_tokens, kind, flash)), done, len(CACHES))))
    return found


# ggml's blocks of 32 numbers: 16 bits each, or 8 or 4 bits and a scale of 16 bits.
CACHE_BITS: Mapping[str, float] = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}


def _cache(workbench: Workbench, context_tokens: int, kind: CacheType, flash: bool) -> Generator[Progress, None, Cache]:
    model = workbench.settings.default_model
    yield from workbench.models.fetch(model)
    header = read_header(workbench.models.path(model))
    terms = {one.id: one.size_bytes for one in estimate(header, context_tokens).terms}
    forecast = round(terms["kv_cache"] * CACHE_BITS[kind] / 16)
    memory, speed = [], None
    for tokens in (SHORT_TOKENS, context_tokens):
        engine = workbench.fresh_engine(tokens, cache_type=kind, flash_attention=flash)
        try:
            yield from engine.ensure(model)
            asked = says("Tell me a story about a lighthouse.")
            *_, reply = stream_chat(engine.client(model), model, asked, max_tokens=MAX_TOKENS, temperature=0)
            memory.append(engine.status().memory_bytes or 0)
            speed = reply.decode_tokens_per_s
        except EngineDidNotStart as error:
            return Cache(kind, flash, forecast, None, None, None, error)
        finally:
            engine.release()
    measured = round((memory[1] - memory[0]) * context_tokens / (context_tokens - SHORT_TOKENS))
    return Cache(kind, flash, forecast, measured, memory[1], speed)


@dataclass(frozen=True)
class _Program:
    language: str
    needs: str
    filename: str
    text: str

    def command(self) -> list[str] | None:
        """How it is run here; None where what it needs is missing."""
        if self.needs == "python":
            return [sys.executable, self.filename]
        runner = {"node": "node", "curl": "bash"}[self.needs]
        if runner == "bash" and os.name == "nt":
            return None  # what is called bash there belongs to another system, with a loopback of its own
        return [runner, self.filename] if shutil.which(self.needs) and shutil.which(runner) else None


def programs(
    workbench: Workbench, served: Served, prompt: str, max_tokens: int
) -> Generator[Progress, None, tuple[pd.DataFrame, tuple[Listing, ...]]]:
    """The question as three programs, each run as it stands; one whose language is not here is not run."""
    key = str(served.engine.client(served.model).api_key)
    request = ChatRequest(
        shown(str(served.engine.client(served.model).base_url)),
        served.model,
        says(prompt),
        {"temperature": 0, "seed": 1, "max_tokens": max_tokens, **served.quiet},
        wants_key=not served.is_ollama,
    )
    written = (
        _Program("python", "python", "ask.py", python(request)),
        _Program("javascript", "node", "ask.mjs", javascript(request)),
        _Program("curl", "curl", "ask.sh", curl(request)),
    )
    rows: list[tuple[str, float | None, bool, str | None]] = []
    with scratch(workbench.settings.home) as folder:
        for done, one in enumerate(written):
            yield Progress(done, len(written), "run_program", one.filename)
            (folder / one.filename).write_text(one.text, encoding="utf-8", newline="\n")
            command = one.command()
            if command is None:
                rows.append((one.language, None, False, None))
                continue
            progress = Progress(done, len(written), "run_program", one.filename)
            took, worked, said = yield from _run(command, folder, key, progress)
            rows.append((one.language, took, worked, _answer(said)))
    listings = tuple(
        Listing(one.language, one.text, "bash" if one.language == "curl" else one.language) for one in written
    )
    return pd.DataFrame(rows, columns=["language", "took_s", "worked", "output"]), listings


def _run(
    command: Sequence[str], folder: Path, key: str, progress: Progress
) -> Generator[Progress, None, tuple[float, bool, str]]:
    """Seconds, whether it ended well, and what it said. Closing it ends the program; raises EngineSilent."""
    # Loopback must never go through a proxy of the environment.
    given = {KEY: key, "PYTHONUTF8": "1", **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")}
    group: dict[str, Any] = {} if os.name == "nt" else {"start_new_session": True}
    with (folder / "said").open("wb") as said, (folder / "wrong").open("wb") as wrong:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | given, stdin=subprocess.DEVNULL, stdout=said, stderr=wrong, **group
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    break
                if time.perf_counter() - started > PROGRAM_S:
                    raise EngineSilent(seconds=PROGRAM_S)
                yield progress
            took = time.perf_counter() - started
        finally:
            _end(process)
    worked = process.returncode == 0
    return took, worked, (folder / ("said" if worked else "wrong")).read_text(encoding="utf-8", errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program that still runs, and what it started."""
    if process.poll() is None:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answer(output: str) -> str:
    """What a program printed; cURL prints the whole JSON, of which this is the text."""
    try:
        return str(json.loads(output)["choices"][0]["message"]["content"]).strip()
    except (ValueError, LookupError, TypeError):
        return output.strip()
