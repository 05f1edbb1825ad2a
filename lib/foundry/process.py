"""Trials with Foundry Local's SDK in a child process: it ends with its answer, with its caller, or when cancelled."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.course.result import Progress
from lib.engines.child import ROOT
from lib.errors import (
    BancadaError,
    CannotWrite,
    EngineDidNotStart,
    EngineDied,
    EngineRefused,
    EngineUnsupported,
)
from lib.scratch import scratch
from lib.toolchains.child import answered
from lib.toolchains.process import Supervised, clean_environment

if TYPE_CHECKING:
    from lib.workbench import Workbench

MODULE = "lib.foundry.sdk"
NAME = "Foundry Local"
# ``disable_nonessential_telemetry`` still reports the process; in CI nothing is sent.
QUIET = {"CI": "true"}
Trial = Generator[Progress, None, dict[str, Any]]


def trial(
    workbench: Workbench,
    op: str,
    request: Mapping[str, object],
    model: str = "",
    environment: Mapping[str, str] = QUIET,
) -> Trial:
    """One trial of the child, by its name there; closing it ends the child.

    ``environment`` is added to this process's own, from which ``CI`` and what is empty in it are taken out.
    Raises EngineUnsupported, EngineDidNotStart, EngineDied, EngineRefused, CannotWrite.
    """
    log = workbench.logs / f"foundry-sdk-{os.getpid()}-{secrets.token_hex(3)}.log"
    keep = False
    try:
        with scratch(workbench.settings.home) as folder:
            process = _start(log, folder, environment, json.dumps({"op": op, "folder": str(folder), **request}))
            try:
                first, refused = Progress(0, 0, "start_sdk"), partial(_error, model=model, log=log)
                return (yield from answered(process, first, EngineDied, refused))
            finally:
                process.stop()
    except (EngineDidNotStart, EngineDied):
        keep = True
        raise
    finally:
        if not keep:
            log.unlink(missing_ok=True)


def together(trials: Mapping[str, Trial]) -> Generator[Progress, None, dict[str, dict[str, Any]]]:
    """Several trials at the same time, each in its own child; the bar is that of the slowest."""
    found: dict[str, dict[str, Any]] = {}
    try:
        while len(found) < len(trials):
            moved = []
            for name, one in trials.items():
                if name in found:
                    continue
                try:
                    moved.append(next(one))
                except StopIteration as stop:
                    found[name] = stop.value
            if moved:
                yield min(moved, key=lambda progress: progress.share)
    finally:
        for one in trials.values():
            one.close()
    return found


def _start(log: Path, folder: Path, environment: Mapping[str, str], request: str) -> Supervised:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        stderr = log.open("wb")
    except OSError as error:
        raise CannotWrite(path=log.parent, why=error.strerror or str(error)) from error
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    chosen = {name: value for name, value in clean_environment().items() if name != "CI"} | dict(environment) | places
    with stderr:
        command = [sys.executable, "-m", MODULE]
        return Supervised(command, ROOT, {name: value for name, value in chosen.items() if value}, stderr, request)


def _error(raw: Mapping[str, Any], model: str, log: Path) -> BancadaError:
    why = (raw["parameters"]["why"].splitlines() or [raw["id"]])[0][:600]
    if raw["id"] == "unsupported":
        return EngineUnsupported(engine=NAME, system=f"{platform.system()} {platform.machine()}", why=why)
    if raw["id"] == "did-not-start":
        return EngineDidNotStart(model=model, why=why, log=log)
    return EngineRefused(why=why)
