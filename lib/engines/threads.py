"""How many threads llama.cpp gets, and how they wait for each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Threads:
    """Settings for one llama.cpp process; `environment` must be set before it starts."""

    n_threads: int
    n_threads_batch: int
    poll: int  # of llama.cpp's own thread pool; a build with OpenMP (the Linux wheel) ignores it
    environment: Mapping[str, str]


def choose_threads(physical_cores: int) -> Threads:
    """One thread a core, each kept on its core, for a machine with this many physical cores.

    Decoding meets at hundreds of barriers a token, so the slowest thread sets the pace. Measured on
    two cores (`tests/bench/busy_core.py`; share of the default's quiet speed, quiet / beside a
    process that keeps one core busy):

    - two threads, default              1.00 / 0.23: both threads at times share one core, and the
      one that waits spins away the time that the other needs
    - two threads, bound                1.07 / 0.45: at most one thread loses half a core
    - two threads, less or no spinning  0.3 to 0.9 / 0.20 to 0.38
    - one thread                        0.46 to 0.50 / 0.49

    A fallback to one thread while a neighbour is busy would gain some 0.05 over binding, for a restart
    and a lost prompt cache; it is not worth that. A neighbour at the lowest priority (nice 19) costs
    0.10 only: heavy work that is to run beside a chat should take it.
    """
    cores = max(1, physical_cores)
    return Threads(cores, cores, 50, _bound(cores))


def _bound(cores: int) -> dict[str, str]:
    """Bind threads to cores, where this process may use exactly those cores.

    On part of a larger machine every process would be bound to the same first cores.
    """
    if sys.platform != "linux" or cores == 1:
        return {}
    return {"OMP_PROC_BIND": "true"} if len(os.sched_getaffinity(0)) == cores else {}
