"""Which models fit: estimates for files that are here and for those that are not, and forecasts of speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from lib.errors import ModelNotHere
from lib.gguf.header import read_header
from lib.models.catalog import Model, find_model, load_catalog
from lib.models.memory import Estimate, estimate, estimate_nominal
from lib.models.store import ModelStore

QUANTIZATIONS = ("Q4_0", "Q4_1", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
# Context lengths from 512 on, doubling: what a learner can ask for.
CONTEXTS = tuple(2**power for power in range(9, 18))


@dataclass(frozen=True)
class Fit:
    """A model's estimate, and whether it was made from its file or from its published configuration."""

    model: Model
    quantization: str
    estimate: Estimate
    from_file: bool


def sizable_models() -> tuple[str, ...]:
    """Ids of catalog models whose memory can be estimated: decoders of known shape."""
    return tuple(model.id for model in load_catalog().values() if model.has_shape and model.kind in ("text", "code"))


def fit(models: ModelStore, model_id: str, quantization: str, context_tokens: int, slots: int = 1) -> Fit:
    """The estimate for a catalog model; from the file's own header where that file is here."""
    model = find_model(model_id)
    if any(file.quantization == quantization for file in model.file):
        try:
            header = read_header(models.path(model_id))
            return Fit(model, quantization, estimate(header, context_tokens, slots), from_file=True)
        except ModelNotHere:
            pass
    return Fit(model, quantization, nominal(model, quantization, context_tokens, slots), from_file=False)


def nominal(model: Model, quantization: str, context_tokens: int, slots: int = 1) -> Estimate:
    """The estimate from a model's published configuration and a quantization's nominal types."""
    assert model.layers and model.embedding_length and model.heads and model.kv_heads and model.head_size
    assert model.feed_forward_length and model.vocabulary
    return estimate_nominal(
        layers=model.layers,
        embedding_length=model.embedding_length,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_size=model.head_size,
        feed_forward_length=model.feed_forward_length,
        vocabulary=model.vocabulary,
        tied=bool(model.tied_embeddings),
        quantization=quantization,
        context_tokens=context_tokens,
        slots=slots,
        sliding_window_tokens=model.sliding_window_tokens,
        sliding_window_pattern=model.sliding_window_pattern,
    )


def matching(models: Iterable[Model], task: str = "any", license: str = "any", language: str = "any") -> list[Model]:
    """The models of a task, a licence and a language; ``any`` leaves that filter out."""
    return [
        model
        for model in models
        if (task == "any" or task in model.tasks)
        and (license == "any" or license == model.license)
        and (language == "any" or language in model.languages)
    ]


def tasks() -> tuple[str, ...]:
    """``any`` and every task of the catalog."""
    return ("any", *sorted({task for model in load_catalog().values() for task in model.tasks}))


def licenses() -> tuple[str, ...]:
    """``any`` and every licence of the catalog."""
    return ("any", *sorted({model.license for model in load_catalog().values() if model.license}))


def languages() -> tuple[str, ...]:
    """``any`` and every language of the catalog."""
    return ("any", *sorted({code for model in load_catalog().values() for code in model.languages}))


def bytes_per_token(models: ModelStore, model_id: str) -> float:
    """Bytes of weights that decoding one token reads, from the tensors of a file that is here.

    Of a token-embedding table one row is read, unless the same table is also the output layer.
    """
    tensors = read_header(models.path(model_id)).tensors
    untied = any(one.name == "output.weight" for one in tensors)
    return sum(one.size_bytes for one in tensors if not (untied and one.name == "token_embd.weight"))


def nominal_bytes_per_token(model: Model, quantization: str) -> float:
    """The same from a model's published configuration."""
    assert model.vocabulary and model.embedding_length
    estimated = nominal(model, quantization, 512)
    weights = next(term.size_bytes for term in estimated.terms if term.id == "weights")
    if model.tied_embeddings:
        return weights
    return weights * (1 - model.vocabulary * model.embedding_length / model.parameters)


def fetchable_models() -> tuple[str, ...]:
    """Ids of catalog models whose file the workbench can bring here."""
    return tuple(model.id for model in load_catalog().values() if model.file)


def catalog_table(models: Sequence[Model], quantization: str, context_tokens: int) -> pd.DataFrame:
    """One row a model; ``estimate_bytes`` is empty where the shape is not that of a known decoder."""
    rows = [
        {
            "model": model.id,
            "parameters": model.parameters,
            "size_class": model.size_class,
            "kind": model.kind,
            "license": model.license,
            "gated": model.gated,
            "trained_tokens": model.context_tokens,
            "estimate_bytes": nominal(model, quantization, context_tokens).total_bytes
            if model.id in sizable_models()
            else None,
        }
        for model in models
    ]
    columns = ["model", "parameters", "size_class", "kind", "license", "gated", "trained_tokens", "estimate_bytes"]
    return pd.DataFrame(rows, columns=columns)


def verdict(estimate_bytes: float | None, limit_bytes: float) -> str:
    """``fits``, ``too_large``, or ``unknown`` where there is no estimate."""
    if estimate_bytes is None or math.isnan(estimate_bytes):
        return "unknown"
    return "fits" if estimate_bytes <= limit_bytes else "too_large"


HUB_COLUMNS = ["id", "license", "gated", "downloads", "files", "smallest_bytes", "largest_bytes"]


def catalog_as_hub(query: str) -> pd.DataFrame:
    """The catalog in the columns of a search on the Hub; every word of the query must occur."""
    words = query.lower().split()
    found = [
        {
            "id": model.hub,
            "license": model.license,
            "gated": model.gated,
            "downloads": None,
            "files": tuple(file.filename for file in model.file),
            "smallest_bytes": min((file.size_bytes for file in model.file), default=None),
            "largest_bytes": max((file.size_bytes for file in model.file), default=None),
        }
        for model in load_catalog().values()
        if model.hub and all(word in f"{model.hub} {model.name} {model.kind}".lower() for word in words)
    ]
    return pd.DataFrame(found, columns=HUB_COLUMNS)
