"""ONNX: exported with Optimum, quantized to INT8, and what ONNX Runtime does with the graph."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.convert.directory import check_directory
from lib.convert.kept import Converted, Making, Recipe, convert, expect
from lib.convert.reference import Reference, digest_of
from lib.course.result import Progress

if TYPE_CHECKING:
    from lib.workbench import Workbench

PREFILL_TOKENS = 64
ROUNDS = 5


def ensure_onnx(workbench: Workbench, reference: Reference) -> Generator[Progress, None, Converted]:
    """The model as an ONNX graph in float32, exported unless it is here."""
    hf = reference.hf
    found = check_directory(hf.path)

    def make(out: Path) -> Making:
        request = {
            "op": "export",
            "folder": str(hf.path),
            "out": str(out),
            "expected_bytes": found.weights_bytes,
            "layers": found.layers,
        }
        return (yield from workbench.toolchains.call("optimum", "onnx_export", request))

    # The exporter writes the graph, then once more with the shared matrix taken out.
    recipe = Recipe(
        "onnx",
        "optimum",
        "onnx_export",
        {"hf": digest_of(hf)},
        3 * found.weights_bytes,
        make,
        lambda out: _verify(out, 0.9, hf),
    )
    return (yield from convert(workbench, reference.model, reference.source, recipe))


def ensure_int8(workbench: Workbench, reference: Reference, onnx: Converted) -> Generator[Progress, None, Converted]:
    """The graph in dynamic INT8, quantized unless it is here."""
    graph = onnx.path / "model.onnx"

    def make(out: Path) -> Making:
        layers = check_directory(reference.hf.path).layers
        # Seven matrices a layer, the output layer and the token table.
        request = {"op": "quantize", "source": str(graph), "out": str(out / "model.onnx"), "nodes": 7 * layers + 2}
        return (yield from workbench.toolchains.call("optimum", "onnx_run", request))

    need = 2 * graph.stat().st_size
    recipe = Recipe(
        "onnx-int8",
        "optimum",
        "onnx_run",
        {"onnx": digest_of(onnx)},
        need,
        make,
        lambda out: _verify(out, 0.2, reference.hf),
    )
    return (yield from convert(workbench, reference.model, reference.source, recipe))


def graph_summary(workbench: Workbench, onnx: Converted) -> Generator[Progress, None, dict[str, Any]]:
    """Nodes, opset and operators of a graph."""
    request = {"op": "summary", "path": str(onnx.path / "model.onnx")}
    return (yield from workbench.toolchains.call("optimum", "onnx_export", request))


def levels(workbench: Workbench, reference: Reference, onnx: Converted) -> Generator[Progress, None, dict[str, Any]]:
    """Load time and prefill time of the graph at every optimization level."""
    return (yield from _timed(workbench, reference, onnx, "levels"))


def profile(workbench: Workbench, reference: Reference, onnx: Converted) -> Generator[Progress, None, dict[str, Any]]:
    """Where a prefill's time goes, by operator; and the execution providers of this build."""
    return (yield from _timed(workbench, reference, onnx, "profile"))


def _timed(
    workbench: Workbench, reference: Reference, onnx: Converted, op: str
) -> Generator[Progress, None, dict[str, Any]]:
    tokens = reference.tokens[:PREFILL_TOKENS]
    request = {"op": op, "path": str(onnx.path / "model.onnx"), "tokens": tokens, "rounds": ROUNDS}
    return (yield from workbench.toolchains.call("optimum", "onnx_run", request))


def _verify(out: Path, share: float, hf: Converted) -> None:
    expect(out / "model.onnx", int(share * check_directory(hf.path).weights_bytes))
