"""Building an environment: a virtual one, filled by pip as the learner configured it, proven, then renamed into place.

Whatever ends the build (cancel, a failure, a kill), no half environment takes
the name; what it left under its temporary name goes with the next build.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import re
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from lib.course.result import Progress
from lib.errors import (
    BancadaError,
    CannotWrite,
    DiskFull,
    ToolchainFailed,
    ToolchainNeedsCompiler,
    ToolchainUnreachable,
)
from lib.models.fetch import check_space
from lib.toolchains.child import environment_of
from lib.toolchains.process import Supervised, clean_environment, new_log
from lib.toolchains.registry import Toolchain, installed_in, packages_of, python_of

MANIFEST = "bancada.json"
_FULL_BYTES = 8 << 20
_NO_NETWORK = re.compile(
    r"Retry\(total=0|Max retries exceeded|ConnectionError|ConnectTimeout|ReadTimeoutError|ProxyError"
)
# pip tries again five times; only when none is left, the network was what failed.
_TRIES_AGAIN = re.compile(r"^.*Retry\(total=[1-9].*$", re.MULTILINE)
_NETWORK_SAID = re.compile(
    r"\[Errno -?\d+\] [^'\")]+|[Tt]imed out|SSLError[^\n]{0,120}|Tunnel connection failed[^'\")]*"
)
_SOURCE = re.compile(r"Failed building wheel for (\S+)|Failed to build '?([\w.-]+)|build wheels for ([\w.-]+)")
_FULL = re.compile(r"No space left on device|Errno 28\b|Errno 122\b|not enough space on the disk")


def make(toolchain: Toolchain, target: Path, logs: Path) -> Generator[Progress, None, None]:
    """Make ``target``; the caller holds the toolchain's lock, so every other part of its name is abandoned.

    Raises ToolchainFailed kinds, DiskFull, CannotWrite.
    """
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    remove_leftovers(toolchain, target)
    check_space(target.parent, toolchain.need_bytes)
    started = time.monotonic()
    keep_log = False
    try:
        log = new_log(logs, f"{toolchain.name}-build")
    except OSError as error:
        raise CannotWrite(path=logs, why=error.strerror or str(error)) from error
    try:
        with log.open("ab", buffering=0) as out:
            yield from _make(toolchain, part, target.parent, out)
        _describe(toolchain, part, target.name, time.monotonic() - started)
        if target.exists():
            remove(target)  # damaged, or it would not be built anew
        part.rename(target)
        remove_older(toolchain, target)
    except _StepFailed as failed:
        keep_log = True
        raise _reason(toolchain, target.parent, log, failed.step) from None
    except OSError as error:
        keep_log = True
        raise _place(error, target.parent, toolchain) from error
    finally:
        remove(part)
        if not keep_log:
            log.unlink(missing_ok=True)


def prove(toolchain: Toolchain, python: Path, work: Path, log: BinaryIO) -> Generator[Progress, None, bool]:
    """Import what it is for, in a process of its own."""
    script = "; ".join(f"import {name}" for name in toolchain.probe)
    process = Supervised([str(python), "-c", script], work, environment_of(python, work), log)
    return (yield from _watch(process, log, _Still("toolchain_prove", 1))) == ""


def progress_of_others(toolchain: Toolchain, folder: Path) -> Progress:
    """How far the process is that builds it now."""
    total = len(toolchain.pins())
    parts = folder.glob(f"{toolchain.name}-*.part-*")
    return Progress(max([min(_count(part), total) for part in parts], default=0), total, "shared_toolchain")


def remove(environment: Path) -> None:
    """Take an environment away, first what makes it count as whole."""
    with suppress(OSError):
        (environment / MANIFEST).unlink()
    shutil.rmtree(environment, ignore_errors=True)


def remove_leftovers(toolchain: Toolchain, target: Path) -> None:
    """Remove what builds left that were killed."""
    for part in target.parent.glob(f"{toolchain.name}-*.part-*"):
        remove(part)


def remove_older(toolchain: Toolchain, target: Path) -> None:
    """Remove the environments of other requirements or another Python."""
    for one in target.parent.glob(f"{toolchain.name}-*"):
        if one != target and re.fullmatch(re.escape(toolchain.name) + "-[0-9a-f]{12}", one.name):
            remove(one)


class _StepFailed(Exception):
    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


class _Still:
    """Progress of a step that cannot be counted."""

    def __init__(self, what: str, share: float) -> None:
        self._now = Progress(share, 1, what)

    def see(self, line: str) -> None:
        """Nothing to learn from a line."""

    def now(self) -> Progress:
        """The step itself."""
        return self._now


class _Pip:
    """pip's progress: the first half counts packages found, the second those installed."""

    def __init__(self, toolchain: Toolchain, part: Path, downloads: Path) -> None:
        self._part, self._downloads = part, downloads
        self._total = len(toolchain.pins())
        self._before = _count(part)
        self._found = 0
        self._installing = False

    def see(self, line: str) -> None:
        """Learn from a line that pip wrote."""
        self._found += line.startswith("Collecting ")
        self._installing = self._installing or line.startswith("Installing collected packages")

    def now(self) -> Progress:
        """Packages done of twice the pins."""
        if self._installing:
            done = min(_count(self._part) - self._before, self._total)
            return Progress(self._total + done, 2 * self._total, "toolchain_install", f"{done} / {self._total}")
        detail = f"{_size(self._downloads) / 2**20:,.0f} MiB"
        return Progress(min(self._found, self._total), 2 * self._total, "toolchain_download", detail)


