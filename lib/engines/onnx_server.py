"""The child process of the ONNX engine: OpenAI's chat over ONNX Runtime GenAI, on a loopback port.

Covers what Bancada asks of an engine: messages, streaming with usage, sampling options, stop
strings, a JSON schema that is enforced token by token. No tools, no embeddings.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx2

from lib.engines.child_server import Ready, run

# What to sample with, by OpenAI's names and GenAI's.
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "random_seed"}
# The grammar allows white space without end between any two words, and a small model takes it.
_TIGHT = {"x-guidance": {"whitespace_flexible": False}}
_END = object()


class Wrong(Exception):
    """A request that cannot be answered: status, and OpenAI's error object."""

    def __init__(self, status: int, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "code": status, "type": "invalid_request_error"} | more}


@dataclass
class Answer:
    """One answer as far as it has come."""

    prompt_tokens: int
    completion_tokens: int = 0
    finish: str | None = None

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's counts."""
        both = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": both,
        }


class Model:
    """A model in memory; ``slots`` answers are written at the same time, each with a cache of its own."""

    def __init__(self, folder: str, context_tokens: int, slots: int) -> None:
        import onnxruntime_genai

        self._og = onnxruntime_genai
        self._model = onnxruntime_genai.Model(folder)
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        self._ends = {int(one) for one in self._tokenizer.eos_token_ids}
        self._context_tokens = context_tokens
        self._turn = threading.Semaphore(slots)

    def prompt(self, messages: object) -> list[int]:
        """The tokens of a conversation; raises Wrong."""
        plain = _plain(messages)
        try:
            text = self._tokenizer.apply_chat_template(json.dumps(plain), add_generation_prompt=True)
        except Exception as error:
            raise Wrong(400, f"the chat template refused the messages: {error}") from error
        tokens = [int(one) for one in self._tokenizer.encode(text)]
        if len(tokens) >= self._context_tokens:
            message = f"the request exceeds the available context size ({len(tokens)} of {self._context_tokens} tokens)"
            counts = {"n_prompt_tokens": len(tokens), "n_ctx": self._context_tokens}
            raise Wrong(400, message, **(counts | {"type": "exceed_context_size_error"}))
        return tokens

    def parameters(self, request: Mapping[str, Any], prompt_tokens: int) -> Any:
        """GenAI's parameters for a request; raises Wrong."""
        most = request.get("max_completion_tokens") or request.get("max_tokens") or self._context_tokens
        parameters = self._og.GeneratorParams(self._model)
        try:
            options = {ours: request[theirs] for theirs, ours in _SAMPLING.items() if request.get(theirs) is not None}
            options["do_sample"] = options.setdefault("temperature", 1.0) > 0
            if not options["do_sample"]:
                del options["temperature"]
            options["max_length"] = min(prompt_tokens + int(most), self._context_tokens)
            parameters.set_search_options(**options)
            if (schema := _schema(request.get("response_format"))) is not None:
                parameters.set_guidance("json_schema", json.dumps({**schema, **_TIGHT}))
        except (RuntimeError, TypeError, ValueError) as error:
            raise Wrong(400, str(error)) from error
        return parameters

    def write(
        self, tokens: list[int], parameters: Any, stops: list[str], answer: Answer, gone: threading.Event
    ) -> Iterator[str]:
        """The pieces of an answer, until it ends or nobody waits for it any more; raises Wrong."""
        while not self._turn.acquire(timeout=0.05):
            if gone.is_set():
                return
        try:
            yield from _held_back(self._decode(tokens, parameters, answer, gone), stops, answer)
        finally:
            self._turn.release()

    def _decode(self, tokens: list[int], parameters: Any, answer: Answer, gone: threading.Event) -> Iterator[str]:
        try:
            generator = self._og.Generator(self._model, parameters)
            generator.append_tokens(tokens)
        except Exception as error:
            # A schema that the grammar compiler cannot take shows here.
            raise Wrong(400, str(error)) from error
        stream = self._tokenizer.create_stream()
        while not gone.is_set() and not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            answer.completion_tokens += 1
            if token in self._ends:
                answer.finish = "stop"
                return
            yield stream.decode(token)
        answer.finish = "length"


def _held_back(pieces: Iterator[str], stops: list[str], answer: Answer) -> Iterator[str]:
    """The pieces up to the first stop string; what may be the beginning of one waits for the next piece."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        found = [at for stop in stops if (at := waiting.find(stop)) >= 0]
        if found:
            answer.finish = "stop"
            yield waiting[: min(found)]
            return
        keep = max((_overlap(waiting, stop) for stop in stops), default=0)
        if out := waiting[: len(waiting) - keep]:
            yield out
        waiting = waiting[len(waiting) - keep :]
    yield waiting


def _overlap(text: str, stop: str) -> int:
    """How many characters at the text's end may be the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _plain(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise Wrong(400, "messages must be a list with at least one message")
    return [{"role": str(one["role"]), "content": _text(one["content"])} for one in messages if _is_message(one)]


