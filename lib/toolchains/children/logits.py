"""What a model predicts for a given text: logits, perplexity, and how far one model is from another.

The method is that of llama.cpp's perplexity tool: the text is cut into chunks, each begins
with the model's BOS token where it has one, and only the second half of a chunk is scored,
so that every scored token has at least half a context before it. The reference model's
log-probabilities are kept in 16 bits a token, scaled row by row, in a file of
n_chunks x n_scored x n_vocab numbers.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import wire
from llama import Llama

# Probabilities below exp(-24) of the best one are kept as that. llama.cpp's tool cuts at 16, where the tails of a
# vocabulary of 49,152 add up to a divergence of 0.004 of a model from itself; here it is below 0.00001.
_FLOOR = 24.0


def tokens(request: dict[str, Any]) -> dict[str, Any]:
    """The tokens of a text."""
    return {"tokens": Llama(request["gguf"], 64, 1).tokenize(request["text"])}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of a text as float32 (n_tokens, n_vocab) in an .npy file."""
    asked = request["tokens"]
    model = Llama(request["gguf"], len(asked), request["threads"])
    np.save(request["out"], model.logits(asked))
    return {"n_vocab": model.n_vocab}


def reference(request: dict[str, Any]) -> dict[str, Any]:
    """Score the text with the reference model and keep its log-probabilities for ``compare``."""
    n_ctx, first = request["chunk_tokens"], request["chunk_tokens"] // 2
    model = Llama(request["gguf"], n_ctx, request["threads"])
    chunks = _chunks(model, request["text"], n_ctx, request["most_chunks"])
    if not chunks:
        raise wire.Refused("text-too-short", need=n_ctx, found=len(model.tokenize(request["text"])))
    folder = Path(request["folder"])
    negative = []
    with (folder / "reference.bin").open("wb") as out:
        for done, chunk in enumerate(chunks):
            wire.progress(done, len(chunks), "score", request["name"])
            rows = _log_softmax(model.logits(chunk, first)[:-1])
            negative.append(-rows[np.arange(len(rows)), chunk[first + 1 :]])
            _write(rows, out)
    (folder / "chunks.json").write_text(json.dumps({"chunks": chunks, "n_vocab": model.n_vocab}))
    np.save(folder / f"{request['name']}.npy", np.concatenate(negative))
    return {"chunks": len(chunks), "tokens": len(chunks) * n_ctx, "scored": sum(map(len, negative))}


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Score the same chunks with another model; keep, for every scored token, what sets it apart.

    Writes rows (negative log-likelihood, KL divergence from the reference, same top token, p - p of the
    reference) as float32 (4, n_scored). All in nats.
    """
    folder = Path(request["folder"])
    kept = json.loads((folder / "chunks.json").read_text())
    n_ctx, first = request["chunk_tokens"], request["chunk_tokens"] // 2
    started = time.monotonic()
    model = Llama(request["gguf"], n_ctx, request["threads"])
    if model.n_vocab != kept["n_vocab"]:
        raise wire.Refused("model-damaged", path=request["gguf"], why="its vocabulary is not the reference's")
    found = []
    scored = n_ctx - 1 - first
    with (folder / "reference.bin").open("rb") as source:
        for done, chunk in enumerate(kept["chunks"]):
            wire.progress(done, len(kept["chunks"]), "score", request["name"])
            base = _read(source, scored, model.n_vocab)
            found.append(_distance(base, model.logits(chunk, first)[:-1], np.asarray(chunk[first + 1 :])))
    np.save(folder / f"{request['name']}.npy", np.concatenate(found, axis=1))
    return {"seconds": time.monotonic() - started, "peak_bytes": wire.peak_bytes()}


def _chunks(model: Llama, text: str, n_ctx: int, most: int) -> list[list[int]]:
    every = model.tokenize(text)
    cut = [every[at : at + n_ctx] for at in range(0, len(every) - n_ctx + 1, n_ctx)][:most]
    return [[model.bos, *chunk[1:]] for chunk in cut] if model.bos is not None else cut


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = rows - rows.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def _write(rows: np.ndarray, out: Any) -> None:
    top = rows.max(axis=1, keepdims=True)
    low = np.maximum(rows.min(axis=1, keepdims=True), top - _FLOOR)
    scale = (top - low) / 65535
    np.concatenate([low, scale], axis=1).astype(np.float32).tofile(out)
    np.rint(np.clip((rows - low) / scale, 0, 65535)).astype(np.uint16).tofile(out)


def _read(source: Any, rows: int, n_vocab: int) -> np.ndarray:
    ends = np.fromfile(source, np.float32, 2 * rows).reshape(rows, 2)
    values = np.fromfile(source, np.uint16, rows * n_vocab).reshape(rows, n_vocab).astype(np.float32)
    values *= ends[:, 1:]
    values += ends[:, :1]
    return values


def _distance(base: np.ndarray, logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.arange(len(wanted))
    same = base.argmax(axis=1) == logits.argmax(axis=1)
    top = logits.max(axis=1, keepdims=True)
    work = logits - top
    wanted_logit = work[at, wanted]
    p = np.exp(base)
    wanted_p = p[at, wanted]
    # KLD = sum p (log p - log q), with log q = work - log(sum exp work); the sums need no second big array.
    base -= work
    first = np.einsum("ij,ij->i", p, base)
    mass = p.sum(axis=1)
    np.exp(work, out=work)
    log_total = np.log(work.sum(axis=1, dtype=np.float64))
    # The 16-bit reference sums to a little more than one.
    divergence = first / mass + log_total - np.log(mass)
    log_q = wanted_logit - log_total
    return np.stack([-log_q, np.maximum(divergence, 0), same, np.exp(log_q) - wanted_p / mass]).astype(np.float32)


if __name__ == "__main__":
    wire.serve({"tokens": tokens, "logits": logits, "reference": reference, "compare": compare})
