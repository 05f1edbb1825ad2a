"""vLLM on the processor, from a toolchain of its own, in a child process."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from lib.convert.directory import check_directory
from lib.convert.kept import CONVERTED, MANIFEST
from lib.course.result import Progress
from lib.engines.base import EngineInfo, Status
from lib.engines.child import ChildEngine, Launch
from lib.engines.peak import tree_memory
from lib.errors import ModelNotHere
from lib.toolchains import Toolchains

TOOLCHAIN = "vllm"
SUFFIX = ".hf"
# Three processes with PyTorch in each, as measured before the weights came (Linux x86-64, vLLM 0.32.0).
BASE_BYTES = 1800 << 20
START_S = 600.0
# The grammar allows white space without end between any two words, and a small model takes it.
_TIGHT = {"backend": "xgrammar", "disable_any_whitespace": True}


@dataclass(frozen=True)
class VllmOptions:
    """How the server is set up: ``sequences`` at most at the same time, ``cache_gib`` for all their keys and values.

    ``compile`` lets PyTorch compile the model at the start: faster tokens for a later first one. It needs a
    C++ compiler.
    """

    context_tokens: int = 2048
    sequences: int = 64
    cache_gib: int = 1
    compile: bool = False
    prefix_caching: bool = True


class VllmEngine(ChildEngine):
    """vLLM with the Hugging Face directories that lab 3 makes; one model at a time."""

    def __init__(self, home: Path, logs: Path, toolchains: Toolchains, options: VllmOptions | None = None) -> None:
        super().__init__("vllm", logs)
        self.options = options or VllmOptions()
        self._home = home
        self._toolchains = toolchains

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities. Tools need a parser chosen for the model, so none are claimed."""
        return EngineInfo("vllm", "vLLM", json_schema=True, slots=self.options.sequences)

    def status(self) -> Status:
        """State, model, address, and the memory of all its processes."""
        status = super().status()
        return replace(status, memory_bytes=tree_memory(status.pid).size_bytes) if status.pid else status

    def models(self) -> tuple[str, ...]:
        """The models that lab 3 made directories of: ``<model>.hf``."""
        made = (self._home / CONVERTED).glob(f"*/hf/{MANIFEST}")
        return tuple(sorted(f"{one.parent.parent.name}{SUFFIX}" for one in made))

    def _find(self, model: str) -> Generator[Progress, None, Path]:
        if model not in self.models():
            raise ModelNotHere(model=model)
        path = self._home / CONVERTED / model.removesuffix(SUFFIX) / "hf"
        # vLLM takes most of a minute to find that out, and words it poorly ("MemoryError").
        check_directory(path)
        yield from self._toolchains.ensure(TOOLCHAIN)
        return path

    def _launch(self, model: str, path: Path) -> Launch:
        one = self.options
        # The directory holds float32, vLLM computes in bfloat16.
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors")) // 2
        need = BASE_BYTES + weights + (one.cache_gib << 30)
        state = next(state for state in self._toolchains.states() if state.name == TOOLCHAIN)
        python = state.where
        assert python is not None, "the toolchain has just been made"
        options = {
            "python": str(python),
            "home": str(self._home),
            "arguments": self._arguments(model, path),
            "cache_gib": one.cache_gib,
        }
        return Launch("lib.engines.vllm_server", options, one.context_tokens, need, start_s=START_S)

    def _arguments(self, model: str, path: Path) -> list[str]:
        one = self.options
        arguments = ["--model", str(path), "--served-model-name", model, "--max-model-len", str(one.context_tokens)]
        arguments += ["--max-num-seqs", str(one.sequences), "--disable-uvicorn-access-log"]
        # The learner's settings count, not those that whoever made the model likes best.
        arguments += ["--generation-config", "vllm"]
        arguments += ["--structured-outputs-config", json.dumps(_TIGHT)]
        if not one.prefix_caching:
            arguments.append("--no-enable-prefix-caching")
        return arguments if one.compile else [*arguments, "--enforce-eager"]
