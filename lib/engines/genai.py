"""Models as ONNX Runtime GenAI wants them: the directories that lab 3 builds, and engines that serve them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from pydantic import BaseModel

from lib.convert.kept import CONVERTED, MANIFEST
from lib.course.result import Progress
from lib.engines.child import ChildEngine, Launch
from lib.errors import ModelDamaged, ModelNotHere

CONFIG = "genai_config.json"


class Decoder(BaseModel):
    """The decoder's shape."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_size: int


class GenaiModel(BaseModel):
    """A model of ONNX Runtime GenAI; ``context_length`` in tokens."""

    context_length: int
    decoder: Decoder

    @property
    def cache_bytes(self) -> int:
        """The key-value cache of one answer: GenAI sets it aside whole, in float32."""
        one = self.decoder
        return 2 * one.num_hidden_layers * one.num_key_value_heads * one.head_size * 4 * self.context_length


class _Config(BaseModel):
    model: GenaiModel


class GenaiEngine(ChildEngine):
    """An engine over the GenAI models of a folder; one model at a time."""

    MODULE = ""
    # What an engine puts behind the name that a model has here.
    SUFFIX = ""

    def __init__(self, name: str, home: Path, logs: Path, slots: int) -> None:
        super().__init__(name, logs)
        self._home = home
        self._slots = slots

    def models(self) -> tuple[str, ...]:
        """The models that were built: ``<model>.genai-<precision>``, and what the engine puts behind it."""
        return tuple(sorted(f"{name}{self.SUFFIX}" for name in built_models(self._home / CONVERTED)))

    def _find(self, model: str) -> Generator[Progress, None, Path]:
        yield Progress(0, 0, "find_model", model)
        found = built_models(self._home / CONVERTED).get(model.removesuffix(self.SUFFIX))
        if found is None:
            raise ModelNotHere(model=model)
        return found

    def _launch(self, model: str, path: Path) -> Launch:
        shape = shape_of(path)
        weights = sum(one.stat().st_size for one in path.glob("model.onnx*"))
        need = weights + self._slots * shape.cache_bytes
        options = {
            "path": str(path),
            "model": model,
            "home": str(self._home),
            "context_tokens": shape.context_length,
            "slots": self._slots,
        }
        return Launch(self.MODULE, options, shape.context_length, need)


def built_models(converted: Path) -> dict[str, Path]:
    """The GenAI models below a folder, by ``<model>.<kind>``; a half-made one has no manifest."""
    found = {}
    for config in converted.glob(f"*/genai-*/{CONFIG}"):
        if (config.parent / MANIFEST).is_file():
            found[f"{config.parent.parent.name}.{config.parent.name}"] = config.parent
    return found


def shape_of(path: Path) -> GenaiModel:
    """What a built model's configuration says of it; raises ModelDamaged."""
    try:
        return _Config.model_validate_json((path / CONFIG).read_bytes()).model
    except (OSError, ValueError) as error:
        raise ModelDamaged(path=str(path / CONFIG), why=str(error).splitlines()[0]) from error
