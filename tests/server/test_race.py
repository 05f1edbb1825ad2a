"""The race with real engines: in turn, to the end, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from lib.bench.contenders import CONTEXT_TOKENS, FULL_LENGTH, Contender, prepare
from lib.bench.metrics import Count
from lib.bench.race import Entry, Plan, race
from lib.bench.tokens import ensure_counter
from lib.course.result import Progress
from lib.engines.base import Engine
from lib.engines.endpoint import EndpointEngine
from lib.engines.peak import tree_memory
from lib.errors import EngineAway, EngineDidNotStart, EngineDied, EngineError, UnknownModel
from lib.workbench import Workbench
from tests.conftest import DEFAULT
from tests.server.helpers import is_alive, wait_until
from tests.server.talker import MODEL, Talk, Talker
from tests.server.test_engine_contract import built_home  # noqa: F401  a fixture
from tests.server.test_quantize import finished

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")

T = TypeVar("T")
PROMPTS = ("Tell me about the sea.", "Why is the sky blue?", "Describe a forest in winter.")
PLAN = Plan(PROMPTS, parallel=(1, 3), rounds=2, max_tokens=12, each=1, fewest=1)


@pytest.fixture(scope="module")
def bench(built_home: Path) -> Iterator[Workbench]:  # noqa: F811
    made = Workbench.open(home=built_home, language="en", _env_file=None)
    yield made
    made.close()
    made.store.close()


@pytest.fixture(scope="module")
def ready(bench: Workbench) -> dict[str, Contender]:
    """Who can be made ready here without a server of somebody else's."""
    return {id: finished(prepare(bench, id, DEFAULT, 2)) for id in ("embedded", "embedded-f16", "onnx", "foundry")}


@pytest.fixture(scope="module")
def count(bench: Workbench) -> Count:
    made: Count = finished(ensure_counter(bench, DEFAULT))
    return made


