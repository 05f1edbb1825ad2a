"""An engine whose server runs in a supervised child process on a loopback port.

A crash of native code ends the child, never the app: a watcher notices, keeps
what happened as the status's incident, and starts the child again.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
from openai import OpenAI

from lib.course.result import Progress
from lib.engines.base import EngineInfo, Status
from lib.errors import Cancelled, CannotWrite, EngineDidNotStart, EngineDied, ModelTooLarge
from lib.models.hardware import available_memory_bytes

START_S = 120.0
RESTARTS = 3
RESTART_WINDOW_S = 60.0
LOG_KEPT_S = 7 * 86400.0
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Launch:
    """How a model is served: the child's module and options, the memory in bytes that it will have when loaded.

    ``start_s`` is how long it may take until it answers.
    """

    module: str
    options: Mapping[str, Any]
    context_tokens: int
    need_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    start_s: float = START_S


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    answers: queue.Queue[dict[str, str] | None]
    log: Path
    key: str
    address: str = ""
    stopping: bool = False


class ChildEngine(ABC):
    """A server in a child process; one model at a time."""

    def __init__(self, name: str, logs: Path) -> None:
        self._name = name
        self._logs = logs
        self._child: _Child | None = None
        self._model: str | None = None
        self._busy = threading.Lock()
        # Whoever replaces the child holds this: a release must not pass between a watcher's look and its new child.
        self._turn = threading.Lock()
        self._status = Status("stopped")
        self._crashes: list[float] = []
        # Loopback must never go through a proxy of the environment.
        self._http = httpx2.Client(trust_env=False, timeout=30.0, limits=httpx2.Limits(max_connections=None))
        atexit.register(self.release)

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Identity and capabilities."""

    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """The models it could serve now, without a download."""

    @abstractmethod
    def _find(self, model: str) -> Generator[Progress, None, Path]:
        """The model's place, fetched if need be; the child that runs now goes on meanwhile. Raises ModelError kinds."""

    @abstractmethod
    def _launch(self, model: str, path: Path) -> Launch:
        """How the model is served; asked when no child runs. Raises ModelError kinds."""

    def status(self) -> Status:
        """State, model, address, and the child's resident memory."""
        child = self._child
        if child is None:
            return self._status
        try:
            memory: int | None = psutil.Process(child.process.pid).memory_info().rss
        except psutil.Error:
            memory = None
        return replace(self._status, pid=child.process.pid, memory_bytes=memory)

    def ensure(self, model: str) -> Iterator[Progress]:
        """Download, check and load ``model``; raises ModelError and EngineError kinds."""
        while not self._busy.acquire(timeout=0.2):
            yield Progress(0, 0, "wait_for_engine")
        try:
            if self._model == model and self._status.state == "ready":
                return
            path = yield from self._find(model)
            self._stop()
            launch = self._launch(model, path)
            _check_memory(model, launch)
            self._crashes.clear()
            yield from self._await_ready(self._spawn(model, launch), model, launch)
        finally:
            self._busy.release()

    def release(self, model: str | None = None) -> None:
        """Stop the child; the system takes its memory back at once."""
        if model is None or model == self._model:
            self._stop()

    def client(self, model: str) -> OpenAI:
        """A client for the loaded model; raises EngineDied when there is none."""
        child = self._child
        if child is None or model != self._model or not child.address:
            raise EngineDied(how=self._status.incident or self._status.state)
        return OpenAI(base_url=f"{child.address}/v1", api_key=child.key, http_client=self._http, max_retries=0)

    def _spawn(self, model: str, launch: Launch) -> _Child:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            _forget_old(self._logs, self._name)
            log = self._logs / f"{self._name}-{os.getpid()}-{secrets.token_hex(3)}.log"
            stderr = log.open("wb")
        except OSError as error:
            raise CannotWrite(path=self._logs, why=error.strerror or str(error)) from error
        # 0x200 is Windows' CREATE_NEW_PROCESS_GROUP, a name that other systems do not have.
        group: dict[str, Any] = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
        with stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", launch.module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | dict(launch.environment),
                **group,  # Ctrl-C is for the app, which then stops the child in order.
            )
        child = _Child(process, queue.Queue(), log, secrets.token_urlsafe(24))
        assert process.stdin is not None
        process.stdin.write(json.dumps({**launch.options, "key": child.key}).encode() + b"\n")
        process.stdin.flush()
        self._child, self._model = child, model
        self._status = replace(
            self._status, state="starting", model=model, address=None, context_tokens=launch.context_tokens
        )
        threading.Thread(target=_read_answers, args=(child,), daemon=True).start()
        threading.Thread(target=self._watch, args=(child, model, launch), daemon=True).start()
        return child

    def _await_ready(self, child: _Child, model: str, launch: Launch) -> Iterator[Progress]:
        deadline = time.monotonic() + launch.start_s
        try:
            while time.monotonic() < deadline:
                try:
                    answer = child.answers.get(timeout=0.1)
                except queue.Empty:
                    loaded = min(self.status().memory_bytes or 0, launch.need_bytes)
                    yield Progress(loaded, launch.need_bytes, "load")
                    continue
                if child.stopping:
                    raise Cancelled
                if answer is None or "error" in answer:
                    raise EngineDidNotStart(model=model, why=_why(child, answer), log=child.log)
                self._became_ready(child, answer["address"])
                if child.process.poll() is not None:
                    # The watcher saw this end before the address, and took it for a failed start.
                    raise EngineDidNotStart(model=model, why=_how(child.process.returncode), log=child.log)
                return
            raise EngineDidNotStart(model=model, why=f"no answer within {launch.start_s:.0f} s", log=child.log)
        except EngineDidNotStart:
            self._stop(keep_log=True)
            raise
        except BaseException:
            self._stop()
            raise

    def _became_ready(self, child: _Child, address: str) -> None:
        child.address = address
        self._status = replace(self._status, state="ready", address=address)

    def _watch(self, child: _Child, model: str, launch: Launch) -> None:
        """Wait for the child's end; when nobody asked for it, say so and start it again."""
        code = child.process.wait()
        with self._turn:
            if child.stopping or self._child is not child or not child.address:
                return
            self._status = replace(
                self._status, state="restarting", address=None, incident=_how(code), restarts=self._status.restarts + 1
            )
        now = time.monotonic()
        self._crashes = [one for one in self._crashes if now - one < RESTART_WINDOW_S] + [now]
        with self._busy:
            try:
                with self._turn:
                    if self._child is not child:
                        return
                    if len(self._crashes) > RESTARTS:
                        self._child = None
                        self._status = replace(self._status, state="failed")
                        return
                    again = self._spawn(model, launch)
                for _ in self._await_ready(again, model, launch):
                    pass
            except (EngineDidNotStart, CannotWrite) as error:
                self._status = replace(self._status, state="failed", incident=str(error))
            except Cancelled:
                pass  # released while it was coming back

    def _stop(self, keep_log: bool = False) -> None:
        with self._turn:
            child, self._child, self._model = self._child, None, None
            if child is None:
                return
            child.stopping = True
        if child.process.stdin is not None:
            child.process.stdin.close()
        try:
            child.process.wait(2.0)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        self._status = replace(self._status, state="stopped", model=None, address=None, pid=None)
        if not keep_log:
            child.log.unlink(missing_ok=True)


