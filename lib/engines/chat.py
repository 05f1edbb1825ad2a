"""Chat over any engine: one stream of text with its timings, one kind of error.

The boundary where the OpenAI client's errors, streams included, become ours.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai import OpenAI

from lib.errors import (
    AnswerBrokenOff,
    BancadaError,
    EngineAway,
    EngineDied,
    EngineRefused,
    EngineSilent,
    KeyRefused,
    NotAnEngine,
    PromptTooLong,
)

FIRST_TOKEN_S = 120.0
# On a machine that a whole class shares a token may take long.
BETWEEN_TOKENS_S = 60.0
CONNECT_S = 5.0
LOOK_S = 0.5

Message = Mapping[str, str]


@dataclass
class Reply:
    """A reply as far as it has come. Times in seconds, measured at the client."""

    text: str = ""
    ttft_s: float | None = None
    duration_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    finish: str | None = None
    engine_tokens_per_s: float | None = None
    _chunks: int = field(default=0, repr=False)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first, a second (1 / TPOT)."""
        if self.ttft_s is None or self.completion_tokens < 2 or self.duration_s <= self.ttft_s:
            return None
        return (self.completion_tokens - 1) / (self.duration_s - self.ttft_s)


def stream_chat(client: OpenAI, model: str, messages: Sequence[Message], **options: Any) -> Iterator[Reply]:
    """Yield the same growing ``Reply`` at each piece of text; closing it stops the engine's work.

    Raises PromptTooLong, EngineRefused, EngineDied, AnswerBrokenOff, EngineSilent. The reply
    keeps what had arrived before an error.
    """
    reply = Reply()
    started = time.perf_counter()
    timeout = httpx2.Timeout(FIRST_TOKEN_S, connect=CONNECT_S)
    with translated(address=str(client.base_url)):
        # Streamed as bytes: building the client's typed chunks takes half a millisecond of processor time a token,
        # on the very cores that write the next one (tests/bench/through_workbench.py).
        talk: Any = client.with_options(timeout=timeout, max_retries=0).chat.completions.with_streaming_response
        answer = talk.create(
            model=model,
            messages=list(messages),
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        with answer as response, _Deadline(response) as deadline:
            for chunk in _chunks(response):
                reply.duration_s = time.perf_counter() - started
                if _take(chunk, reply):
                    deadline.extend()
                    yield reply
    reply.duration_s = time.perf_counter() - started if reply.finish is None else reply.duration_s
    if reply.finish is None:
        raise broken_off(reply.text) or EngineDied(how="the stream ended without a last word")
    yield reply


# Ollama's rule: the same piece more than 30 times in a row, white space aside.
_OVER_AND_OVER = re.compile(r"(?P<piece>\S{1,24}?)(?:\s*(?P=piece)){29}\s*\Z|\s{30}\Z")


def broken_off(text: str) -> AnswerBrokenOff | None:
    """The error of an answer that ended without a last word, where it is one that repeats itself."""
    found = _OVER_AND_OVER.search(text[-800:])
    return AnswerBrokenOff(piece=(found["piece"] or "␣").strip()) if found else None


class _Deadline:
    """Ends a stream that pauses: httpx2 takes one limit for all reads of a body, and a first token may take longer.

    A thread that sleeps costs a token nothing; when the time is up, it shuts the socket down.
    """

    def __init__(self, response: Any) -> None:
        network = response.http_response.extensions.get("network_stream")
        self._socket: socket.socket | None = network.get_extra_info("socket") if network is not None else None
        self._over = threading.Event()
        self._last = time.monotonic()
        self._patience_s = FIRST_TOKEN_S
        self._passed = False

    def __enter__(self) -> _Deadline:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._passed:
            raise EngineSilent(seconds=self._patience_s)

    def extend(self) -> None:
        """Text has come: the next piece has as long as is usual between tokens."""
        self._last, self._patience_s = time.monotonic(), BETWEEN_TOKENS_S

    def _watch(self) -> None:
        # Looks every now and then: patience is shorter once text has come.
        while not self._over.wait(min(LOOK_S, max(0.01, self._last + self._patience_s - time.monotonic()))):
            if time.monotonic() >= self._last + self._patience_s:
                self._passed = True
                with suppress(OSError):
                    if self._socket is not None:
                        self._socket.shutdown(socket.SHUT_RDWR)
                return


def _chunks(response: Any) -> Iterator[Mapping[str, Any]]:
    """The JSON of every server-sent event up to ``[DONE]``; raises openai.APIError for an error and for nonsense."""
    kind = response.headers.get("content-type", "")
    if "html" in kind:
        raise NotAnEngine(address=str(response.url), why=kind)
    rest = b""
    # Lines end at a newline only: a model may write any other separator of Unicode.
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data.startswith(b"[DONE]"):
                return
            try:
                chunk = json.loads(data)
            except ValueError as wrong:
                raise openai.APIError(f"not JSON: {data[:80]!r}", response.http_request, body=None) from wrong
            if not isinstance(chunk, Mapping):
                continue
            if error := chunk.get("error"):
                message = error.get("message") if isinstance(error, Mapping) else error
                raise openai.APIError(str(message), response.http_request, body=error)
            yield chunk


def _take(chunk: Mapping[str, Any], reply: Reply) -> bool:
    """Put a chunk into the reply; True when it brought text."""
    if usage := chunk.get("usage"):
        reply.prompt_tokens = usage["prompt_tokens"]
        reply.completion_tokens = usage["completion_tokens"]
    if timings := chunk.get("timings"):
        reply.engine_tokens_per_s = timings.get("predicted_per_second")
    if not chunk.get("choices"):
        return False
    choice = chunk["choices"][0]
    reply.finish = choice.get("finish_reason") or reply.finish
    text = choice.get("delta", {}).get("content")
    if not text:
        return False
    if reply.ttft_s is None:
        reply.ttft_s = reply.duration_s
    reply.text += text
    reply._chunks += 1
    # Until the usage arrives with the last chunk, a chunk is about a token.
    reply.completion_tokens = reply._chunks
    return True


@contextmanager
def translated(patience_s: float = FIRST_TOKEN_S, address: str = "") -> Iterator[None]:
    """Turn the OpenAI client's and httpx2's errors into ours; ``patience_s`` is what a silent engine was given."""
    try:
        yield
    except openai.APIConnectionError as error:
        # A timeout is a kind of it; what httpx2 said is its cause.
        raise _lost(error.__cause__ or error, patience_s, address) from error
    except openai.APIStatusError as error:
        raise _refusal(error) from error
    except httpx2.TransportError as error:
        raise _lost(error, patience_s, address) from error
    except openai.APIResponseValidationError as error:
        raise NotAnEngine(address=address, why=first_line(error)) from error
    except openai.APIError as error:
        # An error event inside a stream that began well.
        raise (too_long(str(error)) or EngineRefused(why=first_line(error))) from error
    except ValueError as error:
        # Not JSON where JSON was promised.
        raise NotAnEngine(address=address, why=first_line(error)) from error


def _lost(error: BaseException, patience_s: float, address: str) -> BancadaError:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
        return EngineAway(engine="OpenAI API", address=address, why=first_line(error))
    if isinstance(error, httpx2.TimeoutException | openai.APITimeoutError):
        return EngineSilent(seconds=patience_s)
    return EngineDied(how=first_line(error))


def first_line(error: object) -> str:
    """The first line of what a library said, at most 300 characters; its name where it said nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _refusal(error: openai.APIStatusError) -> BancadaError:
    body = error.body if isinstance(error.body, Mapping) else {}
    host = error.request.url.host
    if error.status_code in (401, 403):
        return KeyRefused(address=host, why=str(body.get("message") or error.status_code))
    if error.status_code in range(300, 400):
        return NotAnEngine(
            address=host, why=f"{error.status_code} → {error.response.headers.get('location', '')[:200]}"
        )
    if "html" in error.response.headers.get("content-type", ""):
        return NotAnEngine(address=host, why=f"{error.status_code} HTML")
    if body.get("type") == "exceed_context_size_error":
        return PromptTooLong(prompt_tokens=body.get("n_prompt_tokens"), context_tokens=body.get("n_ctx"))
    message = str(body.get("message") or error)
    return too_long(message) or EngineRefused(why=first_line(message))


# How servers say that a prompt is too long: llama.cpp's older ones, Foundry Local, vLLM and OpenAI.
_TOO_LONG = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(?P<prompt>\d+) tokens\) exceeds .*context size \((?P<context>\d+)",
        r"\((?P<prompt>\d+) input .*context length of (?P<context>\d+)",
        r"maximum context length is (?P<context>\d+) tokens\D*?(?P<least>at least )?(?P<prompt>\d+)",
    )
)


def too_long(message: str) -> PromptTooLong | None:
    """The error of a prompt that is too long, where a server's message says that it is one."""
    for pattern in _TOO_LONG:
        if found := pattern.search(message):
            # vLLM stops counting once it knows enough.
            least = found.groupdict().get("least")
            prompt: int | str = f"≥ {found['prompt']}" if least else int(found["prompt"])
            return PromptTooLong(prompt_tokens=prompt, context_tokens=int(found["context"]))
    return None
