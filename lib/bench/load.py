"""Load on an engine: who asks when, and what each request met.

Closed loop: so many clients, each asks again when it has its answer; so a slow engine is asked less.
Open loop: requests arrive when they arrive (Poisson, seeded), as people do; so a slow engine is asked
no less, and a queue shows. There, time counts from the moment at which a request was due, not from the
one at which a busy client got round to sending it (coordinated omission).
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

from lib.course.result import Progress
from lib.engines.base import Engine
from lib.engines.chat import Message, Reply, stream_chat
from lib.errors import BancadaError, EngineAway, EngineDied, EngineRefused, Unforeseen

LOOK_S = 0.1
# Less than a cancelled job has to clean up; who waits for a first token ends when the engine does.
STOP_S = 1.0
# Threads that wait for the start need a moment until all of them wait.
HEAD_START_S = 0.02


@dataclass(frozen=True)
class Target:
    """An engine with a model that is ready; ``options`` go with every request, ``system`` comes before its prompt.

    ``name`` is what progress calls it.
    """

    engine: Engine
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    name: str = ""

    def messages(self, prompt: str) -> list[Message]:
        """The chat that asks ``prompt``."""
        before: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, {"role": "user", "content": prompt}]


@dataclass
class Answer:
    """What one request met; all times in seconds from the start of the load.

    ``arrivals_s`` are the moments at which pieces of text came, ``error`` is what ended it, if something did.
    """

    number: int
    prompt: str
    due_s: float
    sent_s: float = 0.0
    end_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    error: BancadaError | None = None

    @property
    def answered(self) -> bool:
        """Whether it came to its end, with text."""
        return self.error is None and bool(self.arrivals_s) and self.end_s > 0

    @property
    def ttft_s(self) -> float:
        """Time to first token, from the moment it was due."""
        return self.arrivals_s[0] - self.due_s

    @property
    def e2e_s(self) -> float:
        """End-to-end latency, from the moment it was due."""
        return self.end_s - self.due_s


@dataclass(frozen=True)
class Load:
    """When requests are sent: ``due_s`` for each of an open loop; none for a closed one of ``clients``."""

    requests: int
    clients: int
    due_s: tuple[float, ...] = ()


def closed_loop(clients: int, requests: int | None = None) -> Load:
    """``clients`` that begin together, and ask until ``requests`` are sent in all (one each, if not told)."""
    return Load(requests or clients, clients)


def open_loop(requests_per_s: float, requests: int, seed: int = 0) -> Load:
    """Poisson arrivals: the time between two of them is exponentially distributed. The same seed, the same times."""
    chance = random.Random(seed)
    gaps = [chance.expovariate(1.0) for _ in range(requests)]
    # So few gaps would miss the rate by a fifth: their sum is made what it should be, their proportions stay.
    scale = requests / requests_per_s / sum(gaps)
    return Load(requests, requests, tuple(itertools.accumulate(scale * one for one in gaps)))


def run_load(
    target: Target, load: Load, prompts: Sequence[str], max_tokens: int, stop_at_error: bool = False
) -> Generator[Progress, None, list[Answer]]:
    """Put a load on an engine, greedily, prompts in turn; one Answer for each request that was sent.

    Closing it stops every client. With ``stop_at_error`` nothing is sent after the first error.
    """
    made = _Run(target, load, prompts, max_tokens, stop_at_error)
    named = f"{target.name} × " if target.name else ""
    threads = [threading.Thread(target=made.work, args=(one,), daemon=True) for one in range(load.clients)]
    for thread in threads:
        thread.start()
    made.begin()
    try:
        while alive := [thread for thread in threads if thread.is_alive()]:
            yield Progress(made.written(), load.requests * max_tokens, "at_once", f"{named}{load.clients}")
            alive[0].join(LOOK_S)
    finally:
        made.over.set()
        deadline = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    return [one for one in made.answers if one.sent_s > 0 or one.error]


class _Run:
    """One load while it runs."""

    def __init__(
        self, target: Target, load: Load, prompts: Sequence[str], max_tokens: int, stop_at_error: bool
    ) -> None:
        self._target = target
        self._load = load
        self._options = {"temperature": 0, "max_tokens": max_tokens, **target.options}
        self._stop_at_error = stop_at_error
        due = load.due_s or (0.0,) * load.requests
        self.answers = [Answer(n, prompts[n % len(prompts)], due[n]) for n in range(load.requests)]
        self.over = threading.Event()
        self._started = 0.0
        self._next = itertools.count()
        self._together = threading.Barrier(load.clients + 1)
        # Made before the clock starts: a client costs milliseconds.
        self._clients = [target.engine.client(target.model) for _ in range(load.clients)]

    def begin(self) -> None:
        """Start the clock for everybody."""
        self._started = time.perf_counter() + HEAD_START_S
        self._together.wait()

    def written(self) -> int:
        """Tokens that have come so far."""
        return sum(one.completion_tokens for one in self.answers)

    def work(self, client: int) -> None:
        """One client: request after request in a closed loop, its own one in an open one."""
        self._together.wait()
        if self._load.due_s:
            self._ask(self.answers[client], self._clients[client])
            return
        while not self.over.is_set() and (number := next(self._next)) < self._load.requests:
            # In a closed loop a request is due when the client before it is free.
            one = self.answers[number]
            one.due_s = max(0.0, self._now()) if number >= self._load.clients else 0.0
            self._ask(one, self._clients[client])

    def _ask(self, one: Answer, client: OpenAI) -> None:
        if self.over.wait(max(0.0, one.due_s - self._now())):
            return
        one.sent_s = max(self._now(), 1e-9)
        try:
            talk = stream_chat(client, self._target.model, self._target.messages(one.prompt), **self._options)
            with closing(talk) as replies:  # type: ignore[type-var]
                self._take(one, replies)
        except BancadaError as error:
            one.error = error
        except Exception as error:  # told by whoever reads the answers
            one.error = Unforeseen(why=f"{type(error).__name__}: {error}")
        if one.error and self._stop_at_error:
            self.over.set()

    def _take(self, one: Answer, replies: Any) -> None:
        reply: Reply
        for reply in replies:
            if len(reply.text) > len(one.text):
                one.arrivals_s.append(self._now())
            one.text, one.prompt_tokens = reply.text, reply.prompt_tokens
            one.completion_tokens = reply.completion_tokens
            if self.over.is_set():
                return
        one.end_s = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._started


def died(answers: Sequence[Answer]) -> BancadaError | None:
    """What ended the load for all: a server that died or is gone, or an error for everybody.

    A request that is refused while others are answered is a failure of one.
    """
    errors = [one.error for one in answers if one.error is not None]
    gone = next((one for one in errors if isinstance(one, EngineDied | EngineAway)), None)
    if gone is not None or any(one.answered for one in answers):
        return gone
    return errors[0] if errors else EngineRefused(why="it wrote no text")


def raise_death(answers: Sequence[Answer]) -> None:
    """Raise what ``died`` finds."""
    if error := died(answers):
        raise error
