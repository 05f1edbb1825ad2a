"""What a conversion made: a directory with a manifest, under its name only when it is whole.

Written beside its place, verified, then renamed. The manifest's key names all
that went into it; while the key is the same, the directory is used again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lib.course.result import Progress
from lib.errors import ChildFailed, DiskFull, ModelDamaged
from lib.files import acquired, stamp
from lib.gguf.made import sha256_of
from lib.models.fetch import check_space, place_error
from lib.toolchains.child import CHILDREN

if TYPE_CHECKING:
    from lib.workbench import Workbench

MANIFEST = "bancada.json"
# Below the home, a folder for each model.
CONVERTED = "converted"
Making = Generator[Progress, None, dict[str, Any]]


@dataclass(frozen=True)
class Converted:
    """A directory that a conversion made. ``answer`` is what its child said of it, ``seconds`` what it took."""

    kind: str
    path: Path
    size_bytes: int
    seconds: float
    key: Mapping[str, Any]
    answer: Mapping[str, Any]
    reused: bool


@dataclass(frozen=True)
class Recipe:
    """How a kind is made: by which toolchain and child, from what (``inputs``, plain JSON values), in how much room."""

    kind: str
    toolchain: str
    child: str
    inputs: Mapping[str, Any]
    need_bytes: int
    make: Callable[[Path], Making]
    verify: Callable[[Path], None]


def place_of(workbench: Workbench, model: str, kind: str) -> Path:
    """Where a model's conversion stands when it is made."""
    return workbench.settings.home / CONVERTED / model / kind


def made_before(workbench: Workbench, model: str, kind: str) -> bool:
    """Whether a conversion stands there, of whatever key."""
    return (place_of(workbench, model, kind) / MANIFEST).is_file()


def convert(workbench: Workbench, model: str, source: Path, recipe: Recipe) -> Generator[Progress, None, Converted]:
    """Make a kind of the model, or find the one that is here; two that ask at once make one.

    Raises what the toolchain raises, DiskFull, CannotWrite, ModelDamaged. Nothing half-made is left:
    what a kill leaves under a passing name goes with the next run.
    """
    target = place_of(workbench, model, recipe.kind)
    key = {
        "source": stamp(source),
        "toolchain": workbench.toolchains.fingerprint(recipe.toolchain),
        # Another version of Bancada may make it otherwise.
        "child": sha256_of(CHILDREN / f"{recipe.child}.py")[:16],
        "inputs": dict(recipe.inputs),
    }
    with _place(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock", thread_local=False)
        yield from acquired(lock, Progress(0, 0, "shared_conversion", recipe.kind))
        try:
            if (found := _found(target, key)) is not None:
                return found
            return (yield from _make(workbench, source, recipe, target, key))
        finally:
            lock.release()


def _make(
    workbench: Workbench, source: Path, recipe: Recipe, target: Path, key: Mapping[str, Any]
) -> Generator[Progress, None, Converted]:
    # Holding the lock means that nobody else is at it: other parts are of runs that were killed.
    for abandoned in target.parent.glob(f"{recipe.kind}.part-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    check_space(target.parent, recipe.need_bytes)
    part = target.with_name(f"{recipe.kind}.part-{os.getpid()}")
    part.mkdir()
    started = time.monotonic()
    try:
        answer = yield from recipe.make(part)
        seconds = time.monotonic() - started
        yield Progress(0, 1, "verify_files")
        recipe.verify(part)
        manifest = {
            "key": key,
            "answer": answer,
            "seconds": seconds,
            "source_sha256": sha256_of(source),
            "versions": workbench.toolchains.versions(recipe.toolchain),
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except ChildFailed as error:
        # A library says it in its own words, from within the child.
        if "No space left on device" in str(error.parameters["why"]):
            free = shutil.disk_usage(target.parent).free
            raise DiskFull(path=target.parent, need=_mib(recipe.need_bytes), free=_mib(free)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    found = _found(target, key, reused=False)
    assert found is not None
    return found


def _found(target: Path, key: Mapping[str, Any], reused: bool = True) -> Converted | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if manifest["key"] == key:
            answer, seconds = manifest["answer"], manifest["seconds"]
            return Converted(target.name, target, size_of(target), seconds, manifest["key"], answer, reused)
    return None


def size_of(folder: Path) -> int:
    """Bytes of a directory's files, without our manifest."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file() and one.name != MANIFEST)


def expect(path: Path, at_least_bytes: int = 1) -> None:
    """Raise ModelDamaged unless the file is there and has at least that many bytes."""
    size = path.stat().st_size if path.is_file() else 0
    if size < at_least_bytes:
        raise ModelDamaged(path=str(path), why=f"the converter left {size} bytes of it")


@contextmanager
def _place(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise place_error(error, folder / MANIFEST) from error


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
