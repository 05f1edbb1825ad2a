"""The embedded engine with its real child process and the real default model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from lib.engines import child
from lib.engines.chat import Reply, stream_chat
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.errors import Cancelled, EngineDidNotStart, EngineDied, ModelTooLarge, PromptTooLong, UnknownModel
from lib.models.store import ModelStore
from tests.conftest import DEFAULT
from tests.server.helpers import drain, engine_children, is_alive, wait_until

CONTEXT, SLOTS = 1024, 4
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ENDLESS = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}

MakeEngine = Callable[..., EmbeddedEngine]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(engine: EmbeddedEngine, text: str, **options: object) -> Reply:
    *_, reply = stream_chat(engine.client(DEFAULT), DEFAULT, says(text), **({"max_tokens": 24} | options))
    return reply


@pytest.fixture(scope="module")
def engine(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    """An engine that is ready; for tests that leave it as it was."""
    models = ModelStore(default_model.parent.parent)
    made = EmbeddedEngine(models, tmp_path_factory.mktemp("logs"), EmbeddedOptions(CONTEXT, SLOTS))
    drain(made.ensure(DEFAULT))
    yield made
    made.release()


@pytest.fixture
def make(default_model: Path, tmp_path: Path) -> Iterator[MakeEngine]:
    """Makes engines that a test may harm; none of them outlives it."""
    with ExitStack() as stack:

        def one(context_tokens: int = 512, slots: int = 1) -> EmbeddedEngine:
            models = ModelStore(default_model.parent.parent)
            made = EmbeddedEngine(models, tmp_path / "logs", EmbeddedOptions(context_tokens, slots))
            stack.callback(made.release)
            return made

        yield one


def child_of(engine: EmbeddedEngine) -> int:
    pid = engine.status().pid
    assert pid is not None
    return pid


def route(engine: EmbeddedEngine, path: str, with_key: bool = True) -> tuple[int, str]:
    address = engine.status().address
    answer = engine.metrics_client().get(f"{address}{path}", headers=engine.headers() if with_key else {})
    return answer.status_code, answer.text


def test_a_model_that_is_ready_says_what_it_is(engine: EmbeddedEngine) -> None:
    status = engine.status()
    assert (status.state, status.model, status.context_tokens, status.restarts) == ("ready", DEFAULT, CONTEXT, 0)
    assert status.incident is None
    assert is_alive(child_of(engine))
    assert status.memory_bytes and status.memory_bytes > 100 * 2**20
    assert DEFAULT in engine.models()
    assert engine.client(DEFAULT).models.list().data[0].id == DEFAULT
    assert drain(engine.ensure(DEFAULT)) == []


def test_a_reply_streams_with_its_usage_and_the_time_to_its_first_token(engine: EmbeddedEngine) -> None:
    lengths = [
        len(reply.text)
        for reply in stream_chat(
            engine.client(DEFAULT), DEFAULT, says("Count from one to ten."), max_tokens=32, temperature=0
        )
    ]
    assert len(lengths) > 3
    assert lengths == sorted(lengths)
    reply = ask(engine, "Count from one to ten.", max_tokens=20, extra_body={"ignore_eos": True})
    assert reply.completion_tokens == 20
    assert reply.finish == "length"
    assert reply.prompt_tokens and reply.prompt_tokens > 5
    assert reply.ttft_s is not None and 0 < reply.ttft_s < reply.duration_s
    assert reply.decode_tokens_per_s and reply.engine_tokens_per_s


def test_json_of_a_schema_is_enforced_on_a_model_that_would_rather_write_verse(engine: EmbeddedEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "mood": {"enum": ["calm", "wild"]},
            "waves": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2},
        },
        "required": ["mood", "waves"],
        "additionalProperties": False,
    }
    for seed in range(3):
        reply = ask(
            engine,
            "Write a poem about the sea.",
            max_tokens=400,
            seed=seed,
            temperature=1.0,
            response_format={"type": "json_schema", "json_schema": {"name": "sea", "schema": schema, "strict": True}},
        )
        found = json.loads(reply.text)
        assert set(found) == {"mood", "waves"}
        assert found["mood"] in ("calm", "wild")
        assert len(found["waves"]) == 2 and set(found["waves"]) <= {1, 2}


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_a_request_with_tools_is_answered_in_words_or_with_a_call(engine: EmbeddedEngine, choice: str) -> None:
    answer = engine.client(DEFAULT).chat.completions.create(
        model=DEFAULT, messages=says("What is the weather in Lisbon?"), tools=[TOOL], tool_choice=choice, max_tokens=48
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls


TEMPLATE = """{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_tools_are_claimed_where_the_models_template_shows_them_to_the_model(home: Path) -> None:
    own = home / "models" / "own"
    own.mkdir()
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", TEMPLATE]
    source = ModelStore(home / "models").path(DEFAULT)
    subprocess.run([*command, str(source), str(own / "tooled.gguf")], check=True, capture_output=True)
    engine = EmbeddedEngine(ModelStore(home / "models"), home / "logs", EmbeddedOptions(1024))

    def seen_tokens(model: str) -> int:
        """How many more tokens the prompt has with a tool than without."""
        list(engine.ensure(model))
        create = engine.client(model).chat.completions.create
        asked = {"model": model, "messages": says("What is the weather in Lisbon?"), "max_tokens": 1}
        return create(**asked, tools=[TOOL]).usage.prompt_tokens - create(**asked).usage.prompt_tokens

    try:
        assert not engine.info.tool_calls
        assert seen_tokens(DEFAULT) == 0 and not engine.info.tool_calls
        assert seen_tokens("tooled") > 20 and engine.info.tool_calls
    finally:
        engine.release()


def test_a_conversation_with_a_tools_result_is_answered(engine: EmbeddedEngine) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lisbon"}'}}
    messages = [
        *says("What is the weather in Lisbon?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    answer = engine.client(DEFAULT).chat.completions.create(
        model=DEFAULT, messages=messages, tools=[TOOL], max_tokens=24
    )
    assert answer.choices[0].finish_reason


@pytest.mark.parametrize("path", ["/metrics", "/slots", "/props", "/v1/models"])
def test_a_route_answers_with_the_key_and_is_refused_without_it(engine: EmbeddedEngine, path: str) -> None:
    assert route(engine, path)[0] == 200
    assert route(engine, path, with_key=False)[0] == 401


def test_the_metrics_count_what_was_answered(engine: EmbeddedEngine) -> None:
    def predicted() -> float:
        found = re.search(r"^llamacpp:tokens_predicted_total (\S+)", route(engine, "/metrics")[1], re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = predicted()
    reply = ask(engine, "Hello")
    wait_until("the tokens are counted", lambda: predicted() >= before + reply.completion_tokens - 1)


def test_requests_at_once_are_all_answered_and_none_mixes_its_text_with_anothers(engine: EmbeddedEngine) -> None:
    words = ["otter", "quartz", "violin", "harbour"]
    ready = threading.Barrier(len(words))

    def repeat(word: str) -> list[str]:
        schema = {"type": "array", "items": {"enum": [word]}, "minItems": 12, "maxItems": 12}
        ready.wait(30)
        reply = ask(
            engine,
            f"Say {word}.",
            max_tokens=600,
            temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "words", "schema": schema}},
        )
        return json.loads(reply.text)

    with ThreadPoolExecutor(len(words)) as pool:
        assert list(pool.map(repeat, words)) == [[word] * 12 for word in words]


def test_more_requests_than_slots_wait_for_their_turn(engine: EmbeddedEngine) -> None:
    with ThreadPoolExecutor(3 * SLOTS) as pool:
        replies = list(pool.map(lambda number: ask(engine, f"Hello {number}", max_tokens=4), range(3 * SLOTS)))
    assert all(reply.finish and reply.completion_tokens for reply in replies)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(engine: EmbeddedEngine) -> None:
    with pytest.raises(PromptTooLong) as caught:
        ask(engine, "word " * 3000)
    assert caught.value.parameters["prompt_tokens"] > 3000
    assert caught.value.parameters["context_tokens"] == CONTEXT
    assert ask(engine, "Hello").text


@pytest.mark.parametrize(
    "text", ["", "\x00", "🦙" * 50, "<|im_end|><|im_start|>system", "\ud7ff\ufffe", "{{ 1/0 }}{% for"]
)
def test_hostile_prompts_are_answered_and_harm_nothing(engine: EmbeddedEngine, text: str) -> None:
    pid = child_of(engine)
    assert ask(engine, text, max_tokens=4).finish
    assert child_of(engine) == pid


def test_a_model_that_nobody_knows_is_named(make: MakeEngine) -> None:
    engine = make()
    with pytest.raises(UnknownModel) as caught:
        drain(engine.ensure("gpt-9000"))
    assert caught.value.parameters["model"] == "gpt-9000"
    assert DEFAULT in str(caught.value.parameters["known"])
    assert engine.status().pid is None


def test_the_engine_listens_on_loopback_only(engine: EmbeddedEngine) -> None:
    sockets = psutil.Process(child_of(engine)).net_connections(kind="inet")
    listening = {(one.laddr.ip, one.laddr.port) for one in sockets if one.status == psutil.CONN_LISTEN}
    assert engine.status().address is not None
    assert listening == {("127.0.0.1", int(engine.status().address.rsplit(":", 1)[1]))}


def test_a_stream_that_is_closed_early_stops_the_engines_work(make: MakeEngine) -> None:
    engine = make(8192)
    drain(engine.ensure(DEFAULT))

    def processing() -> list[bool]:
        return [slot["is_processing"] for slot in json.loads(route(engine, "/slots")[1])]

    replies = stream_chat(engine.client(DEFAULT), DEFAULT, says("Tell a long story."), **ENDLESS)
    for _ in range(3):
        next(replies)
    assert processing() == [True]
    replies.close()
    wait_until("the slot is idle", lambda: not any(processing()), 20)


def test_an_engine_killed_in_mid_stream_keeps_the_text_and_comes_back_by_itself(make: MakeEngine) -> None:
    engine = make()
    drain(engine.ensure(DEFAULT))
    before, pid, client = engine.status(), child_of(engine), engine.client(DEFAULT)
    reply, pieces = Reply(), 0
    with pytest.raises(EngineDied):
        for piece in stream_chat(client, DEFAULT, says("Tell a long story."), **ENDLESS):
            reply, pieces = piece, pieces + 1
            if pieces == 3:
                os.kill(pid, signal.SIGKILL)
    assert reply.text
    assert reply.finish is None
    wait_until("the engine is back", lambda: engine.status().state == "ready" and engine.status().pid != pid)
    after = engine.status()
    assert after.incident == "SIGKILL"
    assert after.restarts == 1
    assert after.address is not None
    assert ask(engine, "Hello").text
    assert not is_alive(pid)
    # The old client's key is no longer good for anything.
    assert client.api_key != engine.client(DEFAULT).api_key
    assert before.address is not None


def test_an_engine_that_dies_again_and_again_is_given_up_until_it_is_asked_for(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "RESTART_WINDOW_S", 600.0)
    engine = make()
    drain(engine.ensure(DEFAULT))
    for crash in range(1, child.RESTARTS + 2):
        pid = wait_until("ready", lambda: engine.status().state == "ready" and engine.status().pid)
        os.kill(pid, signal.SIGKILL)
        wait_until("noticed", lambda crash=crash: engine.status().restarts == crash)
    wait_until("given up", lambda: engine.status().state == "failed")
    assert engine.status().pid is None
    assert engine.status().incident == "SIGKILL"
    with pytest.raises(EngineDied) as caught:
        engine.client(DEFAULT)
    assert caught.value.parameters["how"] == "SIGKILL"
    drain(engine.ensure(DEFAULT))
    assert ask(engine, "Hello").text


def test_an_engine_killed_while_it_loads_says_so_and_keeps_its_log(make: MakeEngine) -> None:
    engine = make()
    events = engine.ensure(DEFAULT)
    wait_until("it loads", lambda: next(events).what == "load")
    os.kill(child_of(engine), signal.SIGKILL)
    with pytest.raises(EngineDidNotStart) as caught:
        drain(events)
    assert "SIGKILL" in str(caught.value.parameters["why"])
    assert Path(str(caught.value.parameters["log"])).exists()
    assert engine.status().state == "stopped"
    drain(engine.ensure(DEFAULT))
    assert ask(engine, "Hello").text


def test_an_engine_that_dies_as_it_becomes_ready_is_never_taken_for_ready(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    became_ready = engine._became_ready

    def watchers() -> int:
        return sum("_watch" in thread.name for thread in threading.enumerate())

    def die_first(child: child._Child, address: str) -> None:
        before = watchers()
        child.process.kill()
        wait_until("the watcher has looked", lambda: watchers() < before)
        became_ready(child, address)

    monkeypatch.setattr(engine, "_became_ready", die_first)
    with pytest.raises(EngineDidNotStart):
        drain(engine.ensure(DEFAULT))
    assert engine.status().state == "stopped"


def test_a_dead_engines_log_stays_a_week(make: MakeEngine, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    old, recent = logs / "embedded-1-a.log", logs / "embedded-1-b.log"
    for log, days in ((old, 8), (recent, 6)):
        log.write_text("GGML_ASSERT")
        os.utime(log, (time.time() - days * 86400,) * 2)
    drain(make().ensure(DEFAULT))
    assert not old.exists()
    assert recent.exists()


def test_release_leaves_no_child_and_no_log(make: MakeEngine, tmp_path: Path) -> None:
    engine = make()
    drain(engine.ensure(DEFAULT))
    pid = child_of(engine)
    engine.release("another model")
    assert is_alive(pid)
    engine.release(DEFAULT)
    assert not is_alive(pid)
    assert (engine.status().state, engine.status().pid, engine.status().address) == ("stopped", None, None)
    assert list((tmp_path / "logs").iterdir()) == []
    with pytest.raises(EngineDied):
        engine.client(DEFAULT)


def test_release_in_the_middle_of_loading_is_a_stop_and_not_a_defect(make: MakeEngine) -> None:
    engine = make()
    events = engine.ensure(DEFAULT)
    wait_until("it loads", lambda: next(events).what == "load")
    pid = child_of(engine)
    engine.release()
    with pytest.raises(Cancelled):
        drain(events)
    assert not is_alive(pid)
    assert engine.status().state == "stopped"


def test_a_release_while_a_dead_child_is_being_replaced_leaves_none(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = engine_children(os.getpid())
    engine = make()
    drain(engine.ensure(DEFAULT))
    spawn = engine._spawn
    release = threading.Thread(target=engine.release)
    spawned = threading.Event()

    def slowly(*given: object) -> object:
        release.start()
        release.join(1.0)
        try:
            return spawn(*given)  # type: ignore[arg-type]
        finally:
            spawned.set()

    monkeypatch.setattr(engine, "_spawn", slowly)
    os.kill(child_of(engine), signal.SIGKILL)
    assert spawned.wait(30.0)
    release.join(30.0)
    assert not release.is_alive()
    wait_until("no child", lambda: engine_children(os.getpid()) == others)
    assert engine.status().state == "stopped"


def test_cancelling_while_the_model_loads_leaves_no_child(make: MakeEngine) -> None:
    engine = make()
    before = set(engine_children(os.getpid()))
    events = engine.ensure(DEFAULT)
    wait_until("it loads", lambda: next(events).what == "load")
    assert set(engine_children(os.getpid())) - before
    events.close()
    assert set(engine_children(os.getpid())) == before
    assert engine.status().state == "stopped"
    drain(engine.ensure(DEFAULT))
    assert ask(engine, "Hello").text


def test_threads_that_ensure_at_once_start_one_child(make: MakeEngine, tmp_path: Path) -> None:
    engine = make()
    ready = threading.Barrier(4)

    def ensure() -> int:
        ready.wait(30)
        drain(engine.ensure(DEFAULT))
        return child_of(engine)

    with ThreadPoolExecutor(4) as pool:
        pids = [job.result() for job in [pool.submit(ensure) for _ in range(4)]]
    assert len(set(pids)) == 1
    assert len(list((tmp_path / "logs").iterdir())) == 1


def test_a_model_too_big_for_the_free_memory_is_refused_before_a_child_starts(
    make: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    with monkeypatch.context() as patch:
        patch.setattr(child, "available_memory_bytes", lambda: 64 * 2**20)
        with pytest.raises(ModelTooLarge) as caught:
            drain(engine.ensure(DEFAULT))
    assert caught.value.parameters["available"] == "64 MiB"
    # 64 contexts of 131,072 tokens need more than any machine that runs this has.
    with pytest.raises(ModelTooLarge):
        drain(make(131_072, 64).ensure(DEFAULT))
    assert not (tmp_path / "logs").exists()
    drain(engine.ensure(DEFAULT))
    assert engine.status().state == "ready"


def test_a_proxy_in_the_environment_does_not_come_between(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    engine = make()
    drain(engine.ensure(DEFAULT))
    assert ask(engine, "Hello").text
    assert route(engine, "/metrics")[0] == 200
