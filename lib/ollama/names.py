"""Names of Ollama's library, ``registry/namespace/model:tag``, and what a tag tells of the file behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lib.errors import BadParameter
from lib.gguf.formats import FORMATS
from lib.models.catalog import Model, load_catalog

REGISTRY, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
# What Ollama takes for a part of a name (types/model/name.go).
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}\Z")
_SIZE = re.compile(r"(\d+x)?\d+(\.\d+)?[bm]\Z", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(q\d(_[a-z0-9]+)*|i?q\d_\w+|bf16|fp16|f16|fp32|f32)\Z", re.IGNORECASE)


@dataclass(frozen=True)
class LibraryName:
    """A name, taken apart; a tag's ``size``, ``quantization`` and ``variant`` are empty where it tells nothing."""

    registry: str
    namespace: str
    model: str
    tag: str
    size: str
    variant: str
    quantization: str

    @property
    def full(self) -> str:
        """The name with nothing left out."""
        return f"{self.registry}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The name as people write it, its tag always named."""
        before = "" if self.registry == REGISTRY else f"{self.registry}/"
        before += "" if self.namespace == NAMESPACE and not before else f"{self.namespace}/"
        return f"{before}{self.model}:{self.tag}"


def take_apart(name: str) -> LibraryName:
    """The parts of a name; what is not said is Ollama's default. Raises BadParameter for what is no name."""
    text = name.strip().removeprefix("https://").removeprefix("http://").removeprefix("ollama.com/")
    path, _, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    parts = path.split("/") if "/" in text else []
    registry = parts[0] if len(parts) > 1 else REGISTRY
    namespace = parts[-1] if parts else NAMESPACE
    tag = tag if colon else TAG
    fine = len(parts) <= 2 and all(_PART.match(one) for one in (namespace, model, tag)) and _HOST.match(registry)
    if not fine:
        raise BadParameter(name="name", value=name, allowed="model:tag, namespace/model:tag")
    bits = tag.split("-")
    size = next((one for one in bits if _SIZE.match(one)), "")
    quantization = next((one for one in bits if _QUANTIZATION.match(one)), "")
    variant = "-".join(one for one in bits if one not in (size, quantization))
    return LibraryName(registry, namespace, model, tag, size, variant, quantization)


def known_model(name: LibraryName) -> Model | None:
    """The catalog's model behind a library name, whichever quantization the tag names."""
    if name.registry != REGISTRY or name.namespace != NAMESPACE:
        return None
    by_name = {one.ollama: one for one in load_catalog().values() if one.ollama}
    asked = f"{name.model}:{name.size}" if name.size else name.model
    if name.variant and name.variant != TAG:
        asked = f"{name.model}:{name.variant}" if not name.size else asked
    return by_name.get(name.short.removesuffix(f":{TAG}")) or by_name.get(asked)


def meant(name: LibraryName) -> str:
    """The library's name where people join model and tag differently, as in ``phi4:mini``; empty if none is known."""
    if known_model(name) is not None:
        return ""
    known = {one.ollama for one in load_catalog().values() if one.ollama}
    return next((one for one in (f"{name.model}-{name.tag}", f"{name.model}{name.tag}") if one in known), "")


def parameters_in(size: str) -> int:
    """What a size in a tag promises, ``8x7b`` too; 0 for none."""
    found = re.match(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])$", size.lower())
    return round(int(found[1] or 1) * float(found[2]) * {"b": 1e9, "m": 1e6}[found[3]]) if found else 0


def forecast_bytes(parameters: int, format: str) -> int:
    """About the size of a file: parameters times the bits of the format's own type.

    Real files are a little larger: some tensors get a finer type, and a header stands in front.
    """
    return round(parameters * FORMATS[format].block_bits / 8)
