"""How much memory llama.cpp will take for a model, before it is loaded.

The figure is the peak resident memory of the embedded engine's process once
the whole context has been filled, mapped pages of the model file included. It
is a sum of terms, each of which is what llama.cpp allocates and touches:

process   the Python process, the library, the HTTP server, threads
weights   the tensors' data: the file is mapped and every page in use is read
repack    a second copy of the tensors whose type the CPU code rearranges
kv_cache  2 x layers x KV heads x head size x 2 bytes (f16) x tokens
compute   what a batch touches: activations, the attention mask, inputs converted for the products; logits and
          the sampler's candidates of every slot
vocabulary  the tokenizer's tables
request   the prompt itself, as JSON and as token lists

Source of the rules: llama.cpp (llama-kv-cache*.cpp, ggml-cpu/repack.cpp), with
xllamacpp 2026.10.11549 on Linux x86-64. The constants are of its data
structures, measured with made-up models (a one-layer model for the process,
vocabularies of 1,000 to 250,000 tokens); none is fitted to a real model.
GPUs, mixtures of experts and state-space models are not covered.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil
from types import MappingProxyType

from lib.errors import ModelDamaged
from lib.gguf.header import ArrayField, Header, Tensor, Value, tensor_size_bytes

MIB = 2**20
PROCESS_BYTES = int(32.5 * MIB)
# A token: text and score (40 B), the text that it prints (32), a node and a bucket of the map from text to id (72 to
# 80), and what the loader's own copy leaves in the allocator (about 75). A merge: a node with two strings and a bucket
# (104 to 112), and the same again left by the loader.
TOKEN_BYTES = 225
MERGE_BYTES = 205
# A KV cell's bookkeeping (position, shift, set of 256 sequences: 48 B; two tree nodes once used: 96 B), and the prompt
# as JSON, as the task's and as the slot's tokens.
REQUEST_TOKEN_BYTES = 300
# A layer's graph nodes (31 of 400 B, in each of the graphs kept), their hash sets, and its table of tensors.
LAYER_BYTES = 80 * 1024
# A row of logits (4 B), and the sampler's candidates: id, logit and probability (12 B). One each for every slot.
OUTPUT_BYTES = 16
# Far above any model; a damaged count must not become a list of so many layers.
MOST_LAYERS = 4096
BATCH_TOKENS = 512
F16_BYTES = 2
F32_BYTES = 4
KV_PADDING = 256

# The types that ggml-cpu rearranges, and the groups in which their rows must come (repack.cpp; the x86 wheel is
# compiled for AVX2, so the Q2_K layout of AVX-512 is not in it).
REPACKED: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "x86": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8},
        "arm": {"Q4_0": 4, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8},
    }
)
# Bytes an activation takes once converted for a product with weights of a type (vec_dot_type in ggml-cpu.c).
CONVERTED: Mapping[str, float] = MappingProxyType(
    {"F32": 0, "F16": 2, "BF16": 2}
    | dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4"), 34 / 32)
    | dict.fromkeys(("Q4_1", "Q5_1"), 36 / 32)
)
CONVERTED_K = 292 / 256
# One layer in so many attends to the whole context; the others to a window (llama.cpp, models/*.cpp).
WINDOW_PATTERNS: Mapping[str, int] = MappingProxyType(
    {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2}
)


@dataclass(frozen=True)
class Term:
    """One term of an estimate: its id, its bytes, and the sum it comes from."""

    id: str
    size_bytes: int
    formula: str


@dataclass(frozen=True)
class Estimate:
    """The terms of an estimate."""

    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        """The sum of the terms."""
        return sum(term.size_bytes for term in self.terms)


@dataclass(frozen=True)
class Shape:
    """What an estimate needs of a decoder. Lengths in numbers, not bytes."""

    layers: int
    embedding_length: int
    feed_forward_length: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    vocabulary: int
    merges: int
    window_tokens: int = 0
    window_pattern: int = 0


def estimate(header: Header, context_tokens: int, slots: int = 1) -> Estimate:
    """The memory for a file, from its own tensors and metadata; raises ModelDamaged without a decoder's shape."""
    return _estimate(shape_of(header), header.tensors, context_tokens, slots)


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
    """The memory for a published configuration, its tensors taken to be those of a llama of that shape."""
    shape = Shape(
        layers,
        embedding_length,
        feed_forward_length,
        (kv_heads,) * layers,
        head_size,
        head_size,
        vocabulary,
        vocabulary,
        sliding_window_tokens or 0,
        sliding_window_pattern or 0,
    )
    return _estimate(shape, nominal_tensors(shape, heads, tied, quantization), context_tokens, slots)


