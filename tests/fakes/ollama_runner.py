"""Models in memory and their answers: Ollama's scheduler for one model at a time, over the embedded engine.

As with ``OLLAMA_MAX_LOADED_MODELS=1`` and ``OLLAMA_NUM_PARALLEL=1``: another model, or another ``num_ctx``, unloads
the one before, and requests wait for each other. Two things differ from Ollama. A GGUF's own chat template is
used whatever a model's ``template`` says, and embeddings are the mean over the tokens of a chat model.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.errors import BancadaError, ModelTooLarge
from lib.models.memory import estimate
from lib.models.store import ModelStore
from tests.fakes.ollama_store import Line, Model, Refusal, header_of

KEEP_ALIVE_S = 300.0
# The longest time that Ollama can write down, in nanoseconds 2 ** 63 - 1.
FOR_EVER_S = (2**63 - 1) / 1e9
ANSWER_S = 600.0
STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
DEFAULTS: Mapping[str, Any] = {
    "num_keep": 4,
    "seed": -1,
    "num_predict": -1,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "temperature": 0.8,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": [],
}
INTEGERS = (
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "num_thread",
)
UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass
class Loaded:
    """The model in memory; ``expires`` in seconds since 1970."""

    model: Model
    context_tokens: int
    keep_s: float = KEEP_ALIVE_S
    expires: float = math.inf


@dataclass(frozen=True)
class Piece:
    """A part of an answer; ``final`` (done_reason, counts, durations in ns) only with the last."""

    text: str = ""
    thinking: str = ""
    logprobs: Sequence[Line] = ()
    tool_calls: Sequence[Line] = ()
    final: Line = field(default_factory=dict)


class Runner:
    """Loads, answers, unloads."""

    def __init__(self, folder: Path, context_tokens: int) -> None:
        self._own = folder / "engine" / "own"
        self._own.mkdir(parents=True, exist_ok=True)
        self._context_tokens = context_tokens
        options = EmbeddedOptions(context_tokens, embeddings=True)
        self._engine = EmbeddedEngine(ModelStore(self._own.parent, offline=True), folder / "logs", options)
        self._turn = threading.Lock()
        self._loaded: Loaded | None = None
        threading.Thread(target=self._expire, daemon=True).start()

    def list_entries(self) -> list[Line]:
        """The models as ``/api/ps`` lists them."""
        loaded = self._loaded
        if loaded is None:
            return []
        # While it works, its time has not begun to run.
        left_s = loaded.keep_s if loaded.expires == math.inf else loaded.expires - time.time()
        model = loaded.model
        details = {key: value for key, value in model.details().items() if key != "parent_model"}
        return [
            {
                "name": model.name.short,
                "model": model.name.short,
                "size": estimate(header_of(model.weights), loaded.context_tokens, 1).total_bytes,
                "digest": model.digest,
                "details": {"parent_model": "", **details},
                "expires_at": (datetime.now().astimezone() + timedelta(seconds=left_s)).isoformat(),
                "size_vram": 0,
                "context_length": loaded.context_tokens,
            }
        ]

    @contextmanager
    def turn(self, model: Model, options: Mapping[str, Any], keep_s: float | None) -> Iterator[None]:
        """Have the model in memory for as long as the block lasts, alone."""
        with self._turn:
            try:
                self._load(model, options["num_ctx"], keep_s)
                yield
            finally:
                self._rest()

    def unload(self, model: Model) -> None:
        """Unload a model, if it works then as soon as it is done."""
        loaded = self._loaded
        if loaded is None or loaded.model.weights != model.weights:
            return
        loaded.keep_s = loaded.expires = 0.0
        if self._turn.acquire(blocking=False):
            self._rest()
            self._turn.release()

    def options(self, model: Model, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Ollama's options: the defaults, what the model brings, what is asked; unknown ones are ignored."""
        chosen = {**DEFAULTS, "num_ctx": self._context_tokens}
        for key, value in [*model.parameters.items(), *asked.items()]:
            if value is not None and (key in chosen or key in INTEGERS):
                chosen[key] = _checked(key, value)
        metadata = header_of(model.weights).metadata
        trained = metadata.get(f"{metadata.get('general.architecture')}.context_length", chosen["num_ctx"])
        chosen["num_ctx"] = max(4, min(chosen["num_ctx"], int(str(trained))))
        return chosen

    def chat(
        self,
        messages: Sequence[Line],
        options: Mapping[str, Any],
        tools: Sequence[Line] = (),
        format: object = None,
        top_logprobs: int | None = None,
        truncate: bool = True,
    ) -> Generator[Piece, None, None]:
        """An answer to messages of the engine's own form, piece by piece; only inside a turn."""
        if truncate:
            messages = self._fitting(messages, tools, options)
        body = self._sampling(options) | {"messages": messages, "stream": True}
        if tools:
            body["tools"] = list(tools)
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": max(top_logprobs, 1)}
        if wanted := _response_format(format):
            body["response_format"] = wanted
        calls: dict[int, Line] = {}
        for event in self._events("/v1/chat/completions", body):
            for choice in event.get("choices", [])[:1]:
                delta = choice["delta"]
                _collect(delta.get("tool_calls") or [], calls)
                piece = Piece(
                    text=delta.get("content") or "",
                    thinking=delta.get("reasoning_content") or "",
                    logprobs=_logprobs((choice.get("logprobs") or {}).get("content") or [], top_logprobs),
                )
                if choice.get("finish_reason"):
                    final = _final(choice["finish_reason"] == "length", event["timings"])
                    yield replace(piece, tool_calls=[_tool_call(calls[at]) for at in sorted(calls)], final=final)
                elif piece.text or piece.thinking or piece.logprobs:
                    yield piece

    def complete(self, prompt: str, options: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """What follows a raw prompt; only inside a turn."""
        tokens = self._tokens(prompt)
        if len(tokens) >= options["num_ctx"]:
            keep = min(max(options["num_keep"], 0), options["num_ctx"] - 1)
            tokens = tokens[:keep] + tokens[len(tokens) - _limit(options) + keep :]
        body = self._sampling(options) | {"prompt": tokens, "stream": True}
        for event in self._events("/completion", body):
            final = _final(event["stop_type"] == "limit", event["timings"]) if event["stop"] else {}
            yield Piece(text=event["content"], final=final)

    def context(self, messages: Sequence[Line], answer: str) -> list[int]:
        """The tokens of a conversation, as ``/api/generate`` gives them back; only inside a turn."""
        return self._tokens(self._prompt(messages, ()) + answer)

    def embed(self, text: str, options: Mapping[str, Any], truncate: bool) -> tuple[list[float], int]:
        """(vector of length 1, tokens) of a text; only inside a turn."""
        tokens = self._tokens(text)
        # Two places stay free for the tokens that open and close a text.
        limit = options["num_ctx"] - 2
        if len(tokens) > limit and not truncate:
            raise Refusal("the input length exceeds the context length", 400)
        found = self._post("/embedding", content=tokens[:limit])
        rows = found[0]["embedding"]
        mean = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        return normalized(mean), min(len(tokens), limit)

    def _load(self, model: Model, context_tokens: int, keep_s: float | None) -> None:
        loaded = self._loaded
        if loaded is None or (loaded.model.weights, loaded.context_tokens) != (model.weights, context_tokens):
            self._drop()
            loaded = Loaded(model, context_tokens)
        if keep_s is not None:
            loaded.keep_s = keep_s
        loaded.expires, self._loaded = math.inf, None
        known = model.weights.name[-16:]
        link = self._own / f"{known}.gguf"
        if not link.is_symlink():
            link.symlink_to(model.weights.resolve())
        self._engine.options = replace(self._engine.options, context_tokens=context_tokens)
        try:
            if not self._is_well():
                self._engine.release()
            for _ in self._engine.ensure(known):
                pass
        except ModelTooLarge as error:
            need, left = error.parameters["need"], error.parameters["available"]
            raise Refusal(f"model requires more system memory ({need}) than is available ({left})") from error
        except BancadaError as error:
            raise Refusal(f"llama runner process has terminated: {error}") from error
        self._loaded = loaded

    def _is_well(self) -> bool:
        """Whether an engine that should answer does; one that just died may not have been noticed."""
        status = self._engine.status()
        if status.state != "ready":
            return True
        try:
            return self._engine.metrics_client().get(f"{status.address}/health").is_success
        except httpx2.HTTPError:
            return False

    def _rest(self) -> None:
        """Nobody works: from now on its time runs."""
        if self._loaded is not None and self._loaded.keep_s <= 0:
            self._drop()
        elif self._loaded is not None:
            self._loaded.expires = time.time() + self._loaded.keep_s

    def _drop(self) -> None:
        self._loaded = None
        self._engine.release()

    def _expire(self) -> None:
        while True:
            time.sleep(0.1)
            with self._turn:
                if self._loaded is not None and self._loaded.expires <= time.time():
                    self._drop()

    def _fitting(self, messages: Sequence[Line], tools: Sequence[Line], options: Mapping[str, Any]) -> list[Line]:
        """The messages without the oldest that do not fit, but with every system message; the last one is cut."""
        kept: list[Line] = []
        for start in range(len(messages)):
            kept = [one for one in messages[:start] if one["role"] == "system"] + list(messages[start:])
            if len(self._tokens(self._prompt(kept, tools))) < options["num_ctx"]:
                return kept
        longest = max(range(len(kept)), key=lambda at: len(kept[at]["content"] or ""))
        empty = [{**one, "content": ""} if at == longest else one for at, one in enumerate(kept)]
        room = max(1, _limit(options) - len(self._tokens(self._prompt(empty, tools))))
        tokens = self._tokens(kept[longest]["content"] or "")
        cut = self._post("/detokenize", tokens=tokens[-room:])["content"]
        return [{**one, "content": cut} if at == longest else one for at, one in enumerate(kept)]

    def _prompt(self, messages: Sequence[Line], tools: Sequence[Line]) -> str:
        body: Line = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        return str(self._post("/apply-template", **body)["prompt"])

    def _tokens(self, text: str) -> list[int]:
        return list(self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    @staticmethod
    def _sampling(options: Mapping[str, Any]) -> Line:
        body = {key: options[key] for key in DEFAULTS}
        most = 10 * options["num_ctx"]
        predicted = body.pop("num_predict")
        body["n_keep"] = body.pop("num_keep")
        return body | {"n_predict": predicted if 0 <= predicted <= most else most, "cache_prompt": True}

    def _post(self, path: str, **body: Any) -> Any:
        with self._asking("POST", path, body) as answer:
            return json.loads(answer.read())

    def _events(self, path: str, body: Line) -> Iterator[Line]:
        """The JSON of every event of a stream; closing it makes the engine stop."""
        with self._asking("POST", path, body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise Refusal(f"llama-server chat error: {event['error']}")
                    yield event

    @contextmanager
    def _asking(self, method: str, path: str, body: Line) -> Iterator[httpx2.Response]:
        address = self._engine.status().address
        try:
            with self._engine.metrics_client().stream(
                method, f"{address}{path}", json=body, headers=self._engine.headers(), timeout=ANSWER_S
            ) as answer:
                if answer.is_error:
                    told = json.loads(answer.read()).get("error", {})
                    raise Refusal(str(told.get("message", told)), answer.status_code)
                yield answer
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Refusal(STOPPED) from error


def seconds_of(keep_alive: object) -> float | None:
    """``keep_alive`` in seconds: a number, or text as Go writes durations; below zero is for ever."""
    if keep_alive is None:
        return None
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, (int, float, str)):
        raise Refusal(f"Unsupported type: '{type(keep_alive).__name__}'", 400)
    seconds = _duration(keep_alive) if isinstance(keep_alive, str) else float(keep_alive)
    return FOR_EVER_S if seconds < 0 else min(seconds, FOR_EVER_S)


def normalized(vector: Sequence[float]) -> list[float]:
    """The vector with length 1."""
    length = max(math.sqrt(math.fsum(one * one for one in vector)), 1e-12)
    return [one / length for one in vector]


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _duration(text: str) -> float:
    if text in ("0", "+0", "-0"):
        return 0.0
    unit = "|".join(sorted(UNITS_S, key=len, reverse=True))
    if not re.fullmatch(rf"[+-]?((\d+\.?\d*|\.\d+)({unit}))+", text):
        what = "missing unit in" if re.fullmatch(r"[+-]?[\d.]+", text) else "invalid"
        raise Refusal(f'time: {what} duration "{text}"', 400)
    total = sum(float(number) * UNITS_S[name] for number, name in re.findall(rf"([\d.]+)({unit})", text))
    return -total if text.startswith("-") else total


def _checked(key: str, value: Any) -> Any:
    """An option of the type that Ollama wants."""
    if key == "stop":
        if not isinstance(value, list):
            raise Refusal(f'option "{key}" must be of type array')
        if not all(isinstance(one, str) for one in value):
            raise Refusal(f'option "{key}" must be of an array of strings')
        return value
    kind = "integer" if key in INTEGERS else "float32"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refusal(f'option "{key}" must be of type {kind}')
    return int(value) if key in INTEGERS else float(value)


def _limit(options: Mapping[str, Any]) -> int:
    """How many tokens a prompt has after it was cut: about half of the context stays free for the answer."""
    keep = min(max(options["num_keep"], 0), options["num_ctx"] - 1)
    return int(options["num_ctx"] - max((options["num_ctx"] - keep) // 2, 1))


def _response_format(format: object) -> Line | None:
    if format in (None, ""):
        return None
    if format == "json":
        return {"type": "json_object"}
    if isinstance(format, dict):
        return {"type": "json_schema", "json_schema": {"name": "schema", "schema": format}}
    raw = json.dumps(json.dumps(format))
    raise Refusal(f'invalid format: {raw}; expected "json" or a valid JSON Schema object')


def _final(is_cut: bool, timings: Mapping[str, float]) -> Line:
    return {
        "done_reason": "length" if is_cut else "stop",
        "prompt_eval_count": int(timings["cache_n"] + timings["prompt_n"]),
        "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
        "eval_count": int(timings["predicted_n"]),
        "eval_duration": int(timings["predicted_ms"] * 1e6),
    }


def _logprobs(entries: Sequence[Line], top: int | None) -> list[Line]:
    def plain(one: Line) -> Line:
        return {key: one[key] for key in ("token", "logprob", "bytes") if key in one}

    return [plain(one) | ({"top_logprobs": [plain(x) for x in one["top_logprobs"]]} if top else {}) for one in entries]


def _collect(deltas: Sequence[Line], calls: dict[int, Line]) -> None:
    for delta in deltas:
        call = calls.setdefault(delta["index"], {"index": delta["index"], "id": "", "name": "", "arguments": ""})
        call["id"] += delta.get("id") or ""
        for key in ("name", "arguments"):
            call[key] += delta.get("function", {}).get(key) or ""


def _tool_call(call: Line) -> Line:
    function = {"index": call["index"], "name": call["name"], "arguments": json.loads(call["arguments"] or "{}")}
    return {"id": call["id"], "function": function}
