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
_ROWS = 16


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
            _write(rows, out)  # last: it spoils them
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
    """Keep rows of log-probabilities: for each its lowest value and its step, then all in 16 bits. Spoils ``rows``."""
    top = rows.max(axis=1, keepdims=True)
    low = np.maximum(rows.min(axis=1, keepdims=True), top - _FLOOR)
    step = (top - low) / 65535
    np.concatenate([low, step], axis=1).astype(np.float32).tofile(out)
    rows -= low
    rows /= step
    np.maximum(rows, 0, out=rows)
    np.rint(rows, out=rows)
    rows.astype(np.uint16).tofile(out)


def _read(source: Any, rows: int, n_vocab: int) -> np.ndarray:
    ends = np.fromfile(source, np.float32, 2 * rows).reshape(rows, 2)
    values = np.fromfile(source, np.uint16, rows * n_vocab).reshape(rows, n_vocab).astype(np.float32)
    values *= ends[:, 1:]
    values += ends[:, :1]
    return values


def _distance(base: np.ndarray, logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows (negative log-likelihood, KLD, same top token, p - p of the reference) for n tokens: float32 (4, n)."""
    found = np.empty((4, len(wanted)), np.float32)
    # A few rows at a time, in the same two places: they stay in the cache, and no page is touched for the first time.
    p, work = (np.empty((_ROWS, base.shape[1]), np.float32) for _ in range(2))
    for at in range(0, len(wanted), _ROWS):
        rows = slice(at, min(at + _ROWS, len(wanted)))
        count = rows.stop - at
        found[:, rows] = _distance_of(base[rows], logits[rows], wanted[rows], p[:count], work[:count])
    return found


def _distance_of(
    base: np.ndarray, logits: np.ndarray, wanted: np.ndarray, p: np.ndarray, work: np.ndarray
) -> tuple[np.ndarray, ...]:
    at = np.arange(len(wanted))
    top = logits.argmax(axis=1)
    same = base.argmax(axis=1) == top
    np.subtract(logits, logits[at, top][:, None], out=work)
    wanted_logit = work[at, wanted].astype(np.float64)
    np.exp(base, out=p)
    wanted_p = p[at, wanted].astype(np.float64)
    mass = p.sum(axis=1).astype(np.float64)
    # KLD = sum p (log p - log q) with log q = work - log(sum exp work); the 16-bit reference sums to nearly one.
    apart = (np.einsum("ij,ij->i", p, base) - np.einsum("ij,ij->i", p, work)) / mass
    np.exp(work, out=work)
    log_total = np.log(work.sum(axis=1).astype(np.float64))
    log_q = wanted_logit - log_total
    return -log_q, np.maximum(apart + log_total - np.log(mass), 0), same, np.exp(log_q) - wanted_p / mass


if __name__ == "__main__":
    wire.serve({"tokens": tokens, "logits": logits, "reference": reference, "compare": compare})
