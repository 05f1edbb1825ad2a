"""ONNX Runtime GenAI: its builder writes a graph from a Hugging Face directory, its generator answers with it."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import wire
from answers import answers


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Write the graph in a precision for the CPU, with the context that the request names."""
    wire.progress(0, request["layers"] + 2, "load_builder")
    import onnxruntime_genai.models  # noqa: F401  puts the builder's folder on the path
    from onnxruntime_genai.models import builder

    _count_layers(sys.modules["builders.base"].Model, request["layers"])
    source, out, precision = request["folder"], request["out"], request["precision"]
    options = builder.parse_extra_options(None, source, out, precision, "cpu", request["cache"], None)
    try:
        builder.create_model(None, source, out, precision, "cpu", request["cache"], **options)
    except NotImplementedError as error:
        raise wire.Refused(
            "unsupported-architecture", architecture=request["architecture"], tool="ONNX Runtime GenAI", known="–"
        ) from error
    set_context({"folder": out, "context_tokens": request["context_tokens"]})
    return {"peak_bytes": wire.peak_bytes()}


def set_context(request: dict[str, Any]) -> dict[str, Any]:
    """Set the context in the configuration: the cache is set aside for all of it, in float32, however short the chat.

    Gives the context that the model was built with.
    """
    path = Path(request["folder"]) / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    before = config["model"]["context_length"]
    config["model"]["context_length"] = config["search"]["max_length"] = request["context_tokens"]
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    return {"before": before}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of the tokens as float32 (n_tokens, n_vocab) in an .npy file."""
    import numpy as np

    og, model = _load(request["folder"])
    generator = _generator(og, model, request["context_tokens"])
    generator.append_tokens(request["tokens"])
    found = np.asarray(generator.get_output("logits"), np.float32)[0]
    np.save(request["out"], found)
    return {"n_vocab": found.shape[1]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers and their timings."""
    og, model = _load(request["folder"])
    tokenizer = og.Tokenizer(model)
    load_s = time.perf_counter() - STARTED

    def decode(prompt: list[int]) -> Generator[int, None, None]:
        generator = _generator(og, model, request["context_tokens"])
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return answers(request, load_s, decode, tokenizer.decode)


def _load(folder: str) -> tuple[Any, Any]:
    import onnxruntime_genai as og

    return og, og.Model(folder)


def _generator(og: Any, model: Any, context_tokens: int) -> Any:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=context_tokens, do_sample=False)
    return og.Generator(model, parameters)


def _count_layers(model: Any, layers: int) -> None:
    """Progress by the layers that the builder writes, then its quantizing and saving."""

    def counted(name: str, told: str) -> None:
        wrapped = getattr(model, name)

        def told_first(self: Any, *given: Any, **named: Any) -> Any:
            done = given[0] if name == "make_layer" else layers
            wire.progress(done + 1, layers + 2, told, f"{done} / {layers}")
            return wrapped(self, *given, **named)

        setattr(model, name, told_first)

    counted("make_layer", "build_layers")
    counted("save_model", "write_graph")


if __name__ == "__main__":
    wire.serve({"build": build, "set_context": set_context, "logits": logits, "answer": answer})
