"""Foundry Local in a child process: its SDK and its web service, without a key, on loopback only."""

from __future__ import annotations

from pathlib import Path

from lib.engines.base import EngineInfo
from lib.engines.genai import GenaiEngine


class FoundryEngine(GenaiEngine):
    """Foundry Local with the learner's own ONNX models; it knows each as a version of its name."""

    MODULE = "lib.engines.foundry_server"
    SUFFIX = ":1"

    def __init__(self, home: Path, logs: Path) -> None:
        super().__init__("foundry", home, logs, 4)

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities. OpenAI's form of a JSON schema is taken and not enforced, so none is claimed."""
        return EngineInfo("foundry", "Foundry Local", slots=self._slots)
