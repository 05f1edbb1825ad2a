"""What a stream may bring, through the real client: bytes in any pieces, and words that are not an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from openai import OpenAI

from lib.engines.chat import Reply, stream_chat, too_long
from lib.errors import AnswerBrokenOff, EngineDied, EngineRefused, PromptTooLong

DONE = b"data: [DONE]\n\n"


def event(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices} | more, ensure_ascii=False).encode() + b"\n\n"


def replied(*pieces: bytes) -> Reply:
    """The reply to a stream that arrives in these pieces."""

    class Pieces(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from pieces

    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces())
    )
    client = OpenAI(base_url="http://engine/v1", api_key="k", http_client=httpx2.Client(transport=transport))
    *_, reply = stream_chat(client, "m", [{"role": "user", "content": "?"}])
    return reply


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_may_be_cut_anywhere_even_within_a_character(size: int) -> None:
    whole = event("Olá, ") + b": a comment\n\n" + event("você 💥") + event(finish="stop") + DONE
    reply = replied(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert (reply.text, reply.finish, reply.completion_tokens) == ("Olá, você 💥", "stop", 2)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_a_model_may_write_any_separator_of_lines(separator: str) -> None:
    assert replied(event(f"a{separator}b", finish="stop"), DONE).text == f"a{separator}b"


def test_lines_may_end_as_the_standard_allows_and_usage_comes_last() -> None:
    usage = event(usage={"prompt_tokens": 3, "completion_tokens": 9}, timings={"predicted_per_second": 5.0})
    reply = replied((event("x", finish="length") + usage + DONE).replace(b"\n", b"\r\n"))
    assert (reply.prompt_tokens, reply.completion_tokens, reply.engine_tokens_per_s) == (3, 9, 5.0)


@pytest.mark.parametrize(
    "wrong", [b'data: {"error": {"message": "out of room"}}\n\n', b'data: {"error": "out of room"}\n\n']
)
def test_an_error_within_a_stream_is_the_engines_refusal(wrong: bytes) -> None:
    with pytest.raises(EngineRefused) as caught:
        replied(event("x"), wrong)
    assert "out of room" in str(caught.value.parameters["why"])


@pytest.mark.parametrize("wrong", [b"data: {\n\n", b"data: \xff\n\n", b"data: <html>\n\n"])
def test_what_is_not_json_is_refused_by_name(wrong: bytes) -> None:
    with pytest.raises(EngineRefused):
        replied(event("x"), wrong)


def test_a_stream_without_a_last_word_is_a_death() -> None:
    with pytest.raises(EngineDied):
        replied(event("x"))


@pytest.mark.parametrize("piece", ["word ", " a", "\n", "na", "…"])
def test_an_answer_that_repeated_itself_and_has_no_last_word_was_broken_off(piece: str) -> None:
    """Ollama ends one after thirty times the same piece, and says no more."""
    with pytest.raises(AnswerBrokenOff):
        replied(event("So: "), *[event(piece)] * 31)
    assert replied(event("So: "), *[event(piece)] * 31, event(finish="stop"), DONE).text == "So: " + 31 * piece
    with pytest.raises(EngineDied):
        replied(event("So: "), *[event(piece)] * 9)


def test_a_prompt_that_is_too_long_is_told_in_the_words_of_the_engine_below() -> None:
    """What Ollama hands on from llama-server, as a text."""
    told = (
        '{"error":{"code":400,"message":"request (5012 tokens) exceeds the available context size (2048 tokens), '
        'try increasing it","type":"exceed_context_size_error","n_prompt_tokens":5012,"n_ctx":2048}}'
    )
    error = too_long(told)
    assert isinstance(error, PromptTooLong)
    assert error.parameters == {"prompt_tokens": 5012, "context_tokens": 2048}
    assert too_long("model runner has unexpectedly stopped") is None
