"""The load generator against real servers: one with pauses that are known, and the embedded engine."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from lib.bench import load
from lib.bench.load import Answer, Load, Target, closed_loop, open_loop, run_load
from lib.bench.metrics import measure
from lib.course.result import Progress
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.engines.endpoint import EndpointEngine
from lib.errors import BancadaError, EngineAway, EngineDied, EngineRefused, Unforeseen
from lib.models.store import ModelStore
from tests.conftest import DEFAULT
from tests.server.helpers import clients, drain, wait_until
from tests.server.talker import MODEL, Talk, Talker
from tests.server.test_quantize import finished

PROMPTS = ["one", "two", "three"]
SLOTS = 2

Serve = Callable[..., tuple[Talker, Target]]
Begun = Callable[..., Generator[Progress, None, list[Answer]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers with known pauses; none outlives the test."""
    with ExitStack() as stack:

        def one(talk: Talk | Callable[[int], Talk], slots: int = 1000, **more: Any) -> tuple[Talker, Target]:
            server = Talker(talk, slots)
            stack.callback(server.close)
            return server, Target(EndpointEngine(server.address), MODEL, **more)

        yield one


@pytest.fixture
def begun() -> Iterator[Begun]:
    """Begins a load that ends with the test, whatever becomes of that."""
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(closing(run_load(*given)))


def answers_to(target: Target, how: Load, words: int = 4, **more: Any) -> list[Answer]:
    found: list[Answer] = finished(run_load(target, how, PROMPTS, words, **more))
    assert [one.number for one in found] == sorted({one.number for one in found})
    wait_until("no thread is left", lambda: not clients())
    return found


def test_known_pauses_are_found_where_they_were(serve: Serve) -> None:
    prefill_s, pause_s = 0.3, 0.2
    _, target = serve(Talk(5, prefill_s, pause_s))
    answers = answers_to(target, closed_loop(3), 5)
    for one in answers:
        assert one.answered and len(one.arrivals_s) == 5 and one.due_s == 0.0
        # A busy machine adds to these, and takes nothing away.
        assert one.sent_s > 0 and one.ttft_s >= prefill_s
        assert all(at >= prefill_s + number * pause_s for number, at in enumerate(one.arrivals_s))
        assert one.end_s >= one.arrivals_s[-1] and one.e2e_s >= prefill_s + 4 * pause_s
    found = measure(answers, 5)
    assert (found.failures, found.short, found.tokens) == (0, 0, 15)
    assert found.ttft_p50_s >= prefill_s and found.seconds >= prefill_s + 4 * pause_s
    # A word that came late makes the pause after it shorter; half of them is far from that.
    assert found.itl_p50_s >= pause_s / 2 and found.tpot_p50_s >= pause_s / 2


def test_one_long_pause_among_short_ones_is_seen_at_its_place(serve: Serve, begun: Begun) -> None:
    server, target = serve(Talk(6))
    server.gate.clear()
    made = begun(target, closed_loop(1), PROMPTS, 6)
    next(made)
    wait_until("it is asked", lambda: server.asked)
    for _ in range(10):
        next(made)
    server.gate.set()
    (one,) = finished(made)
    # Ten looks passed before the first word, each as long as a look is.
    assert one.ttft_s >= 9 * load.LOOK_S
    assert one.arrivals_s == sorted(one.arrivals_s) and one.e2e_s >= one.ttft_s


def test_every_request_is_what_the_target_says_and_prompts_come_in_turn(serve: Serve) -> None:
    options = {"top_p": 0.5, "extra_body": {"ignore_eos": True}}
    server, target = serve(Talk(2), options=options, system="Be brief.")
    answers = answers_to(target, closed_loop(1, 5), 2)
    assert [one.prompt for one in answers] == ["one", "two", "three", "one", "two"]
    for asked, one in zip(server.asked, answers, strict=True):
        assert [part["role"] for part in asked["messages"]] == ["system", "user"]
        assert (asked["messages"][0]["content"], asked["messages"][1]["content"]) == ("Be brief.", one.prompt)
        assert (asked["temperature"], asked["max_tokens"], asked["top_p"], asked["ignore_eos"]) == (0, 2, 0.5, True)
        assert (one.text, one.prompt_tokens, one.completion_tokens) == ("word0 word1 ", 5, 2)


