"""The yardstick of lab 3: the original's weights in float32, a text of 256 tokens, and two prompts.

The directory that holds them is made once for a model: the tokens, the prompts
in the model's own chat template, and torch's float32 logits of the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.convert.directory import check_directory
from lib.convert.kept import Converted, Making, Recipe, convert, expect
from lib.course.result import Progress
from lib.gguf.header import read_header
from lib.gguf.made import ensure_source
from lib.gguf.quality import TEXT
from lib.models.memory import shape_of

if TYPE_CHECKING:
    from lib.workbench import Workbench

POSITIONS = 256
PROMPTS = ("What is the capital of France?", "Explain in a few sentences why the sky is blue.")
TOKENS = 32


@dataclass(frozen=True)
class Reference:
    """What every form is compared with. ``prompts`` are tokens; ``ends`` are the tokens that end an answer."""

    model: str
    source: Path
    hf: Converted
    folder: Path
    digest: str
    tokens: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    first_words: tuple[tuple[str, str, float], ...]
    """For each prompt the two tokens with which the answer would best begin, and the gap of their logits."""

    @property
    def logits(self) -> Path:
        """torch's float32 logits after each token, (n_tokens, n_vocab)."""
        return self.folder / "logits.npy"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that decodes what a form writes."""
        return self.hf.path / "tokenizer.json"


def ensure_hf(workbench: Workbench, model: str) -> Generator[Progress, None, Converted]:
    """The model as a Hugging Face directory in float32, made from its GGUF file unless it is here."""
    source = yield from ensure_source(workbench, model)
    header = read_header(source)
    weights = sum(one.weights for one in header.tensors)

    def make(out: Path) -> Making:
        request = {"op": "from_gguf", "gguf": str(source), "out": str(out)}
        return (yield from workbench.toolchains.call("optimum", "hugging_face", request))

    # While it is saved, the copy of the whole GGUF file stands there as well.
    need = 4 * weights + header.size_bytes
    recipe = Recipe("hf", "optimum", "hugging_face", {}, need, make, lambda out: _verify_hf(out, weights))
    return (yield from convert(workbench, model, source, recipe))


def ensure_reference(workbench: Workbench, model: str) -> Generator[Progress, None, Reference]:
    """The yardstick of a model, measured unless it is here."""
    hf = yield from ensure_hf(workbench, model)
    source = workbench.models.path(model)
    text = TEXT.read_text(encoding="utf-8")
    inputs = {"text": hashlib.sha256(text.encode()).hexdigest(), "prompts": PROMPTS, "tokens": POSITIONS}

    def make(out: Path) -> Making:
        request = {"op": "reference", "folder": str(hf.path), "text": text, "prompts": PROMPTS, "most": POSITIONS}
        answer = yield from workbench.toolchains.call(
            "optimum", "hugging_face", {**request, "out": str(out / "logits.npy")}
        )
        (out / "reference.json").write_text(json.dumps(answer), encoding="utf-8")
        return {}

    width = shape_of(read_header(source)).vocabulary
    need = 4 * POSITIONS * width
    recipe = Recipe(
        "reference",
        "optimum",
        "hugging_face",
        _inputs(hf, inputs),
        need,
        make,
        lambda out: expect(out / "logits.npy", need),
    )
    made = yield from convert(workbench, model, source, recipe)
    raw: dict[str, Any] = json.loads((made.path / "reference.json").read_text(encoding="utf-8"))
    return Reference(
        model=model,
        source=source,
        hf=hf,
        folder=made.path,
        digest=digest_of(made),
        tokens=tuple(raw["tokens"]),
        prompts=tuple(tuple(one) for one in raw["prompts"]),
        ends=tuple(raw["ends"]),
        first_words=tuple((*one["words"], one["margin"]) for one in raw["first_words"]),
    )


def digest_of(made: Converted) -> str:
    """Sixteen digits that name what went into a conversion, for what is made of it in turn."""
    return hashlib.sha256(json.dumps(made.key, sort_keys=True).encode()).hexdigest()[:16]


def _inputs(hf: Converted, more: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({"hf": digest_of(hf), **more}))  # type: ignore[no-any-return]


def _verify_hf(out: Path, weights: int) -> None:
    found = check_directory(out)
    if found.parameters < weights:
        expect(out / f"{weights - found.parameters} missing weights")
