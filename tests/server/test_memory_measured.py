"""The estimate against the engine's real peak, on files and shapes that it was not made from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from lib.bench.filling import Filled, measure_filled
from lib.workbench import Workbench

FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_1": 9}
CELLS = [("Q4_1", 512), ("Q4_1", 8192), ("Q4_0", 1024), ("Q4_0", 4096), ("F16", 2048), ("Q8_0", 3000), ("Q5_1", 6144)]


@pytest.fixture(scope="module")
def formats(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default model in other formats, written by the gguf package."""
    folder = tmp_path_factory.mktemp("formats")
    reader = GGUFReader(default_model)
    weights = [
        (one.name, one.data if one.tensor_type == GGMLQuantizationType.F32 else dequantize(one.data, one.tensor_type))
        for one in reader.tensors
    ]
    for name in FILE_TYPES:
        _write(folder / f"smollm2-{name.lower()}.gguf", reader, weights, name)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("format", "context"), CELLS)
def test_the_estimate_is_within_five_per_cent_and_never_three_too_low(
    format: str, context: int, formats: Path, workbench: Workbench
) -> None:
    model = "smollm2-135m-instruct"
    if format != "Q4_1":
        model = f"smollm2-{format.lower()}"
        own = workbench.settings.models_dir / "own"
        own.mkdir(exist_ok=True)
        (own / f"{model}.gguf").symlink_to(formats / f"{model}.gguf")
    _assert_close(_measure(workbench, model, context))


@pytest.mark.parametrize("context", [512, 4096])
def test_a_model_of_another_shape_is_estimated_as_well(context: int, tmp_path: Path, workbench: Workbench) -> None:
    """Random weights: other width, untied output that is repacked, more KV heads, another vocabulary."""
    own = workbench.settings.models_dir / "own"
    own.mkdir(exist_ok=True)
    _write_random(own / "random.gguf")
    _assert_close(_measure(workbench, "random", context))


def _measure(workbench: Workbench, model: str, context: int) -> Filled:
    *_, filled = measure_filled(workbench, model, context)
    assert isinstance(filled, Filled)
    assert filled.filled_tokens >= context - 64, "the context must really be full"
    return filled


def _assert_close(filled: Filled) -> None:
    print(f"{filled.context_tokens} tokens: {filled.peak_bytes / 2**20:.1f} MiB, {filled.error_percent:+.2f} %")
    assert -3 <= filled.error_percent <= 5, filled


def _write(path: Path, reader: GGUFReader, weights: list[tuple[str, np.ndarray]], name: str) -> None:
    writer = GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    writer.add_file_type(FILE_TYPES[name])
    wanted = GGMLQuantizationType[name]
    for tensor, data in weights:
        if data.ndim == 1:
            writer.add_tensor(tensor, np.array(data, dtype=np.float32))
        elif wanted == GGMLQuantizationType.F16:
            writer.add_tensor(tensor, data.astype(np.float16))
        else:
            writer.add_tensor(tensor, quantize(data.astype(np.float32), wanted), raw_dtype=wanted)
    _finish(writer)


def _write_random(path: Path) -> None:
    layers, width, forward, heads, kv_heads, vocabulary = 8, 768, 2048, 12, 4, 24_000
    random = np.random.default_rng(7)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocabulary)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{number}" for number in range(vocabulary - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (vocabulary - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    head = width // heads
    shapes = {
        "attn_q": (width, width), "attn_k": (kv_heads * head, width), "attn_v": (kv_heads * head, width),
        "attn_output": (width, width), "ffn_gate": (forward, width), "ffn_up": (forward, width),
        "ffn_down": (width, forward),
    }  # fmt: skip

    def matrix(name: str, shape: tuple[int, int]) -> None:
        data = random.standard_normal(shape, dtype=np.float32) * 0.02
        writer.add_tensor(name, quantize(data, GGMLQuantizationType.Q4_0), raw_dtype=GGMLQuantizationType.Q4_0)

    matrix("token_embd.weight", (vocabulary, width))
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(width, np.float32))
        for name, shape in shapes.items():
            matrix(f"blk.{layer}.{name}.weight", shape)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    matrix("output.weight", (vocabulary, width))
    _finish(writer)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
