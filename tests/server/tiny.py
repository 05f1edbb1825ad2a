"""Small language models: of random weights, quantized and scored in a second; or whole in form only."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

VOCABULARY = 320
BYTES = range(256)
CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "model_type": "llama"}


def write_tiny(
    path: Path, layers: int = 2, width: int = 256, architecture: str = "llama", scale: float = 0.05, seed: int = 7
) -> Path:
    """A llama in F16 whose tokens are bytes and a few words; ``width`` is the length of most rows."""
    random, forward, heads, kv_heads = np.random.default_rng(seed), 2 * width, 4, 2
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(2048)
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(VOCABULARY)
    _add_tokens(writer)

    def matrix(name: str, rows: int, length: int) -> None:
        writer.add_tensor(name, (random.standard_normal((rows, length), dtype=np.float32) * scale).astype(np.float16))

    matrix("token_embd.weight", VOCABULARY, width)
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(width, np.float32))
        matrix(f"blk.{layer}.attn_q.weight", width, width)
        matrix(f"blk.{layer}.attn_k.weight", width // heads * kv_heads, width)
        matrix(f"blk.{layer}.attn_v.weight", width // heads * kv_heads, width)
        matrix(f"blk.{layer}.attn_output.weight", width, width)
        matrix(f"blk.{layer}.ffn_gate.weight", forward, width)
        matrix(f"blk.{layer}.ffn_up.weight", forward, width)
        matrix(f"blk.{layer}.ffn_down.weight", width, forward)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    matrix("output.weight", VOCABULARY, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokens(writer: GGUFWriter) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in BYTES)]
    words = [f"t{number}" for number in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokens, *words])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3, *[6] * len(BYTES), *[1] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_tiny_directory(path: Path) -> Path:
    """A Hugging Face directory that has all its parts and one tensor; nobody could run it."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors())
    return path


def safetensors(header: object | None = None, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A file with one tensor of four numbers, or with whatever is given in its place."""
    if header is None:
        header = {"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