def shape_of(header: Header) -> Shape:
    """The decoder's shape in a header's metadata; raises ModelDamaged when a needed number is missing."""
    known = header.metadata
    family = str(known.get("general.architecture", ""))

    def number(name: str, default: int | None = None) -> int:
        value = known.get(f"{family}.{name}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelDamaged(path=str(header.path), why=f"it has no usable {family or 'architecture'}.{name}")
        return value

    layers, width, heads = number("block_count"), number("embedding_length"), _heads(known, family, "head_count")
    if layers > MOST_LAYERS:
        raise ModelDamaged(path=str(header.path), why=f"it claims {layers} layers")
    if not layers or not width or not max(heads, default=0):
        raise ModelDamaged(path=str(header.path), why="it describes a model without layers")
    head_size = width // max(heads)
    kv_heads = _heads(known, family, "head_count_kv") or heads
    window = number("attention.sliding_window", 0) if family in WINDOW_PATTERNS else 0
    return Shape(
        layers,
        width,
        max(_many(known, f"{family}.feed_forward_length"), default=0),
        kv_heads if len(kv_heads) == layers else (max(kv_heads),) * layers,
        number("attention.key_length", head_size),
        number("attention.value_length", head_size),
        _length(known, "tokenizer.ggml.tokens"),
        _length(known, "tokenizer.ggml.merges"),
        window,
        WINDOW_PATTERNS.get(family, 0) if window else 0,
    )


def nominal_tensors(shape: Shape, heads: int, tied: bool, quantization: str) -> tuple[Tensor, ...]:
    """The tensors that a llama of a shape has in a quantization."""
    width, wide = shape.embedding_length, heads * shape.key_length
    keys = shape.kv_heads[0] * shape.key_length
    forward = shape.feed_forward_length
    layer = (
        *(("attn_q", width, wide), ("attn_k", width, keys), ("attn_v", width, keys), ("attn_output", wide, width)),
        *(("ffn_gate", width, forward), ("ffn_up", width, forward), ("ffn_down", forward, width)),
    )
    tables = ("token_embd",) if tied else ("token_embd", "output")
    found = [_nominal(f"{name}.weight", width, shape.vocabulary, quantization, index=0) for name in tables]
    for index in range(shape.layers):
        for name, columns, rows in layer:
            # llama.cpp's mixes give half of the layers' value and down projections a finer type.
            found.append(_nominal(f"blk.{index}.{name}.weight", columns, rows, quantization, index))
    ends = list(accumulate(tensor.size_bytes for tensor in found))
    return tuple(replace(tensor, offset=end - tensor.size_bytes) for tensor, end in zip(found, ends, strict=True))


def _estimate(shape: Shape, tensors: Sequence[Tensor], context_tokens: int, slots: int) -> Estimate:
    tokens = _padded(context_tokens)
    repacked = [tensor for tensor in _multiplied(tensors) if _is_repacked(tensor)]
    mapped = _mapped_bytes(tensors, repacked)
    vocabulary = shape.vocabulary * TOKEN_BYTES + shape.merges * MERGE_BYTES
    return Estimate(
        (
            Term("weights", mapped, f"Σ {len(tensors)}"),
            Term("kv_cache", *_kv_cache(shape, tokens, slots)),
            Term("compute", *_compute(shape, tensors, tokens, slots)),
            Term("repack", sum(tensor.size_bytes for tensor in repacked), f"Σ {len(repacked)}"),
            Term(
                "vocabulary",
                vocabulary,
                f"{shape.vocabulary} × {TOKEN_BYTES} B + {shape.merges} × {MERGE_BYTES} B",
            ),
            Term("process", PROCESS_BYTES, f"{PROCESS_BYTES / MIB:.1f} MiB"),
            Term(
                "request",
                REQUEST_TOKEN_BYTES * context_tokens * slots,
                f"{context_tokens * slots} × {REQUEST_TOKEN_BYTES} B",
            ),
        )
    )


def _compute(shape: Shape, tensors: Sequence[Tensor], tokens: int, slots: int) -> tuple[int, str]:
    """Bytes that a batch touches, and their sum.

    The graph's buffer has two more places as wide as the embedding, which are reserved and never written: the input
    for ready-made embeddings, and one that only the graph with an output for every token needs.
    """
    places = 3 * shape.embedding_length + 3 * shape.feed_forward_length
    rows = tokens + (_window(shape, tokens) if shape.window_tokens else 0)
    inputs = [
        tensor.shape[0] * CONVERTED.get(tensor.type, CONVERTED_K)
        for tensor in tensors
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.")
    ]
    converted = int(BATCH_TOKENS * max(inputs, default=0))
    size = BATCH_TOKENS * (F32_BYTES * places + F16_BYTES * rows) + converted
    size += slots * shape.vocabulary * OUTPUT_BYTES + shape.layers * LAYER_BYTES
    return size, (
        f"{BATCH_TOKENS} × 4 B × 3 × ({shape.embedding_length} + {shape.feed_forward_length})"
        f" + {BATCH_TOKENS} × 2 B × {rows} + {converted} B"
        f" + {slots} × {shape.vocabulary} × {OUTPUT_BYTES} B + {shape.layers} × {LAYER_BYTES} B"
    )


def _kv_cache(shape: Shape, tokens: int, slots: int) -> tuple[int, str]:
    """Bytes of the KV cache and their sum. Layers with a sliding window keep the window and one batch."""
    each = F16_BYTES * (shape.key_length + shape.value_length)
    total, parts = 0, []
    for kept, heads in _kept_heads(shape, tokens):
        if heads:
            total += each * heads * kept * slots
            parts.append(_kv_sum(shape, heads, kept))
    return total, " + ".join(parts) + (f", × {slots}" if slots > 1 else "")


def _kv_sum(shape: Shape, heads: int, kept: int) -> str:
    """2 × layers × KV heads × head size × 2 B × tokens, as the lesson writes it."""
    each = max(shape.kv_heads)
    if shape.key_length == shape.value_length and heads % each == 0:
        return f"2 × {heads // each} × {each} × {shape.key_length} × 2 B × {kept}"
    return f"{heads} × ({shape.key_length} + {shape.value_length}) × 2 B × {kept}"


def _kept_heads(shape: Shape, tokens: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(tokens kept, KV heads of all layers that keep so many): whole context, and window."""
    if not shape.window_pattern:
        return (tokens, sum(shape.kv_heads)), (0, 0)
    whole = sum(
        heads for layer, heads in enumerate(shape.kv_heads) if layer % shape.window_pattern == shape.window_pattern - 1
    )
    return (tokens, whole), (_window(shape, tokens), sum(shape.kv_heads) - whole)


def _window(shape: Shape, tokens: int) -> int:
    return min(tokens, _padded(shape.window_tokens + BATCH_TOKENS))


def _padded(tokens: int) -> int:
    return ceil(tokens / KV_PADDING) * KV_PADDING


def _multiplied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The matrices that are multiplied: a token table only where it is the output layer too."""
    untied = any(tensor.name == "output.weight" for tensor in tensors)
    return [tensor for tensor in tensors if len(tensor.shape) == 2 and not (untied and "token_embd" in tensor.name)]


def _mapped_bytes(tensors: Sequence[Tensor], repacked: Sequence[Tensor]) -> int:
    """The part of the file that stays mapped: from the first to the last tensor that is used in place.

    llama.cpp unmaps what lies before and after; a repacked tensor in between stays resident beside its copy.
    """
    copied = {tensor.name for tensor in repacked if tensor.name != "token_embd.weight"}
    kept = [tensor for tensor in tensors if tensor.name not in copied]
    return max(one.offset + one.size_bytes for one in kept) - min(one.offset for one in kept) if kept else 0


def _is_repacked(tensor: Tensor) -> bool:
    family = "arm" if platform.machine().lower() in ("arm64", "aarch64") else "x86"
    group = REPACKED[family].get(tensor.type)
    return group is not None and tensor.shape[1] % group == 0


def _nominal(name: str, columns: int, rows: int, quantization: str, index: int) -> Tensor:
    kind = _nominal_type(name, columns, quantization, index)
    return Tensor(name, (columns, rows), kind, 0, tensor_size_bytes((columns, rows), kind))


def _nominal_type(name: str, columns: int, quantization: str, index: int) -> str:
    """The type that llama.cpp's quantizer would choose; where a row is no multiple of 256 it falls back."""
    main = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}.get(quantization, quantization)
    if quantization.endswith("_K_M") and index % 2 == 0 and ("attn_v" in name or "ffn_down" in name):
        main = "Q6_K"
    if name in ("output.weight", "token_embd.weight") and main not in ("F16", "F32", "Q8_0"):
        main = "Q6_K"
    fallback = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    if main in fallback and columns % 256:
        main = fallback[main]
    return main if columns % 32 == 0 else "F16"


def _heads(known: Mapping[str, Value], family: str, name: str) -> tuple[int, ...]:
    return _many(known, f"{family}.attention.{name}")


def _many(known: Mapping[str, Value], key: str) -> tuple[int, ...]:
    """A number, or one for each layer."""
    value = known.get(key)
    if isinstance(value, ArrayField):
        return tuple(int(one) for one in value.values or ())
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else ()


def _length(known: Mapping[str, Value], key: str) -> int:
    value = known.get(key)
    return value.length if isinstance(value, ArrayField) else 0
