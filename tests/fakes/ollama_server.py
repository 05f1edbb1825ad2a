"""A server with Ollama's addresses and manners (0.32 and 0.33), whose models are one GGUF in the embedded engine.

``python -m tests.fakes.ollama_server`` reads one JSON line of options from standard input, answers with one JSON
line that has its address, and ends when standard input closes. Options: ``home`` (its folder), ``gguf``, ``port``
(0: any), ``context_tokens``, ``installed`` (models of the library that are here from the start). Its version ends
in ``-fake``, and ``POST /__fault`` makes it misbehave; apart from these two it follows the published interface.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lib.engines.child_server import Ready, run
from tests.fakes.ollama_runner import Piece, Runner, normalized, now, seconds_of
from tests.fakes.ollama_store import Line, Model, Name, Refusal, Store, description, list_entry

Lines = Generator[Line, None, None]

VERSION = "0.32.15-fake"
NDJSON, SSE = "application/x-ndjson", "text/event-stream"
JSON = "application/json; charset=utf-8"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
RUNNER_ERROR = "an error was encountered while running the model: unexpected EOF"
SLOW_S = 2.0
FAULTS = ("silent", "cut", "html", "slow", "error-after-first", "redirect", "die")


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of a route."""

    route: str
    kind: str
    times: int = 1
    seconds: float = SLOW_S


@dataclass(frozen=True)
class Answer:
    """A whole answer: JSON unless it is text."""

    content: object = None
    status: int = 200
    kind: str = JSON


@dataclass(frozen=True)
class Stream:
    """An answer in lines; ``asked_whole`` joins them to one, which ``whole`` dresses."""

    lines: Lines
    kind: str = NDJSON
    asked_whole: bool = False
    whole: Callable[[Line], Line] = dict


