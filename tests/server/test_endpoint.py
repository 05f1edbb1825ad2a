"""The endpoint engine against servers that do not do what they should: real sockets, hostile answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx2
import pytest

from lib.engines import chat, endpoint
from lib.engines.address import base_url, is_here, ollama_url
from lib.engines.chat import Reply, stream_chat
from lib.engines.endpoint import EndpointEngine
from lib.errors import (
    BadParameter,
    BancadaError,
    EngineAway,
    EngineDied,
    EngineRefused,
    EngineSilent,
    KeyRefused,
    NotAnEngine,
    PromptTooLong,
    UnknownModel,
)

Answer = Callable[[socket.socket, bytes], None]
KEY = "sk-secret"
LIST = b'{"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]}'


class Scripted:
    """A server on loopback that reads a request and lets a script answer on the bare socket."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody listens any more when this returns."""
        # Closing alone leaves a waiting accept() its socket, and the next connection.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while request := _request(connection):
                self.requests.append(request)
                self._answer(connection, request)


def _request(connection: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        block = connection.recv(65536)
        if not block:
            return b""
        got += block
    head, _, body = got.partition(b"\r\n\r\n")
    sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < (sizes[0] if sizes else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Scripted]]:
    with ExitStack() as stack:

        def one(answer: Answer) -> Scripted:
            made = Scripted(answer)
            stack.callback(made.close)
            return made

        yield one


Serve = Callable[[Answer], Scripted]


def says(status: str, kind: str, body: bytes, *more: str) -> Answer:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more])
    return lambda connection, _: connection.sendall(head.encode() + b"\r\n\r\n" + body)


