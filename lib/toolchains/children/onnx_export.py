"""A Hugging Face directory as an ONNX graph with Optimum's exporter, and what is in such a graph."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import wire


def export(request: dict[str, Any]) -> dict[str, Any]:
    """Trace the model with torch and write the graph with its KV cache as inputs and outputs."""
    wire.progress(0, 100, "load_exporter")
    import torch
    from optimum.exporters.onnx import main_export

    logging.disable(logging.WARNING)
    sys.stdout = sys.stderr
    _watch(Path(request["out"]), request["expected_bytes"])
    _count_modules(torch, request["layers"])
    main_export(
        request["folder"],
        output=request["out"],
        task="text-generation-with-past",
        device="cpu",
        dtype="fp32",
        do_validation=False,
        trust_remote_code=False,
        local_files_only=True,
        library_name="transformers",
    )
    return {"peak_bytes": wire.peak_bytes()}


def summary(request: dict[str, Any]) -> dict[str, Any]:
    """Nodes, opset, operators, inputs and outputs of a graph; the weights stay on the disk."""
    import onnx

    model = onnx.load(request["path"], load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node)
    return {
        "nodes": len(model.graph.node),
        "opset": max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0),
        "ir_version": model.ir_version,
        "operators": counts.most_common(),
        "initializers": len(model.graph.initializer),
        "inputs": len(model.graph.input),
        "outputs": len(model.graph.output),
        "domains": sorted({one.domain or "ai.onnx" for one in model.opset_import}),
    }


def _count_modules(torch: Any, layers: int) -> None:
    """Progress while the exporter runs the model to trace it: one step a layer."""
    seen = [0]

    def count(module: Any, _inputs: Any) -> None:
        if type(module).__name__.endswith("DecoderLayer"):
            seen[0] += 1
            wire.progress(10 + 40 * min(1.0, seen[0] / layers), 100, "trace_layers", f"{seen[0]} / {layers}")

    torch.nn.modules.module.register_module_forward_pre_hook(count)


def _watch(folder: Path, expected_bytes: int) -> None:
    """Progress while the graph is written: the bytes that are in the folder."""

    def look() -> None:
        while True:
            time.sleep(0.5)
            try:
                size = sum(one.stat().st_size for one in os.scandir(folder) if one.is_file())
            except OSError:
                continue
            if size > 0.01 * expected_bytes:
                share = min(1.0, size / expected_bytes)
                wire.progress(50 + 50 * share, 100, "write_graph", f"{size / 2**20:.0f} MiB")

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    wire.serve({"export": export, "summary": summary})