class Ollama:
    """The routes. Each takes the request's body and gives back an Answer or a Stream, or raises Refusal."""

    def __init__(self, store: Store, runner: Runner) -> None:
        self._store = store
        self._runner = runner

    def pull(self, asked: Line) -> Stream:
        """``POST /api/pull``."""
        name = Name.parse(asked.get("model") or asked.get("name") or "")
        if not name.is_valid:
            raise Refusal("invalid model name", 400)
        return _stream(self._store.pull(self._store.existing(name)), asked)

    def create(self, asked: Line) -> Stream:
        """``POST /api/create``."""
        return _stream(self._store.create(asked), asked)

    def tags(self) -> Answer:
        """``GET /api/tags``."""
        return Answer({"models": [list_entry(model) for model in self._store.models()]})

    def ps(self) -> Answer:
        """``GET /api/ps``."""
        return Answer({"models": self._runner.list_entries()})

    def show(self, asked: Line) -> Answer:
        """``POST /api/show``."""
        name = asked.get("model") or asked.get("name") or ""
        if not name:
            raise Refusal("model is required", 400)
        parsed = _parsed(name, 400, "model is required")
        model = self._store.model(parsed)
        if model is None:
            raise Refusal(f"model '{parsed.short}' not found", 404)
        return Answer(description(model, bool(asked.get("verbose"))))

    def copy(self, asked: Line) -> Answer:
        """``POST /api/copy``."""
        for key in ("source", "destination"):
            if not Name.parse(asked.get(key) or "").is_valid:
                raise Refusal(f"{key} {_quoted(asked.get(key) or '')} is invalid", 400)
        if not self._store.copy(Name.parse(asked["source"]), Name.parse(asked["destination"])):
            raise Refusal(f"model {_quoted(asked['source'])} not found", 404)
        return Answer()

    def delete(self, asked: Line) -> Answer:
        """``DELETE /api/delete``."""
        text = asked.get("model") or asked.get("name") or ""
        if not text:
            raise Refusal("model is required", 400)
        if not Name.parse(text).is_valid:
            raise Refusal(f"name {_quoted(text)} is invalid", 400)
        if not self._store.delete(Name.parse(text)):
            raise Refusal(f"model '{text}' not found", 404)
        return Answer()

    def has_blob(self, digest: str) -> Answer:
        """``HEAD /api/blobs/:digest``."""
        if not self._store.blob(digest).exists():
            raise Refusal(f"blob {_quoted(digest)} not found", 404)
        return Answer()

    def add_blob(self, digest: str, content: bytes) -> Answer:
        """``POST /api/blobs/:digest``."""
        if self._store.blob(digest).exists():
            return Answer()
        found = self._store.add(content)["digest"]
        if found != digest:
            raise Refusal(f"digest mismatch, expected {_quoted(digest)}, got {_quoted(found)}", 400)
        return Answer(status=201)

    def chat(self, asked: Line) -> Answer | Stream:
        """``POST /api/chat``."""
        started = time.monotonic_ns()
        messages, tools = asked.get("messages") or [], asked.get("tools") or []
        model = self._model(asked, 400, "model is required")
        keep_s = seconds_of(asked.get("keep_alive"))
        if not messages and keep_s == 0:
            self._runner.unload(model)
            return Answer(_chat_line(asked) | {"done": True, "done_reason": "unload"})
        _require(model, asked, "chat", tools=bool(tools))
        options = self._runner.options(model, asked.get("options") or {})
        if not messages:
            with self._runner.turn(model, options, keep_s):
                return Answer(_chat_line(asked) | {"done": True, "done_reason": "load"})
        messages = [_engine_message(one) for one in _complete(model, messages)]
        ways = _ways(asked)

        def lines() -> Lines:
            with self._runner.turn(model, options, keep_s):
                loaded = time.monotonic_ns()
                pieces = self._runner.chat(messages, options, tools, asked.get("format"), *ways)
                with closing(pieces):
                    for piece in pieces:
                        line = _chat_line(asked) | {"done": bool(piece.final)}
                        line["message"] |= _message(piece)
                        yield line | _extras(piece, started, loaded)

        return _stream(lines(), asked)

    def generate(self, asked: Line) -> Answer | Stream:
        """``POST /api/generate``."""
        started = time.monotonic_ns()
        prompt, raw = asked.get("prompt") or "", bool(asked.get("raw"))
        model = self._model(asked, 404, f"model '{asked.get('model') or ''}' not found")
        keep_s = seconds_of(asked.get("keep_alive"))
        if not prompt and keep_s == 0:
            self._runner.unload(model)
            return Answer(_generate_line(asked) | {"done": True, "done_reason": "unload"})
        if raw and (asked.get("template") or asked.get("system") or asked.get("context")):
            raise Refusal("raw mode does not support template, system, or context", 400)
        _require(model, asked, "generate", insert=bool(asked.get("suffix")))
        options = self._runner.options(model, asked.get("options") or {})
        if not prompt:
            with self._runner.turn(model, options, keep_s):
                return Answer(_generate_line(asked) | {"done": True, "done_reason": "load"})
        system = asked.get("system") or model.text("system")
        messages = [{"role": "system", "content": system}] * bool(system)
        messages += [*model.messages, {"role": "user", "content": prompt}]
        messages = [_engine_message(one) for one in messages]
        ways = _ways(asked)

        def lines() -> Lines:
            with self._runner.turn(model, options, keep_s):
                loaded, text = time.monotonic_ns(), ""
                chat = self._runner.chat(messages, options, (), asked.get("format"), *ways)
                with closing(self._runner.complete(prompt, options) if raw else chat) as pieces:
                    for piece in pieces:
                        text += piece.text
                        line = _generate_line(asked) | {"response": piece.text, "done": bool(piece.final)}
                        line |= {"thinking": piece.thinking} if piece.thinking else {}
                        line |= _extras(piece, started, loaded)
                        if piece.final and not raw:
                            line["context"] = self._runner.context(messages, text)
                        yield line

        return _stream(lines(), asked)

    def embed(self, asked: Line) -> Answer:
        """``POST /api/embed``."""
        started = time.monotonic_ns()
        texts = asked.get("input")
        if not isinstance(texts, (str, list, type(None))):
            raise Refusal("invalid input type", 400)
        texts = [texts] if isinstance(texts, str) and texts else texts or []
        if not all(isinstance(one, str) for one in texts):
            raise Refusal("invalid input type", 400)
        model = self._model(asked, 404, f"model '{asked.get('model') or ''}' not found")
        options = self._runner.options(model, asked.get("options") or {})
        with self._runner.turn(model, options, seconds_of(asked.get("keep_alive"))):
            loaded = time.monotonic_ns()
            if texts and "embedding" not in model.capabilities:
                raise Refusal(NO_EMBEDDINGS, 501)
            truncate = asked.get("truncate") is not False
            found = [self._runner.embed(text, options, truncate) for text in texts]
        width = asked.get("dimensions") or None
        answer: Line = {"model": asked["model"], "embeddings": [normalized(vector[:width]) for vector, _ in found]}
        if found:
            answer |= {"total_duration": time.monotonic_ns() - started, "load_duration": loaded - started}
            answer["prompt_eval_count"] = sum(tokens for _, tokens in found)
        return Answer(answer)

    def embeddings(self, asked: Line) -> Answer:
        """``POST /api/embeddings``, which ``embed`` superseded."""
        text = asked.get("prompt") or ""
        if self._store.model(_parsed(asked.get("model") or "", 400, "model is required")) is None:
            raise Refusal(f"model {_quoted(asked['model'])} not found, try pulling it first", 404)
        found: Any = self.embed({**asked, "input": text}).content
        return Answer({"embedding": found["embeddings"][0] if found["embeddings"] else []})

    def openai_models(self) -> Answer:
        """``GET /v1/models``."""
        listed = [_openai_model(model, model.name.short) for model in self._store.models()]
        return Answer({"object": "list", "data": listed or None})

    def openai_model(self, name: str) -> Answer:
        """``GET /v1/models/:model``."""
        parsed = _parsed(name, 400, "model is required")
        model = self._store.model(parsed)
        if model is None:
            raise Refusal(f"model '{parsed.short}' not found", 404)
        return Answer(_openai_model(model, name))

    def openai_chat(self, asked: Line) -> Answer | Stream:
        """``POST /v1/chat/completions``: the native chat in other clothes, as Ollama does it."""
        if not asked.get("messages"):
            raise Refusal("[] is too short - 'messages'", 400)
        answer = self.chat(_native(asked))
        assert isinstance(answer, Stream)
        identity = f"chatcmpl-{secrets.randbelow(999)}"
        if not asked.get("stream"):
            return Stream(answer.lines, asked_whole=True, whole=partial(_completion, identity))
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        return Stream(_chunks(identity, answer.lines, usage), SSE)

    def openai_embeddings(self, asked: Line) -> Answer:
        """``POST /v1/embeddings``."""
        form = str(asked.get("encoding_format") or "float")
        if form.lower() not in ("float", "base64"):
            told = f"Invalid value for 'encoding_format' = {form}. Supported values: ['float', 'base64']."
            raise Refusal(told, 400)
        texts = [""] if asked.get("input") == "" else asked.get("input")
        if not texts:
            raise Refusal("invalid input", 400)
        body = {"model": asked.get("model"), "input": texts, "dimensions": asked.get("dimensions")}
        found: Any = self.embed(body).content
        data = [
            {"object": "embedding", "embedding": _base64(one) if form.lower() == "base64" else one, "index": at}
            for at, one in enumerate(found["embeddings"])
        ]
        tokens = found.get("prompt_eval_count", 0)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Answer({"object": "list", "data": data, "model": asked["model"], "usage": usage})

    def _model(self, asked: Line, status: int, otherwise: str) -> Model:
        """The model that is asked for; ``otherwise`` is said when none is named."""
        text = asked.get("model") or ""
        model = self._store.model(_parsed(text, status, otherwise))
        if model is None:
            raise Refusal(f"model '{text}' not found", 404)
        return model