def test_progress_counts_tokens_and_names_who_is_asked(serve: Serve) -> None:
    _, target = serve(Talk(8, 0.0, 0.05), name="talker")
    told: list[Progress] = drain(run_load(target, closed_loop(2, 4), PROMPTS, 8))
    done = [one.done for one in told]
    assert done == sorted(done) and {one.total for one in told} == {32} and done[-1] > 0
    assert {one.detail for one in told} == {"talker × 2"}


def test_a_closed_loop_has_no_more_on_the_way_than_it_has_clients(serve: Serve, begun: Begun) -> None:
    server, target = serve(Talk(2))
    server.gate.clear()
    made = begun(target, closed_loop(3, 9), PROMPTS, 2)
    next(made)
    wait_until("all clients have asked", lambda: len(server.asked) == 3)
    for _ in range(5):
        next(made)
    assert len(server.asked) == 3
    server.gate.set()
    answers = finished(made)
    assert len(answers) == len(server.asked) == 9 and server.most_at_once == 3
    # The first of each client was due at the start, the others when their client was free.
    assert [one.due_s for one in answers[:3]] == [0.0] * 3
    freed = sorted(one.end_s for one in answers)
    assert all(one.due_s >= before for one, before in zip(answers[3:], freed, strict=False))
    assert all(0 < one.due_s <= one.sent_s for one in answers[3:])


def test_an_open_loop_asks_on_time_whether_or_not_the_server_answers(serve: Serve, begun: Begun) -> None:
    server, target = serve(Talk(2), slots=1)
    server.gate.clear()
    how = open_loop(40.0, 8, seed=3)
    made = begun(target, how, PROMPTS, 2)
    next(made)
    # Nothing has been answered, and still everybody has asked.
    wait_until("all have asked", lambda: len(server.asked) == 8)
    server.gate.set()
    answers = finished(made)
    assert tuple(one.due_s for one in answers) == how.due_s
    assert all(one.answered and one.sent_s >= one.due_s for one in answers)


def test_a_stall_is_felt_by_all_who_were_due_meanwhile(serve: Serve) -> None:
    stall_s = 1.5
    _, target = serve(lambda number: Talk(2, stall_s if number == 0 else 0.0), slots=1)
    how = open_loop(20.0, 8, seed=3)
    assert how.due_s[-1] - how.due_s[0] < stall_s
    answers = answers_to(target, how, 2)
    for one in answers:
        assert one.answered and one.ttft_s >= stall_s - (one.due_s - how.due_s[0])
    # A generator that waits for its turn would have felt one stall in eight.
    assert measure(answers, 2).ttft_p50_s >= stall_s - (how.due_s[-1] - how.due_s[0])


