"""Every form of the model in this lab: what makes it, what runs it, and how the same questions are put to it."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.convert.kept import Converted, place_of, size_of
from lib.convert.llama import answers_of_llama
from lib.convert.parity import Parity, parity
from lib.convert.reference import TOKENS, Reference, digest_of
from lib.course.result import Progress
from lib.files import stamp
from lib.gguf.logits import logits_of
from lib.scratch import scratch

if TYPE_CHECKING:
    from lib.workbench import Workbench

ROUNDS = 3
# A slow runtime is not asked again after this long: a learner waits for a dozen of them.
ROUNDS_S = 12.0


@dataclass(frozen=True)
class Form:
    """One form. ``step`` makes it; ``file`` is what its runtime opens, below the form's directory."""

    id: str
    step: str
    toolchain: str
    child: str
    asked: str
    file: str = ""


@dataclass(frozen=True)
class Place:
    """Where a form of a model is, and what it was made of."""

    form: Form
    path: Path
    size_bytes: int
    digest: str
    context_tokens: int | None = None


@dataclass(frozen=True)
class Answers:
    """What a form answered, greedily, and how fast: the median of the rounds with the slowest and the fastest.

    ``load_s`` counts from the start of the process, ``peak_bytes`` is the process's peak, libraries included.
    """

    load_s: float
    ttft_s: float
    tokens_per_s: float | None
    low_tokens_per_s: float | None
    high_tokens_per_s: float | None
    rounds: int
    peak_bytes: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """The figures of a parity, without its positions."""

    max_abs_difference: float
    top1_agreement_percent: float
    agreeing: int
    kld: float


_ALL = (
    Form("source", "to_hf", "here", "llama", "gguf"),
    Form("gguf-f16", "to_gguf", "here", "llama", "gguf"),
    Form("hf", "to_hf", "optimum", "hugging_face", "folder"),
    Form("onnx", "to_onnx", "optimum", "onnx_run", "path", "model.onnx"),
    Form("onnx-int8", "onnx_runtime", "optimum", "onnx_run", "path", "model.onnx"),
    Form("genai-int4", "genai", "transformers5", "genai", "folder"),
    Form("genai-int8", "genai", "transformers5", "genai", "folder"),
    Form("genai-fp32", "genai", "transformers5", "genai", "folder"),
    Form("olive-int8", "stacks", "transformers5", "onnx_run", "path", "model.onnx"),
    Form("openvino-f16", "stacks", "openvino", "openvino_run", "gguf"),
    Form("openvino-q8_0", "stacks", "openvino", "openvino_run", "gguf"),
    Form("mlx-4bit", "stacks", "mlx", "mlx_run", "folder"),
)
FORMS: Mapping[str, Form] = {one.id: one for one in _ALL}


def place_of_directory(made: Converted, context_tokens: int | None = None) -> Place:
    """The place of a form that a conversion made."""
    return Place(FORMS[made.kind], made.path, made.size_bytes, digest_of(made), context_tokens)


def place_of_file(form: str, path: Path) -> Place:
    """The place of a form that is a GGUF file."""
    return Place(FORMS[form], path, path.stat().st_size, json.dumps(stamp(path)))


def ask(workbench: Workbench, reference: Reference, place: Place) -> Generator[Progress, None, Answers]:
    """Put the prompts to a form in a fresh process; raises EngineError and ToolchainError kinds."""
    if place.form.child == "llama":
        raw = yield from answers_of_llama(workbench, place.path, ROUNDS, ROUNDS_S)
    else:
        request = {
            "op": "answer",
            "name": place.form.id,
            "prompts": reference.prompts,
            "ends": reference.ends,
            "tokens": TOKENS,
            "rounds": ROUNDS,
            "seconds": ROUNDS_S,
            "tokenizer": str(reference.tokenizer),
            **_opened(place),
        }
        raw = yield from workbench.toolchains.call(place.form.toolchain, place.form.child, request)
    return Answers(
        **{name: raw[name] for name in Answers.__annotations__ if name != "texts"}, texts=tuple(raw["texts"])
    )


def agree(workbench: Workbench, reference: Reference, place: Place) -> Generator[Progress, None, Agreement]:
    """How far a form is from the reference; measured once for the very files that are compared."""
    if place.form.id == "hf":
        # The yardstick is this directory, in this runtime.
        return Agreement(0.0, 100.0, len(reference.tokens), 0.0)
    kept = place_of(workbench, reference.model, "parity") / f"{place.form.id}.json"
    key = [reference.digest, place.digest]
    with suppress(OSError, ValueError, KeyError, TypeError):
        raw = json.loads(kept.read_text(encoding="utf-8"))
        if raw.pop("key") == key:
            return Agreement(**raw)
    found = yield from compare(workbench, reference, place)
    figures = Agreement(found.max_abs_difference, found.top1_agreement_percent, found.agreeing, found.kld)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"key": key, **asdict(figures)}), encoding="utf-8")
    part.replace(kept)
    return figures


def compare(workbench: Workbench, reference: Reference, place: Place) -> Generator[Progress, None, Parity]:
    """A form's logits for the text, compared position by position."""
    yield Progress(0, 1, "compare_logits", place.form.id)
    with scratch(workbench.settings.home) as folder:
        out = folder / "logits.npy"
        if place.form.child == "llama":
            yield from logits_of(workbench, place.path, reference.tokens, out)
        else:
            more = {"tokens": reference.tokens, "out": str(out), "work": str(folder)}
            request = {"op": "logits", **more, **_opened(place)}
            yield from workbench.toolchains.call(place.form.toolchain, place.form.child, request)
        return parity(reference.logits, out)


def folder_bytes(place: Path) -> int:
    """Bytes of a form that is a file or a directory."""
    return place.stat().st_size if place.is_file() else size_of(place)


def _opened(place: Place) -> dict[str, Any]:
    path = place.path / place.form.file if place.form.file else place.path
    context = {} if place.context_tokens is None else {"context_tokens": place.context_tokens}
    return {place.form.asked: str(path), **context}