def event(text: str) -> bytes:
    return b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % text.encode()


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def streams(*parts: bytes | float) -> Answer:
    """Server-sent events; a number is a pause in seconds, and the connection closes at the end."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for part in parts:
            if isinstance(part, bytes):
                connection.sendall(part)
            else:
                time.sleep(part)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


def reply_of(server: Scripted) -> tuple[Reply, BancadaError | None]:
    """The reply as far as it came, and what ended it."""
    reply = Reply()
    client = EndpointEngine(server.address, KEY).client("m")
    try:
        for reply in stream_chat(client, "m", [{"role": "user", "content": "Hi"}]):  # noqa: B007
            pass
    except BancadaError as error:
        return reply, error
    return reply, None


def test_a_server_that_lists_its_models_is_ready_and_gets_the_key(serve: Serve) -> None:
    server = serve(says("200 OK", "application/json", LIST))
    engine = EndpointEngine(server.address, KEY)
    assert engine.models() == ("m",)
    assert engine.status().state == "ready"
    list(engine.ensure("m"))
    with pytest.raises(UnknownModel):
        list(engine.ensure("n"))
    assert all(f"Bearer {KEY}".encode() in request for request in server.requests)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (says("200 OK", "text/html", b"<html>Welcome to your router</html>"), NotAnEngine),
        (says("200 OK", "application/json", b'{"hello": "world"}'), NotAnEngine),
        (says("200 OK", "application/json", b'{"data": 5}'), NotAnEngine),
        (says("200 OK", "application/json", b'{"data": [5, null]}'), NotAnEngine),
        (says("200 OK", "application/json", b"[1, 2]"), NotAnEngine),
        (says("200 OK", "application/json", b"{{{"), NotAnEngine),
        (says("200 OK", "application/json", b'{"data": [{"id": "\xff"}]}'), NotAnEngine),
        (says("404 Not Found", "text/html", b"<html>nothing here</html>"), NotAnEngine),
        (says("502 Bad Gateway", "text/html", b"<html>nginx</html>"), NotAnEngine),
        (says("401 Unauthorized", "application/json", b'{"error": {"message": "wrong key"}}'), KeyRefused),
        (says("403 Forbidden", "text/plain", b"no"), KeyRefused),
        (says("500 Oops", "application/json", b'{"error": {"message": "out of memory"}}'), EngineRefused),
        (says("429 Too Many", "application/json", b'{"error": "slow down"}'), EngineRefused),
        (lambda connection, _: connection.close(), EngineDied),
        (lambda connection, _: connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01"), EngineDied),
    ],
)
def test_what_is_not_an_engine_is_told_apart(serve: Serve, answer: Answer, kind: type[BancadaError]) -> None:
    engine = EndpointEngine(serve(answer).address, KEY)
    with pytest.raises(kind) as caught:
        list(engine.ensure("m"))
    assert KEY not in str(caught.value)
    assert engine.models() == ()
    status = engine.status()
    assert status.state == "failed" and status.incident


def test_nobody_there_is_told(serve: Serve) -> None:
    server = serve(says("200 OK", "application/json", LIST))
    server.close()
    engine = EndpointEngine(server.address)
    with pytest.raises(EngineAway):
        list(engine.ensure("m"))
    assert engine.status().state == "stopped"
    _, error = reply_of(server)
    assert isinstance(error, EngineAway)


def test_a_redirect_is_not_followed_and_the_key_stays_here(serve: Serve) -> None:
    other = serve(says("200 OK", "application/json", LIST))
    server = serve(says("302 Found", "text/plain", b"", f"location: {other.address}/models"))
    with pytest.raises(NotAnEngine):
        list(EndpointEngine(server.address, KEY).ensure("m"))
    _, error = reply_of(server)
    assert isinstance(error, NotAnEngine)
    assert other.requests == []


def test_a_server_that_accepts_and_never_answers_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LOOK_S", 0.5)
    monkeypatch.setattr(chat, "FIRST_TOKEN_S", 0.5)
    server = serve(lambda _connection, _request: time.sleep(20))
    with pytest.raises(EngineSilent):
        list(EndpointEngine(server.address).ensure("m"))
    _, error = reply_of(server)
    assert isinstance(error, EngineSilent)


def test_the_first_token_may_take_longer_than_the_next(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "FIRST_TOKEN_S", 20.0)
    monkeypatch.setattr(chat, "BETWEEN_TOKENS_S", 1.0)
    reply, error = reply_of(serve(streams(2.0, event("a"), event("b"), END)))
    assert error is None and reply.text == "ab"
    reply, error = reply_of(serve(streams(event("a"), 10.0, event("b"), END)))
    assert isinstance(error, EngineSilent) and reply.text == "a"
    assert error.parameters["seconds"] == 1.0


def test_a_stream_without_text_is_given_up_even_if_it_is_kept_alive(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "FIRST_TOKEN_S", 1.5)
    _, error = reply_of(serve(streams(*[b": ping\n\n", 0.2] * 40, event("a"), END)))
    assert isinstance(error, EngineSilent)


@pytest.mark.parametrize(
    ("parts", "text", "kind"),
    [
        ((event("olá ") + event("ação")[:-20],), "olá ", EngineDied),
        ((event("olá "), 'data: {"choices": [{"delta": {"content": "çã'.encode()[:-1]), "olá ", EngineDied),
        ((event("olá "), b'data: {"choices": [{"delta": {"content": "\xc3\x28"}}]}\n\n'), "olá ", EngineRefused),
        ((event("a"), b"data: <html>\n\n"), "a", EngineRefused),
        ((event("a"), b'data: {"error": {"message": "out of memory"}}\n\n'), "a", EngineRefused),
        (
            (event("a"), b'data: {"error": "maximum context length is 8 tokens, you asked for 99"}\n\n'),
            "a",
            PromptTooLong,
        ),
        ((event("a"), b"data: [DONE]\n\n"), "a", EngineDied),
        ((b"",), "", EngineDied),
    ],
)
def test_a_stream_that_ends_badly_keeps_what_came(
    serve: Serve, parts: tuple[bytes, ...], text: str, kind: type[BancadaError]
) -> None:
    reply, error = reply_of(serve(streams(*parts)))
    assert isinstance(error, kind)
    assert reply.text == text


def test_letters_cut_between_two_packets_arrive_whole(serve: Serve) -> None:
    whole = event("ação 🙂") + END
    parts = [bytes([one]) for one in whole]
    reply, error = reply_of(serve(streams(*parts)))
    assert error is None and reply.text == "ação 🙂"


def test_a_page_instead_of_a_stream_is_told(serve: Serve) -> None:
    _, error = reply_of(serve(says("200 OK", "text/html; charset=utf-8", b"<html>log in first</html>")))
    assert isinstance(error, NotAnEngine)


def test_thirty_at_once_are_all_answered(serve: Serve) -> None:
    server = serve(streams(event("a"), 0.5, event("b"), END))
    client = EndpointEngine(server.address).client("m")

    def one(_: int) -> str:
        *_, reply = stream_chat(client, "m", [{"role": "user", "content": "Hi"}])
        return reply.text

    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(one, range(30))) == ["ab"] * 30


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("127.0.0.1:1234", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/", "http://127.0.0.1:1234/v1"),
        (" https://api.example.org/v1/ ", "https://api.example.org/v1"),
        ("http://h/openai/v1?x=1#y", "http://h/openai/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
    ],
)
def test_an_address_is_made_whole(typed: str, whole: str) -> None:
    assert base_url(typed) == whole


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("box", "http://box:11434"),
        ("box:80", "http://box:80"),
        ("http://box", "http://box"),
        ("https://box.example.org/ollama/", "https://box.example.org/ollama"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:99", "http://[::1]:99"),
    ],
)
def test_an_address_of_ollama_is_read_by_its_own_rules(typed: str, whole: str) -> None:
    assert httpx2.URL(ollama_url(typed)) == httpx2.URL(whole)


@pytest.mark.parametrize("typed", ["", "   ", "http://", "ftp://h/v1", "file:///etc/passwd", "http://h:99999", "a b"])
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(BadParameter):
        base_url(typed)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", True), ("10.0.0.1", False), ("h", False)],
)
def test_loopback_is_known(host: str, here: bool) -> None:
    assert is_here(host) is here
