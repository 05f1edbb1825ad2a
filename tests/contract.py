"""What every engine promises, whatever runs behind it: one suite.

A test module imports these tests and defines the fixtures ``made``, an engine that is
ready, and ``fresh``, one that a test may harm.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import psutil
import pytest

from lib.course.result import Progress
from lib.engines.base import Engine
from lib.engines.chat import Reply, stream_chat
from lib.errors import EngineAway, EngineDied, InputError, ModelError, Offline, PromptTooLong
from tests.server.helpers import is_alive, wait_until

CONTEXT = 2048


@dataclass
class Case:
    """An engine, a model for it, and the process behind it, unless that is not ours; ``comes_back``: it restarts it.

    ``embedder`` is a model for embeddings, where the first is not.
    """

    engine: Engine
    model: str
    process: Callable[[], int] | None
    comes_back: bool = True
    embedder: str = ""


def drain(case: Case, model: str | None = None) -> list[Progress]:
    return list(case.engine.ensure(model or case.model))


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(case: Case, text: str, **options: object) -> Reply:
    given = {"max_tokens": 24, "temperature": 0} | options
    *_, reply = stream_chat(case.engine.client(case.model), case.model, says(text), **given)
    return reply


def test_an_engine_that_is_ready_says_what_it_is(made: Case) -> None:
    status = made.engine.status()
    assert status.state == "ready" and status.address and status.incident is None
    assert made.model in made.engine.models()
    assert made.engine.info.id and made.engine.info.name


def test_a_reply_comes_piece_by_piece_with_its_usage(made: Case) -> None:
    def spread_out() -> bool:
        """Whether an answer came in pieces, and not all of them at once at the end."""
        pieces = [
            (reply.text, reply.duration_s)
            for reply in stream_chat(
                made.engine.client(made.model), made.model, says("Count from one to ten."), max_tokens=32, temperature=0
            )
        ]
        texts = [text for text, _ in pieces]
        assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
        first, middle, last = (pieces[at][1] for at in (0, len(pieces) // 2, -1))
        return len(texts) > 8 and middle - first < 0.97 * (last - first)

    # One who reads while the machine is busy elsewhere finds them together; an engine that bunches always does.
    assert any(spread_out() for _ in range(3))
    reply = ask(made, "Count from one to ten.", max_tokens=12)
    assert reply.completion_tokens == 12 and reply.finish == "length"
    assert reply.prompt_tokens and reply.prompt_tokens > 5
    assert reply.ttft_s and reply.decode_tokens_per_s


def test_an_answer_in_one_piece_is_the_same_as_the_streamed_one(made: Case) -> None:
    asked = says("What is the capital of France?")
    talk = made.engine.client(made.model).chat.completions
    whole = talk.create(model=made.model, messages=asked, max_tokens=16, temperature=0)  # type: ignore[arg-type]
    assert whole.choices[0].message.content == ask(made, asked[0]["content"], max_tokens=16).text
    assert whole.usage and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_the_same_seed_gives_the_same_answer(made: Case) -> None:
    # Afterwards the prompt is cached for all of them: computed anew it rounds differently, and a draw may fall.
    ask(made, "Tell me a story.", max_tokens=1)
    one, same, other = (
        ask(made, "Tell me a story.", temperature=1.5, seed=seed, max_tokens=24).text for seed in (7, 7, 8)
    )
    assert one == same != other


def test_a_stop_string_ends_the_answer_before_itself(made: Case) -> None:
    whole = ask(made, "What is the capital of France?", max_tokens=32).text
    stop = whole[len(whole) // 2 :][:5]
    reply = ask(made, "What is the capital of France?", max_tokens=32, stop=[stop])
    assert reply.text == whole[: whole.index(stop)]
    assert reply.finish == "stop"


def test_letters_that_take_several_tokens_arrive_whole(made: Case) -> None:
    reply = ask(made, "Repeat exactly: ação 🙂 日本語 ação 🙂 日本語", max_tokens=48)
    assert "\ufffd" not in reply.text


def test_a_stream_that_is_closed_early_stops_the_engines_work(made: Case) -> None:
    stream = stream_chat(
        made.engine.client(made.model), made.model, says("Tell me a very long story."), max_tokens=1500, temperature=0
    )
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    if made.process is not None:
        rests(psutil.Process(made.process()))
    assert ask(made, "Say hello.", max_tokens=4).completion_tokens > 0


def rests(process: psutil.Process) -> None:
    """Wait until a process computes no more."""
    busy = [sum(process.cpu_times()[:2])]

    def idle() -> bool:
        busy.append(sum(process.cpu_times()[:2]))
        return busy[-1] - busy[-2] < 0.02

    wait_until("the engine rests", idle, 20)


def test_a_claimed_schema_is_enforced(made: Case) -> None:
    if not made.engine.info.json_schema:
        pytest.skip("not claimed")
    waves = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}
    properties = {"mood": {"enum": ["calm", "wild"]}, "waves": waves}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["mood", "waves"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "sea", "schema": schema, "strict": True}}
    for seed in range(2):
        text = ask(
            made, "Write a poem about the sea.", max_tokens=300, seed=seed, temperature=1.0, response_format=wanted
        ).text
        found = json.loads(text)
        assert found["mood"] in ("calm", "wild") and set(found["waves"]) <= {1, 2} and len(found["waves"]) == 2


def test_a_claimed_tool_is_called_by_its_name_with_its_arguments(made: Case) -> None:
    if not made.engine.info.tool_calls:
        pytest.skip("not claimed")
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"name": "get_weather", "description": "The weather in a city now.", "parameters": schema}
    talk = made.engine.client(made.model).chat.completions

    def called(choice: object) -> list[Any]:
        answer = talk.create(
            model=made.model,
            messages=says("What is the weather in Paris now? Call get_weather."),  # type: ignore[arg-type]
            tools=[{"type": "function", "function": weather}],  # type: ignore[list-item]
            tool_choice=choice,  # type: ignore[arg-type]
            max_tokens=96,
            temperature=0,
        )
        return list(answer.choices[0].message.tool_calls or [])

    try:
        calls = called("required")
    except openai.BadRequestError:
        calls = called({"type": "function", "function": {"name": "get_weather"}})
    # Ollama and llama.cpp read tool_choice and let the model do as it likes.
    for call in calls:
        assert call.id and call.type == "function" and call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert isinstance(arguments, dict)
        # A real Ollama holds no model to the names of the arguments.
        assert made.process is None or isinstance(arguments["city"], str)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(made: Case) -> None:
    if made.engine.info.cuts_prompts:
        pytest.skip("it cuts the prompt instead")
    with pytest.raises(PromptTooLong) as caught:
        ask(made, "word " * 5000)
    counts = caught.value.parameters
    # An engine that stops counting once it knows enough says so.
    assert str(counts["prompt_tokens"]).startswith("≥ ") or int(str(counts["prompt_tokens"])) > 5000
    assert counts["context_tokens"] == CONTEXT
    assert ask(made, "Say hello.").text


def test_where_a_prompt_is_cut_the_count_of_its_tokens_shows_it(made: Case) -> None:
    if not made.engine.info.cuts_prompts:
        pytest.skip("it refuses the prompt instead")
    words = 12_000
    reply = ask(made, "word " * words)
    assert reply.prompt_tokens and reply.prompt_tokens < words


def test_claimed_embeddings_put_like_beside_like(made: Case) -> None:
    if not made.engine.info.embeddings:
        pytest.skip("not claimed")
    texts = ["The cat sleeps on the sofa.", "The cat sleeps on the couch.", "Interest rates rose by two per cent."]
    model = made.embedder or made.model
    drain(made, model)
    answer = made.engine.client(model).embeddings.create(model=model, input=texts)
    cat, same, other = (np.array(one.embedding) / np.linalg.norm(one.embedding) for one in answer.data)
    assert cat @ same > cat @ other


def test_requests_at_once_are_all_answered(made: Case) -> None:
    words = ("one", "two", "three", "four", "five", "six")
    alone = {word: ask(made, f"Spell {word}.").text for word in words}
    with ThreadPoolExecutor(len(words)) as pool:
        together = dict(zip(words, pool.map(lambda word: ask(made, f"Spell {word}."), words), strict=True))
    assert all(reply.completion_tokens > 0 and reply.finish for reply in together.values())
    # Rounding may differ when prompts are computed together, but no answer is another question's.
    for word in words:
        others = {alone[other] for other in words} - {alone[word]}
        assert together[word].text not in others


def test_a_model_that_nobody_knows_is_refused(made: Case) -> None:
    with pytest.raises((ModelError, InputError, Offline)):
        drain(made, "nobody-knows-this")
    assert ask(made, "Say hello.").text


def test_status_and_models_never_raise_and_loading_shows_that_it_goes_on(fresh: Case) -> None:
    fresh.engine.status(), fresh.engine.models()
    moved = drain(fresh)
    assert moved
    assert fresh.engine.status().state == "ready"
    drain(fresh)
    if fresh.comes_back and fresh.process is not None:
        pid = fresh.process()
        fresh.engine.release()
        assert not is_alive(pid)
        assert fresh.engine.status().state == "stopped"


def test_a_server_that_dies_in_mid_answer_keeps_the_text_and_is_told(fresh: Case) -> None:
    if fresh.process is None:
        pytest.skip("somebody else's server")
    drain(fresh)
    process = psutil.Process(fresh.process())
    stream = stream_chat(
        fresh.engine.client(fresh.model),
        fresh.model,
        says("Tell me a very long story."),
        max_tokens=1500,
        temperature=0,
    )
    reply = next(stream)
    process.kill()
    with pytest.raises(EngineDied):
        list(stream)
    assert reply.text
    if fresh.comes_back:
        wait_until("it is noticed", lambda: fresh.engine.status().restarts == 1, 20)
        wait_until("it is back", lambda: fresh.engine.status().state == "ready", 900)
        assert fresh.engine.status().incident == "SIGKILL"
        assert ask(fresh, "Say hello.").text


def test_an_engine_that_is_not_there_is_told(fresh: Case) -> None:
    if fresh.process is None:
        pytest.skip("somebody else's server")
    drain(fresh)
    client = fresh.engine.client(fresh.model)
    if fresh.comes_back:
        fresh.engine.release()
    else:
        # Whoever runs it may start it again, on another port.
        process = psutil.Process(fresh.process())
        process.kill()
        wait_until("it is gone", lambda: not is_alive(process.pid))
    with pytest.raises((EngineAway, EngineDied)):
        list(stream_chat(client, fresh.model, says("Hello")))