def _make(toolchain: Toolchain, part: Path, folder: Path, log: BinaryIO) -> Generator[Progress, None, None]:
    """The steps, all of it under the part's name; raises _StepFailed."""
    work = part / "tmp"
    work.mkdir(parents=True)
    # pip's downloads count as part of the build: they go when it goes.
    environment = clean_environment() | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    venv = [sys.executable, "-m", "venv", str(part)]
    if (yield from _watch(Supervised(venv, folder, environment, log), log, _Still("toolchain_venv", 0))):
        raise _StepFailed("venv")
    command = [str(python_of(part)), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    if toolchain.whole:
        command.append("--no-deps")
    install = Supervised([*command, "-r", str(toolchain.requirements)], folder, environment, log)
    if (yield from _watch(install, log, _Pip(toolchain, part, work))):
        raise _StepFailed("pip")
    if not (yield from prove(toolchain, python_of(part), work, log)):
        raise _StepFailed("probe")
    shutil.rmtree(work, ignore_errors=True)


def _watch(process: Supervised, log: BinaryIO, counter: _Still | _Pip) -> Generator[Progress, None, str]:
    """Pass on progress until the process ends; how it failed, or nothing."""
    try:
        yield counter.now()
        while True:
            try:
                line = process.lines.get(timeout=0.2)
            except queue.Empty:
                yield counter.now()
                continue
            if line is None:
                return process.how()
            log.write(line)
            counter.see(line.decode(errors="replace").lstrip())
            yield counter.now()
    finally:
        process.stop()


def _describe(toolchain: Toolchain, part: Path, name: str, seconds: float) -> None:
    """Write the manifest, the last file: with it the environment is whole."""
    manifest = {
        "toolchain": toolchain.name,
        "fingerprint": name.rsplit("-", 1)[1],
        "python": sys.version.split()[0],
        "versions": installed_in(part),
        "seconds": round(seconds, 1),
        "size_bytes": _size(part),
    }
    written = part / f"{MANIFEST}.part"
    written.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    written.replace(part / MANIFEST)


def _reason(toolchain: Toolchain, folder: Path, log: Path, step: str) -> BancadaError:
    """What made a step fail, read from the log while everything is still in place."""
    text = log.read_text(encoding="utf-8", errors="replace")
    free = shutil.disk_usage(folder).free
    if _FULL.search(text) or free < _FULL_BYTES:
        return _full(toolchain, folder)
    source = _SOURCE.search(text)
    if source is not None:
        package = next(group for group in source.groups() if group)
        return ToolchainNeedsCompiler(toolchain=toolchain.name, package=package, log=log)
    if step == "pip" and _NO_NETWORK.search(_TRIES_AGAIN.sub("", text)):
        said = _NETWORK_SAID.search(text)
        return ToolchainUnreachable(toolchain=toolchain.name, why=said[0] if said else _last_words(text))
    return ToolchainFailed(toolchain=toolchain.name, why=_last_words(text), log=log)


def _last_words(text: str) -> str:
    """pip's last error lines, else the last line at all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors[-2:] or lines[-1:] or ["nothing"])[:600]


def _place(error: OSError, folder: Path, toolchain: Toolchain) -> BancadaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(toolchain, folder)
    return CannotWrite(path=error.filename or folder, why=error.strerror or str(error))


def _full(toolchain: Toolchain, folder: Path) -> DiskFull:
    free = shutil.disk_usage(folder).free
    return DiskFull(path=folder, need=f"{toolchain.need_bytes / 2**20:.0f} MiB", free=f"{free / 2**20:.0f} MiB")


def _count(environment: Path) -> int:
    """How many packages are installed so far."""
    return sum(1 for _ in packages_of(environment).glob("*.dist-info"))


def _size(folder: Path) -> int:
    """Bytes of all files below; files may come and go meanwhile."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(parent, name).lstat().st_size
    return size
