"""The workbench of one process: settings, store, models and engines, opened by an entry point.

Pages, notebooks and the command line each open one and hand it to the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.engines.base import Engine
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.engines.endpoint import EndpointEngine
from lib.engines.foundry import FoundryEngine
from lib.engines.ollama import OllamaEngine
from lib.engines.onnx import OnnxEngine
from lib.engines.vllm import VllmEngine
from lib.errors import UnknownEngine
from lib.models.hardware import Machine, probe
from lib.models.store import ModelStore
from lib.settings import Settings
from lib.store import Store
from lib.toolchains import Toolchains


class Workbench:
    """Everything a step may use. Opening it touches nothing; each part opens when first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    @staticmethod
    def open(**overrides: Any) -> Workbench:
        """A workbench with the settings of the environment and, over them, ``overrides``."""
        return Workbench(Settings(**overrides))

    @property
    def learner(self) -> str:
        """Under whose name runs and answers are kept."""
        return self.settings.learner

    @property
    def language(self) -> str:
        """The language of notebooks and terminal; pages let the learner choose."""
        return self.settings.language or "en"

    @cached_property
    def store(self) -> Store:
        """The database; raises PlaceError kinds when it cannot be opened."""
        return Store(self.settings.store_url)

    @cached_property
    def models(self) -> ModelStore:
        """The model files."""
        return ModelStore(self.settings.models_dir, self.hub_token, offline=self.settings.offline)

    @cached_property
    def toolchains(self) -> Toolchains:
        """The environments of stacks that cannot share this one."""
        return Toolchains(self.settings.toolchains_dir, self.settings.logs_dir, offline=self.settings.offline)

    @property
    def hub_token(self) -> str | None:
        """The learner's Hugging Face token, if there is one."""
        token = self.settings.hub_token
        return token.get_secret_value() if token else None

    @cached_property
    def machine(self) -> Machine:
        """The machine, looked at once."""
        return probe(self.settings.home)

    @property
    def logs(self) -> Path:
        """Where engines write their logs."""
        return self.settings.logs_dir

    def engine(self, name: str) -> Engine:
        """The shared engine of that name; raises UnknownEngine."""
        if name not in ENGINES:
            raise UnknownEngine(engine=name, known=", ".join(ENGINES))
        with self._lock:
            if name not in self._engines:
                self._engines[name] = ENGINES[name](self)
            return self._engines[name]

    def fresh_engine(self, context_tokens: int, slots: int = 1, **more: Any) -> EmbeddedEngine:
        """An embedded engine of one's own, to measure in; the caller releases it. ``more`` are EmbeddedOptions."""
        return EmbeddedEngine(self.models, self.logs, EmbeddedOptions(context_tokens, slots, **more))

    def close(self) -> None:
        """Stop every engine."""
        for engine in self._engines.values():
            engine.release()


def _embedded(workbench: Workbench) -> Engine:
    options = EmbeddedOptions(workbench.settings.context_tokens, workbench.settings.slots)
    return EmbeddedEngine(workbench.models, workbench.logs, options)


def _endpoint(workbench: Workbench) -> Engine:
    key = workbench.settings.endpoint_key
    return EndpointEngine(workbench.settings.endpoint, key.get_secret_value() if key else None)


ENGINES: Mapping[str, Callable[[Workbench], Engine]] = {
    "embedded": _embedded,
    "ollama": lambda workbench: OllamaEngine(workbench.settings.ollama_host),
    "foundry": lambda workbench: FoundryEngine(workbench.settings.home, workbench.logs),
    "onnx": lambda workbench: OnnxEngine(workbench.settings.home, workbench.logs),
    "vllm": lambda workbench: VllmEngine(workbench.settings.home, workbench.logs, workbench.toolchains),
    "endpoint": _endpoint,
}
