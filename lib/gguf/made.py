"""GGUF files that the workbench makes from a model: planned, written, verified, kept with a manifest.

A format is always made from the model's F16, and that from the file the model came in. What was
made is found again by its manifest, so that the same format is never written twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock
from pydantic import TypeAdapter

from lib.course.result import Progress
from lib.errors import CannotWrite, ModelDamaged, QuantizerRefused
from lib.files import acquired, stamp
from lib.gguf.formats import FORMATS, REFERENCE
from lib.gguf.header import BLOCKS, Header, Tensor, read_header, tensor_size_bytes
from lib.models.fetch import check_space, place_error

if TYPE_CHECKING:
    from lib.workbench import Workbench

# A disk with less room than this is full.
FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Plan:
    """What a format would make of a model: every tensor with its new type, and the whole file's size."""

    format: str
    tensors: tuple[Tensor, ...]
    size_bytes: int
    fallbacks: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over the number of weights."""
        return bits_per_weight(self.tensors)


@dataclass(frozen=True)
class Made:
    """A GGUF file of a format, and what making it took. ``reused`` when it was here already."""

    path: Path
    format: str
    size_bytes: int
    sha256: str
    source_sha256: str
    seconds: float
    peak_bytes: int
    quantizer: str
    reused: bool = False


def bits_per_weight(tensors: Iterable[Tensor]) -> float:
    """Bits over weights of some tensors."""
    found = list(tensors)
    return sum(one.size_bytes for one in found) * 8 / sum(one.weights for one in found)


def ensure_source(workbench: Workbench, model: str) -> Generator[Progress, None, Path]:
    """The file that a model came in, fetched if need be; raises ModelError kinds."""
    if model not in {one.id for one in workbench.models.local()}:
        yield from workbench.models.fetch(model)
    return workbench.models.path(model)


def plan_formats(
    workbench: Workbench, model: str, formats: Iterable[str]
) -> Generator[Progress, None, Mapping[str, Plan]]:
    """Ask llama.cpp's own rules what each format makes of every tensor; nothing is written."""
    source = yield from ensure_source(workbench, model)
    header = read_header(source)
    wanted = {name: FORMATS[name].ftype for name in formats}
    request = {"op": "plan", "source": str(source), "formats": wanted, "threads": 1}
    answer = yield from workbench.toolchains.call("here", "quantizer", request)
    return {name: _planned(header, name, types) for name, types in answer["plans"].items()}


def ensure_format(workbench: Workbench, model: str, format: str) -> Generator[Progress, None, Path]:
    """The path of a model's GGUF in a format, made now unless it is here."""
    made = yield from make_format(workbench, model, format)
    return made.path


def make_format(workbench: Workbench, model: str, format: str) -> Generator[Progress, None, Made]:
    """Make a model's GGUF in a format unless it is here; two that ask at once make one.

    Raises ModelError kinds, QuantizerRefused, DiskFull, CannotWrite. Whatever happens, no file stands
    under the format's name that was not written to its end and read again.
    """
    target = workbench.models.made_path(model, format)
    source, sha256 = (yield from ensure_source(workbench, model)), None
    if format != REFERENCE:
        # F16 first: every format is then made from the same weights, and can be compared with them.
        reference = yield from make_format(workbench, model, REFERENCE)
        source, sha256 = reference.path, reference.source_sha256
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        yield from acquired(lock, Progress(0, 0, "shared_quantize", format))
        try:
            if (found := _kept(target, source)) is not None:
                return found
            return (yield from _make(workbench, source, target, format, sha256))
        finally:
            lock.release()
    except OSError as error:
        raise CannotWrite(path=target.parent, why=error.strerror or str(error)) from error


