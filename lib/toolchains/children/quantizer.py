"""llama.cpp's quantizer in a process of its own: plans a format without writing, or writes it.

``cyllama`` carries llama.cpp prebuilt, so nobody needs a compiler; its files are
byte for byte those of llama-cpp-python's build.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import wire

# [ 268/ 272] blk.29.attn_v.weight - [ 576, 192, 1, 1], type = f16, size = 0.21 MiB -> 0.11 MiB (q8_0)
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+) +- \[.*?\], type = +(\S+), ")
_NEW_TYPE = re.compile(r"\((\w+)\)\s*$|converting to (\w+)")
_REASON = re.compile(r"(?:error|failed)[^\n]*", re.IGNORECASE)


class _Log:
    """llama.cpp's log, put together again from the pieces in which it comes."""

    def __init__(self, on_tensor: Callable[[int, int, str], None] | None = None) -> None:
        self.text = ""
        self._on_tensor = on_tensor

    def __call__(self, _level: int, text: str) -> None:
        self.text += text
        found = _TENSOR.match(text)
        if found and self._on_tensor:
            self._on_tensor(int(found[1]), int(found[2]), found[3])

    def types(self) -> dict[str, str]:
        """Every tensor's type in the new file."""
        found: dict[str, str] = {}
        starts = list(_TENSOR.finditer(self.text))
        for start, following in zip(starts, [*starts[1:], None], strict=False):
            rest = self.text[start.end() : following.start() if following else None].split("\n")[0]
            new = _NEW_TYPE.search(rest)
            found[start[3]] = (new[1] or new[2] if new else start[4]).upper()
        return found


def _run(request: dict[str, Any], ftype: int, out: str, dry_run: bool, log: _Log) -> None:
    try:
        from cyllama.llama import llama_cpp
    except ImportError as error:
        why = f"its quantizer (cyllama) has no ready-made package for this machine: {error}"
        raise wire.Refused("quantizer-refused", why=why) from error
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = ftype
    parameters.nthread = request["threads"]
    # The default model is only to be had quantized; the lesson says what that means.
    parameters.allow_requantize = True
    parameters.dry_run = dry_run
    llama_cpp.set_log_callback(log)
    try:
        llama_cpp.model_quantize(request["source"], out, parameters)
    except Exception as error:
        reason = _REASON.search(log.text)
        raise wire.Refused("quantizer-refused", why=(reason[0] if reason else str(error))[:300]) from error


def plan(request: dict[str, Any]) -> dict[str, Any]:
    """The type of every tensor in each format, by llama.cpp's own rules; nothing is written."""
    plans = {}
    for done, (name, ftype) in enumerate(request["formats"].items()):
        wire.progress(done, len(request["formats"]), "plan", name)
        log = _Log()
        _run(request, ftype, request["source"] + ".never", True, log)
        plans[name] = log.types()
    return {"plans": plans}


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """Write one format; gives back seconds, peak memory in bytes and every tensor's type."""
    log = _Log(lambda done, total, name: wire.progress(done, total, "quantize", f"{request['format']} · {name}"))
    started = time.monotonic()
    _run(request, request["ftype"], request["out"], False, log)
    seconds = time.monotonic() - started
    import cyllama

    made_by = f"cyllama {cyllama.__version__}"
    return {"seconds": seconds, "peak_bytes": wire.peak_bytes(), "version": made_by, "types": log.types()}


if __name__ == "__main__":
    wire.serve({"plan": plan, "quantize": quantize})
