"""MLX: converts a Hugging Face directory and answers; on the GPU of Apple silicon, elsewhere on the processor."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

from collections.abc import Generator
from pathlib import Path
from typing import Any

import wire
from answers import answers


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Write the directory for MLX with 4-bit weights in groups of 64; ``out`` must not exist."""
    wire.progress(0, 10, "load_mlx")
    from mlx_lm import convert as convert_directory

    wire.progress(1, 10, "convert_mlx")
    convert_directory(request["folder"], request["out"], quantize=True, q_bits=4, q_group_size=64)
    return {"peak_bytes": wire.peak_bytes()}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of the tokens as float32 (n_tokens, n_vocab) in an .npy file."""
    import mlx.core as mx
    import numpy as np

    model = _load(request["folder"])
    found = np.asarray(model(mx.array([request["tokens"]]))[0].astype(mx.float32))
    np.save(request["out"], found)
    return {"n_vocab": found.shape[1]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers and their timings."""
    wire.progress(0, 1, "load_mlx")
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from tokenizers import Tokenizer

    model = _load(request["folder"])
    tokenizer = Tokenizer.from_file(str(Path(request["folder"]) / "tokenizer.json"))
    load_s = time.perf_counter() - STARTED

    def decode(prompt: list[int]) -> Generator[int, None, None]:
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=request["tokens"]):
            yield int(token)

    return answers(request, load_s, decode, tokenizer.decode)


def _load(folder: str) -> Any:
    from mlx_lm.utils import load_model

    return load_model(Path(folder))[0]


if __name__ == "__main__":
    wire.serve({"convert": convert, "logits": logits, "answer": answer})
