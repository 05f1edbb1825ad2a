"""The catalog's facts against the files themselves."""

from __future__ import annotations

from math import prod
from pathlib import Path

from lib.gguf.header import read_header
from lib.models.catalog import find_model


def test_the_default_models_facts_are_those_of_its_file(default_model: Path) -> None:
    model, header = find_model("smollm2-135m-instruct"), read_header(default_model)
    facts = header.metadata
    assert header.size_bytes == model.file[0].size_bytes
    assert facts["llama.block_count"] == model.layers
    assert facts["llama.embedding_length"] == model.embedding_length
    assert facts["llama.attention.head_count"] == model.heads
    assert facts["llama.attention.head_count_kv"] == model.kv_heads
    assert facts["llama.rope.dimension_count"] == model.head_size
    assert facts["llama.feed_forward_length"] == model.feed_forward_length
    assert facts["llama.vocab_size"] == model.vocabulary
    assert facts["llama.context_length"] == model.context_tokens
    assert facts["general.license"] == model.license
    assert sum(prod(tensor.shape) for tensor in header.tensors) == model.parameters
    assert any(tensor.name == "output.weight" for tensor in header.tensors) is not model.tied_embeddings
