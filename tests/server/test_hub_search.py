"""Searching the Hub: the real client against a loopback server that answers as the Hub's API does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from lib.course.result import Progress
from lib.errors import Offline
from lib.models.hub import HubModel, search_hub
from tests.server.helpers import Loopback

# The fields and nesting of https://huggingface.co/docs/hub/api, cut down to what is read.
MODELS = {
    "someone/Small-GGUF": {
        "id": "someone/Small-GGUF",
        "modelId": "someone/Small-GGUF",
        "gated": False,
        "downloads": 1234,
        "cardData": {"license": "apache-2.0"},
        "siblings": [
            {"rfilename": "README.md", "size": 1000, "blobId": "a"},
            {"rfilename": "small.Q4_K_M.gguf", "size": 100_000_000, "blobId": "b"},
            {"rfilename": "small.F16.GGUF", "size": 400_000_000, "blobId": "c"},
        ],
    },
    "someone/Gated-GGUF": {
        "id": "someone/Gated-GGUF",
        "modelId": "someone/Gated-GGUF",
        "gated": "manual",
        "downloads": 99,
        "siblings": [{"rfilename": "gated.gguf"}],
    },
}


class Hub(Loopback):
    """A Hub on loopback that remembers what it was asked."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._send({})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        place = urlsplit(self.path)
        if place.path == "/api/models":
            limit = int(parse_qs(place.query).get("limit", ["9"])[0])
            self._send([{**one, "siblings": []} for one in MODELS.values()][:limit])
        else:
            self._send(MODELS[place.path.removeprefix("/api/models/")])

    def _send(self, answer: object) -> None:
        body = json.dumps(answer if self.server.status == 200 else {"error": "refused"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # On loopback only a busy machine is slow.
    monkeypatch.setattr("lib.models.hub.REACH_S", 60.0)
    made = Hub()
    yield made
    made.shutdown()
    made.server_close()


def found(events: Iterator[Progress | list[HubModel]]) -> list[HubModel]:
    *_, last = events
    assert isinstance(last, list)
    return last


def test_a_search_tells_licence_gate_downloads_files_and_sizes(hub: Hub) -> None:
    small, gated = found(search_hub("small", 5, endpoint=hub.url))
    assert small == HubModel(
        "someone/Small-GGUF",
        "apache-2.0",
        False,
        1234,
        ("small.Q4_K_M.gguf", "small.F16.GGUF"),
        100_000_000,
        400_000_000,
    )
    assert gated.gated and gated.license is None and gated.smallest_bytes is None
    query = parse_qs(urlsplit(hub.asked[0]).query)
    assert query["search"] == ["small"] and query["filter"] == ["gguf"] and query["sort"] == ["downloads"]


def test_a_search_that_finds_nothing_is_empty(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.server.test_hub_search.MODELS", {})
    assert found(search_hub("no such thing", 5, endpoint=hub.url)) == []


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_that_answers_with_an_error_is_offline_with_its_reason(hub: Hub, status: int) -> None:
    hub.status = status
    with pytest.raises(Offline) as error:
        found(search_hub("small", 5, endpoint=hub.url))
    assert str(status) in str(error.value.parameters["why"])


def test_no_hub_at_all_is_offline_within_seconds() -> None:
    with pytest.raises(Offline):
        found(search_hub("small", 5, endpoint="http://127.0.0.1:9"))


def test_offline_asks_nobody(hub: Hub) -> None:
    with pytest.raises(Offline):
        found(search_hub("small", 5, endpoint=hub.url, offline=True))
    assert not hub.asked
