"""What lab 5 tries with Foundry Local and the learner's own model: through its SDK, and through its web service."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx2

from lib.convert.builders import ensure_genai
from lib.convert.reference import ensure_reference
from lib.course.result import Progress, outcome, part_of
from lib.engines.base import Engine
from lib.engines.chat import stream_chat
from lib.engines.foundry import FoundryEngine
from lib.engines.genai import CONFIG, GenaiModel, shape_of
from lib.errors import EngineDied, EngineRefused, EngineUnsupported, ModelTooLarge, TextTooShort
from lib.files import link
from lib.foundry.process import trial
from lib.models.hardware import available_memory_bytes
from lib.scratch import scratch

if TYPE_CHECKING:
    from lib.workbench import Workbench

PRECISION, CONTEXT_TOKENS = "int4", 2048
# Where the public catalog is; anything that answers there is a network.
CATALOG = "https://api.catalog.azureml.ms"
REACH_S = 3.0
ROUNDS = 3
ROUTES = (
    ("GET", "/status"),
    ("GET", "/v1/models"),
    ("GET", "/models/loaded"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/api/metrics"),
)


@dataclass(frozen=True)
class Own:
    """The learner's own model as lab 3 built it. ``served`` is what the web service calls it."""

    model: str
    served: str
    path: Path
    weights_bytes: int
    shape: GenaiModel


@dataclass(frozen=True)
class Answer:
    """One streamed answer; ``arrivals_s`` is when each piece of it came."""

    text: str
    ttft_s: float
    duration_s: float
    prompt_tokens: int
    completion_tokens: int
    arrivals_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first, a second."""
        rest_s = self.arrivals_s[-1] - self.ttft_s
        return (self.completion_tokens - 1) / rest_s if rest_s > 0 else None


@dataclass(frozen=True)
class Reply:
    """What a route answered; ``status`` None where nothing came."""

    method: str
    path: str
    status: int | None
    took_s: float
    text: str


def ensure_own(
    workbench: Workbench, model: str, sessions: int = 1, processes: int = 1
) -> Generator[Progress, None, Own]:
    """The model built for ONNX Runtime GenAI, unless it is here; raises ModelDamaged, ModelTooLarge.

    There must be room for so many sessions that write at once in each of so many processes.
    """
    reference = yield from ensure_reference(workbench, model)
    place = yield from ensure_genai(workbench, reference, PRECISION, CONTEXT_TOKENS)
    shape = shape_of(place.path)
    weights = sum(one.stat().st_size for one in place.path.glob("model.onnx*"))
    need, free = processes * (weights + sessions * shape.cache_bytes), available_memory_bytes()
    if need > free:
        said = {"need": f"{need >> 20} MiB", "available": f"{free >> 20} MiB", "context_tokens": shape.context_length}
        raise ModelTooLarge(model=model, **said)
    return Own(model, f"{model}.genai-{PRECISION}{FoundryEngine.SUFFIX}", place.path, weights, shape)


def look(workbench: Workbench, paths: Sequence[str]) -> Generator[Progress, None, dict[str, Any]]:
    """What is installed and which old names exist in it; where the SDK cannot run, that nothing is known."""
    try:
        return (yield from trial(workbench, "versions", {"paths": tuple(paths)}))
    except EngineUnsupported:
        return {**dict.fromkeys(("sdk", "library", "library_bytes", "onnxruntime", "genai", "glibc")), "exists": {}}


def budget(
    workbench: Workbench, own: Own, text: str, lengths: Sequence[int], reserve_tokens: int
) -> Generator[Progress, None, dict[str, Any]]:
    """What preflight says of prompts made of the text, and what sending one that is too long does.

    Raises TextTooShort where there is no word to make them of.
    """
    if not text.split():
        raise TextTooShort(need=1, found=0)
    asked = {"path": str(own.path), "text": text, "words": tuple(lengths), "reserve_tokens": reserve_tokens}
    return (yield from trial(workbench, "budget", asked, own.model))


def reach() -> tuple[bool, float]:
    """Whether the public catalog's server can be reached at all, by the proxy of this machine too; and the seconds."""
    started = time.perf_counter()
    try:
        httpx2.get(CATALOG, timeout=REACH_S)
    except (httpx2.TransportError, httpx2.InvalidURL):
        return False, time.perf_counter() - started
    return True, time.perf_counter() - started


def serve(workbench: Workbench, own: Own) -> Generator[Progress, None, Engine]:
    """The web service with the model loaded; the caller releases it."""
    engine = workbench.engine("foundry")
    yield from engine.ensure(own.served)
    return engine


