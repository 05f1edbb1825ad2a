"""Back to GGUF with llama.cpp's converter, and the way there and back compared tensor by tensor."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lib.convert.directory import ARCHITECTURES, Directory, check_directory
from lib.convert.kept import Converted, Making, Recipe, convert
from lib.convert.reference import digest_of, ensure_hf
from lib.course.result import Progress
from lib.errors import ModelDamaged
from lib.files import stamp
from lib.gguf.header import read_header
from lib.gguf.made import ensure_format, sha256_of

if TYPE_CHECKING:
    from lib.workbench import Workbench

NAME = "model-F16.gguf"
_F16_BYTES = 2


@dataclass(frozen=True)
class RoundTrip:
    """The file that came back; ``table`` has a row for every kind of tensor.

    ``metadata`` names the entries of tokenizer and architecture that are not what they were. Of a
    learner's own directory there is no file to compare with: ``compared`` is False.
    """

    path: Path
    size_bytes: int
    sha256: str
    seconds: float
    table: pd.DataFrame
    metadata: tuple[str, ...]
    compared: bool
    reused: bool


def round_trip(workbench: Workbench, model: str) -> Generator[Progress, None, RoundTrip]:
    """Convert the model's Hugging Face directory to F16 and compare it with the F16 made from the original."""
    hf = yield from ensure_hf(workbench, model)
    original = yield from ensure_format(workbench, model, "F16")
    found = check_directory(hf.path)
    made = yield from _convert(workbench, model, found, workbench.models.path(model), {"hf": digest_of(hf)})
    request = {"op": "compare", "first": str(original), "second": str(made.path / NAME)}
    compared = yield from workbench.toolchains.call("transformers5", "hf_to_gguf", request)
    return _trip(made, compared, True)


def own_directory(workbench: Workbench, path: Path) -> Generator[Progress, None, RoundTrip]:
    """Convert a learner's directory, after it was found to be data only; raises UnsafeModel before anything runs."""
    found = check_directory(path)
    weights = max(path.glob("*.safetensors"), key=lambda one: one.stat().st_size)
    inputs = {"files": {one.name: stamp(one) for one in sorted(path.iterdir()) if one.is_file()}}
    own = f"own-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    made = yield from _convert(workbench, own, found, weights, inputs)
    request = {"op": "describe", "first": str(made.path / NAME)}
    described = yield from workbench.toolchains.call("transformers5", "hf_to_gguf", request)
    return _trip(made, described, False)


def _convert(
    workbench: Workbench, model: str, found: Directory, source: Path, inputs: dict[str, Any]
) -> Generator[Progress, None, Converted]:
    def make(out: Path) -> Making:
        request = {
            "op": "convert",
            "folder": str(found.path.resolve()),
            "out": str(out / NAME),
            "name": model,
            "tensors": found.tensors,
            "architecture": found.architecture,
            "architectures": ", ".join(ARCHITECTURES),
        }
        return (yield from workbench.toolchains.call("transformers5", "hf_to_gguf", request))

    need = found.parameters * _F16_BYTES + 32 * 2**20
    recipe = Recipe("gguf", "transformers5", "hf_to_gguf", inputs, need, make, lambda out: _verify(out / NAME, found))
    return (yield from convert(workbench, model, source, recipe))


def _verify(path: Path, found: Directory) -> None:
    weights = sum(one.weights for one in read_header(path).tensors)
    if weights < found.parameters:
        why = f"the converter wrote {weights} of {found.parameters} weights"
        raise ModelDamaged(path=str(path), why=why)


def _trip(made: Converted, answer: dict[str, Any], compared: bool) -> RoundTrip:
    path = made.path / NAME
    rows = pd.DataFrame(answer["tensors"])
    rows["tensor"] = [kind_of(name) for name in rows["name"]]
    grouped = rows.groupby("tensor", sort=False)
    table = pd.DataFrame(
        {
            "type": grouped["type"].agg(lambda types: ", ".join(sorted(set(types)))),
            "tensors": grouped.size(),
            "identical": grouped["identical"].sum() if compared else None,
            "max_weight_difference": grouped["max_abs_difference"].max() if compared else None,
            "size_bytes": grouped["size_bytes"].sum(),
        }
    ).reset_index()
    metadata = tuple(answer["metadata"]) + tuple(answer["only_second"])
    return RoundTrip(path, path.stat().st_size, sha256_of(path), made.seconds, table, metadata, compared, made.reused)


def kind_of(name: str) -> str:
    """A tensor's name without its layer: ``blk.3.attn_q.weight`` is ``attn_q``."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")