def _make(
    workbench: Workbench, source: Path, target: Path, format: str, source_sha256: str | None
) -> Generator[Progress, None, Made]:
    for abandoned in target.parent.glob(f"{format}.*.part"):
        abandoned.unlink()
    part = target.with_name(f"{format}.{os.getpid()}.part")
    try:
        request = {
            "op": "quantize",
            "source": str(source),
            "threads": psutil.cpu_count(logical=False) or 1,
            "format": format,
            "ftype": FORMATS[format].ftype,
            "out": str(part),
        }
        with closing(_written(workbench, request, part)) as events:
            yield next(events)
            # Read while the process starts, which takes longer.
            header = read_header(source)
            # No format is larger than F16; what F32 vectors add is less than the reserve.
            check_space(target.parent, 2 * sum(one.weights for one in header.tensors))
            answer = yield from events
        yield Progress(1, 1, "verify", format)
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(sha256_of, part)
            _verify(part, _planned(header, format, answer["types"]))
        made = Made(
            target,
            format,
            part.stat().st_size,
            digest.result(),
            source_sha256 or sha256_of(source),
            answer["seconds"],
            answer["peak_bytes"],
            answer["version"],
        )
        # An old file must not stand beside the new one's manifest, not even for a moment.
        target.unlink(missing_ok=True)
        _write_manifest(made, source)
        part.replace(target)
        return made
    except OSError as error:
        raise place_error(error, part) from error
    finally:
        part.unlink(missing_ok=True)


def _written(workbench: Workbench, request: Mapping[str, Any], part: Path) -> Generator[Progress, None, dict[str, Any]]:
    try:
        return (yield from workbench.toolchains.call("here", "quantizer", request))
    except QuantizerRefused as error:
        # Of a disk that filled up under it llama.cpp says only that a stream failed.
        if shutil.disk_usage(part.parent).free < FULL_BYTES:
            raise place_error(OSError(errno.ENOSPC, ""), part) from error
        raise


def _planned(header: Header, format: str, types: Mapping[str, str]) -> Plan:
    if not header.tensors:
        raise ModelDamaged(path=str(header.path), why="it has no tensors")
    # A type that the reader does not know cannot be sized; saying so beats a wrong size.
    unknown = sorted(set(types.values()) - set(BLOCKS))
    if unknown or set(types) != {one.name for one in header.tensors}:
        raise ModelDamaged(path=str(header.path), why=f"the quantizer planned {unknown or 'other tensors'}")
    tensors, at = [], header.tensors[0].offset
    for one in header.tensors:
        size = tensor_size_bytes(one.shape, types[one.name])
        tensors.append(replace(one, type=types[one.name], size_bytes=size, offset=at))
        at += -(-size // header.alignment) * header.alignment
    named = FORMATS[format].type
    finer = [one for one in tensors if len(one.shape) > 1 and _is_fallback(one, named)]
    return Plan(format, tuple(tensors), at, len(finer))


def _is_fallback(tensor: Tensor, named: str) -> bool:
    """Whether a row's length kept a tensor from a type with blocks of 256."""
    return BLOCKS[named][0] == 256 and tensor.shape[0] % 256 != 0 and BLOCKS[tensor.type][0] < 256


def _verify(part: Path, plan: Plan) -> None:
    written = read_header(part)
    if {one.name: one.type for one in written.tensors} != {one.name: one.type for one in plan.tensors}:
        raise ModelDamaged(path=str(part), why="the quantizer wrote other types than it planned")


def _kept(target: Path, source: Path) -> Made | None:
    """What was made before, if it is whole and from this very source."""
    # Whatever cannot be read as a manifest is none: the file is then made again.
    with suppress(OSError, ValueError, KeyError):
        raw = TypeAdapter(dict[str, Any]).validate_json(_manifest(target).read_bytes())
        if raw.pop("source_stat") == stamp(source) and target.stat().st_size == raw["size_bytes"]:
            return TypeAdapter(Made).validate_python({**raw, "path": target, "reused": True})
    return None


def _write_manifest(made: Made, source: Path) -> None:
    values = {name: value for name, value in asdict(made).items() if name not in ("path", "reused")}
    manifest = _manifest(made.path)
    part = manifest.with_suffix(".json.part")
    part.write_text(json.dumps({**values, "source_stat": stamp(source)}, indent=1), encoding="utf-8")
    part.replace(manifest)


def _manifest(target: Path) -> Path:
    return target.with_suffix(".json")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