def both_ways(
    workbench: Workbench, own: Own, prompt: str, max_tokens: int
) -> Generator[Progress, None, tuple[list[Answer], list[Answer]]]:
    """The same greedy answer through the SDK and through the web service, as many rounds each, after one to warm up."""
    asked = {"path": str(own.path), "prompt": prompt, "max_tokens": max_tokens, "rounds": ROUNDS}
    raw = yield from part_of(outcome(trial(workbench, "chat", asked, own.model)), 0, 2)
    by_sdk = [
        Answer(
            one["text"],
            one["arrivals_s"][0],
            one["duration_s"],
            one["prompt_tokens"],
            one["completion_tokens"],
            tuple(one["arrivals_s"]),
        )
        for one in raw["rounds"]
        if one["arrivals_s"]
    ]
    engine = yield from part_of(outcome(serve(workbench, own)), 1, 2)
    try:
        by_web = []
        for done in range(ROUNDS + 1):
            yield Progress(1 + done / (ROUNDS + 1), 2, "answer_web")
            by_web.append(_by_web(engine, own, prompt, max_tokens))
    finally:
        engine.release(own.served)
    return by_sdk, by_web[1:]


def typical(answers: Sequence[Answer]) -> Answer:
    """The answer whose first token came neither soonest nor latest."""
    if not answers:
        raise EngineRefused(why="it wrote no text")
    return sorted(answers, key=lambda one: one.ttft_s)[len(answers) // 2]


def median_speed(answers: Sequence[Answer]) -> float | None:
    """Tokens a second, the median of the rounds that were long enough to be timed."""
    speeds = [one.tokens_per_s for one in answers if one.tokens_per_s is not None]
    return median(speeds) if speeds else None


def sessions_in_memory(
    workbench: Workbench, own: Own, contexts: Sequence[int], sessions: Sequence[int], prompt: str
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """For each context a child of its own: empty, loaded, and the most while sessions write at once.

    The last row is the longest context once more, its sessions writing in turn.
    """
    tried = [(one, tuple(sessions), False) for one in contexts] + [(max(contexts), (max(sessions),), True)]
    found = []
    with scratch(workbench.settings.home) as folder:
        for done, (context_tokens, many, in_turn) in enumerate(tried):
            path = with_context(own.path, folder / f"{context_tokens}-{in_turn}", context_tokens)
            asked = {"path": str(path), "sessions": many, "in_turn": in_turn, "prompt": prompt, "max_tokens": 16}
            work = trial(workbench, "sessions", asked, own.model)
            raw = yield from part_of(outcome(work), done, len(tried))
            cache = shape_of(path).cache_bytes
            found.append({**raw, "context_tokens": context_tokens, "cache_bytes": cache, "in_turn": in_turn})
    return found


def with_context(source: Path, place: Path, context_tokens: int) -> Path:
    """The model with another context: links to its files, and a configuration of its own."""
    place.mkdir(parents=True)
    for one in source.iterdir():
        if one.name != CONFIG:
            link(one, place / one.name)
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config["model"]["context_length"] = config["search"]["max_length"] = context_tokens
    (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return place


def ask_routes(engine: Engine, own: Own, prompt: str) -> list[Reply]:
    """Every route asked once, without a key."""
    address = engine.status().address
    if address is None:
        raise EngineDied(how=engine.status().incident or engine.status().state)
    messages = [{"role": "user", "content": prompt}]
    bodies = {
        "/v1/chat/completions": {"model": own.served, "messages": messages, "max_tokens": 16, "temperature": 0},
        "/v1/responses": {"model": own.served, "input": prompt, "max_output_tokens": 16, "temperature": 0},
    }
    said = []
    # Loopback must never go through a proxy of the environment.
    with httpx2.Client(trust_env=False, timeout=60.0) as client:
        for method, path in ROUTES:
            started = time.perf_counter()
            try:
                answer = client.request(method, address + path, json=bodies.get(path))
            except httpx2.TransportError as error:
                said.append(Reply(method, path, None, time.perf_counter() - started, str(error)))
                continue
            said.append(Reply(method, path, answer.status_code, time.perf_counter() - started, answer.text))
    return said


def _by_web(engine: Engine, own: Own, prompt: str, max_tokens: int) -> Answer:
    arrivals, pieces = [], 0
    messages = [{"role": "user", "content": prompt}]
    client = engine.client(own.served)
    with closing(stream_chat(client, own.served, messages, temperature=0, max_tokens=max_tokens)) as replies:  # type: ignore[type-var]
        for reply in replies:
            if len(reply.text) > pieces:
                pieces = len(reply.text)
                arrivals.append(reply.duration_s)
    return Answer(
        reply.text,
        reply.ttft_s or reply.duration_s,
        reply.duration_s,
        reply.prompt_tokens or 0,
        reply.completion_tokens,
        tuple(arrivals or [reply.duration_s]),
    )