def joined(lines: Iterable[Line]) -> Line:
    """What the lines of a stream are without streaming: the last one, with the whole text."""
    text, thinking = "", ""
    logprobs: list[Line] = []
    last: Line = {}
    for last in lines:
        part = last.get("message") or last
        text += part.get("content") or part.get("response") or ""
        thinking += part.get("thinking") or ""
        logprobs += last.get("logprobs") or []
    whole: Line = dict(last)
    if "message" in whole:
        whole["message"] = whole["message"] | {"content": text} | ({"thinking": thinking} if thinking else {})
    elif "response" in whole:
        whole |= {"response": text} | ({"thinking": thinking} if thinking else {})
    return whole | ({"logprobs": logprobs} if logprobs else {})


def _parsed(text: str, status: int, otherwise: str) -> Name:
    if not text.strip():
        raise Refusal(otherwise, status)
    name = Name.parse(text.strip())
    if not name.is_valid:
        raise Refusal("invalid model name", 400)
    return name


def _require(model: Model, asked: Line, what: str, tools: bool = False, insert: bool = False) -> None:
    """Raises Refusal for what the model cannot do."""
    can = model.capabilities
    if asked.get("think") and "thinking" not in can:
        raise Refusal(f"{_quoted(asked['model'])} does not support thinking", 400)
    if "completion" not in can:
        raise Refusal(f"{_quoted(asked['model'])} does not support {what}", 400)
    for wanted, name in ((tools, "tools"), (insert, "insert")):
        if wanted and name not in can:
            raise Refusal(f"{model.name} does not support {name}", 400)


