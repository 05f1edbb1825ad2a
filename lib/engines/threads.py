"""placeholder"""
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Threads:
    """How llama.cpp shares the cores."""

    n_threads: int
    n_threads_batch: int
    poll: int
    environment: Mapping[str, str] = MappingProxyType({})


def choose_threads(physical_cores: int) -> Threads:
    """Threads for a machine with this many cores."""
    return Threads(max(1, physical_cores), max(1, physical_cores), 50)
