"""From what a machine was measured to do, which models to try first, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lib.models.catalog import Model
from lib.models.fit import nominal, nominal_bytes_per_token

Reason = Literal["fits", "too_large", "too_slow", "task_not_named"]


@dataclass(frozen=True)
class Roofline:
    """Measured read bandwidth, and the share of it that decoding was measured to reach (0 to 1)."""

    bandwidth_bytes_per_s: float
    efficiency: float

    def forecast(self, bytes_a_token: float) -> float:
        """Tokens a second for a model that reads that many bytes a token."""
        return self.efficiency * self.bandwidth_bytes_per_s / bytes_a_token


@dataclass(frozen=True)
class Candidate:
    """A model with what is expected of it here."""

    model: Model
    estimate_bytes: int
    forecast_tokens_per_s: float
    reason: Reason


def shortlist(
    models: Sequence[Model],
    roofline: Roofline,
    task: str,
    quantization: str,
    context_tokens: int,
    budget_bytes: float,
    wanted_tokens_per_s: float,
) -> list[Candidate]:
    """Every model with its reason: those that fit come first, the largest first.

    Among models that fit and are fast enough more parameters is the better
    first guess at quality; the learner's own test decides.
    """
    found = []
    for model in models:
        expected = nominal(model, quantization, context_tokens)
        speed = roofline.forecast(nominal_bytes_per_token(model, quantization))
        reason: Reason = "fits"
        if expected.total_bytes > budget_bytes:
            reason = "too_large"
        elif speed < wanted_tokens_per_s:
            reason = "too_slow"
        elif task not in ("any", *model.tasks):
            reason = "task_not_named"
        found.append(Candidate(model, expected.total_bytes, speed, reason))
    order = {"fits": 0, "task_not_named": 1, "too_slow": 2, "too_large": 3}
    return sorted(found, key=lambda one: (order[one.reason], -one.model.parameters))


def as_table(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """One row a candidate, best first."""
    rows = [
        (
            one.model.id,
            one.model.parameters,
            one.estimate_bytes,
            one.forecast_tokens_per_s,
            one.reason,
            one.model.license,
        )
        for one in candidates
    ]
    columns = ["model", "parameters", "estimate_bytes", "forecast_tokens_per_s", "reason", "license"]
    return pd.DataFrame(rows, columns=columns)
