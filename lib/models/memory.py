"""STAND-IN by the lead, to be replaced whole by the real estimate."""

from __future__ import annotations

from dataclasses import dataclass

from lib.gguf.header import Header


@dataclass(frozen=True)
class Term:
    id: str
    size_bytes: int
    formula: str


@dataclass(frozen=True)
class Estimate:
    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        return sum(t.size_bytes for t in self.terms)


def estimate(header: Header, context_tokens: int, slots: int = 1) -> Estimate:
    return Estimate(
        (
            Term("weights", header.size_bytes, "file"),
            Term("kv_cache", 23040 * context_tokens * slots, "x"),
            Term("compute", 50 * 2**20, "x"),
            Term("process", 40 * 2**20, "x"),
        )
    )


def estimate_nominal(
    *,
    layers: int,
    embedding_length: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    feed_forward_length: int,
    vocabulary: int,
    tied: bool,
    quantization: str,
    context_tokens: int,
    slots: int = 1,
    sliding_window_tokens: int | None = None,
    sliding_window_pattern: int | None = None,
) -> Estimate:
    n = layers * (
        2 * embedding_length * heads * head_size
        + 2 * embedding_length * kv_heads * head_size
        + 3 * embedding_length * feed_forward_length
    ) + vocabulary * embedding_length * (1 if tied else 2)
    return Estimate(
        (
            Term("weights", int(n * 0.6), "x"),
            Term("kv_cache", 2 * 2 * layers * kv_heads * head_size * context_tokens, "x"),
            Term("compute", 50 * 2**20, "x"),
            Term("process", 40 * 2**20, "x"),
        )
    )
