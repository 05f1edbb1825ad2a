"""What the answers to a load come to: the metrics by which inference servers are compared.

TTFT  time to first token: the wait before anything is read
TPOT  time per output token after the first, for each request: (end - first) / (tokens - 1)
ITL   inter-token latency: every single pause between two pieces of text
goodput  requests a second that kept both bounds, TTFT and TPOT (MLPerf's and DistServe's sense)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lib.bench.load import Answer

# Counts the tokens of a text; one for all engines, so that none is judged by its own count.
Count = Callable[[str], int]


@dataclass(frozen=True)
class Bounds:
    """What a user still calls quick: TTFT 2 s and TPOT 100 ms, as MLPerf Inference asks (p99) of an 8-billion model.

    https://github.com/mlcommons/inference/blob/master/loadgen/mlperf.conf
    """

    ttft_s: float = 2.0
    tpot_s: float = 0.1


MLPERF = Bounds()


@dataclass(frozen=True)
class Metrics:
    """Of one load. Percentiles are of the requests that were answered; NaN where there was none.

    ``short`` were answered with fewer tokens than asked for; ``failures`` not at all.
    """

    requests: int
    failures: int
    short: int
    seconds: float
    tokens: int
    engine_tokens: int
    tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    itl_p99_s: float
    e2e_p50_s: float
    e2e_p95_s: float
    fairness: float


def measure(answers: Sequence[Answer], max_tokens: int, count: Count | None = None, bounds: Bounds = MLPERF) -> Metrics:
    """The metrics of a load; without ``count`` the engine's own count of tokens stands."""
    good = [one for one in answers if one.answered]
    tokens = [count(one.text) if count else one.completion_tokens for one in good]
    seconds = max((one.end_s for one in good), default=0.0)
    ttft = [one.ttft_s for one in good]
    tpot = [tpot_s(one, many) for one, many in zip(good, tokens, strict=True)]
    within = sum(a <= bounds.ttft_s and not b > bounds.tpot_s for a, b in zip(ttft, tpot, strict=True))
    pauses = [after - before for one in good for before, after in itertools.pairwise(one.arrivals_s)]
    e2e = [one.e2e_s for one in good]
    return Metrics(
        requests=len(answers),
        failures=len(answers) - len(good),
        short=sum(one.completion_tokens < max_tokens for one in good),
        seconds=seconds,
        tokens=sum(tokens),
        engine_tokens=sum(one.completion_tokens for one in good),
        tokens_per_s=sum(tokens) / seconds if seconds else 0.0,
        requests_per_s=len(good) / seconds if seconds else 0.0,
        goodput_per_s=within / seconds if seconds else 0.0,
        ttft_p50_s=percentile(ttft, 50),
        ttft_p95_s=percentile(ttft, 95),
        tpot_p50_s=percentile(tpot, 50),
        tpot_p95_s=percentile(tpot, 95),
        itl_p50_s=percentile(pauses, 50),
        itl_p95_s=percentile(pauses, 95),
        itl_p99_s=percentile(pauses, 99),
        e2e_p50_s=percentile(e2e, 50),
        e2e_p95_s=percentile(e2e, 95),
        fairness=jain([many / one.e2e_s for one, many in zip(good, tokens, strict=True)]),
    )


def tpot_s(one: Answer, tokens: int) -> float:
    """Seconds a token after the first; NaN for an answer of one token."""
    return (one.end_s - one.arrivals_s[0]) / (tokens - 1) if tokens > 1 else float("nan")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` per cent lie, interpolated; NaN of nothing. NaN values do not count."""
    known = [one for one in values if one == one]
    return float(np.percentile(known, share)) if known else float("nan")


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index, (Σx)² / (n Σx²): 1 when all get the same, 1/n when one gets everything; NaN of nothing."""
    squares = sum(one * one for one in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else float("nan")