def _is_message(one: object) -> bool:
    if isinstance(one, dict) and "role" in one and "content" in one:
        return True
    raise Wrong(400, "every message has a role and a content")


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _schema(wanted: object) -> dict[str, Any] | None:
    """The JSON schema of a ``response_format``, in OpenAI's form; raises ValueError for a kind that is not enforced."""
    if not isinstance(wanted, dict) or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    if wanted.get("type") == "json_schema" and isinstance(schema := wanted.get("json_schema"), dict):
        found = schema.get("schema")
        if isinstance(found, dict):
            return found
    raise ValueError("response_format: text, json_object, or json_schema with a schema")


async def _pieces(work: Iterator[str], gone: threading.Event) -> AsyncGenerator[str]:
    """Run an iterator of native work in a thread of its own; closing stops it."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[object]()

    def run_through() -> None:
        last: object = _END
        try:
            for piece in work:
                loop.call_soon_threadsafe(queue.put_nowait, piece)
        except BaseException as error:
            last = error
        loop.call_soon_threadsafe(queue.put_nowait, last)

    threading.Thread(target=run_through, daemon=True).start()
    try:
        while (piece := await queue.get()) is not _END:
            if isinstance(piece, BaseException):
                raise piece
            yield str(piece)
    finally:
        gone.set()


def _app(model: Model, name: str, key: str) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def allowed(request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {key}".encode())

    async def models(request: Request) -> Response:
        if not allowed(request):
            return JSONResponse(Wrong(401, "another key").body, 401)
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "local"}]})

    async def chat(request: Request) -> Response:
        if not allowed(request):
            return JSONResponse(Wrong(401, "another key").body, 401)
        try:
            return await answered(request, await request.json())
        except Wrong as wrong:
            return JSONResponse(wrong.body, wrong.status)
        except (ValueError, AttributeError) as error:
            return JSONResponse(Wrong(400, str(error)).body, 400)

    async def answered(request: Request, asked: Mapping[str, Any]) -> Response:
        if asked.get("model") != name:
            raise Wrong(404, f"model {str(asked.get('model'))[:100]!r} is not loaded")
        tokens = model.prompt(asked.get("messages"))
        stops = asked.get("stop") or []
        answer, gone = Answer(len(tokens)), threading.Event()
        parameters = model.parameters(asked, len(tokens))
        work = model.write(tokens, parameters, [stops] if isinstance(stops, str) else list(stops), answer, gone)
        pieces = _pieces(work, gone)
        if asked.get("stream"):
            # The first piece is awaited here, so that a request that fails has the status of a failure.
            first = await anext(pieces, "")
            options = asked.get("stream_options") or {}
            events = streamed(request, first, pieces, answer, bool(options.get("include_usage")))
            return StreamingResponse(events, media_type="text/event-stream")
        text = ""
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece
                if await request.is_disconnected():
                    return Response(status_code=499)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        return JSONResponse({**head("chat.completion"), "choices": [choice], "usage": answer.usage})

    def head(kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}

    async def streamed(
        request: Request, first: str, pieces: AsyncGenerator[str], answer: Answer, usage: bool
    ) -> AsyncIterator[str]:
        begin = head("chat.completion.chunk")

        def event(delta: dict[str, str], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps({**begin, 'choices': [choice]})}\n\n"

        async with aclosing(pieces):
            yield event({"role": "assistant", "content": first})
            async for piece in pieces:
                if await request.is_disconnected():
                    return
                if piece:
                    yield event({"content": piece})
        yield event({}, answer.finish or "stop")
        if usage:
            yield f"data: {json.dumps({**begin, 'choices': [], 'usage': answer.usage})}\n\n"
        yield "data: [DONE]\n\n"

    return Starlette(
        routes=[Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])],
    )


def serve(options: dict[str, Any], ready: Ready) -> None:
    """Load the model and serve until standard input closes."""
    import uvicorn

    model = Model(options["path"], options["context_tokens"], options["slots"])
    listener = socket.create_server(("127.0.0.1", 0))
    app = _app(model, options["model"], options["key"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    threading.Thread(target=_open_after_a_first_answer, args=(address, options, ready), daemon=True).start()
    server.run(sockets=[listener])


def _open_after_a_first_answer(address: str, options: Mapping[str, Any], ready: Ready) -> None:
    """Say that the server is ready when it has answered once.

    The native code keeps the interpreter to itself while it works: what the server imports at its first answer
    would come so slowly that the first learner's words would all come at once.
    """
    from openai import OpenAI

    try:
        http = httpx2.Client(trust_env=False)
        with OpenAI(base_url=f"{address}/v1", api_key=options["key"], http_client=http, max_retries=0) as client:
            talk = [{"role": "user", "content": "Hi"}]
            asked: Any = client.chat.completions.create
            list(asked(model=options["model"], messages=talk, max_tokens=2, stream=True))
    except Exception:
        traceback.print_exc()
        os._exit(1)
    ready(address)


if __name__ == "__main__":
    run(serve)
