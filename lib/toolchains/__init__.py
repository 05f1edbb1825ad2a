"""Toolchains: stacks that cannot share one environment, each in its own, run as child processes.

An environment is made on demand from a pinned requirement file in
``data/toolchains`` and used through its Python alone: a child is a script of
``children/`` that reads one request and writes JSON lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib.course.result import Progress
from lib.errors import CannotWrite, ToolchainBroken, ToolchainUnreachable, ToolchainUnsupported, UnknownToolchain
from lib.scratch import scratch
from lib.toolchains import build
from lib.toolchains import child as one_child
from lib.toolchains.process import new_log
from lib.toolchains.registry import TOOLCHAINS, Toolchain, installed_here, installed_in, python_of

__all__ = ["HERE", "Toolchain", "ToolchainState", "Toolchains"]
HERE = "here"


@dataclass(frozen=True)
class ToolchainState:
    """Whether a toolchain can be used at once. ``why`` not: ``not_built``, ``damaged`` or ``unsupported``."""

    name: str
    ready: bool
    where: Path | None
    why: str
    size_bytes: int | None
    need_bytes: int
    detail: str = ""


class Toolchains:
    """The environments under one folder; ``offline`` never builds one."""

    def __init__(
        self, folder: Path, logs: Path, offline: bool = False, registry: Mapping[str, Toolchain] = TOOLCHAINS
    ) -> None:
        self.folder = folder
        self.logs = logs
        self._offline = offline
        self._registry = registry

    def ensure(self, name: str) -> Generator[Progress, None, Path]:
        """The Python of a toolchain: this one where it has everything, else an environment's, built unless it is here.

        Two that ask at once make one. Raises UnknownToolchain, ToolchainUnsupported, ToolchainFailed kinds,
        DiskFull, CannotWrite.
        """
        if name == HERE:
            return Path(sys.executable)
        toolchain = self._find(name)
        if toolchain.satisfied():
            return Path(sys.executable)
        target = self._target(toolchain)
        if self._fault(target):
            yield from self._build(toolchain, target)
        return python_of(target)

    def call(self, name: str, child: str, request: Mapping[str, Any]) -> Generator[Progress, None, dict[str, Any]]:
        """Run ``children/<child>.py`` on the request; ``here`` is this interpreter. Closing the generator ends it.

        Raises what ``ensure`` raises, the error that the child names, ChildFailed and ToolchainDied.
        """
        python = yield from self.ensure(name)
        script = one_child.CHILDREN / f"{child}.py"
        return (yield from one_child.run(python, script, request, name, self.folder, self.logs))

    def renew(self, name: str) -> Generator[Progress, None, Path]:
        """``ensure``, and where the environment is here but does not work, build it anew."""
        toolchain = self._find(name)
        state = self._state(toolchain)
        if state.where is not None:
            try:
                yield from self.prove(name)
            except ToolchainBroken:
                if state.where == Path(sys.executable):
                    raise
                build.remove(self._target(toolchain))
        return (yield from self.ensure(name))

    def prove(self, name: str) -> Generator[Progress, None, None]:
        """Import what a toolchain that is here is for; raises ToolchainBroken, CannotWrite."""
        toolchain = self._find(name)
        state = self._state(toolchain)
        if state.where is None:
            raise ToolchainBroken(toolchain=name, why=state.detail or state.why)
        try:
            log = new_log(self.logs, f"{name}-probe")
        except OSError as error:
            raise CannotWrite(path=self.logs, why=error.strerror or str(error)) from error
        try:
            with scratch(self.folder) as work, log.open("ab", buffering=0) as out:
                if (yield from build.prove(toolchain, state.where, work, out)):
                    return
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ToolchainBroken(toolchain=name, why=said[-1] if said else "–")
        finally:
            log.unlink(missing_ok=True)

    def states(self) -> tuple[ToolchainState, ...]:
        """Every toolchain and whether it is here; looks at files, starts nothing."""
        return tuple(self._state(one) for one in self._registry.values())

    def versions(self, name: str) -> dict[str, str]:
        """The packages of a toolchain that is here, and the Python, for manifests and run cards."""
        python = {"python": sys.version.split()[0]}
        if name == HERE:
            return python
        toolchain = self._find(name)
        if toolchain.satisfied():
            return python | installed_here(toolchain.pins())
        return python | installed_in(self._target(toolchain))

    def fingerprint(self, name: str) -> str:
        """What a toolchain is made of, in twelve digits; of ``here``, its Python's version."""
        return sys.version.split()[0] if name == HERE else self._find(name).fingerprint()

    def _build(self, toolchain: Toolchain, target: Path) -> Generator[Progress, None, None]:
        if not toolchain.supported():
            raise ToolchainUnsupported(toolchain=toolchain.name, system=f"{sys.platform}")
        if self._offline:
            raise ToolchainUnreachable(toolchain=toolchain.name, why="BANCADA_OFFLINE")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A generator may be closed in another thread than the one that ran it.
            lock = FileLock(self.folder / f"{toolchain.name}.lock", thread_local=False)
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=0.3)
                except Timeout:
                    yield build.progress_of_others(toolchain, self.folder)
        except OSError as error:
            raise CannotWrite(path=self.folder, why=error.strerror or str(error)) from error
        try:
            if self._fault(target):
                yield from build.make(toolchain, target, self.logs)
                if fault := self._fault(target):
                    raise ToolchainBroken(toolchain=toolchain.name, why=fault)
        finally:
            lock.release()

    def _state(self, toolchain: Toolchain) -> ToolchainState:
        if toolchain.satisfied():
            return ToolchainState(toolchain.name, True, Path(sys.executable), "", None, toolchain.need_bytes)
        target = self._target(toolchain)
        fault = self._fault(target)
        if not fault:
            size = int(_manifest(target)["size_bytes"])
            return ToolchainState(toolchain.name, True, python_of(target), "", size, toolchain.need_bytes)
        why = "damaged" if target.exists() else "not_built" if toolchain.supported() else "unsupported"
        return ToolchainState(toolchain.name, False, None, why, None, toolchain.need_bytes, fault)

    def _fault(self, target: Path) -> str:
        """What an environment lacks of what it had when it was built; nothing when it is whole."""
        manifest = _manifest(target)
        if not manifest:
            return f"{target / build.MANIFEST} is missing"
        if not python_of(target).exists():
            return f"{python_of(target)} is missing"
        gone = manifest["versions"].items() - installed_in(target).items()
        return f"missing: {', '.join(sorted(name for name, _ in gone))}" if gone else ""

    def _target(self, toolchain: Toolchain) -> Path:
        return self.folder / f"{toolchain.name}-{toolchain.fingerprint()}"

    def _find(self, name: str) -> Toolchain:
        if name not in self._registry:
            raise UnknownToolchain(toolchain=name, known=", ".join(self._registry))
        return self._registry[name]


def _manifest(target: Path) -> dict[str, Any]:
    """What an environment says of itself; nothing when it says nothing that can be read."""
    with suppress(OSError, ValueError):
        read = json.loads((target / build.MANIFEST).read_text(encoding="utf-8"))
        if isinstance(read, dict) and {"versions", "size_bytes"} <= read.keys():
            return read
    return {}
