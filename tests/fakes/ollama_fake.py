"""Starts and stops the fake of Ollama's server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from tests.server.helpers import end, read_line, start_python

END_S = 60.0


class OllamaFake:
    """The fake in a process of its own; its folder and its log stay when it ends."""

    def __init__(
        self,
        home: Path,
        gguf: Path,
        context_tokens: int = 2048,
        installed: Sequence[str] = (),
        port: int = 0,
    ) -> None:
        self.home = home
        self.address = ""
        self._options = {
            "home": str(home),
            "gguf": str(gguf),
            "context_tokens": context_tokens,
            "installed": list(installed),
            "port": port,
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> OllamaFake:
        """Start it; it listens when this returns."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "ollama.log").open("ab") as log:
            process = start_python("-m", "tests.fakes.ollama_server", stdin=subprocess.PIPE, stderr=log)
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(self._options) + "\n")
        process.stdin.flush()
        self.address = str(json.loads(read_line(process.stdout))["address"])
        return self

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int | None:
        """End it, and with it its engine; the exit status, if it ended by itself when its input was closed."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        status = process.poll()
        end(process)
        return status

    def fault(self, route: str, kind: str, times: int = 1, **more: Any) -> None:
        """Let the next requests of a route go wrong: silent, cut, html, slow, error-after-first, redirect, die."""
        body = {"route": route, "kind": kind, "times": times, **more}
        httpx2.post(f"{self.address}/__fault", json=body, trust_env=False).raise_for_status()

    def __enter__(self) -> OllamaFake:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