def test_more_clients_than_slots_wait_and_their_wait_is_theirs(serve: Serve) -> None:
    prefill_s = 0.2
    server, target = serve(Talk(2, prefill_s), slots=2)
    answers = answers_to(target, closed_loop(8), 2)
    assert server.most_at_once == 2 and all(one.answered for one in answers)
    waited = sorted(one.ttft_s for one in answers)
    assert all(at >= prefill_s * (1 + number // 2) for number, at in enumerate(waited))


BROKEN = {
    "an error instead of an answer": (Talk(status=500), EngineRefused),
    "too many": (Talk(status=429), EngineRefused),
    "a stream that is cut": (Talk(3, cut=True), EngineDied),
    "an error within the stream": (Talk(2, error="out of room"), EngineRefused),
    "a count without its number": (Talk(2, usage={"prompt_tokens": 5}), Unforeseen),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_goes_wrong_is_a_row_of_its_own_and_the_others_go_on(serve: Serve, how: str) -> None:
    talk, kind = BROKEN[how]
    _, target = serve(lambda number: talk if number % 3 == 1 else Talk(4))
    answers = answers_to(target, closed_loop(1, 7))
    assert [type(one.error) for one in answers] == [kind if number % 3 == 1 else type(None) for number in range(7)]
    assert [one.answered for one in answers] == [number % 3 != 1 for number in range(7)]
    broken = answers[1]
    # What had come before is kept.
    assert len(broken.arrivals_s) == (talk.words if talk.status == 200 else 0)
    assert broken.sent_s >= broken.due_s > 0
    found = measure(answers, 4)
    assert (found.requests, found.failures, found.tokens) == (7, 2, 20)


def test_a_refusal_without_a_word_is_a_failure_without_an_error(serve: Serve) -> None:
    _, target = serve(lambda number: Talk(0 if number == 0 else 4))
    answers = answers_to(target, closed_loop(1, 3))
    assert [(one.answered, one.error) for one in answers] == [(False, None), (True, None), (True, None)]
    assert answers[0].text == "" and answers[0].end_s > 0
    assert measure(answers, 4).failures == 1


def test_no_tokens_asked_for_are_no_answers_and_no_accident(serve: Serve) -> None:
    _, target = serve(Talk(0))
    found = measure(answers_to(target, closed_loop(2), 0), 0)
    assert (found.requests, found.failures, found.tokens) == (2, 2, 0)


def test_a_server_that_is_gone_gives_as_many_rows_as_were_sent(serve: Serve) -> None:
    server, target = serve(Talk())
    server.close()
    answers = answers_to(target, closed_loop(2, 6))
    assert len(answers) == 6 and all(isinstance(one.error, EngineAway) for one in answers)


def test_after_the_first_error_nothing_more_is_sent_where_that_is_asked(serve: Serve) -> None:
    server, target = serve(lambda number: Talk(status=500) if number == 2 else Talk(2))
    answers = answers_to(target, closed_loop(1, 50), 2, stop_at_error=True)
    assert len(server.asked) == len(answers) == 3
    assert [one.answered for one in answers] == [True, True, False]


def test_the_first_error_also_ends_what_others_wait_for(serve: Serve) -> None:
    server, target = serve(lambda number: Talk(status=500) if number == 0 else Talk(100_000, 0.0, 0.02))
    answers = answers_to(target, closed_loop(3, 30), 100_000, stop_at_error=True)
    assert len(answers) == len(server.asked) <= 3
    assert sum(isinstance(one.error, EngineRefused) for one in answers) == 1
    assert not any(one.answered for one in answers)


@pytest.mark.parametrize("how", [closed_loop(4, 40), open_loop(200.0, 4)], ids=["closed", "open"])
def test_closing_a_load_stops_every_client_and_leaves_no_thread(
    serve: Serve, how: Load, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever can end is waited for.
    monkeypatch.setattr(load, "STOP_S", 60.0)
    server, target = serve(Talk(100_000, 0.0, 0.02))
    made = begun(target, how, PROMPTS, 100_000)
    while next(made).done < 8:
        pass
    wait_until("all have asked", lambda: len(server.asked) == 4)
    made.close()
    assert "_Run.work" not in clients()
    wait_until("the server sees them leave", lambda: server.left == 4)
    wait_until("no thread is left", lambda: not clients())
    assert len(server.asked) == 4


def test_a_load_that_is_closed_before_its_requests_are_due_sends_none(
    serve: Serve, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "STOP_S", 60.0)
    server, target = serve(Talk())
    made = begun(target, Load(3, 3, (3600.0,) * 3), PROMPTS, 4)
    next(made)
    made.close()
    assert not clients() and server.asked == []


def test_clients_that_wait_for_a_first_word_end_with_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: Begun
) -> None:
    # Nobody can take a thread out of its wait for a server; the one who closes does not wait for it either.
    monkeypatch.setattr(load, "STOP_S", 0.5)
    server, target = serve(Talk(100_000, 0.0, 0.02))
    server.gate.clear()
    made = begun(target, closed_loop(3, 30), PROMPTS, 100_000)
    next(made)
    wait_until("all have asked", lambda: len(server.asked) == 3)
    made.close()
    server.gate.set()
    wait_until("no thread is left", lambda: not clients())
    wait_until("the server sees them leave", lambda: server.left == 3)
    assert len(server.asked) == 3


@pytest.fixture(scope="module")
def engine(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    """The embedded engine, ready."""
    models = ModelStore(default_model.parent.parent)
    made = EmbeddedEngine(models, tmp_path_factory.mktemp("logs"), EmbeddedOptions(2048, SLOTS))
    drain(made.ensure(DEFAULT))
    yield made
    made.release()


def full_length(engine: EmbeddedEngine) -> Target:
    return Target(engine, DEFAULT, {"extra_body": {"ignore_eos": True}})


@pytest.mark.parametrize("how", [closed_loop(6, 12), open_loop(20.0, 12)], ids=["closed", "open"])
def test_a_real_engine_answers_more_clients_than_it_has_slots(engine: EmbeddedEngine, how: Load) -> None:
    answers = answers_to(full_length(engine), how, 8)
    assert len(answers) == 12 and all(one.answered and one.completion_tokens == 8 for one in answers)
    for one in answers:
        assert one.due_s <= one.sent_s <= one.arrivals_s[0] <= one.arrivals_s[-1] <= one.end_s
        assert len(one.arrivals_s) <= 8 and one.prompt_tokens and one.prompt_tokens > 1
    # The same prompt costs the same tokens, whoever asks.
    for prompt in PROMPTS:
        assert len({one.prompt_tokens for one in answers if one.prompt == prompt}) == 1
    found = measure(answers, 8)
    assert (found.failures, found.short, found.tokens) == (0, 0, 96)
    assert 0 < found.fairness <= 1 and found.tokens_per_s == pytest.approx(96 / found.seconds)


def test_closing_a_load_gives_a_real_engine_its_slots_back(engine: EmbeddedEngine, begun: Begun) -> None:
    def busy() -> int:
        answer = engine.metrics_client().get(f"{engine.status().address}/slots", headers=engine.headers())
        return sum(slot["is_processing"] for slot in json.loads(answer.text))

    made = begun(full_length(engine), closed_loop(SLOTS, 20), PROMPTS, 1500)
    while next(made).done < 4:
        pass
    wait_until("every slot works", lambda: busy() == SLOTS)
    made.close()
    wait_until("every slot rests", lambda: busy() == 0)
    wait_until("no thread is left", lambda: not clients())


def test_a_prompt_that_is_too_long_fails_alone(engine: EmbeddedEngine) -> None:
    answers: list[Answer] = finished(run_load(full_length(engine), closed_loop(2, 4), ["Hello", "word " * 9000], 8))
    assert [one.answered for one in answers] == [True, False, True, False]
    assert all(one.error is not None and one.error.id == "prompt-too-long" for one in answers[1::2])


@pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")
def test_an_engine_killed_under_load_leaves_rows_that_say_so(engine: EmbeddedEngine, begun: Begun) -> None:
    killed, restarts = False, engine.status().restarts
    made = begun(full_length(engine), closed_loop(4, 12), PROMPTS, 1500)
    answers: list[Answer] = []
    for _ in itertools.count():
        try:
            if next(made).done >= 8 and not killed:
                pid = engine.status().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                killed = True
        except StopIteration as end:
            answers = end.value
            break
    assert killed and answers and all(isinstance(one.error, BancadaError) for one in answers)
    assert any(isinstance(one.error, EngineDied) and one.text for one in answers)
    wait_until("it is noticed", lambda: engine.status().restarts == restarts + 1)
    wait_until("the engine is back", lambda: engine.status().state == "ready")
    assert measure(answers_to(full_length(engine), closed_loop(2), 4), 4).failures == 0
