"""The race: several engines, one model, one set of prompts, round by round in turn.

Every turn is a fresh start, so that load time is measured as often as everything else, and so that two
engines never share the memory or the cores. A machine that slows down in the middle slows all of them down.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from lib.bench.contenders import Contender
from lib.bench.energy import EnergyMeter
from lib.bench.load import Answer, Target, closed_loop, died, raise_death, run_load
from lib.bench.metrics import MLPERF, Bounds, Count, Metrics, measure
from lib.bench.noise import Spread
from lib.course.result import Progress, outcome, part_of
from lib.engines.base import Engine
from lib.engines.peak import tree_memory
from lib.errors import BancadaError

WARM_TOKENS = 8
# Looking costs the server a moment each time.
MEMORY_EVERY_S = 1.0
WARM_PROMPT = "Say hello."


@dataclass(frozen=True)
class Plan:
    """What everybody has to do: at each number of parallel clients, each of them asks ``each`` times.

    Answers are greedy and ``max_tokens`` long. There are at least ``fewest`` requests: a 95th percentile of two
    is none.
    """

    prompts: Sequence[str]
    parallel: Sequence[int] = (1, 4, 16)
    rounds: int = 3
    max_tokens: int = 48
    each: int = 2
    fewest: int = 6
    bounds: Bounds = MLPERF


@dataclass
class Turn:
    """One contender's turn in one round. ``at`` has the metrics by number of parallel clients.

    ``memory_bytes`` is the most that the server's processes held while they answered, None where they are not
    ours; ``joules`` is the whole machine's energy at each number of clients, None where it does not tell.
    """

    load_s: float
    at: dict[int, Metrics] = field(default_factory=dict)
    memory_bytes: int | None = None
    joules: dict[int, float | None] = field(default_factory=dict)


@dataclass
class Entry:
    """A contender's race: its turns, and what put it out, if something did.

    ``lost`` are the requests that had no answer when that happened; what others got at that number of clients
    is no figure, for the clock stopped in the middle.
    """

    contender: Contender
    turns: list[Turn] = field(default_factory=list)
    error: BancadaError | None = None
    lost: int = 0

    def spread(self, parallel: int, metric: str) -> Spread | None:
        """The rounds of a metric, by its name in ``Metrics``; None where no round has it."""
        return _spread(getattr(turn.at[parallel], metric) for turn in self.turns if parallel in turn.at)

    def load(self) -> Spread | None:
        """The rounds of the load time in seconds."""
        return _spread(one.load_s for one in self.turns)

    def memory(self) -> Spread | None:
        """The rounds of the memory that its processes held, in bytes."""
        return _spread(float(one.memory_bytes) for one in self.turns if one.memory_bytes)

    def joules_per_token(self, parallel: int) -> float | None:
        """Energy over the tokens that were written with so many clients."""
        known = [(turn.joules.get(parallel), turn.at[parallel].tokens) for turn in self.turns if parallel in turn.at]
        told = [(joules, tokens) for joules, tokens in known if joules is not None and tokens]
        return sum(joules for joules, _ in told) / sum(tokens for _, tokens in told) if told else None

    def failures(self) -> int:
        """Requests without an answer."""
        return self.lost + sum(one.failures for turn in self.turns for one in turn.at.values())


def race(
    contenders: Sequence[Contender], plan: Plan, count: Count | None = None
) -> Generator[Progress | list[Entry], None, None]:
    """Run it; after every number of clients come the entries as they are, last of all the final ones.

    A contender that dies keeps what it had and is out; the others go on. Closing it stops what runs.
    """
    entries = [Entry(one) for one in contenders]
    turns = plan.rounds * len(entries)
    for number in range(turns):
        entry = entries[number % len(entries)]
        if entry.error is not None:
            continue
        with closing(_turn(entry, plan, count)) as events:
            for event in events:
                if event is None:
                    yield entries
                else:
                    yield Progress((number + event.share) / turns, 1, event.what, event.detail)
    yield entries


def _turn(entry: Entry, plan: Plan, count: Count | None) -> Generator[Progress | None, None, None]:
    """A fresh start, a warm-up and every number of clients; None when something new is measured."""
    engine = entry.contender.make()
    try:
        yield from _taken(entry, engine, plan, count)
    except BancadaError as error:
        entry.error = error
        yield None
    finally:
        engine.release(entry.contender.model)


def _taken(entry: Entry, engine: Engine, plan: Plan, count: Count | None) -> Generator[Progress | None, None, None]:
    contender, parts = entry.contender, len(plan.parallel) + 1
    engine.release(contender.model)
    started = time.perf_counter()
    for moved in engine.ensure(contender.model):
        yield Progress(0, 1, moved.what, contender.id)
    turn = Turn(time.perf_counter() - started)
    target = Target(engine, contender.model, contender.options, name=contender.id)
    yield Progress(0, 1, "warm_up", contender.id)
    warming = run_load(target, closed_loop(1), [WARM_PROMPT], WARM_TOKENS, stop_at_error=True)
    raise_death((yield from part_of(outcome(warming), 0, parts)))
    pid = engine.status().pid
    for done, clients in enumerate(plan.parallel, 1):
        load = closed_loop(clients, max(plan.fewest, clients * plan.each))
        meter, memory = EnergyMeter(), _Memory(pid)
        work = memory.watch(run_load(target, load, plan.prompts, plan.max_tokens))
        answers = yield from part_of(outcome(work), done, parts)
        entry.lost += sum(not one.answered for one in answers) if died(answers) else 0
        raise_death(answers)
        if not turn.at:
            entry.turns.append(turn)
        turn.at[clients] = measure(answers, plan.max_tokens, count, plan.bounds)
        turn.joules[clients] = meter.joules()
        turn.memory_bytes = max(turn.memory_bytes or 0, memory.most_bytes) or None
        yield None


class _Memory:
    """The most that a tree of processes holds while something goes on."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._looked = 0.0
        self.most_bytes = 0

    def watch(self, work: Generator[Progress, None, list[Answer]]) -> Generator[Progress, None, list[Answer]]:
        """Pass on what ``work`` tells, and look every now and then."""
        with closing(work):
            while True:
                try:
                    moved = next(work)
                except StopIteration as stop:
                    self._look()
                    answers: list[Answer] = stop.value
                    return answers
                if time.monotonic() - self._looked >= MEMORY_EVERY_S:
                    self._look()
                yield moved

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._pid is not None:
            self.most_bytes = max(self.most_bytes, tree_memory(self._pid).size_bytes)


def _spread(values: Iterable[float]) -> Spread | None:
    known = [one for one in values if one == one]
    return Spread.of(known) if known else None
