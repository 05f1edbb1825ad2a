"""The catalog's shape and its arithmetic."""

from __future__ import annotations

import pytest

from lib.models.catalog import Model, load_catalog

MODELS = list(load_catalog().values())
TASKS = {
    "chat",
    "routing",
    "extraction",
    "summarization",
    "reasoning",
    "coding",
    "tool-use",
    "translation",
    "vision",
    "embedding",
}


def test_the_catalog_names_the_families_of_the_course() -> None:
    names = " ".join(load_catalog())
    for part in (
        "phi-4",
        "phi-3.5",
        "qwen2.5-0.5b",
        "qwen3-",
        "gemma-3",
        "llama-3.2",
        "mistral-7b",
        "smollm2",
        "tinyllama",
        "bitnet",
        "moondream",
        "nomic",
        "minilm",
        "deepseek-r1",
        "codellama",
    ):
        assert part in names, part


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_every_fact_has_a_source_and_a_sane_value(model: Model) -> None:
    assert model.sources.get("parameters")
    assert set(model.tasks) <= TASKS and model.tasks
    assert all(len(code) == 2 or code == "multilingual" for code in model.languages)
    if model.has_shape:
        assert model.sources.get("architecture")
        assert model.heads and model.kv_heads and model.heads % model.kv_heads == 0
        assert model.context_tokens and model.context_tokens >= 256


@pytest.mark.parametrize(
    "model", [one for one in MODELS if one.has_shape and one.kind in ("text", "code")], ids=lambda model: model.id
)
def test_the_parameters_follow_from_the_shape(model: Model) -> None:
    """A decoder's weights, summed from its published shape, are its published parameter count within 3 %."""
    assert model.embedding_length and model.heads and model.kv_heads and model.head_size
    assert model.layers and model.feed_forward_length and model.vocabulary
    width, head = model.embedding_length, model.head_size
    attention = 2 * width * model.heads * head + 2 * width * model.kv_heads * head
    layer = attention + 3 * width * model.feed_forward_length
    tables = model.vocabulary * width * (1 if model.tied_embeddings else 2)
    assert model.layers * layer + tables == pytest.approx(model.parameters, rel=0.03)


def test_size_classes_are_the_course_materials() -> None:
    by_id = load_catalog()
    assert by_id["smollm2-135m-instruct"].size_class == "micro"
    assert by_id["qwen2.5-1.5b-instruct"].size_class == "small"
    assert by_id["phi-4"].size_class == "medium"
