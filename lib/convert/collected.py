"""The forms that the last step puts side by side: those that are here, and those that are quickly made."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING

from lib.convert.builders import ensure_genai, ensure_mlx, ensure_olive, ensure_openvino
from lib.convert.forms import FORMS, Form, Place, place_of_directory, place_of_file
from lib.convert.kept import MANIFEST, made_before, place_of
from lib.convert.measured import Building
from lib.convert.onnx import ensure_int8, ensure_onnx
from lib.convert.reference import Reference
from lib.course.result import Progress
from lib.gguf.made import ensure_format

if TYPE_CHECKING:
    from lib.workbench import Workbench

CONTEXT_TOKENS = 2048
# Made in seconds, once their toolchain is here; nobody who has not asked for one waits for it to be built.
_QUICK = ("openvino-f16", "openvino-q8_0", "genai-int4", "mlx-4bit")
_ALWAYS = ("source", "gguf-f16", "hf")


def collect(workbench: Workbench, reference: Reference) -> tuple[dict[str, Building], list[Form]]:
    """How to get at every form that is here or quickly made, and the forms that are left out."""
    ready = {one.name for one in workbench.toolchains.states() if one.ready}
    here = [
        form
        for form in FORMS.values()
        if form.id in _ALWAYS
        or made_before(workbench, reference.model, form.id)
        or (form.id in _QUICK and form.toolchain in ready)
        or (form.id == "onnx-int8" and made_before(workbench, reference.model, "onnx"))
    ]
    optional = ("genai-int8",)
    left_out = [form for form in FORMS.values() if form not in here and form.id not in optional]
    return {form.id: _building(workbench, reference, form.id) for form in here}, left_out


def _building(workbench: Workbench, reference: Reference, form: str) -> Building:
    name, _, variant = form.partition("-")
    makers: dict[str, Callable[[], Building]] = {
        "source": lambda: _source(reference),
        "gguf": lambda: _f16(workbench, reference),
        "hf": lambda: _hf(reference),
        "onnx": lambda: _onnx(workbench, reference, variant),
        "genai": lambda: ensure_genai(workbench, reference, variant, _context(workbench, reference, form)),
        "olive": lambda: ensure_olive(workbench, reference),
        "openvino": lambda: ensure_openvino(workbench, reference, variant.upper()),
        "mlx": lambda: ensure_mlx(workbench, reference),
    }
    return makers[name]()


def _source(reference: Reference) -> Building:
    yield Progress(1, 1, "find_form", "source")
    return place_of_file("source", reference.source)


def _f16(workbench: Workbench, reference: Reference) -> Building:
    return place_of_file("gguf-f16", (yield from ensure_format(workbench, reference.model, "F16")))


def _hf(reference: Reference) -> Building:
    yield Progress(1, 1, "find_form", "hf")
    return place_of_directory(reference.hf)


def _onnx(workbench: Workbench, reference: Reference, variant: str) -> Generator[Progress, None, Place]:
    onnx = yield from ensure_onnx(workbench, reference)
    if not variant:
        return place_of_directory(onnx)
    return place_of_directory((yield from ensure_int8(workbench, reference, onnx)))


def _context(workbench: Workbench, reference: Reference, form: str) -> int:
    """The context that the learner built it with."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((place_of(workbench, reference.model, form) / MANIFEST).read_text(encoding="utf-8"))
        return int(manifest["key"]["inputs"]["context_tokens"])
    return CONTEXT_TOKENS
