"""Chat over any engine: one stream of text with its timings, one kind of error.

The boundary where the OpenAI client's errors, streams included, become ours.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai import OpenAI

from lib.errors import BancadaError, EngineDied, EngineRefused, EngineSilent, PromptTooLong

FIRST_TOKEN_S = 120.0
BETWEEN_TOKENS_S = 30.0

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

    Raises PromptTooLong, EngineRefused, EngineDied, EngineSilent. The reply
    keeps what had arrived before an error.
    """
    reply = Reply()
    started = time.perf_counter()
    timeout = httpx2.Timeout(BETWEEN_TOKENS_S, connect=5.0, read=FIRST_TOKEN_S)
    with translated():
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
        with answer as response:
            for chunk in _chunks(response):
                reply.duration_s = time.perf_counter() - started
                if _take(chunk, reply):
                    yield reply
    reply.duration_s = time.perf_counter() - started if reply.finish is None else reply.duration_s
    if reply.finish is None:
        raise EngineDied(how="the stream ended without a last word")
    yield reply


def _chunks(response: Any) -> Iterator[Mapping[str, Any]]:
    """The JSON of every server-sent event up to ``[DONE]``; raises openai.APIError for an error and for nonsense."""
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
def translated(patience_s: float = FIRST_TOKEN_S) -> Iterator[None]:
    """Turn the OpenAI client's and httpx2's errors into ours; ``patience_s`` is what a silent engine was given."""
    try:
        yield
    except openai.APITimeoutError as error:
        raise EngineSilent(seconds=patience_s) from error
    except openai.APIConnectionError as error:
        raise EngineDied(how=str(error.__cause__ or error)) from error
    except openai.APIStatusError as error:
        raise _refusal(error) from error
    except (httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
        raise EngineSilent(seconds=patience_s) from error
    except httpx2.TransportError as error:
        raise EngineDied(how=str(error)) from error
    except openai.APIError as error:
        # An error event inside a stream that began well.
        raise EngineRefused(why=str(error)) from error


def _refusal(error: openai.APIStatusError) -> BancadaError:
    body = error.body if isinstance(error.body, Mapping) else {}
    if body.get("type") == "exceed_context_size_error":
        return PromptTooLong(prompt_tokens=body.get("n_prompt_tokens"), context_tokens=body.get("n_ctx"))
    message = str(body.get("message") or error)
    numbers = re.findall(r"\d+", message)
    if "context" in message and "exceed" in message and len(numbers) >= 2:
        return PromptTooLong(prompt_tokens=int(numbers[0]), context_tokens=int(numbers[1]))
    return EngineRefused(why=message)
