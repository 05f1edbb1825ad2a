"""Stacks with a way of their own: ONNX Runtime GenAI's builder, Olive's recipes, OpenVINO, MLX."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.convert.directory import check_directory
from lib.convert.forms import Place, place_of_directory, place_of_file
from lib.convert.kept import Making, Recipe, convert, expect
from lib.convert.onnx import ensure_onnx
from lib.convert.reference import Reference, digest_of
from lib.course.result import Progress
from lib.gguf.made import ensure_format
from lib.scratch import scratch

if TYPE_CHECKING:
    from lib.workbench import Workbench

PRECISIONS = ("int4", "int8", "fp32")
# The longest context in which GenAI's cache of a model this small still fits a small machine.
CONTEXTS = (512, 1024, 2048, 4096, 8192)


def ensure_genai(
    workbench: Workbench, reference: Reference, precision: str, context_tokens: int
) -> Generator[Progress, None, Place]:
    """The model as ONNX Runtime GenAI wants it, built unless it is here, with its context set."""
    hf = reference.hf
    found = check_directory(hf.path)

    def make(out: Path) -> Making:
        with scratch(workbench.settings.home) as cache:
            request = {
                "op": "build",
                "folder": str(hf.path),
                "out": str(out),
                "cache": str(cache),
                "precision": precision,
                "layers": found.layers,
                "architecture": found.architecture,
                "context_tokens": context_tokens,
            }
            return (yield from workbench.toolchains.call("transformers5", "genai", request))

    inputs = {"hf": digest_of(hf), "context_tokens": context_tokens}
    recipe = Recipe(f"genai-{precision}", "transformers5", "genai", inputs, found.weights_bytes, make, _verify_genai)
    made = yield from convert(workbench, reference.model, reference.source, recipe)
    return place_of_directory(made, context_tokens)


def ensure_olive(workbench: Workbench, reference: Reference) -> Generator[Progress, None, Place]:
    """The ONNX graph taken through Olive's recipe, unless it is here."""
    onnx = yield from ensure_onnx(workbench, reference)
    passes = olive_passes()

    def make(out: Path) -> Making:
        with scratch(workbench.settings.home) as work:
            request = {
                "op": "run",
                "work": str(work),
                "expected_bytes": onnx.size_bytes // 2,
                "recipe": _recipe(onnx.path / "model.onnx", out, work, passes),
            }
            return (yield from workbench.toolchains.call("transformers5", "olive_run", request))

    inputs = {"onnx": digest_of(onnx), "passes": passes}
    recipe = Recipe(
        "olive-int8",
        "transformers5",
        "olive_run",
        inputs,
        2 * onnx.size_bytes,
        make,
        lambda out: expect(out / "model.onnx", 2**20),
    )
    return place_of_directory((yield from convert(workbench, reference.model, reference.source, recipe)))


def olive_passes() -> dict[str, Any]:
    """The passes of the recipe: weights in 8 bits, each block of 32 with a scale of its own.

    Accuracy level 4 multiplies in 8 bits, activations rounded block by block, as llama.cpp does. Left
    unset, ONNX Runtime makes float32 of the weights at every step: 15 times slower here.
    """
    blocks = {"type": "OnnxBlockWiseRtnQuantization", "bits": 8, "block_size": 32, "accuracy_level": 4}
    return {"blocks": blocks}


def ensure_openvino(workbench: Workbench, reference: Reference, format: str) -> Generator[Progress, None, Place]:
    """The GGUF file that OpenVINO GenAI reads by itself."""
    path = yield from ensure_format(workbench, reference.model, format)
    return place_of_file(f"openvino-{format.lower()}", path)


def ensure_mlx(workbench: Workbench, reference: Reference) -> Generator[Progress, None, Place]:
    """The model as MLX wants it in 4 bits, converted unless it is here."""
    hf = reference.hf

    def make(out: Path) -> Making:
        # MLX writes into a directory that does not exist yet.
        out.rmdir()
        request = {"op": "convert", "folder": str(hf.path), "out": str(out)}
        return (yield from workbench.toolchains.call("mlx", "mlx_run", request))

    need = check_directory(hf.path).weights_bytes // 2
    recipe = Recipe(
        "mlx-4bit", "mlx", "mlx_run", {"hf": digest_of(hf)}, need, make, lambda out: expect(out / "model.safetensors")
    )
    return place_of_directory((yield from convert(workbench, reference.model, reference.source, recipe)))


def _recipe(graph: Path, out: Path, work: Path, passes: dict[str, Any]) -> dict[str, Any]:
    target = {
        "type": "LocalSystem",
        "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
    }
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(graph)},
        "systems": {"local": target},
        "host": "local",
        "target": "local",
        "passes": passes,
        "output_dir": str(out),
        "cache_dir": str(work / "cache"),
        "evaluate_input_model": False,
    }


def _verify_genai(out: Path) -> None:
    expect(out / "genai_config.json")
    expect(out / "model.onnx")
    expect(out / "model.onnx.data", 2**20)