def _complete(model: Model, messages: list[Line]) -> list[Line]:
    """The messages with those that the model brings."""
    system = model.text("system")
    first = [{"role": "system", "content": system}] if system and messages[0].get("role") != "system" else []
    return [*first, *model.messages, *messages]


def _engine_message(message: Line) -> Line:
    """One of Ollama's messages as llama.cpp takes it."""
    converted = {"role": message.get("role", ""), "content": message.get("content") or ""}
    if message.get("tool_call_id"):
        converted["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_name"):
        converted["name"] = message["tool_name"]
    calls = [
        {
            "id": one.get("id") or f"call_{at}",
            "type": "function",
            "function": {"name": one["function"]["name"], "arguments": json.dumps(one["function"]["arguments"])},
        }
        for at, one in enumerate(message.get("tool_calls") or [])
    ]
    return converted | ({"tool_calls": calls} if calls else {})


def _ways(asked: Line) -> tuple[int | None, bool]:
    """(alternatives to give the probabilities of, whether a long prompt is cut)."""
    most = asked.get("top_logprobs") or 0
    if not 0 <= most <= 20:
        raise Refusal("top_logprobs must be between 0 and 20", 400)
    return most if asked.get("logprobs") else None, asked.get("truncate") is not False


def _chat_line(asked: Line) -> Line:
    return {"model": asked["model"], "created_at": now(), "message": {"role": "assistant", "content": ""}}


def _generate_line(asked: Line) -> Line:
    return {"model": asked["model"], "created_at": now(), "response": ""}


def _message(piece: Piece) -> Line:
    extra = {"thinking": piece.thinking, "tool_calls": piece.tool_calls}
    return {"content": piece.text} | {key: value for key, value in extra.items() if value}


def _extras(piece: Piece, started: int, loaded: int) -> Line:
    """Probabilities, and of the last piece the reason, counts and durations in ns; never a zero."""
    extras: Line = {"logprobs": piece.logprobs}
    if piece.final:
        extras |= {"total_duration": time.monotonic_ns() - started, "load_duration": loaded - started, **piece.final}
    return {key: value for key, value in extras.items() if value}


def _native(asked: Line) -> Line:
    """A request of OpenAI's form as ``/api/chat`` takes it."""
    options: Line = {"temperature": 1.0, "top_p": 1.0}
    for key in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"):
        if asked.get(key) is not None:
            options[key] = asked[key]
    if asked.get("max_tokens") is not None:
        options["num_predict"] = asked["max_tokens"]
    if asked.get("stop"):
        options["stop"] = [asked["stop"]] if isinstance(asked["stop"], str) else asked["stop"]
    wanted = asked.get("response_format") or {}
    format = {"json_object": "json", "json_schema": (wanted.get("json_schema") or {}).get("schema")}
    return {
        "model": asked.get("model"),
        "messages": [one for message in asked["messages"] for one in _native_messages(message)],
        "format": format.get(wanted.get("type", "")),
        "options": options,
        "stream": bool(asked.get("stream")),
        "tools": asked.get("tools"),
        "logprobs": asked.get("logprobs"),
        "top_logprobs": asked.get("top_logprobs"),
    }


