"""What only Ollama's own API can do, against the fake that answers as the real one does; and when it goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lib.course.result import Part
from lib.engines import chat, ollama
from lib.engines.chat import stream_chat
from lib.engines.ollama import REGISTRY, OllamaEngine, full_name
from lib.errors import (
    BancadaError,
    EngineAway,
    EngineDied,
    EngineRefused,
    EngineSilent,
    NotAnEngine,
    Offline,
    UnknownModel,
)
from lib.ollama.modelfile import read_modelfile
from lib.ollama.models import chat as native_chat
from lib.ollama.models import copy, create, details, embed, installed, loaded, remove
from tests.fakes.ollama_fake import OllamaFake
from tests.server.helpers import Loopback
from tests.server.test_quantize import finished

MODEL = "smollm2:135m"
CONTEXT = 1024
ASKED = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def fake(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaFake]:
    with OllamaFake(tmp_path_factory.mktemp("ollama"), default_model, CONTEXT, (MODEL, "all-minilm:latest")) as started:
        yield started


@pytest.fixture(scope="module")
def host(fake: OllamaFake) -> str:
    return fake.address


def test_a_model_is_pulled_in_layers_and_a_second_time_at_once(default_model: Path, tmp_path: Path) -> None:
    with OllamaFake(tmp_path / "ollama", default_model, CONTEXT) as empty:
        engine = OllamaEngine(empty.address)
        assert engine.models() == ()
        moved = list(engine.ensure(MODEL))
        layers = {one.detail for one in moved if one.what == "pull" and one.total}
        assert len(layers) >= 2
        for layer in layers:
            done = [one.done for one in moved if one.detail == layer]
            assert done == sorted(done) and done[-1] == next(one.total for one in moved if one.detail == layer)
        assert engine.models() == (MODEL,)
        assert engine.status().model == MODEL
        assert not [one for one in engine.ensure(MODEL) if one.what in ("pull", "load")]


def test_a_pull_that_is_cancelled_goes_on_where_it_was(default_model: Path, tmp_path: Path) -> None:
    with OllamaFake(tmp_path / "ollama", default_model, CONTEXT) as empty:
        # So slow that much is left to do when it is cancelled.
        empty.fault("/api/pull", "slow", seconds=0.2)
        pulling = iter(OllamaEngine(empty.address).ensure(MODEL))
        reached = 0.0
        for one in pulling:
            if one.what == "pull" and one.total > 1e7 and one.done > 0.3 * one.total:
                reached = one.done
                break
        pulling.close()  # type: ignore[attr-defined]
        assert MODEL not in OllamaEngine(empty.address).models()
        again = [one for one in OllamaEngine(empty.address).ensure(MODEL) if one.what == "pull" and one.total > 1e7]
        assert again[0].done >= 0.5 * reached


def test_a_name_in_other_capitals_is_the_same_model(host: str) -> None:
    engine = OllamaEngine(host)
    moved = list(engine.ensure("SmolLM2:135M"))
    assert not [one for one in moved if one.what == "pull"] and MODEL in {one.name for one in loaded(host)}
    engine.release("SmolLM2:135M")
    assert MODEL not in {one.name for one in loaded(host)}


class Unconnected(BaseHTTPRequestHandler):
    """A server of Ollama's on a machine without a network."""

    def do_GET(self) -> None:
        self._say({"models": []})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(
            {"status": "pulling manifest"},
            {
                "error": 'pull model manifest: Get "https://registry.ollama.ai/v2/library/smollm2/manifests/135m": '
                "dial tcp: lookup registry.ollama.ai: no such host"
            },
        )

    def _say(self, *lines: object) -> None:
        content = b"".join(json.dumps(one).encode() + b"\n" for one in lines)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "registry"), [(MODEL, "registry.ollama.ai"), ("hf.co/someone/model:Q4_0", "hf.co"), ("me/own", REGISTRY)]
)
def test_a_server_without_a_network_says_which_host_it_cannot_reach(name: str, registry: str) -> None:
    with Loopback(("127.0.0.1", 0), Unconnected) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Offline) as caught:
            list(OllamaEngine(f"http://127.0.0.1:{server.server_port}").ensure(name))
        server.shutdown()
    assert caught.value.parameters["host"] == registry and "no such host" in str(caught.value.parameters["why"])


@pytest.mark.parametrize(
    ("first", "seconds", "found"),
    [(0, 1.0, 0), (5_000_000, 1.0, 0), (60_000_000, 1.0, 60_000_000), (100_000_000, 0.0, 100_000_000)],
    ids=["new", "new on a fast network", "resumed", "here"],
)
def test_what_came_before_the_first_line_of_a_layer_was_not_here_before(first: int, seconds: float, found: int) -> None:
    layer = ollama._layer(Part("ab", 100_000_000, 100_000_000), 10.0, first, 10.0 + seconds)
    assert (layer.found_bytes, layer.size_bytes, layer.seconds) == (found, 100_000_000, pytest.approx(seconds))


def test_what_is_there_and_what_it_brings(host: str) -> None:
    assert {one.name for one in installed(host)} == {MODEL, "all-minilm:latest"}
    (one,) = (one for one in installed(host) if one.name == MODEL)
    assert one.size_bytes > 50e6 and one.quantization and one.digest
    found = details(host, MODEL)
    assert found.context_tokens and found.context_tokens >= 2048
    assert "completion" in found.capabilities and found.template and found.modelfile.startswith("#")
    assert "embedding" in details(host, "all-minilm").capabilities


