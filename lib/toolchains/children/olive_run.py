"""Olive: a recipe, written as data, that takes an ONNX graph through passes."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import wire


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe in a folder of its own; gives the path of the graph that came out."""
    wire.progress(0, 10, "load_olive")
    from olive.workflows import run as run_recipe

    logging.getLogger("olive").addHandler(_Told())
    _watch(Path(request["recipe"]["output_dir"]), request["expected_bytes"])
    out = run_recipe(request["recipe"], tempdir=request["work"])
    best = out.get_best_candidate()
    return {
        "model": str(best.model_path),
        "peak_bytes": wire.peak_bytes(),
    }


class _Told(logging.Handler):
    """Olive's own log as progress."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().split(" {")[0][:80]
        wire.progress(2, 10, "olive_says", text)


def _watch(folder: Path, expected_bytes: int) -> None:
    """Progress while the result is written: the bytes that are there."""

    def look() -> None:
        while True:
            time.sleep(0.5)
            size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
            if size > 0.01 * expected_bytes:
                wire.progress(2 + 8 * min(1.0, size / expected_bytes), 10, "write_graph", f"{size / 2**20:.0f} MiB")

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    wire.serve({"run": run})
