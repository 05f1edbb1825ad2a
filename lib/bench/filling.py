"""Filling a model's whole context and reading the peak of the engine's memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.course.result import Progress
from lib.engines.chat import translated
from lib.engines.embedded import EmbeddedEngine
from lib.engines.peak import peak_memory
from lib.errors import BancadaError, EngineDied
from lib.gguf.header import read_header
from lib.models.memory import Estimate, estimate

if TYPE_CHECKING:
    from lib.workbench import Workbench

ANSWER_TOKENS = 32
SPARE_TOKENS = 32
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Filled:
    """One context, filled: the estimate made before, and the peak read after. Bytes and tokens."""

    context_tokens: int
    filled_tokens: int
    estimate: Estimate
    peak_bytes: int
    counter: str

    @property
    def error_percent(self) -> float:
        """How far the estimate is from the measurement; below zero is too low."""
        return 100 * (self.estimate.total_bytes / self.peak_bytes - 1)


def measure_filled(workbench: Workbench, model: str, context_tokens: int) -> Iterator[Progress | Filled]:
    """Load ``model`` in a process of its own, fill ``context_tokens``, read the peak, end the process."""
    with ExitStack() as stack:
        engine = workbench.fresh_engine(context_tokens)
        stack.callback(engine.release)
        yield from engine.ensure(model)
        expected = estimate(read_header(workbench.models.path(model)), context_tokens)
        filler = _Filler(engine, model, context_tokens - ANSWER_TOKENS - SPARE_TOKENS)
        while filler.is_alive():
            filler.join(0.2)
            yield Progress(engine.status().memory_bytes or 0, expected.total_bytes, "fill", f"{context_tokens}")
        if filler.error is not None:
            raise filler.error
        pid = engine.status().pid
        if pid is None:
            raise EngineDied(how=engine.status().incident or "–")
        peak = peak_memory(pid)
        yield Filled(context_tokens, filler.tokens, expected, peak.size_bytes, peak.counter)


class _Filler(threading.Thread):
    """Sends one long prompt, as token ids so that its length is exact."""

    def __init__(self, engine: EmbeddedEngine, model: str, prompt_tokens: int) -> None:
        super().__init__(daemon=True)
        self.error: BancadaError | None = None
        self.tokens = 0
        self._client = engine.client(model).with_options(timeout=PATIENCE_S)
        self._model = model
        self._prompt = [100 + index % 800 for index in range(prompt_tokens)]
        self.start()

    def run(self) -> None:
        try:
            with translated(PATIENCE_S):
                answer = self._client.completions.create(
                    model=self._model, prompt=self._prompt, max_tokens=ANSWER_TOKENS, temperature=0
                )
            self.tokens = answer.usage.total_tokens if answer.usage else 0
        except BancadaError as error:
            self.error = error
