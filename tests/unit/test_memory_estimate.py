"""The memory estimate's terms against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from lib.errors import ModelDamaged
from lib.gguf.header import ArrayField, Header, Tensor
from lib.models import memory
from lib.models.memory import Estimate, estimate, estimate_nominal

MIB = 2**20


def tensor(name: str, shape: tuple[int, ...], type: str, offset: int, size: int) -> Tensor:
    return Tensor(name, shape, type, offset, size)


SMOLLM2 = Header(
    Path("smollm2.gguf"),
    100 * MIB,
    MappingProxyType(
        {
            "general.architecture": "llama",
            "llama.block_count": 30,
            "llama.embedding_length": 576,
            "llama.feed_forward_length": 1536,
            "llama.attention.head_count": 9,
            "llama.attention.head_count_kv": 3,
            "llama.context_length": 8192,
            "tokenizer.ggml.tokens": ArrayField("string", 49152, 300_000),
            "tokenizer.ggml.merges": ArrayField("string", 48900, 300_000),
        }
    ),
    (
        tensor("token_embd.weight", (576, 49152), "Q8_0", 2 * MIB, 28 * MIB),
        tensor("blk.0.ffn_up.weight", (576, 1536), "Q4_0", 30 * MIB, 40 * MIB),
        tensor("output_norm.weight", (576,), "F32", 70 * MIB, 2304),
    ),
)


def term(found: Estimate, name: str) -> int:
    return next(one.size_bytes for one in found.terms if one.id == name)


@pytest.mark.parametrize(("context", "mib"), [(512, 11.25), (2048, 45), (8192, 180)])
def test_the_kv_cache_is_two_times_layers_heads_size_bytes_and_tokens(context: int, mib: float) -> None:
    """30 layers x 3 KV heads x 64 x 2 (key and value) x 2 bytes = 23,040 bytes a token."""
    assert term(estimate(SMOLLM2, context), "kv_cache") == mib * MIB == 23_040 * context


def test_slots_multiply_the_cache_and_nothing_of_the_weights() -> None:
    one, four = estimate(SMOLLM2, 1024), estimate(SMOLLM2, 1024, slots=4)
    assert term(four, "kv_cache") == 4 * term(one, "kv_cache")
    assert term(four, "weights") == term(one, "weights")


def test_a_context_is_rounded_up_to_whole_cells() -> None:
    assert term(estimate(SMOLLM2, 1000), "kv_cache") == term(estimate(SMOLLM2, 1024), "kv_cache")


def test_a_repacked_tensor_counts_twice_and_the_token_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "machine", lambda: "x86_64")
    assert term(estimate(SMOLLM2, 512), "repack") == 40 * MIB
    monkeypatch.setattr(memory.platform, "machine", lambda: "arm64")
    assert term(estimate(SMOLLM2, 512), "repack") == 68 * MIB, "ARM rearranges the tied Q8_0 table too"


def test_repacked_tensors_at_the_end_of_the_file_do_not_stay_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "machine", lambda: "x86_64")
    last = tensor("blk.1.ffn_up.weight", (576, 1536), "Q4_0", 71 * MIB, 20 * MIB)
    longer = replace(SMOLLM2, tensors=(*SMOLLM2.tensors, last))
    assert term(estimate(longer, 512), "weights") == term(estimate(SMOLLM2, 512), "weights")
    assert term(estimate(longer, 512), "repack") == 60 * MIB


def test_layers_with_a_sliding_window_keep_the_window_and_one_batch() -> None:
    """Gemma 3 270M at 4,096: 3 of 18 layers keep it all (12 MiB), 15 keep 512 + 512 tokens (15 MiB)."""
    gemma = estimate_nominal(
        layers=18, embedding_length=640, heads=4, kv_heads=1, head_size=256, feed_forward_length=2048, vocabulary=262144,
        tied=True, quantization="Q8_0", context_tokens=4096, sliding_window_tokens=512, sliding_window_pattern=6,
    )  # fmt: skip
    assert term(gemma, "kv_cache") == 27 * MIB


@pytest.mark.parametrize(("context", "reserved_mib"), [(512, 15.14), (4096, 18.64)])
def test_the_activations_of_smollm2_are_what_llama_cpp_reserves_and_touches(context: int, reserved_mib: float) -> None:
    """Its log says how much it reserves; the page map shows two places of 512 x 576 x 4 B that stay empty."""
    touched = reserved_mib * MIB - 2 * 512 * 576 * 4
    converted = 512 * 576 * 34 / 32  # the file's only matrix in a layer: Q4_0, its inputs become Q8_0
    others = converted + 49152 * memory.OUTPUT_BYTES + 30 * memory.LAYER_BYTES
    assert term(estimate(SMOLLM2, context), "compute") == pytest.approx(touched + others, rel=0.005)


def test_every_slot_has_its_own_logits_and_candidates() -> None:
    one, four = estimate(SMOLLM2, 1024), estimate(SMOLLM2, 1024, slots=4)
    assert term(four, "compute") - term(one, "compute") == 3 * 49152 * (4 + 12)


@pytest.mark.parametrize("missing", ["llama.block_count", "llama.embedding_length", "llama.attention.head_count"])
def test_a_file_without_a_decoders_shape_is_refused(missing: str) -> None:
    known = {key: value for key, value in SMOLLM2.metadata.items() if key != missing}
    with pytest.raises(ModelDamaged):
        estimate(replace(SMOLLM2, metadata=MappingProxyType(known)), 512)


@pytest.mark.parametrize("value", [-1, 0, "thirty", True, 2.5, 2**31])
def test_a_shape_that_is_no_count_is_refused(value: object) -> None:
    known = dict(SMOLLM2.metadata) | {"llama.block_count": value}
    with pytest.raises(ModelDamaged):
        estimate(replace(SMOLLM2, metadata=MappingProxyType(known)), 512)  # type: ignore[arg-type]


def test_more_context_never_needs_less_memory() -> None:
    totals = [estimate(SMOLLM2, context).total_bytes for context in (512, 1024, 2048, 4096, 8192)]
    assert totals == sorted(totals)
