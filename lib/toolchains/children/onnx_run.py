"""An ONNX graph of a language model in ONNX Runtime: dynamic INT8, logits, answers, optimization levels, a profile."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json
import tempfile
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import wire
from answers import answers

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Graph:
    """A decoder's session, fed with tokens and its own KV cache; the cache stays in ONNX Runtime's memory."""

    def __init__(self, path: str, level: str = "all", profile: str | None = None) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[level]
        options.log_severity_level = 3
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name: one for one in self.session.get_inputs()}
        self._outputs = [one.name for one in self.session.get_outputs()]

    def run(self, tokens: list[int], past: dict[str, Any] | None = None, length: int = 0) -> tuple[Any, dict[str, Any]]:
        """Logits (1, n_tokens, n_vocab) and the cache after ``tokens``, which follow ``length`` earlier ones."""
        many = len(tokens)
        plain = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": np.ones((1, length + many), np.int64),
            "position_ids": np.arange(length, length + many, dtype=np.int64)[None],
        }
        feed = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in plain.items() if name in self._inputs}
        feed |= past or self._empty()
        found = self.session.run_with_ort_values(self._outputs, feed)
        kept = {
            name.replace("present", "past_key_values"): value
            for name, value in zip(self._outputs, found, strict=True)
            if name.startswith("present")
        }
        return found[0].numpy(), kept

    def _empty(self) -> dict[str, Any]:
        """A cache of no tokens: shape (batch, KV heads, 0, head size)."""
        past = {name: one for name, one in self._inputs.items() if name.startswith("past_key_values")}
        return {
            name: ort.OrtValue.ortvalue_from_numpy(
                np.zeros((1, one.shape[1], 0, one.shape[3]), _ELEMENTS.get(one.type, np.float32))
            )
            for name, one in past.items()
        }


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """Dynamic INT8: weights in 8 bits a tensor, activations quantized anew at every run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

    _count_calls(ONNXQuantizer, request["nodes"])
    quantize_dynamic(
        request["source"], request["out"], weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True}
    )
    return {"peak_bytes": wire.peak_bytes()}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of the tokens as float32 (n_tokens, n_vocab) in an .npy file."""
    found = Graph(request["path"]).run(request["tokens"])[0][0]
    np.save(request["out"], found.astype(np.float32))
    return {"n_vocab": found.shape[1]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers and their timings, token by token with the graph's KV cache."""
    from tokenizers import Tokenizer

    graph = Graph(request["path"])
    tokenizer = Tokenizer.from_file(request["tokenizer"])
    load_s = time.perf_counter() - STARTED

    def decode(prompt: list[int]) -> Generator[int, None, None]:
        found, past = graph.run(prompt)
        length = len(prompt)
        while True:
            token = int(found[0, -1].argmax())
            yield token
            found, past = graph.run([token], past, length)
            length += 1

    return answers(request, load_s, decode, tokenizer.decode)


def levels(request: dict[str, Any]) -> dict[str, Any]:
    """Load the graph at every optimization level, then time a prefill at each, in interleaved rounds."""
    graphs: dict[str, Graph] = {}
    rows: dict[str, dict[str, Any]] = {}
    steps = len(_LEVELS) * (1 + request["rounds"])
    for level in _LEVELS:
        wire.progress(len(graphs), steps, "load_level", level)
        started = time.perf_counter()
        graphs[level] = Graph(request["path"], level)
        rows[level] = {"level": level, "load_s": time.perf_counter() - started}
    times: dict[str, list[float]] = defaultdict(list)
    for graph in graphs.values():
        graph.run(request["tokens"])  # warm-up
    for round in range(request["rounds"]):
        for at, (level, graph) in enumerate(graphs.items()):
            wire.progress(len(_LEVELS) * (1 + round) + at, steps, "time_level", level)
            started = time.perf_counter()
            graph.run(request["tokens"])
            times[level].append(time.perf_counter() - started)
    for level, found in times.items():
        rows[level] |= {"prefill_s": median(found), "low_s": min(found), "high_s": max(found)}
    return {"rows": list(rows.values()), "peak_bytes": wire.peak_bytes()}


def profile(request: dict[str, Any]) -> dict[str, Any]:
    """Time spent in each kind of operator over some runs, from ONNX Runtime's own profiler.

    Rows are (operator, calls a run, seconds a run), the largest first; ``providers`` is what this build offers.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(request["path"], profile=str(Path(folder) / "profile"))
        graph.run(request["tokens"])
        runs = request["rounds"]
        for done in range(runs):
            wire.progress(done, runs, "profile")
            graph.run(request["tokens"])
        path = graph.session.end_profiling()
        events = json.loads(Path(path).read_text(encoding="utf-8"))
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e6
            calls[event["args"]["op_name"]] += 1
    rows = [
        {"operator": name, "calls": round(calls[name] / (runs + 1)), "seconds_s": seconds / (runs + 1)}
        for name, seconds in sorted(spent.items(), key=lambda one: -one[1])
    ]
    return {"rows": rows, "providers": ort.get_available_providers(), "version": ort.__version__}


def _count_calls(quantizer: Any, nodes: int) -> None:
    """Progress by the weights that are quantized."""
    wrapped = quantizer.quantize_initializer
    seen = [0]

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        seen[0] += 1
        wire.progress(min(seen[0], nodes), nodes, "quantize_weights")
        return wrapped(self, *given, **named)

    quantizer.quantize_initializer = counted


if __name__ == "__main__":
    wire.serve({"quantize": quantize, "logits": logits, "answer": answer, "levels": levels, "profile": profile})
