"""Making a model with Ollama, against a server on loopback that keeps to its published interface, or breaks it."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lib.course.result import Progress
from lib.engines import ollama
from lib.engines.ollama import Created, create_from_gguf
from lib.errors import BadParameter, EngineAway, EngineError, EngineRefused, EngineSilent
from tests.server.helpers import Loopback, wait_until

CONTENT = b"GGUF" + bytes(range(256)) * 400
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
SIZE = 1_234_567
LINES: tuple[dict[str, object], ...] = (
    {"status": "parsing GGUF"},
    {"status": "quantizing F16 model to Q4_K_M", "digest": "0000000000000000000", "total": 1000, "completed": 250},
    {"status": "quantizing F16 model to Q4_K_M", "digest": "0000000000000000000", "total": 1000, "completed": 1000},
    {"status": "verifying conversion"},
    {"status": f"creating new layer {DIGEST}"},
    {"status": "writing manifest"},
    {"status": "success"},
)


def ndjson(*lines: dict[str, object]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass
class Ollama:
    """A server with Ollama's addresses; what it answers can be changed."""

    tags: bytes = b""
    tags_status: int = 200
    blob_status: int | None = None
    """Otherwise by the digest: 201, 200 when it is known, 400 when it is another."""
    create: bytes = field(default_factory=lambda: ndjson(*LINES))
    create_status: int = 200
    cut_after: int | None = None
    """Bytes of create's answer after which the connection is gone."""
    hangs_at: str = ""
    """The address that is accepted and never answered, or after the first two lines of create."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    created: dict[str, object] = field(default_factory=dict)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when the client closed the connection in mid-stream."""

    def __post_init__(self) -> None:
        outer = self
        self.release = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.get(self)

            def do_POST(self) -> None:
                outer.post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = Loopback(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def get(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(("GET", request.path))
        if self.hangs_at == request.path:
            self.release.wait()
        here = [self.created["model"]] if self.created else []
        models = [{"name": name, "model": name, "size": SIZE, "digest": "0" * 64, "details": {}} for name in here]
        self._answer(request, self.tags_status, self.tags or json.dumps({"models": models}).encode())

    def post(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(("POST", request.path))
        if self.hangs_at == request.path:
            self.release.wait()
        body = self._body(request)
        if request.path.startswith("/api/blobs/"):
            self._blob(request, request.path.removeprefix("/api/blobs/"), body)
        else:
            self._create(request, json.loads(body))

    def _blob(self, request: BaseHTTPRequestHandler, digest: str, body: bytes) -> None:
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        status = self.blob_status or (400 if found != digest else 200 if digest in self.blobs else 201)
        if status < 300:
            self.blobs[digest] = body
            self._answer(request, status, b"")
        else:
            text = {"error": f"digest mismatch, expected {digest!r}, got {found!r}"}
            self._answer(request, status, json.dumps(text).encode())

    def _create(self, request: BaseHTTPRequestHandler, asked: dict[str, object]) -> None:
        self.created = asked
        if self.create_status != 200:
            return self._answer(request, self.create_status, self.create)
        request.send_response(200)
        request.send_header("Content-Type", "application/x-ndjson")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        lines = self.create[: self.cut_after].splitlines(keepends=True)
        for at, line in enumerate(lines):
            if self.hangs_at == "stream" and at == 2:
                self._wait_until_gone(request)
            request.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            request.wfile.flush()
        if self.cut_after is None:
            request.wfile.write(b"0\r\n\r\n")
        else:
            request.close_connection = True
        return None

    def _wait_until_gone(self, request: BaseHTTPRequestHandler) -> None:
        request.connection.settimeout(0.05)
        while not self.release.is_set():
            try:
                if request.connection.recv(1) == b"":
                    self.gone.set()
                    return
            except TimeoutError:
                continue
            except OSError:
                self.gone.set()
                return

    @staticmethod
    def _body(request: BaseHTTPRequestHandler) -> bytes:
        if request.headers.get("Transfer-Encoding") != "chunked":
            return request.rfile.read(int(request.headers.get("Content-Length", 0)))
        body = b""
        while size := int(request.rfile.readline(), 16):
            body += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
        return body

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Ollama]:
    """A server that does everything right until a test tells it otherwise."""
    made = Ollama()
    yield made
    made.close()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "F16.gguf"
    path.write_bytes(CONTENT)
    return path


def create(address: str, gguf: Path, format: str = "Q4_K_M") -> tuple[list[Progress], Created]:
    events, seen = create_from_gguf(address, gguf, "bancada-tiny", format), []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as stop:
            return seen, stop.value


def refusal(address: str, gguf: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        create(address, gguf)
    assert all(value not in ("", None) for value in caught.value.parameters.values()), caught.value
    return caught.value


def test_a_model_is_made_of_the_very_bytes_and_its_size_is_the_servers(server: Ollama, gguf: Path) -> None:
    seen, created = create(server.address, gguf)
    assert (created.name, created.size_bytes) == ("bancada-tiny:q4_k_m", SIZE)
    assert created.seconds >= 0
    assert server.blobs == {DIGEST: CONTENT}
    wanted = {"model": "bancada-tiny:q4_k_m", "files": {"F16.gguf": DIGEST}, "quantize": "q4_K_M", "stream": True}
    assert server.created == wanted
    counted = [(one.done, one.total) for one in seen if one.detail.startswith("quantizing")]
    assert counted == [(250, 1000), (1000, 1000)]


@pytest.mark.parametrize(("format", "quantize"), [("Q4_K_M", "q4_K_M"), ("Q8_0", "q8_0")])
def test_the_formats_have_the_names_that_the_server_takes(
    server: Ollama, gguf: Path, format: str, quantize: str
) -> None:
    create(server.address, gguf, format)
    assert server.created["quantize"] == quantize


def test_a_file_that_the_server_already_has_is_no_error(server: Ollama, gguf: Path) -> None:
    create(server.address, gguf)
    create(server.address, gguf)
    assert len(server.blobs) == 1


def test_an_error_under_http_200_after_some_progress_is_an_error(server: Ollama, gguf: Path) -> None:
    server.create = ndjson(*LINES[:3], {"error": "quantization is only supported for F16 and F32 models"})
    error = refusal(server.address, gguf)
    assert isinstance(error, EngineRefused)
    assert error.parameters["why"] == "quantization is only supported for F16 and F32 models"


def test_a_stream_that_ends_before_success_made_no_model(server: Ollama, gguf: Path) -> None:
    for lines in ((), LINES[:2], LINES[:-1]):
        server.create = ndjson(*lines)
        assert isinstance(refusal(server.address, gguf), EngineRefused)


@pytest.mark.parametrize("cut", [0, 10, len(ndjson(*LINES[:2])) + 20, len(ndjson(*LINES)) - 5])
def test_a_stream_that_is_cut_is_an_error(server: Ollama, gguf: Path, cut: int) -> None:
    server.cut_after = cut
    assert isinstance(refusal(server.address, gguf), EngineRefused)


def test_a_digest_that_does_not_match_is_told_in_the_servers_words(server: Ollama, gguf: Path) -> None:
    server.blob_status = 400
    error = refusal(server.address, gguf)
    assert isinstance(error, EngineRefused) and "digest mismatch" in str(error.parameters["why"])
    assert ("POST", "/api/create") not in server.asked


@pytest.mark.parametrize("status", [400, 404, 413, 500, 503])
@pytest.mark.parametrize("where", ["tags", "blob", "create"])
def test_a_refusal_by_status_is_typed_wherever_it_comes(server: Ollama, gguf: Path, status: int, where: str) -> None:
    setattr(server, f"{where}_status", status)
    assert isinstance(refusal(server.address, gguf), EngineRefused)


@pytest.mark.parametrize(
    "body",
    [
        b"<html><title>Please log in</title></html>",
        b"",
        b"null",
        b"[]",
        b'"a text"',
        b'{"models": 5}',
        b'{"models": [{"size": "large"}]}',
        b"\xff\xfe\x00",
    ],
)
@pytest.mark.parametrize("where", ["tags", "create"])
def test_what_is_not_ollamas_answer_is_typed(server: Ollama, gguf: Path, body: bytes, where: str) -> None:
    setattr(server, where, body)
    if where == "tags" and not body:
        server.tags = b" "
    error = refusal(server.address, gguf)
    assert isinstance(error, EngineRefused)
    assert len(str(error.parameters["why"])) <= 300


def test_lines_with_strange_values_are_typed(server: Ollama, gguf: Path) -> None:
    for line in (b"7\n", b"null\n", b'{"completed": "many"}\n', b'{"status": {}}\n', b'{"error": {"code": 5}}\n'):
        server.create = ndjson(LINES[0]) + line
        assert isinstance(refusal(server.address, gguf), EngineRefused)


def test_no_server_is_told_with_its_address(gguf: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, and nobody listens
        error = refusal(address, gguf)
    assert isinstance(error, EngineAway)
    assert error.parameters["address"] == address


@pytest.mark.parametrize("address", ["http://127.0.0.1:notaport", "http://[::1", "http://", "no such host.invalid"])
def test_an_address_that_is_none_is_a_typed_error(gguf: Path, address: str) -> None:
    with pytest.raises(BadParameter) as caught:
        create(address, gguf)
    assert caught.value.parameters["value"] == address


@pytest.mark.parametrize("where", ["/api/tags", f"/api/blobs/{DIGEST}", "/api/create", "stream"])
def test_a_server_that_accepts_and_never_answers_is_silent(
    server: Ollama, gguf: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "SILENT_S", 0.5)
    server.hangs_at = where
    assert isinstance(refusal(server.address, gguf), EngineSilent)


def test_a_server_that_dies_in_the_middle_is_a_typed_error(server: Ollama, gguf: Path) -> None:
    events = create_from_gguf(server.address, gguf, "bancada-tiny", "Q4_K_M")
    next(events)
    server.close()
    with pytest.raises(EngineAway):
        list(events)


def closed_here(events: Iterator[Progress]) -> None:
    events.close()  # type: ignore[attr-defined]


def closed_elsewhere(events: Iterator[Progress]) -> None:
    closer = threading.Thread(target=closed_here, args=(events,))
    closer.start()
    closer.join()


@pytest.mark.parametrize("close", [closed_here, closed_elsewhere])
def test_cancelled_in_mid_stream_the_connection_is_closed_at_once(
    server: Ollama, gguf: Path, close: Callable[[Iterator[Progress]], None]
) -> None:
    server.hangs_at = "stream"
    events = create_from_gguf(server.address, gguf, "bancada-tiny", "Q4_K_M")
    wait_until("it quantizes", lambda: next(events).detail.startswith("quantizing"))
    close(events)
    wait_until("the server sees the end", server.gone.is_set, 10)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    server: Ollama, gguf: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    port = server.address.rsplit(":", 1)[-1]
    for address in (server.address, f"127.0.0.1:{port}", f"http://localhost:{port}", f":{port}"):
        _, created = create(address, gguf)
        assert created.size_bytes == SIZE


def test_every_error_has_its_sentences_in_both_languages(server: Ollama, gguf: Path) -> None:
    from lib.text import LANGUAGES, load_words

    server.create = ndjson({"error": "no $room for {it}"})
    for error in (refusal(server.address, gguf), EngineAway(engine="Ollama", address="x", why="y")):
        for language in LANGUAGES:
            assert all(load_words(language).error(error))
