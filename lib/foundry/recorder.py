"""Who is called? A proxy on loopback that writes down every request for a connection, and refuses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import StreamRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
EXCEPTIONS = "NO_PROXY"
_REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Call:
    """A host that was asked for, and when, in seconds after the recorder began."""

    host: str
    at_s: float


@dataclass
class Recorder:
    """What was asked for so far, and the environment that leads a process here."""

    address: str
    calls: list[Call] = field(default_factory=list)

    @property
    def environment(self) -> Mapping[str, str]:
        """Every common spelling of a proxy; no host is excepted."""
        names = [*PROXIES, *(name.lower() for name in PROXIES)]
        return {**dict.fromkeys(names, self.address), EXCEPTIONS: "", EXCEPTIONS.lower(): ""}


@contextmanager
def recorder() -> Iterator[Recorder]:
    """A recorder that listens inside the block. It sees what goes by a proxy, and lets nothing through."""
    started = time.monotonic()

    class Handler(StreamRequestHandler):
        timeout = 5.0

        def handle(self) -> None:
            words = self.rfile.readline(4096).decode("latin-1").split()
            if len(words) < 2:
                return
            # CONNECT names host:port, every other method a whole address.
            host = urlsplit(words[1] if "://" in words[1] else f"//{words[1]}").hostname
            made.calls.append(Call(host or words[1], time.monotonic() - started))
            self.wfile.write(_REFUSAL)

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        made = Recorder(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield made
        finally:
            server.shutdown()
