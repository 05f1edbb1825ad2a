"""A step that has run, before it is anybody's run card."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from lib.store import RunCard


@dataclass(frozen=True)
class Performed:
    """What ran, on what, and what came out, as plain JSON values; ``result`` is the Result's own JSON."""

    lab: str
    step: str
    parameters: Mapping[str, Any]
    result: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    model_sha256: str | None
    duration_s: float
    finished_at: datetime

    def card(self, learner: str, prediction: float | None) -> RunCard:
        """A new run card of a learner, with the learner's own prediction."""
        return RunCard(id=uuid.uuid4().hex, learner=learner, prediction=prediction, **vars(self))

    def to_json(self) -> str:
        """All of it in one line."""
        return json.dumps(asdict(self) | {"finished_at": self.finished_at.isoformat()})

    @staticmethod
    def from_json(text: str) -> Performed:
        """What ``to_json`` wrote."""
        raw = json.loads(text)
        return Performed(**raw | {"finished_at": datetime.fromisoformat(raw["finished_at"])})
