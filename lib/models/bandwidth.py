"""How fast this machine reads memory: the ceiling of decoding.

To decode one token, every weight is read once. So tokens a second can never
exceed read bandwidth divided by bytes a token (the roofline, Williams et al.,
2009, https://doi.org/10.1145/1498765.1498785).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lib.course.result import Progress
from lib.models.hardware import usable_cores

# From inside the caches to well beyond them, in bytes.
SIZES = tuple(mib * 2**20 for mib in (1, 4, 16, 64, 256, 512))
ROUNDS = 3
ROUND_S = 0.08


@dataclass(frozen=True)
class Bandwidth:
    """Read bandwidth over a working set: the median of the rounds with its spread, in bytes a second."""

    size_bytes: int
    median_bytes_per_s: float
    low_bytes_per_s: float
    high_bytes_per_s: float


def measure_bandwidth(sizes: tuple[int, ...] = SIZES) -> Iterator[Progress | list[Bandwidth]]:
    """Read arrays of each size with one thread a core; about half a second each.

    The kernel is an exclusive-or over 64-bit integers, which numpy computes
    with SIMD and outside the interpreter lock, so memory is what it waits for.
    """
    cores = usable_cores()
    points: list[Bandwidth] = []
    for size in sizes:
        parts = [np.ones(size // cores // 8, dtype=np.int64) for _ in range(cores)]
        _read(parts, 1)
        once = min(_read(parts, 1) for _ in range(2))
        repeats = max(1, int(ROUND_S / once))
        moved = sum(part.nbytes for part in parts) * repeats
        speeds = [moved / _read(parts, repeats) for _ in range(ROUNDS)]
        points.append(Bandwidth(size, median(speeds), min(speeds), max(speeds)))
        yield Progress(len(points), len(sizes), "read_memory", f"{points[-1].median_bytes_per_s / 1e9:.0f} GB/s")
    yield points


def bandwidth_at(points: list[Bandwidth], size_bytes: float) -> float:
    """The bandwidth for a working set, from the nearest measured size at or above it."""
    return bandwidth_point(points, size_bytes).median_bytes_per_s


def bandwidth_point(points: list[Bandwidth], size_bytes: float) -> Bandwidth:
    """The nearest measured size at or above a working set, else the largest one."""
    return next((one for one in points if one.size_bytes >= size_bytes), points[-1])


def _read(parts: list[NDArray[np.int64]], repeats: int) -> float:
    """Seconds that all threads together need to read their part ``repeats`` times."""

    def work(part: NDArray[np.int64]) -> None:
        for _ in range(repeats):
            np.bitwise_xor.reduce(part)

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started
