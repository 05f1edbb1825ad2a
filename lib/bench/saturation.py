"""How many requests a second an engine bears: its capacity in a closed loop, then arrivals up to it and beyond."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from lib.bench.load import Target, closed_loop, open_loop, raise_death, run_load
from lib.bench.metrics import Bounds, Count, Metrics, measure
from lib.course.result import Progress, outcome, part_of

# Of the capacity; beyond 1 the queue can only grow.
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class Arrivals:
    """What came of requests that arrive at ``offered_per_s``."""

    offered_per_s: float
    share: float
    metrics: Metrics

    @property
    def all_answered(self) -> bool:
        """Whether enough was answered that a percentile of the answers speaks for all: 95 of 100."""
        return (
            20 * self.metrics.failures <= self.metrics.requests and self.metrics.ttft_p95_s == self.metrics.ttft_p95_s
        )

    def kept(self, ttft_s: float) -> bool:
        """Whether 95 % of the first tokens came within a bound; a request without an answer did not."""
        return self.all_answered and self.metrics.ttft_p95_s <= ttft_s


@dataclass(frozen=True)
class Saturation:
    """The capacity in requests a second, and the rates that were tried so far."""

    capacity_per_s: float
    rates: tuple[Arrivals, ...] = ()

    def bearable_per_s(self, ttft_s: float) -> float:
        """The highest rate at which 95 % of the first tokens come within ``ttft_s``; 0 where none does.

        Between the last measured rate that keeps the bound and the next, which does not, it is interpolated.
        """
        held = 0.0
        for at, one in enumerate(self.rates):
            if not one.kept(ttft_s):
                before = self.rates[at - 1] if at else None
                if before is not None and one.all_answered:
                    low, high = before.metrics.ttft_p95_s, one.metrics.ttft_p95_s
                    held += (ttft_s - low) / (high - low) * (one.offered_per_s - before.offered_per_s)
                break
            held = one.offered_per_s
        return held


def saturate(
    target: Target,
    clients: int,
    prompts: Sequence[str],
    max_tokens: int,
    requests: int,
    bounds: Bounds,
    count: Count | None = None,
    seed: int = 0,
) -> Generator[Progress | Saturation, None, None]:
    """Measure the capacity with ``clients`` in a closed loop, then ``requests`` Poisson arrivals at each share of it.

    There are at least eight for each client: fewer never fill the slots, and no queue can show. After every
    rate comes what is known so far. Raises the error of an engine that died.
    """
    parts, requests = 1 + len(SHARES), max(requests, 8 * clients)
    closed = closed_loop(clients, 2 * clients)
    answers = yield from part_of(outcome(run_load(target, closed, prompts, max_tokens)), 0, parts)
    raise_death(answers)
    found = Saturation(measure(answers, max_tokens, count, bounds).requests_per_s)
    for done, share in enumerate(SHARES, 1):
        rate = share * found.capacity_per_s
        work = run_load(target, open_loop(rate, requests, seed), prompts, max_tokens)
        answers = yield from part_of(outcome(work), done, parts)
        raise_death(answers)
        met = Arrivals(rate, share, measure(answers, max_tokens, count, bounds))
        found = Saturation(found.capacity_per_s, (*found.rates, met))
        yield found
