"""The embedded engine: llama.cpp through ``xllamacpp``."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2
import psutil

from lib.course.result import Progress
from lib.engines.base import EngineInfo
from lib.engines.child import ChildEngine, Launch
from lib.engines.threads import choose_threads
from lib.errors import ModelNotHere
from lib.gguf.header import read_header
from lib.models.memory import estimate
from lib.models.store import ModelStore

CacheType = Literal["f16", "q8_0", "q4_0"]


@dataclass(frozen=True)
class EmbeddedOptions:
    """How the server is set up: context in tokens for each of its slots; ``cache_type`` of keys and values."""

    context_tokens: int = 2048
    slots: int = 1
    embeddings: bool = False
    cache_type: CacheType = "f16"
    flash_attention: bool | None = None
    """None leaves it to llama.cpp; a quantized cache needs it."""


class EmbeddedEngine(ChildEngine):
    """llama.cpp in a child process; one model at a time."""

    def __init__(self, models: ModelStore, logs: Path, options: EmbeddedOptions | None = None) -> None:
        super().__init__("embedded", logs)
        self.options = options or EmbeddedOptions()
        self._models = models
        self._takes_tools = False

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities. Tools are called where the loaded model's chat template has a place for them."""
        return EngineInfo(
            "embedded",
            "llama.cpp",
            json_schema=True,
            tool_calls=self._takes_tools,
            embeddings=self.options.embeddings,
            slots=self.options.slots,
        )

    def models(self) -> tuple[str, ...]:
        """The model files that are here."""
        return tuple(model.id for model in self._models.local())

    def metrics_client(self) -> httpx2.Client:
        """The HTTP client, for the routes that only llama.cpp has (``/metrics``, ``/slots``, ``/props``)."""
        return self._http

    def headers(self) -> dict[str, str]:
        """The key that the child's own routes ask for."""
        return {"Authorization": f"Bearer {self._child.key}"} if self._child else {}

    def _find(self, model: str) -> Generator[Progress, None, Path]:
        try:
            return self._models.path(model)
        except ModelNotHere:
            yield from self._models.fetch(model)
            return self._models.path(model)

    def _launch(self, model: str, path: Path) -> Launch:
        header = read_header(path)
        # Without a place in the template llama.cpp drops the tools of a request without a word.
        self._takes_tools = "tools" in str(header.metadata.get("tokenizer.chat_template", ""))
        need = estimate(header, self.options.context_tokens, self.options.slots).total_bytes
        threads = choose_threads(psutil.cpu_count(logical=False) or 1)
        options = {
            "path": str(path),
            "model": model,
            "slots": self.options.slots,
            "context_tokens": self.options.context_tokens,
            "embeddings": self.options.embeddings,
            "cache_type": self.options.cache_type,
            "flash_attention": self.options.flash_attention,
            "threads": threads.n_threads,
            "threads_batch": threads.n_threads_batch,
            "poll": threads.poll,
        }
        module = "lib.engines.embedded_server"
        return Launch(module, options, self.options.context_tokens, need, threads.environment)