def _native_messages(message: Line) -> list[Line]:
    """One message of OpenAI's form; each of its parts becomes a message."""
    content, calls = message.get("content"), message.get("tool_calls")
    base = {"role": message.get("role", "")}
    if message.get("tool_call_id"):
        base["tool_call_id"] = message["tool_call_id"]
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise Refusal("invalid message format", 400)
        return [{**base, "content": part["text"]} for part in content]
    if not isinstance(content, str) and not calls:
        raise Refusal(f"invalid message content type: {'<nil>' if content is None else type(content).__name__}", 400)
    native = [
        {
            "id": one.get("id", ""),
            "function": {"name": one["function"]["name"], "arguments": json.loads(one["function"]["arguments"])},
        }
        for one in calls or []
    ]
    return [{**base, "content": content or "", **({"tool_calls": native} if native else {})}]


def _completion(identity: str, line: Line) -> Line:
    """A native answer as a chat completion."""
    message = line["message"]
    calls = _openai_calls(message)
    said: Line = {"role": "assistant", "content": message["content"]} | ({"tool_calls": calls} if calls else {})
    choice: Line = {"index": 0, "message": said, "finish_reason": _finish(line, bool(calls))}
    if line.get("logprobs"):
        choice["logprobs"] = {"content": line["logprobs"]}
    frame = _frame(identity, "chat.completion", line["model"])
    return frame | {"choices": [choice], "usage": _usage(line)}


def _chunks(identity: str, lines: Lines, usage: bool) -> Lines:
    """A native stream as the chunks of a chat completion; after an error it ends without a last word."""
    frame: Line = {}
    called = False
    with closing(lines):
        try:
            for line in lines:
                message = line["message"]
                is_first, frame = not frame, frame or _frame(identity, "chat.completion.chunk", line["model"])
                calls = _openai_calls(message)
                called = called or bool(calls)
                if is_first or not line["done"] or message["content"] or calls or line.get("logprobs"):
                    delta: Line = {"role": "assistant"} if is_first else {}
                    delta |= {"content": message["content"]} | ({"tool_calls": calls} if calls else {})
                    choice: Line = {"index": 0, "delta": delta, "finish_reason": None}
                    if line.get("logprobs"):
                        choice["logprobs"] = {"content": line["logprobs"]}
                    yield frame | {"choices": [choice]}
                if line["done"]:
                    yield frame | {"choices": [{"index": 0, "delta": {}, "finish_reason": _finish(line, called)}]}
                    if usage:
                        yield frame | {"choices": [], "usage": _usage(line)}
                    yield {}
        except Refusal:
            if not frame:
                raise
            yield frame | {"model": "", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]}


def _frame(identity: str, kind: str, model: str) -> Line:
    created = int(time.time())
    return {"id": identity, "object": kind, "created": created, "model": model, "system_fingerprint": "fp_ollama"}


def _finish(line: Line, called: bool) -> str:
    return "tool_calls" if called and line["done_reason"] == "stop" else str(line["done_reason"])


def _usage(line: Line) -> Line:
    prompt, written = line.get("prompt_eval_count", 0), line.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _openai_calls(message: Line) -> list[Line]:
    return [
        {
            "id": one["id"],
            "index": one["function"]["index"],
            "type": "function",
            "function": {"name": one["function"]["name"], "arguments": json.dumps(one["function"]["arguments"])},
        }
        for one in message.get("tool_calls") or []
    ]


