"""One doctor for everything: each check says [OK] or [FAIL], and a failure names its repair."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from packaging.requirements import Requirement

from lib.course.result import Progress
from lib.engines.chat import stream_chat
from lib.errors import BancadaError, CannotWrite
from lib.models.fetch import check_space
from lib.models.hub import reach
from lib.store import sqlite_is_safe_for_wal

if TYPE_CHECKING:
    from lib.workbench import Workbench

REQUIREMENTS = Path(__file__).parent.parent / "requirements-core.txt"


@dataclass(frozen=True)
class Finding:
    """One check. ``ok`` None means: worth knowing, not a fault. ``detail`` and ``repair`` are for people."""

    check: str
    ok: bool | None
    detail: str
    error: BancadaError | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    """What the words of the check and its repair need."""


def examine(workbench: Workbench) -> Iterator[Finding]:
    """Every check, one after the other; none of them raises."""
    checks: tuple[tuple[str, Callable[[Workbench], tuple[bool | None, str]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("folder", _folder),
        ("database", _database),
        ("hub", _hub),
        ("model", _model),
        ("engine", _engine),
    )
    for name, check in checks:
        try:
            ok, detail = check(workbench)
            yield Finding(name, ok, detail)
        except BancadaError as error:
            yield Finding(name, False, "", error)
    yield from _other_engines(workbench)
    yield from _toolchains(workbench)


def _other_engines(workbench: Workbench) -> Iterator[Finding]:
    """One finding an engine: a server that answers wrongly is a fault, one that is not there is not."""
    for name in ("ollama", "endpoint"):
        try:
            status = workbench.engine(name).status()
        except BancadaError as error:  # its address is none
            yield Finding(f"engine_{name}", False, "", error)
            continue
        ok = {"ready": True, "stopped": None}.get(status.state, False)
        yield Finding(f"engine_{name}", ok, f"{status.address} {status.incident or ''}".strip())
    for name in ("onnx", "foundry", "vllm"):
        models = workbench.engine(name).models()
        yield Finding(f"engine_{name}", bool(models) or None, ", ".join(models) or "–")


def _toolchains(workbench: Workbench) -> Iterator[Finding]:
    """One finding a toolchain: ready means that what it is for can be imported."""
    for state in workbench.toolchains.states():
        about = {"name": state.name, "need_bytes": state.need_bytes}
        if not state.ready and state.why != "damaged":
            check = "toolchain_elsewhere" if state.why == "unsupported" else "toolchain"
            yield Finding(check, None, "–", parameters=about)
            continue
        try:
            _drain(workbench.toolchains.prove(state.name))
            yield Finding("toolchain", True, str(state.where), parameters=about)
        except BancadaError as error:
            yield Finding("toolchain", False, "", error, about)


def _python(_: Workbench) -> tuple[bool, str]:
    return sys.version_info >= (3, 11), f"Python {platform.python_version()}, {platform.platform(terse=True)}"


def _packages(_: Workbench) -> tuple[bool, str]:
    missing, wrong = [], []
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} ({requirement.specifier})")
    return not missing and not wrong, "; ".join([*missing, *wrong]) or "–"


def _folder(workbench: Workbench) -> tuple[bool, str]:
    home = workbench.settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".doctor"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise CannotWrite(path=home, why=error.strerror or str(error)) from error
    check_space(home, 500 << 20)
    return True, str(home)


def _database(workbench: Workbench) -> tuple[bool, str]:
    journal = "WAL" if sqlite_is_safe_for_wal() else "rollback journal"
    return True, f"{workbench.store.url} ({journal})"


def _hub(workbench: Workbench) -> tuple[bool | None, str]:
    if workbench.settings.offline:
        return None, "BANCADA_OFFLINE"
    try:
        reach(HfApi().endpoint)
    except BancadaError as error:
        return None, str(error.parameters["why"])
    return True, HfApi().endpoint


def _model(workbench: Workbench) -> tuple[bool, str]:
    model = workbench.settings.default_model
    _drain(workbench.models.fetch(model))
    _drain(workbench.models.verify(model))
    return True, str(workbench.models.path(model))


def _engine(workbench: Workbench) -> tuple[bool, str]:
    model = workbench.settings.default_model
    engine = workbench.fresh_engine(workbench.settings.context_tokens)
    try:
        _drain(engine.ensure(model))
        *_, reply = stream_chat(engine.client(model), model, [{"role": "user", "content": "Hello"}], max_tokens=16)
    finally:
        engine.release()
    speed = f"{reply.decode_tokens_per_s or 0:.0f} tokens/s"
    return True, f"{engine.info.name}, TTFT {reply.ttft_s or 0:.2f} s, {speed}"


def _drain(events: Iterator[Progress]) -> None:
    for _ in events:
        pass
