"""What quantizing cost: each format against the F16 it was made from, token by token.

The method is that of llama.cpp's perplexity tool (``--kl-divergence``): chunks of 512 tokens, the
second half of each scored. Both models see the same tokens, so their differences are paired: the
noise of the text cancels out, and a few thousand tokens tell formats apart that perplexity cannot.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from pydantic import TypeAdapter

from lib.course.result import Progress, outcome, part_of
from lib.files import stamp
from lib.gguf.formats import REFERENCE
from lib.gguf.header import read_header
from lib.gguf.made import ensure_format
from lib.models.fetch import check_space, place_error
from lib.models.memory import shape_of
from lib.scratch import scratch

if TYPE_CHECKING:
    from lib.workbench import Workbench

CHUNK_TOKENS = 512
MOST_CHUNKS = 4
TEXT = Path(__file__).parent.parent.parent / "data" / "texts" / "quality.en.txt"


@dataclass(frozen=True)
class Quality:
    """A format's distance from F16. Every ``error`` is one standard error; KLD in nats a token."""

    format: str
    perplexity: float
    perplexity_error: float
    perplexity_ratio_percent: float
    perplexity_ratio_error_percent: float
    kld: float
    kld_error: float
    top1_agreement_percent: float
    top1_agreement_error_percent: float
    rms_probability_change_percent: float
    took_s: float


@dataclass(frozen=True)
class Scored:
    """F16's own perplexity on the text, and how much of the text was scored."""

    perplexity: float
    perplexity_error: float
    chunks: int
    scored_tokens: int


def own_or_shipped(text: str) -> str:
    """The learner's text, or the one that comes with the project."""
    return text if text.strip() else TEXT.read_text(encoding="utf-8")


def measure_quality(
    workbench: Workbench, model: str, formats: Sequence[str], text: str
) -> Generator[Progress, None, tuple[Scored, list[Quality]]]:
    """Score the text with F16 and with each format; raises TextTooShort, ModelError kinds, DiskFull.

    What was measured stands beside the files it belongs to, and a format is scored once for a text.
    """
    paths: dict[str, Path] = {}
    for name in (REFERENCE, *formats):
        paths[name] = yield from ensure_format(workbench, model, name)
    kept = _Kept(paths[REFERENCE], text)
    missing = [name for name in formats if not kept.has(name, paths[name])]
    if missing or kept.scored is None:
        yield from _measure(workbench, paths, missing, text, kept)
    assert kept.scored is not None
    return kept.scored, [kept.found[name][1] for name in formats]


def _measure(
    workbench: Workbench, paths: Mapping[str, Path], formats: Sequence[str], text: str, kept: _Kept
) -> Generator[Progress, None, None]:
    with scratch(workbench.settings.home) as folder:
        vocabulary = shape_of(read_header(paths[REFERENCE])).vocabulary
        check_space(folder, MOST_CHUNKS * CHUNK_TOKENS // 2 * vocabulary * 2)
        common = {"folder": str(folder), "chunk_tokens": CHUNK_TOKENS, "threads": psutil.cpu_count(logical=False) or 1}
        parts = len(formats) + 1
        request = {**common, "op": "reference", "gguf": str(paths[REFERENCE]), "name": REFERENCE, "text": text}
        answer = yield from _part(workbench, {**request, "most_chunks": MOST_CHUNKS}, 0, parts)
        base = np.load(folder / f"{REFERENCE}.npy").astype(np.float64)
        kept.scored = Scored(*_perplexity(base), answer["chunks"], answer["scored"])
        for done, name in enumerate(formats, 1):
            request = {**common, "op": "compare", "gguf": str(paths[name]), "name": name}
            answer = yield from _part(workbench, request, done, parts)
            rows = np.load(folder / f"{name}.npy").astype(np.float64)
            kept.keep(name, paths[name], _quality(name, rows, base, answer["seconds"]))


@dataclass(frozen=True)
class _File:
    reference: str
    scored: Scored
    formats: dict[str, tuple[str, Quality]]


class _Kept:
    """What was measured on a text: a file beside the model's, one entry a format, good for the very file it names."""

    def __init__(self, reference: Path, text: str) -> None:
        key = f"{CHUNK_TOKENS} {MOST_CHUNKS} {text}"
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]
        self._path = reference.with_name(f"quality-{digest}.json")
        self._reference = _stamp(reference)
        self.scored: Scored | None = None
        self.found: dict[str, tuple[str, Quality]] = {}
        # An unreadable or older file is as good as none: everything in it can be measured again.
        with suppress(OSError, ValueError):
            raw = TypeAdapter(_File).validate_json(self._path.read_bytes())
            if raw.reference == self._reference:
                self.scored, self.found = raw.scored, raw.formats

    def has(self, format: str, path: Path) -> bool:
        return format in self.found and self.found[format][0] == _stamp(path)

    def keep(self, format: str, path: Path, quality: Quality) -> None:
        assert self.scored is not None
        self.found[format] = (_stamp(path), quality)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_bytes(TypeAdapter(_File).dump_json(_File(self._reference, self.scored, self.found)))
            part.replace(self._path)
        except OSError as error:
            raise place_error(error, part) from error


def _stamp(path: Path) -> str:
    return " ".join(map(str, stamp(path)))


def _part(
    workbench: Workbench, request: Mapping[str, Any], done: int, parts: int
) -> Generator[Progress, None, Mapping[str, Any]]:
    return (yield from part_of(outcome(workbench.toolchains.call("here", "logits", request)), done, parts))


def _quality(format: str, rows: np.ndarray, base: np.ndarray, seconds: float) -> Quality:
    negative, divergence, same, change = rows
    perplexity, error = _perplexity(negative)
    ratio, ratio_error = _mean(negative - base)
    kld, kld_error = _mean(divergence)
    top, top_error = _mean(same)
    return Quality(
        format,
        perplexity,
        error,
        100 * math.expm1(ratio),
        100 * math.exp(ratio) * ratio_error,
        kld,
        kld_error,
        100 * top,
        100 * top_error,
        100 * math.sqrt(float((change**2).mean())),
        seconds,
    )


def _perplexity(negative: np.ndarray) -> tuple[float, float]:
    mean, error = _mean(negative)
    return math.exp(mean), math.exp(mean) * error


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
