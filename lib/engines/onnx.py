"""ONNX Runtime GenAI in a child process, behind OpenAI's chat."""

from __future__ import annotations

from pathlib import Path

from lib.engines.base import EngineInfo
from lib.engines.genai import GenaiEngine


class OnnxEngine(GenaiEngine):
    """ONNX Runtime GenAI; ``slots`` answers at the same time, each with a cache of its own."""

    MODULE = "lib.engines.onnx_server"

    def __init__(self, home: Path, logs: Path, slots: int = 1) -> None:
        super().__init__("onnx", home, logs, slots)

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities."""
        return EngineInfo("onnx", "ONNX Runtime GenAI", json_schema=True, slots=self._slots)