def _openai_model(model: Model, name: str) -> Line:
    created = int(model.modified.timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": model.name.namespace}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _stream(lines: Lines, asked: Line) -> Stream:
    return Stream(lines, asked_whole=asked.get("stream") is False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


Route = Callable[[Ollama, Line], Answer | Stream]
ROUTES: Mapping[tuple[str, str], Route] = {
    ("GET", "/"): lambda *_: Answer("Ollama is running", kind="text/plain; charset=utf-8"),
    ("GET", "/api/version"): lambda *_: Answer({"version": VERSION}),
    ("GET", "/api/tags"): lambda server, _: server.tags(),
    ("GET", "/api/ps"): lambda server, _: server.ps(),
    ("POST", "/api/pull"): Ollama.pull,
    ("POST", "/api/show"): Ollama.show,
    ("POST", "/api/create"): Ollama.create,
    ("POST", "/api/copy"): Ollama.copy,
    ("DELETE", "/api/delete"): Ollama.delete,
    ("POST", "/api/generate"): Ollama.generate,
    ("POST", "/api/chat"): Ollama.chat,
    ("POST", "/api/embed"): Ollama.embed,
    ("POST", "/api/embeddings"): Ollama.embeddings,
    ("GET", "/v1/models"): lambda server, _: server.openai_models(),
    ("POST", "/v1/chat/completions"): Ollama.openai_chat,
    ("POST", "/v1/embeddings"): Ollama.openai_embeddings,
}
HEADS = ("/", "/api/version", "/api/tags")
BLOBS, MODELS = "/api/blobs/", "/v1/models/"


@dataclass
class Faults:
    """The faults that wait for their requests."""

    waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, asked: Line) -> Answer:
        """``POST /__fault``."""
        fault = Fault(**asked)
        if fault.kind not in FAULTS:
            raise Refusal(f"no such fault; there are {', '.join(FAULTS)}", 400)
        with self._lock:
            self.waiting.append(fault)
        return Answer({})

    def take(self, path: str) -> Fault | None:
        """The fault of this request, if there is one."""
        with self._lock:
            fault = next((one for one in self.waiting if one.route == path and one.times > 0), None)
            if fault is not None:
                fault.times -= 1
            return fault


class Handler(BaseHTTPRequestHandler):
    """HTTP: reads a request, finds its route, writes the answer or the stream, and breaks both on demand."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    ollama: Ollama
    faults: Faults

    def do_GET(self) -> None:
        """Answer, whatever the method."""
        with suppress(OSError):
            self._serve()

    do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_GET

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """One line a request, on standard error."""
        super().log_request(code, size)  # type: ignore[arg-type]

    def _serve(self) -> None:
        self._fault: Fault | None = None
        content = self._read()
        self._path = unquote(urlsplit(self.path).path)
        try:
            if not _is_allowed(self.headers.get("Host", "")):
                self._write(Answer("", 403, "text/plain"))
                return
            if (self.command, self._path) == ("POST", "/__fault"):
                self._write(self.faults.add(_body(content)))
                return
            self._fault = self.faults.take(self._path)
            if self._fault is not None and self._breaks_at_once(self._fault):
                return
            answer = self._answer(content)
            if isinstance(answer, Stream) and not answer.asked_whole:
                self._write_stream(answer)
                return
            if isinstance(answer, Stream):
                answer = Answer(answer.whole(joined(self._while_here(answer.lines))))
            self._write(answer)
        except Refusal as error:
            self._write(Answer(self._told(error), error.status))

    def _answer(self, content: bytes) -> Answer | Stream:
        method, path = self.command, self._path
        if path.startswith(BLOBS) and method == "HEAD":
            return self.ollama.has_blob(path.removeprefix(BLOBS))
        if path.startswith(BLOBS) and method == "POST":
            return self.ollama.add_blob(path.removeprefix(BLOBS), content)
        if path.startswith(MODELS) and method == "GET":
            return self.ollama.openai_model(path.removeprefix(MODELS))
        route = ROUTES.get(("GET" if method == "HEAD" and path in HEADS else method, path))
        if route is not None:
            return route(self.ollama, _body(content) if method in ("POST", "DELETE") else {})
        if path.startswith((BLOBS, MODELS)) or any(path == known for _, known in ROUTES):
            return Answer("405 method not allowed", 405, "text/plain")
        return Answer("404 page not found", 404, "text/plain")

    def _told(self, error: Refusal) -> Line:
        """An error in the form of the interface that was asked."""
        if not self._path.startswith("/v1/"):
            return {"error": error.error}
        kind = {400: "invalid_request_error", 404: "not_found_error"}.get(error.status, "api_error")
        return {"error": {"message": error.error, "type": kind, "param": None, "code": None}}

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _write(self, answer: Answer) -> None:
        fault = self._fault.kind if self._fault else ""
        if fault == "error-after-first":
            answer = Answer(self._told(Refusal(RUNNER_ERROR)), 500)
        text = answer.content if isinstance(answer.content, str) else _encoded(answer.content)
        content = b"" if answer.content is None else text.encode()
        self.send_response(answer.status)
        if content:
            self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "slow" and self._fault:
            time.sleep(self._fault.seconds)
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2] + "é".encode()[:1])
            self._hang_up()
        elif fault == "die":
            os._exit(1)
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _write_stream(self, stream: Stream) -> None:
        """The lines as they come; the status is decided by the first one, and the client's leaving ends them."""
        with closing(stream.lines):
            first = next(stream.lines)
            self.send_response(200)
            self.send_header("Content-Type", stream.kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for at, line in enumerate(chain([first], stream.lines)):
                    if _is_gone(self.connection):
                        self.close_connection = True
                        return
                    content = _framed(line, stream.kind)
                    if at and self._fault and self._fault.kind == "error-after-first":
                        # Thrown into the stream, which has its own way with errors.
                        self._chunk(_framed(stream.lines.throw(Refusal(RUNNER_ERROR)), stream.kind))
                        break
                    if at and self._breaks_stream(content):
                        return
                    self._chunk(content)
            except Refusal as error:
                self._chunk(_framed({"error": error.error}, stream.kind))
        self.wfile.write(b"0\r\n\r\n")

    def _while_here(self, lines: Lines) -> Lines:
        """The lines for as long as the client waits for them."""
        with closing(lines):
            for line in lines:
                if _is_gone(self.connection):
                    raise ConnectionAbortedError
                yield line

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def _breaks_at_once(self, fault: Fault) -> bool:
        """Faults that need no answer; whether this was one."""
        if fault.kind == "silent":
            while not _is_gone(self.connection):
                time.sleep(0.05)
            self._hang_up()
        elif fault.kind == "html":
            self._fault = None
            self._write(Answer("<html><body><h1>502 Bad Gateway</h1></body></html>", 502, "text/html"))
        elif fault.kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"http://elsewhere.invalid{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        return fault.kind in ("silent", "html", "redirect")

    def _breaks_stream(self, content: bytes) -> bool:
        """Faults between the lines of a stream, before the one with this content; whether that was its end."""
        fault = self._fault.kind if self._fault else ""
        if fault == "slow" and self._fault:
            time.sleep(self._fault.seconds)
        if fault == "die":
            os._exit(1)
        if fault != "cut":
            return False
        text = re.search(rb'"(content|response|status)":"', content)
        begun = content[: text.end()] if text else b""
        self.wfile.write(f"{len(content) + 64:x}\r\n".encode() + begun + "é".encode()[:1])
        self._hang_up()
        return True

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _body(content: bytes) -> Line:
    if not content:
        raise Refusal("missing request body", 400)
    try:
        body = json.loads(content)
    except ValueError as error:
        raise Refusal(f"invalid character in request body: {error}", 400) from error
    if not isinstance(body, dict):
        raise Refusal(f"json: cannot unmarshal {type(body).__name__} into Go value", 400)
    return body


def _encoded(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _framed(line: Line, kind: str) -> bytes:
    """A line as its stream has it; in SSE an empty one stands for the end."""
    if kind == SSE:
        return f"data: {_encoded(line) if line else '[DONE]'}\n\n".encode()
    # Counts and durations that are zero are left out.
    return f"{_encoded({key: value for key, value in line.items() if value != 0 or value is False})}\n".encode()


def _is_allowed(host: str) -> bool:
    """Whether a server on loopback answers to this Host header."""
    name = re.sub(r":\d*$", "", host).strip("[]").lower()
    try:
        address = ip_address(name)
    except ValueError:
        known = ("", "localhost", socket.gethostname().lower())
        return name in known or name.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def _is_gone(connection: socket.socket) -> bool:
    """Whether the client closed the connection."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(options: dict[str, Any], ready: Ready) -> None:
    """Serve until standard input closes."""
    home = Path(options["home"])
    store = Store(home / "ollama", Path(options["gguf"]))
    for name in options.get("installed", ()):
        store.install(name)
    Handler.ollama = Ollama(store, Runner(home, options.get("context_tokens", 2048)))
    Handler.faults = Faults()
    server = _Server(("127.0.0.1", options.get("port", 0)), Handler)
    ready(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever(0.05)


if __name__ == "__main__":
    run(serve)