class Followed:
    """A race that is followed: every turn of an engine, the process of each, and the newest entries."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.pids: dict[str, list[int]] = {}
        self.entries: list[Entry] = []

    def contender(self, of: Contender, spoil: Callable[[Engine], Engine] = lambda engine: engine) -> Contender:
        """The same contender, whose turns are written down; ``spoil`` does something to its engine."""

        def make() -> Engine:
            self.turns.append(of.id)
            return spoil(of.make())

        return replace(of, make=make)

    def run(
        self,
        contenders: list[Contender],
        plan: Plan,
        count: Count | None = None,
        stop: Callable[[Progress], bool] = lambda _: False,
    ) -> list[Entry]:
        """All of it, or until ``stop`` says so of a piece of news; then it is closed."""
        shares = [0.0]
        with closing(race(contenders, plan, count)) as events:
            for event in events:
                if not isinstance(event, Progress):
                    self.entries = event
                    continue
                shares.append(event.share)
                self._note()
                if stop(event):
                    break
        assert shares == sorted(shares) and shares[-1] <= 1
        return self.entries

    def _note(self) -> None:
        mine = self.pids.setdefault(self.turns[-1], [])
        for one in children():
            if one not in mine:
                mine.append(one)


def children() -> list[int]:
    """The engines' processes below this one."""
    found = []
    for one in psutil.Process().children():
        try:
            if any("lib.engines." in part for part in one.cmdline()) and is_alive(one.pid):
                found.append(one.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def followed() -> Iterator[Followed]:
    before = set(children())
    made = Followed()
    yield made
    left = [one for one in children() if one not in before]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "an engine outlived its race"


def test_each_engine_takes_its_turn_and_all_of_them_finish(
    ready: dict[str, Contender], count: Count, followed: Followed
) -> None:
    entries = followed.run([followed.contender(one) for one in ready.values()], PLAN, count)
    # Round by round in turn, never one engine's rounds together.
    assert followed.turns == [*ready, *ready]
    assert [one.contender.id for one in entries] == list(ready)
    for entry in entries:
        assert entry.error is None and len(entry.turns) == 2 and entry.failures() == 0
        # Every turn is a fresh start.
        assert len(followed.pids[entry.contender.id]) == 2
        for turn in entry.turns:
            assert list(turn.at) == [1, 3] and [one.requests for one in turn.at.values()] == [1, 3]
            assert turn.load_s > 0 and turn.memory_bytes and turn.memory_bytes > 50 << 20
            assert turn.joules.keys() == turn.at.keys()
        for parallel in PLAN.parallel:
            speed, waited = entry.spread(parallel, "tokens_per_s"), entry.spread(parallel, "ttft_p50_s")
            assert speed and waited and speed.rounds == waited.rounds == 2 and speed.low > 0 and waited.low > 0
        loaded, memory = entry.load(), entry.memory()
        assert loaded and loaded.rounds == 2
        assert memory and memory.rounds == 2 and memory.high == max(one.memory_bytes or 0 for one in entry.turns)
        assert entry.spread(16, "tokens_per_s") is None


def test_who_can_be_told_to_go_on_answers_as_long_as_all_the_others(
    ready: dict[str, Contender], count: Count, followed: Followed
) -> None:
    told = [one for one in ready.values() if one.options == FULL_LENGTH]
    assert [one.id for one in told] == ["embedded", "embedded-f16", "onnx"]
    plan = replace(PLAN, parallel=(3,), rounds=1, max_tokens=24)
    lengths = {}
    for entry in followed.run([followed.contender(one) for one in told], plan, count):
        (turn,) = entry.turns
        assert (turn.at[3].engine_tokens, turn.at[3].short) == (3 * 24, 0)
        lengths[entry.contender.id] = turn.at[3].tokens
    # By the one tokenizer too. Text can be cut into tokens in more than one way, but hardly otherwise than it was made.
    assert all(abs(one - 3 * 24) <= 3 for one in lengths.values()), lengths


def test_what_the_forms_of_a_model_read_for_a_token_is_told_apart(ready: dict[str, Contender]) -> None:
    read = {id: one.token_bytes for id, one in ready.items()}
    assert read["embedded"] and read["embedded-f16"] and read["onnx"] and read["onnx"] == read["foundry"]
    assert read["embedded"] < read["embedded-f16"]
    assert (ready["embedded"].slots, ready["onnx"].slots, ready["foundry"].slots) == (2, 2, 4)
    assert {one.weights for one in (ready["onnx"], ready["foundry"])} == {"int4"}
    assert CONTEXT_TOKENS == 1024


def test_an_engine_killed_in_its_turn_keeps_what_it_had_and_the_others_finish(
    ready: dict[str, Contender], followed: Followed
) -> None:
    plan = replace(PLAN, max_tokens=48)
    killed: list[int] = []
    shares: list[float] = []

    def kill(news: Progress) -> bool:
        """The first engine in its second turn, when three clients are at it and words have come."""
        if len(followed.turns) == 3 and news.detail == "embedded × 3":
            shares.append(news.share)
        if not killed and shares and shares[-1] > shares[0]:
            killed.extend(children())
            os.kill(killed[0], signal.SIGKILL)
        return False

    dead, alive = followed.run([followed.contender(ready[id]) for id in ("embedded", "onnx")], plan, stop=kill)
    assert len(killed) == 1 and not is_alive(killed[0])
    assert isinstance(dead.error, EngineDied | EngineAway) and alive.error is None
    # Its first turn is whole; of the second there is what had come to its end, and nothing that was cut off.
    assert [list(one.at) for one in dead.turns] == [[1, 3], [1]]
    assert dead.turns[1].at[1].failures == 0 and dead.failures() == dead.lost > 0
    assert [list(one.at) for one in alive.turns] == [[1, 3], [1, 3]] and alive.failures() == 0
    # It did not come back behind the others' backs.
    assert followed.turns == ["embedded", "onnx", "embedded", "onnx"] and children() == []


def test_an_engine_that_died_early_is_not_asked_again(ready: dict[str, Contender], followed: Followed) -> None:
    def die_when_warm(engine: Engine) -> Engine:
        ensure = engine.ensure

        def and_die(model: str) -> Iterator[Progress]:
            yield from ensure(model)
            pid = engine.status().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until("it is gone", lambda: not is_alive(pid))

        engine.ensure = and_die  # type: ignore[method-assign]
        return engine

    first = followed.contender(ready["embedded"], die_when_warm)
    plan = replace(PLAN, parallel=(1,), rounds=3)
    dead, alive = followed.run([first, followed.contender(ready["onnx"])], plan)
    assert isinstance(dead.error, EngineError) and dead.turns == [] and dead.load() is None and dead.memory() is None
    assert dead.spread(1, "tokens_per_s") is None and dead.failures() == 0
    assert len(alive.turns) == 3 and alive.error is None
    assert followed.turns == ["embedded", "onnx", "onnx", "onnx"]


def test_who_cannot_start_is_out_and_says_why(ready: dict[str, Contender], followed: Followed) -> None:
    def die_while_it_loads(engine: Engine) -> Engine:
        ensure = engine.ensure

        def and_die(model: str) -> Iterator[Progress]:
            for news in ensure(model):
                pid = engine.status().pid
                if news.what == "load" and pid is not None:
                    with suppress(ProcessLookupError):  # it is told of the load more than once
                        os.kill(pid, signal.SIGKILL)
                yield news

        engine.ensure = and_die  # type: ignore[method-assign]
        return engine

    missing = replace(ready["embedded"], id="missing", model="nobody-has-it")
    dying = followed.contender(replace(ready["embedded"], id="dying"), die_while_it_loads)
    contenders = [followed.contender(missing), dying, followed.contender(ready["embedded"])]
    entries = followed.run(contenders, replace(PLAN, parallel=(1,)))
    assert isinstance(entries[0].error, UnknownModel)
    assert isinstance(entries[1].error, EngineDidNotStart) and "SIGKILL" in str(entries[1].error)
    assert [len(one.turns) for one in entries] == [0, 0, 2] and entries[2].error is None
    assert followed.turns == ["missing", "dying", "embedded", "embedded"]


def test_who_cannot_be_prepared_says_so_before_anything_starts(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        finished(prepare(bench, "ollama", "nobody-knows-it", 2))
    settings = bench.settings.model_copy(update={"endpoint": "http://127.0.0.1:9/v1"})
    nowhere = Workbench.open(home=tmp_path / "home", language="en", endpoint=settings.endpoint, _env_file=None)
    try:
        with pytest.raises(EngineAway):
            finished(prepare(nowhere, "endpoint", DEFAULT, 2))
    finally:
        nowhere.close()
        nowhere.store.close()
    assert children() == []


@pytest.mark.parametrize("when", ["under its first load", "while it starts again"])
def test_a_race_that_is_stopped_leaves_no_process_and_keeps_its_turns(
    ready: dict[str, Contender], followed: Followed, when: str
) -> None:
    first = when == "under its first load"
    plan = replace(PLAN, parallel=(2,), rounds=3, max_tokens=1000 if first else 8)

    def stop(news: Progress) -> bool:
        if first:
            return news.detail == "embedded × 2" and news.share > 0
        return len(followed.turns) == 2 and news.what == "load"

    entries = followed.run([followed.contender(ready["embedded"])], plan, stop=stop)
    pids = followed.pids["embedded"]
    assert len(pids) == (1 if first else 2) and not any(is_alive(pid) for pid in pids) and children() == []
    # What had been measured was told as soon as it was there.
    if first:
        assert entries == []
    else:
        (turn,) = entries[0].turns
        assert turn.at[2].failures == 0 and entries[0].error is None


def somebody_elses(server: Talker) -> Contender:
    """A server with known answers as a contender; it has no process of ours."""
    return Contender("endpoint", MODEL, MODEL, lambda: EndpointEngine(server.address))


def test_a_server_of_somebody_else_has_times_and_no_memory() -> None:
    with ExitStack() as stack:
        server = Talker(Talk(12))
        stack.callback(server.close)
        *_, entries = race([somebody_elses(server)], PLAN)
        assert isinstance(entries, list)
        assert entries[0].error is None and entries[0].memory() is None and len(entries[0].turns) == 2
        # A warm-up before each turn's load.
        assert len(server.asked) == 2 * (1 + 1 + 3)


def test_turns_go_round_so_that_a_slow_moment_is_everybodys(followed: Followed) -> None:
    with ExitStack() as stack:
        servers = [Talker(Talk(2)) for _ in range(3)]
        for one in servers:
            stack.callback(one.close)
        contenders = [replace(somebody_elses(one), id=id) for one, id in zip(servers, "abc", strict=True)]
        entries = followed.run([followed.contender(one) for one in contenders], replace(PLAN, parallel=(1,)))
    assert followed.turns == [*"abc", *"abc"]
    assert [len(one.turns) for one in entries] == [2, 2, 2]


def test_a_single_refusal_is_a_failure_and_no_death() -> None:
    with ExitStack() as stack:
        server = Talker(lambda number: Talk(status=500) if number == 2 else Talk(12))
        stack.callback(server.close)
        *_, entries = race([somebody_elses(server)], replace(PLAN, rounds=1))
        assert isinstance(entries, list)
        assert entries[0].error is None and entries[0].failures() == 1
        assert entries[0].turns[0].at[3].requests == 3


def test_a_server_that_goes_away_between_two_requests_is_out_like_one_that_died() -> None:
    def leave(number: int) -> Talk:
        """After the warm-up and the load of one client."""
        if number == 1:
            server.close()
        return Talk(12)

    server = Talker(leave)
    *_, entries = race([somebody_elses(server)], replace(PLAN, rounds=1))
    assert isinstance(entries, list)
    assert isinstance(entries[0].error, EngineAway)
    (turn,) = entries[0].turns
    assert list(turn.at) == [1] and turn.at[1].failures == 0 and entries[0].lost == entries[0].failures() == 3


def test_memory_is_that_of_the_whole_tree_each_page_counted_once(
    ready: dict[str, Contender], followed: Followed
) -> None:
    engine = ready["embedded"].make()
    try:
        list(engine.ensure(DEFAULT))
        pid = engine.status().pid
        assert pid is not None
        alone = tree_memory(pid)
        tree = tree_memory(os.getpid()).size_bytes
        assert alone.counter == ("PSS" if os.uname().sysname == "Linux" else "USS")
        # This process's tree holds the engine and this process.
        assert tree > alone.size_bytes > 50 << 20
        assert alone.size_bytes <= psutil.Process(pid).memory_info().rss
    finally:
        engine.release()
    assert tree_memory(pid).size_bytes == 0
