"""Whether two things differ, or the machine only had a better moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of what was measured; NaN values do not count. Raises ValueError for none at all."""
        known = [one for one in values if one == one]
        if not known:
            raise ValueError("nothing was measured")
        return Spread(median(known), min(known), max(known), len(known))

    def differs(self, other: Spread) -> bool:
        """Whether no round of the one reaches into the rounds of the other. One round tells nothing."""
        apart = self.low > other.high or other.low > self.high
        return apart and min(self.rounds, other.rounds) > 1


def chance_of_apart(rounds: int) -> float:
    """How often two things that are the same come apart by chance, in ``rounds`` rounds each: 2 / C(2n, n)."""
    return 2 / comb(2 * rounds, rounds)
