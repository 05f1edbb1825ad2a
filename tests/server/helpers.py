"""What the tests of real processes and files share: deadlines, children, and an honest server that can misbehave."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

ROOT = Path(__file__).parent.parent.parent
# Generous: two shared cores may be busy with anything.
PATIENCE_S = 600.0

T = TypeVar("T")
# Processes that are forked from a server with the imports done start in milliseconds.
FORKS = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
FORKS.set_forkserver_preload(
    ["lib.store", "lib.models.store", "alembic.command", "pysqlite3", "lib.cli", "labs.choose.checks"]
)


def wait_until(what: str, check: Callable[[], T], seconds: float = PATIENCE_S) -> T:
    """The first true value of ``check``, asked again and again until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


def drain(events: Iterable[T]) -> list[T]:
    """Everything that a generator yields."""
    return list(events)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engine_children(pid: int) -> list[int]:
    """The engine processes below a process."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if "lib.engines.embedded_server" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found


class Other:
    """Another process that runs a function, and the wire to it (the function's last argument)."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self.wire, theirs = FORKS.Pipe()
        self.process = FORKS.Process(target=work, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def says(self) -> Any:
        assert self.wire.poll(PATIENCE_S), "the other process said nothing"
        return self.wire.recv()

    def rest(self) -> list[Any]:
        """What it says until it ends."""
        said = []
        with suppress(EOFError, OSError):
            while True:
                said.append(self.says())
        return said

    def go(self) -> None:
        self.wire.send("go")

    def end(self) -> None:
        self.process.kill()
        self.process.join()


Start = Callable[..., Other]


def start_python(
    *arguments: str, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """A Python process in the repository's root, with only the settings of ours that are given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BANCADA_")}
    chosen: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    # Output read through a pipe must not wait in a buffer.
    extra = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=clean | extra, **(chosen | options))


def read_line(stream: IO[str], seconds: float = PATIENCE_S) -> str:
    """The next line of a process's output, or a failure at the deadline."""
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    assert lines, f"no line within {seconds:.0f} s"
    return lines[0].rstrip("\n")


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and everything below it."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@dataclass
class Behaviour:
    """How the server treats one address."""

    body: bytes = b""
    status: int = 200
    ranges: bool = True
    cut_after: int | None = None
    """Bytes of each answer after which the connection is closed."""
    cuts: int = 1_000_000
    """How many answers are cut; later ones are whole."""
    redirect: str | None = None
    block_s: float = 0.0
    """Seconds between blocks of 64 KiB."""
    content_type: str = "application/octet-stream"
    status_of_head: int | None = None
    """Where it differs from the status of GET."""
    unsized: bool = False
    """Without Content-Length; the end of the connection is the end of the file."""


@dataclass
class Asked:
    """A request as the server saw it."""

    method: str
    path: str
    range: str | None
    headers: Mapping[str, str]


def clients() -> list[str]:
    """The threads of loads that are still there, those that watch over their streams included."""
    works = [getattr(getattr(one, "_target", None), "__qualname__", "") for one in threading.enumerate()]
    return [one for one in works if one in ("_Run.work", "_Deadline._watch")]


class Loopback(ThreadingHTTPServer):
    """Serves many at once; who hangs up in the middle is nothing to write about."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class FileServer:
    """A real HTTP server on loopback, in a thread."""

    paths: dict[str, Behaviour] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, body=True)

            def do_HEAD(self) -> None:
                outer._answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._server = Loopback(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self, path: str) -> list[Asked]:
        """The GET requests for one path."""
        with self._lock:
            return [one for one in self.asked if one.method == "GET" and one.path == path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.split("?")[0]
        with self._lock:
            self.asked.append(Asked(request.command, path, request.headers.get("Range"), dict(request.headers)))
            how = self.paths.get(path, Behaviour(status=404, body=b"nothing here"))
            cut = how.cut_after if body and how.cuts > 0 else None
            how.cuts -= cut is not None
        start, content = 0, how.body
        status = how.status if body else how.status_of_head or how.status
        asked = request.headers.get("Range")
        if how.redirect is not None:
            request.send_response(302)
            request.send_header("Location", how.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if asked and how.ranges and status == 200:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            status = 206 if start < len(content) else 416
        request.send_response(status)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        if status == 416:
            request.send_header("Content-Range", f"bytes */{len(content)}")
            content = b""
        request.send_header("Content-Type", how.content_type)
        if how.unsized:
            request.close_connection = True
        else:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            with suppress(OSError):
                self._send(request, content[:cut], how.block_s)
        if cut is not None:
            request.close_connection = True

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, content: bytes, block_s: float) -> None:
        for at in range(0, len(content), 1 << 16):
            request.wfile.write(content[at : at + (1 << 16)])
            request.wfile.flush()
            if block_s:
                time.sleep(block_s)
