"""vLLM while it works: its own metrics, read several times a second beside the load."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx2

from lib.engines.address import http_client

LOOK_S = 0.1
# What is read of a hundred metrics in Prometheus' text form.
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
CACHE, TOKENS = "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"
PREFIX_ASKED, PREFIX_HIT = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
_LINE = re.compile(r"^(?P<name>[\w:]+)(?:\{[^}]*\})? (?P<value>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """vLLM's metrics at ``at_s`` seconds after the watch began, by name, summed over their labels."""

    at_s: float
    values: Mapping[str, float]


@dataclass
class Watch:
    """What was seen so far."""

    looks: list[Look] = field(default_factory=list)

    def most(self, name: str) -> float:
        """The largest value of a metric."""
        return max((one.values.get(name, 0.0) for one in self.looks), default=0.0)


@contextmanager
def watched(address: str) -> Iterator[Watch]:
    """Read ``/metrics`` of the server at ``address`` until the block ends; a look that fails is left out."""
    watch, over = Watch(), threading.Event()

    def look() -> None:
        started = time.perf_counter()
        with http_client(address, 5.0) as client:
            while not over.wait(LOOK_S):
                with suppress(httpx2.HTTPError):
                    values = read_metrics(client.get(f"{address}/metrics").text)
                    watch.looks.append(Look(time.perf_counter() - started, values))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join(6.0)


def read_metrics(text: str) -> dict[str, float]:
    """The metrics of a text in Prometheus' form, summed over their labels; what is no number is left out."""
    found: dict[str, float] = {}
    for line in _LINE.finditer(text):
        with suppress(ValueError):
            found[line["name"]] = found.get(line["name"], 0.0) + float(line["value"])
    return found