def _check_memory(model: str, launch: Launch) -> None:
    """Raises ModelTooLarge when the child would not fit into the memory that is free."""
    available = available_memory_bytes()
    if launch.need_bytes > available:
        raise ModelTooLarge(
            model=model,
            need=f"{launch.need_bytes / 2**20:.0f} MiB",
            available=f"{available / 2**20:.0f} MiB",
            context_tokens=launch.context_tokens,
        )


def _forget_old(logs: Path, name: str) -> None:
    """Remove logs of engines that died long ago; a newer one stays, for whoever asks why."""
    # Another workbench may remove the same one at the same time.
    with suppress(OSError):
        for log in logs.glob(f"{name}-*.log"):
            if time.time() - log.stat().st_mtime > LOG_KEPT_S:
                log.unlink()


def _read_answers(child: _Child) -> None:
    assert child.process.stdout is not None
    for line in child.process.stdout:
        child.answers.put(json.loads(line))
    child.answers.put(None)


def _why(child: _Child, answer: dict[str, str] | None) -> str:
    """The engine's own last words: its error lines, else how it ended."""
    lines = child.log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.split(" E ", 1)[1].strip() for line in lines if " E " in line]
    if errors:
        return errors[0]
    if answer is not None:
        return answer["error"]
    return _how(child.process.wait())


def _how(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
