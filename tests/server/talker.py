"""A server that streams OpenAI's chat with pauses that a test knows, so that what a load measures can be checked.

It serves the bytes and waits as told, and nothing else: no model, no guess.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.server.helpers import Loopback

MODEL = "talker"


@dataclass(frozen=True)
class Talk:
    """How one request is answered. ``cut``: the connection ends after the words, without a last one.

    ``prefill_s`` passes before the first word, ``pause_s`` before every further one; ``usage`` is sent as it is.
    """

    words: int = 4
    prefill_s: float = 0.0
    pause_s: float = 0.0
    status: int = 200
    cut: bool = False
    error: str = ""
    usage: dict[str, int] | None = None


class Talker:
    """An HTTP server on loopback; ``talk`` says how the request of a number is answered (0 is the first that came).

    ``slots`` are answered at the same time, the others wait. ``gate`` is waited for before every word.
    """

    def __init__(self, talk: Talk | Callable[[int], Talk], slots: int = 1000) -> None:
        self.asked: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.most_at_once = self.left = self._now = 0
        self._talk = talk if callable(talk) else lambda _: talk
        self._slots = threading.Semaphore(slots)
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._send(self, 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = Loopback(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """Listen no more; what is being answered comes to its end."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            talk = self._talk(len(self.asked))
            self.asked.append(asked)
            # Who came first is served first, whichever thread goes on first.
            free = self._slots.acquire(blocking=False)
        if not free:
            self._slots.acquire()
        whole = False
        self._count(1)
        try:
            whole = self._stream(request, talk)
        except OSError:
            with self._lock:
                self.left += 1
            request.close_connection = True
        finally:
            self._count(-1)
            self._slots.release()
        if whole:
            # After it is no longer counted: who has read this may ask again at once.
            with suppress(OSError):
                request.wfile.write(b"data: [DONE]\n\n")

    def _count(self, step: int) -> None:
        with self._lock:
            self._now += step
            self.most_at_once = max(self.most_at_once, self._now)

    def _stream(self, request: BaseHTTPRequestHandler, talk: Talk) -> bool:
        """All but the last line; whether that is to follow."""
        if talk.status != 200:
            self._send(request, talk.status, {"error": {"message": "told to refuse", "type": "server_error"}})
            return False
        request.close_connection = True
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Connection", "close")
        request.end_headers()
        for number in range(talk.words):
            self.gate.wait()
            time.sleep(talk.pause_s if number else talk.prefill_s)
            if number == 0:
                # As llama.cpp does: who speaks, without a word yet, and at once the first one.
                self._event(request, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
            self._event(request, {"choices": [{"index": 0, "delta": {"content": f"word{number} "}}]})
        if talk.error:
            self._event(request, {"error": {"message": talk.error}})
        if talk.cut or talk.error:
            return False
        self._event(request, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        usage = {"prompt_tokens": 5, "completion_tokens": talk.words, "total_tokens": 5 + talk.words}
        self._event(request, {"choices": [], "usage": talk.usage or usage})
        return True

    @staticmethod
    def _event(request: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        request.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        request.wfile.flush()

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        with suppress(OSError):
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
