"""Who can be compared: each engine with the same model, made ready for it beforehand.

The same model is not the same weights: each engine takes the form it is known for. What one token
reads (``token_bytes``) says how far apart the forms are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.convert.builders import ensure_genai
from lib.convert.reference import ensure_hf, ensure_reference
from lib.course.result import Progress
from lib.engines.base import Engine
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.engines.endpoint import EndpointEngine
from lib.engines.foundry import FoundryEngine
from lib.engines.ollama import OllamaEngine
from lib.engines.onnx import OnnxEngine
from lib.engines.vllm import TOOLCHAIN, VllmEngine, VllmOptions
from lib.errors import ModelNotHere, UnknownModel
from lib.gguf.made import ensure_format, ensure_source
from lib.models.catalog import load_catalog
from lib.models.fit import bytes_per_token

if TYPE_CHECKING:
    from lib.workbench import Workbench

# Enough for the longest prompt and answer that the lab takes; what more there is, sixteen slots would pay for.
CONTEXT_TOKENS = 1024
GENAI_CONTEXT_TOKENS = 2048
# ONNX Runtime GenAI sets the whole cache of an answer aside, in float32: more slots would ask for gigabytes.
ONNX_SLOTS = 4
# A model that would rather stop goes on: every answer is to be as long as the others. And a prompt that comes again
# is read again, as by engines that keep none. Engines of others may refuse both.
FULL_LENGTH: Mapping[str, Any] = {"extra_body": {"ignore_eos": True, "cache_prompt": False}}
CONTENDERS = ("embedded", "embedded-f16", "onnx", "foundry", "vllm", "ollama", "endpoint")


@dataclass(frozen=True)
class Contender:
    """An engine that can be made anew, and the model's name there.

    ``token_bytes`` are the weights that one token reads, None where they are somebody else's; ``slots`` is how
    many answers it writes at the same time, 0 where nobody says.
    """

    id: str
    model: str
    weights: str
    make: Callable[[], Engine]
    token_bytes: float | None = None
    slots: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


Making = Generator[Progress, None, Contender]


def prepare(workbench: Workbench, id: str, model: str, slots: int) -> Making:
    """Everything but the start: fetch, convert, build the toolchain; ``slots`` where the engine lets us choose.

    Raises ModelError, EngineError and ToolchainFailed kinds.
    """
    return (yield from _MAKERS[id](workbench, model, slots))


def _embedded(workbench: Workbench, model: str, slots: int) -> Making:
    yield from ensure_source(workbench, model)
    return _llama(workbench, "embedded", model, slots)


def _embedded_f16(workbench: Workbench, model: str, slots: int) -> Making:
    yield from ensure_source(workbench, model)
    yield from ensure_format(workbench, model, "F16")
    return _llama(workbench, "embedded-f16", f"{model}.F16", slots)


def _llama(workbench: Workbench, id: str, model: str, slots: int) -> Contender:
    options = EmbeddedOptions(CONTEXT_TOKENS, slots)
    read = bytes_per_token(workbench.models, model)
    return Contender(
        id,
        model,
        workbench.models.path(model).name,
        lambda: EmbeddedEngine(workbench.models, workbench.logs, options),
        read,
        slots,
        FULL_LENGTH,
    )


def _onnx(workbench: Workbench, model: str, slots: int) -> Making:
    place = yield from _genai(workbench, model)
    home, mine = workbench.settings.home, min(slots, ONNX_SLOTS)
    engine = OnnxEngine(home, workbench.logs, mine)
    return Contender("onnx", f"{model}.genai-int4", "int4", lambda: engine, _onnx_bytes(place), mine, FULL_LENGTH)


def _foundry(workbench: Workbench, model: str, slots: int) -> Making:
    place = yield from _genai(workbench, model)
    engine = FoundryEngine(workbench.settings.home, workbench.logs)
    return Contender("foundry", f"{model}.genai-int4:1", "int4", lambda: engine, _onnx_bytes(place), engine.info.slots)


def _vllm(workbench: Workbench, model: str, slots: int) -> Making:
    made = yield from ensure_hf(workbench, model)
    yield from workbench.toolchains.ensure(TOOLCHAIN)
    options = VllmOptions(CONTEXT_TOKENS, slots, prefix_caching=False)
    engine = VllmEngine(workbench.settings.home, workbench.logs, workbench.toolchains, options)
    # The directory holds float32, vLLM reads them as bfloat16.
    read = sum(one.stat().st_size for one in made.path.glob("*.safetensors")) / 2
    return Contender("vllm", f"{model}.hf", "bfloat16", lambda: engine, read, slots, FULL_LENGTH)


def _ollama(workbench: Workbench, model: str, slots: int) -> Making:
    known = load_catalog().get(model)
    name = known.ollama if known else None
    if not name:
        raise UnknownModel(model=model, known="–")
    engine = OllamaEngine(workbench.settings.ollama_host)
    yield from engine.ensure(name)
    # Here it only has to be there: loaded, it would share the memory with whoever has the first turn.
    engine.release(name)
    return Contender("ollama", name, name, lambda: engine)


def _endpoint(workbench: Workbench, model: str, slots: int) -> Making:
    key = workbench.settings.endpoint_key
    engine = EndpointEngine(workbench.settings.endpoint, key.get_secret_value() if key else None)
    yield Progress(0, 0, "find_model", model)
    offered = engine.models()
    if not offered:
        # Asked again by the door that tells why nothing is offered.
        yield from engine.ensure(model)
        raise ModelNotHere(model=model)
    name = model if model in offered else offered[0]
    return Contender("endpoint", name, name, lambda: engine)


def _genai(workbench: Workbench, model: str) -> Generator[Progress, None, Path]:
    reference = yield from ensure_reference(workbench, model)
    return (yield from ensure_genai(workbench, reference, "int4", GENAI_CONTEXT_TOKENS)).path


def _onnx_bytes(place: Path) -> float:
    return float(sum(one.stat().st_size for one in place.glob("model.onnx*")))


_MAKERS: Mapping[str, Callable[[Workbench, str, int], Making]] = {
    "embedded": _embedded,
    "embedded-f16": _embedded_f16,
    "onnx": _onnx,
    "foundry": _foundry,
    "vllm": _vllm,
    "ollama": _ollama,
    "endpoint": _endpoint,
}