def test_a_native_answer_has_the_servers_own_figures(host: str) -> None:
    options = {"temperature": 0, "num_predict": 12, "seed": 1}
    *_, reply = native_chat(host, MODEL, ASKED, options)
    assert reply.text and reply.finish == "length"
    assert reply.completion_tokens == 12 and reply.prompt_tokens > 10
    assert 0 < reply.completion_s < reply.total_s < 120
    assert reply.decode_tokens_per_s == pytest.approx(12 / reply.completion_s)
    *_, same = native_chat(host, MODEL, ASKED, options)
    assert same.text == reply.text


def test_keep_alive_unloads_and_the_next_answer_loads_again(host: str) -> None:
    list(native_chat(host, MODEL, ASKED, {"num_predict": 2}))
    (one,) = loaded(host)
    assert one.name == MODEL and one.size_bytes > 0 and one.context_tokens == CONTEXT and one.until is not None
    list(native_chat(host, MODEL, ASKED, {"num_predict": 2}, keep_alive=0))
    assert loaded(host) == []
    *_, reply = native_chat(host, MODEL, ASKED, {"num_predict": 2})
    assert reply.load_s > 0.05


def test_what_others_loaded_stays_and_what_was_asked_for_goes(host: str) -> None:
    list(native_chat(host, MODEL, ASKED, {"num_predict": 2}))
    engine = OllamaEngine(host)
    list(engine.ensure(MODEL))
    engine.release()
    assert [one.name for one in loaded(host)] == [MODEL]
    copy(host, MODEL, "mine")
    list(engine.ensure("mine"))
    engine.release()
    assert "mine:latest" not in [one.name for one in loaded(host)]
    list(engine.ensure("mine"))
    engine.release("mine")
    assert "mine:latest" not in [one.name for one in loaded(host)]
    remove(host, "mine")


def test_a_copy_and_its_removal(host: str) -> None:
    copy(host, MODEL, "mine")
    assert "mine:latest" in {one.name for one in installed(host)}
    remove(host, "mine")
    assert "mine:latest" not in {one.name for one in installed(host)}


def test_a_modelfile_becomes_a_model_that_behaves_so(host: str, default_model: Path) -> None:
    made = read_modelfile(
        f'FROM {MODEL}\nPARAMETER num_predict 5\nPARAMETER temperature 0\nSYSTEM """You are a pirate."""\n'
    )
    assert made.is_valid
    assert finished(create(host, "pirate", made)) == "pirate:latest"
    brought = details(host, "pirate")
    assert "num_predict" in brought.parameters and "pirate" in brought.modelfile
    *_, reply = native_chat(host, "pirate", ASKED)
    assert reply.completion_tokens == 5
    own = read_modelfile(f"FROM {default_model}\nPARAMETER stop END\n")
    assert finished(create(host, "own:1", own)) == "own:1"
    for name in ("pirate", "own:1"):
        remove(host, name)


def test_texts_become_vectors(host: str) -> None:
    one, two = embed(host, "all-minilm", ["cat", "dog"])
    assert len(one) == len(two) > 100


@pytest.mark.parametrize(
    "work",
    [
        lambda host: details(host, "nobody"),
        lambda host: copy(host, "nobody", "x"),
        lambda host: remove(host, "nobody"),
        lambda host: list(native_chat(host, "nobody", ASKED)),
        lambda host: embed(host, "nobody", ["x"]),
        lambda host: list(OllamaEngine(host).ensure("nobody")),
    ],
)
def test_a_model_that_it_does_not_have_is_told(host: str, work: object) -> None:
    with pytest.raises(UnknownModel) as caught:
        work(host)  # type: ignore[operator]
    assert MODEL in str(caught.value.parameters["known"])


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("html", EngineRefused),
        ("redirect", EngineRefused),
        ("silent", EngineSilent),
        ("error-after-first", EngineRefused),
        ("cut", (EngineRefused, EngineAway)),
    ],
)
def test_a_native_answer_that_goes_wrong_is_told(
    fake: OllamaFake, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[BancadaError]
) -> None:
    fake.fault("/api/chat", kind)
    with monkeypatch.context() as patience, pytest.raises(error):
        if kind == "silent":
            patience.setattr(ollama, "SILENT_S", 2.0)
        list(native_chat(fake.address, MODEL, ASKED, {"num_predict": 8, "temperature": 0}))
    assert list(native_chat(fake.address, MODEL, ASKED, {"num_predict": 2}))


@pytest.mark.parametrize(
    ("kind", "error"),
    [("html", NotAnEngine), ("redirect", NotAnEngine), ("silent", EngineSilent), ("cut", (EngineDied, EngineRefused))],
)
def test_an_openai_answer_that_goes_wrong_is_told(
    fake: OllamaFake, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[BancadaError]
) -> None:
    if kind == "silent":
        monkeypatch.setattr(chat, "FIRST_TOKEN_S", 2.0)
    fake.fault("/v1/chat/completions", kind)
    with pytest.raises(error):
        list(stream_chat(OllamaEngine(fake.address).client(MODEL), MODEL, ASKED, max_tokens=8))


def test_nobody_there_is_told(default_model: Path, tmp_path: Path) -> None:
    gone = OllamaFake(tmp_path / "ollama", default_model, CONTEXT).start()
    gone.stop()
    engine = OllamaEngine(gone.address)
    assert engine.status().state == "stopped" and engine.status().incident
    assert engine.models() == ()
    engine.release()
    for work in (lambda: list(engine.ensure(MODEL)), lambda: list(native_chat(gone.address, MODEL, ASKED))):
        with pytest.raises(EngineAway):
            work()


def test_names_have_tags() -> None:
    assert full_name("smollm2") == "smollm2:latest"
    assert full_name("hf.co/a/b:Q4_0") == "hf.co/a/b:Q4_0"
    assert full_name("localhost:5000/a") == "localhost:5000/a:latest"
