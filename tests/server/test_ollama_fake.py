"""The fake of Ollama's server keeps to the published interface, with Ollama's own client and with OpenAI's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import ollama
import openai
import pytest
from gguf import GGUFWriter
from ollama import ResponseError

from tests.fakes.ollama_fake import OllamaFake
from tests.server.helpers import engine_children, is_alive, wait_until

MODEL, EMBEDDER = "smollm2:135m", "all-minilm"
CONTEXT = 256
GREETING = [{"role": "user", "content": "Say hello."}]
LONG = "The lighthouse keeper counts the ships that pass. " * 40


@pytest.fixture(scope="module")
def fake(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaFake]:
    """A server that has two models; for tests that leave it as it was."""
    with OllamaFake(tmp_path_factory.mktemp("ollama"), default_model, CONTEXT, (MODEL, EMBEDDER)) as started:
        yield started


@pytest.fixture(scope="module")
def client(fake: OllamaFake) -> Iterator[ollama.Client]:
    with ollama.Client(host=fake.address, trust_env=False, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def compatible(fake: OllamaFake) -> Iterator[openai.OpenAI]:
    with httpx2.Client(trust_env=False, timeout=120) as http:
        yield openai.OpenAI(base_url=f"{fake.address}/v1", api_key="ollama", http_client=http, max_retries=0)


@pytest.fixture
def empty(default_model: Path, tmp_path: Path) -> Iterator[OllamaFake]:
    """A server without models, which a test may harm."""
    with OllamaFake(tmp_path / "ollama", default_model, CONTEXT) as started:
        yield started


def ask(fake: OllamaFake, method: str, path: str, **more: Any) -> httpx2.Response:
    with httpx2.Client(trust_env=False, timeout=120) as http:
        return http.request(method, f"{fake.address}{path}", **more)


def write_f16(path: Path) -> Path:
    """A GGUF that says it is F16, with one tensor."""
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_says_that_it_is_ollama_and_a_fake(fake: OllamaFake) -> None:
    assert ask(fake, "GET", "/").text == "Ollama is running"
    assert ask(fake, "HEAD", "/").status_code == 200
    assert ask(fake, "GET", "/api/version").json() == {"version": "0.32.15-fake"}
    assert ask(fake, "GET", "/api/health").status_code == 404
    assert ask(fake, "GET", "/api/chat").status_code == 405
    for host, status in (("bancada.example.org", 403), ("localhost:1", 200), ("[::1]:1", 200), ("192.168.0.9", 200)):
        assert ask(fake, "GET", "/", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/chat", None, 400, "missing request body"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/chat", {"model": "no such"}, 400, "invalid model name"),
        ("/api/chat", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("/api/chat", {"model": EMBEDDER, "messages": GREETING}, 400, '"all-minilm" does not support chat'),
        ("/api/chat", {"model": MODEL, "think": True}, 400, f'"{MODEL}" does not support thinking'),
        ("/api/chat", {"model": MODEL, "keep_alive": "5"}, 400, 'time: missing unit in duration "5"'),
        ("/api/chat", {"model": MODEL, "options": {"seed": "x"}}, 500, 'option "seed" must be of type integer'),
        ("/api/generate", {"model": "nobody"}, 404, "model 'nobody' not found"),
        (
            "/api/generate",
            {"model": MODEL, "prompt": "a", "suffix": "b"},
            400,
            f"library/{MODEL} does not support insert",
        ),
        ("/api/embed", {"model": "nobody", "input": "a"}, 404, "model 'nobody' not found"),
        ("/api/embed", {"model": MODEL, "input": 7}, 400, "invalid input type"),
        ("/api/embeddings", {"model": "nobody"}, 404, 'model "nobody" not found, try pulling it first'),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "nobody"}, 404, "model 'nobody:latest' not found"),
        ("/api/copy", {"source": "nobody", "destination": "x"}, 404, 'model "nobody" not found'),
        ("/api/copy", {"source": MODEL, "destination": "a b"}, 400, 'destination "a b" is invalid'),
        ("/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("/api/create", {"model": "x", "files": {"/etc/x.gguf": "sha256:0"}}, 400, "file path must be relative"),
        ("/api/pull", {"model": "nobody", "stream": False}, 500, "pull model manifest: file does not exist"),
    ],
)
def test_a_request_that_is_wrong_has_its_status_and_its_words(
    fake: OllamaFake, path: str, body: object, status: int, error: str
) -> None:
    answer = ask(fake, "POST", path, **({} if body is None else {"json": body}))
    assert answer.status_code == status
    assert answer.json()["error"].endswith(error)


def test_a_pull_tells_of_every_layer_and_goes_on_where_it_was_cancelled(empty: OllamaFake) -> None:
    with ollama.Client(host=empty.address, trust_env=False, timeout=60) as client:
        with pytest.raises(ResponseError, match="pull model manifest: file does not exist") as unknown:
            list(client.pull("nobody", stream=True))
        assert unknown.value.status_code == -1, "it came under HTTP 200"
        empty.fault("/api/pull", "slow", seconds=0.05)
        first = client.pull(MODEL, stream=True)
        seen = wait_until("some of it is here", lambda: next(first).completed)
        first.close()
        assert client.list().models == []
        lines = list(client.pull(MODEL, stream=True))
        weights = [line for line in lines if line.digest == lines[1].digest]
        assert lines[0].status == "pulling manifest"
        assert (weights[0].completed or 0) >= seen
        assert weights[-1].completed == weights[-1].total
        assert weights[0].status == f"pulling {str(weights[0].digest).removeprefix('sha256:')[:12]}"
        assert len({line.digest for line in lines if line.digest}) == 5
        assert [line.status for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
        assert [line.status for line in client.pull(MODEL, stream=True)][-1] == "success"
        (listed,) = client.list().models
    assert listed.size == sum({line.digest: line.total or 0 for line in lines}.values())
    assert not list(empty.home.rglob("*-partial"))


def test_a_model_is_listed_and_shown(fake: OllamaFake, client: ollama.Client) -> None:
    by_name = {model.model: model for model in client.list().models}
    assert set(by_name) >= {MODEL, "all-minilm:latest"}
    raw = next(one for one in ask(fake, "GET", "/api/tags").json()["models"] if one["name"] == MODEL)
    assert len(raw["digest"]) == 64 and raw["details"]["context_length"] == 8192
    shown = client.show(MODEL.upper())
    assert shown.details is not None and shown.modelinfo is not None
    assert (shown.details.family, shown.details.format, shown.details.quantization_level) == ("llama", "gguf", "Q4_1")
    assert shown.details.parameter_size == "134.52M"
    assert shown.capabilities == ["completion", "tools"]
    assert client.show(EMBEDDER).capabilities == ["embedding"]
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert shown.parameters and '"<|im_end|>"' in shown.parameters
    assert shown.modelfile and "\nFROM /" in shown.modelfile and "\nPARAMETER stop <|im_end|>\n" in shown.modelfile
    assert shown.template and "{{ .Content }}" in shown.template and shown.license


def test_a_chat_is_real_and_its_options_count(fake: OllamaFake, client: ollama.Client) -> None:
    asked = [{"role": "user", "content": "Write three words about the sea."}]
    options = {"num_predict": 8, "seed": 3, "temperature": 0.9, "unknown": 1}
    # Afterwards the prompt is cached for both: computed anew it rounds differently, and a draw may fall.
    client.chat(MODEL, asked, options=options | {"num_predict": 1})
    first, again = (client.chat(MODEL, asked, options=options) for _ in range(2))
    assert first.message.content and first.message.content == again.message.content
    assert first.done and first.eval_count
    greedy = client.chat(MODEL, asked, options={"num_predict": 8, "temperature": 0})
    assert (greedy.done, greedy.done_reason, greedy.eval_count) == (True, "length", 8)
    assert first.total_duration and first.prompt_eval_duration and first.eval_duration
    assert first.total_duration > first.eval_duration > 1_000_000, "nanoseconds"
    stop = first.message.content.split()[1]
    stopped = client.chat(MODEL, asked, options=options | {"stop": [stop]})
    assert stopped.done_reason == "stop"
    assert stop not in (stopped.message.content or "")
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    made = client.chat(MODEL, GREETING, format=schema, options={"num_predict": 60, "temperature": 0})
    assert set(json.loads(made.message.content or "")) == {"age"}
    answer = ask(fake, "POST", "/api/chat", json={"model": MODEL, "messages": GREETING, "format": "xml"})
    assert answer.status_code == 500 and answer.json()["error"].startswith("invalid format: ")


def test_a_stream_is_lines_of_json_that_omit_what_is_zero(fake: OllamaFake) -> None:
    body = {"model": MODEL, "messages": GREETING, "options": {"num_predict": 4, "temperature": 0}}
    answer = ask(fake, "POST", "/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *pieces, last = [json.loads(line) for line in answer.text.splitlines()]
    assert len(pieces) == 4
    assert all(set(one) == {"model", "created_at", "message", "done"} and one["done"] is False for one in pieces)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done_reason"] == "length" and last["eval_count"] == 4
    generated = ask(fake, "POST", "/api/generate", json={"model": MODEL, "prompt": "Hi", "options": {"num_predict": 2}})
    *pieces, last = [json.loads(line) for line in generated.text.splitlines()]
    assert all(one["response"] for one in pieces) and last["response"] == ""
    assert len(last["context"]) == pytest.approx(last["prompt_eval_count"] + 2, abs=2)
    raw = {"model": MODEL, "prompt": "One two", "raw": True, "stream": False, "options": {"num_predict": 2}}
    answer = ask(fake, "POST", "/api/generate", json=raw)
    assert answer.json()["prompt_eval_count"] == 2 and "context" not in answer.json()


def test_keep_alive_loads_unloads_and_expires(fake: OllamaFake, client: ollama.Client) -> None:
    loaded = client.generate(MODEL, keep_alive=-1)
    assert (loaded.done_reason, loaded.response) == ("load", "")
    (running,) = client.ps().models
    assert (running.name, running.context_length, running.size_vram) == (MODEL, CONTEXT, 0)
    assert running.size and running.size > 100 * 2**20
    assert running.expires_at and running.expires_at.year > 2300
    client.chat(MODEL, GREETING, options={"num_predict": 1, "num_ctx": 128}, keep_alive="90s")
    (running,) = client.ps().models
    assert running.context_length == 128
    assert running.expires_at and 0 < running.expires_at.timestamp() - time.time() < 91
    assert client.chat(MODEL, keep_alive=0).done_reason == "unload"
    wait_until("it is gone", lambda: not client.ps().models)
    assert client.chat(MODEL, keep_alive="5s").done_reason == "load"
    assert client.ps().models
    wait_until("its time is over", lambda: not client.ps().models)


def test_a_prompt_that_is_too_long_is_cut_without_a_word(
    fake: OllamaFake, client: ollama.Client, compatible: openai.OpenAI
) -> None:
    system = {"role": "system", "content": "Answer in one word."}
    short = client.chat(MODEL, [system, *GREETING], options={"num_predict": 1})
    old = [system, {"role": "user", "content": LONG}, *GREETING]
    assert client.chat(MODEL, old, options={"num_predict": 1}).prompt_eval_count == short.prompt_eval_count
    cut = client.chat(MODEL, [system, {"role": "user", "content": LONG}], options={"num_predict": 1})
    assert CONTEXT * 0.4 < (cut.prompt_eval_count or 0) < CONTEXT * 0.6
    other = compatible.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": LONG}], max_tokens=1)
    assert other.usage is not None and CONTEXT * 0.4 < other.usage.prompt_tokens < CONTEXT * 0.6
    body = {"model": MODEL, "messages": [{"role": "user", "content": LONG}], "truncate": False}
    refused = ask(fake, "POST", "/api/chat", json=body)
    assert refused.status_code == 400 and "exceeds the available context size" in refused.json()["error"]


def test_texts_become_vectors(client: ollama.Client, compatible: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose by two points."]
    found = client.embed(EMBEDDER, texts)
    vectors = np.array(found.embeddings)
    assert vectors.shape == (3, 576) and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert found.prompt_eval_count and found.total_duration
    assert np.allclose(client.embeddings(EMBEDDER, texts[0]).embedding, vectors[0], atol=1e-3)
    same = compatible.embeddings.create(model=EMBEDDER, input=texts)
    assert np.allclose([one.embedding for one in same.data], vectors, atol=1e-3)
    assert same.model == EMBEDDER and same.usage.prompt_tokens == found.prompt_eval_count
    assert len(client.embed(EMBEDDER, texts[0], dimensions=8).embeddings[0]) == 8
    assert client.embed(EMBEDDER, []).embeddings == []
    assert client.embed(EMBEDDER, LONG).prompt_eval_count == CONTEXT - 2
    with pytest.raises(ResponseError, match="the input length exceeds the context length"):
        client.embed(EMBEDDER, LONG, truncate=False)


def test_the_openai_client_is_served_too(fake: OllamaFake, compatible: openai.OpenAI) -> None:
    listed = {model.id: model for model in compatible.models.list().data}
    assert listed[MODEL].owned_by == "library"
    assert compatible.models.retrieve(MODEL).id == MODEL
    talk: Any = compatible.chat.completions.create
    whole = talk(model=MODEL, messages=GREETING, max_tokens=3, temperature=0)
    assert (whole.model, whole.system_fingerprint, whole.choices[0].finish_reason) == (MODEL, "fp_ollama", "length")
    assert whole.usage.completion_tokens == 3
    for wanted in (False, True):
        options = {"stream_options": {"include_usage": True}} if wanted else {}
        chunks = list(talk(model=MODEL, messages=GREETING, max_tokens=3, temperature=0, stream=True, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert {chunk.model for chunk in chunks} == {MODEL}
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [3] * wanted
    with pytest.raises(openai.NotFoundError) as unknown:
        talk(model="nobody", messages=GREETING)
    assert unknown.value.body == {
        "message": "model 'nobody' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }
    with pytest.raises(openai.BadRequestError, match="too short"):
        talk(model=MODEL, messages=[])


def test_a_tool_and_what_it_said_are_part_of_a_chat(client: ollama.Client) -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return city

    call = {"function": {"name": "weather", "arguments": {"city": "Porto"}}}
    talk: list[Any] = [
        *GREETING,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_name": "weather"},
    ]
    assert client.chat(MODEL, talk, tools=[weather], options={"num_predict": 2}).done
    client.create("plain", from_=EMBEDDER)
    with pytest.raises(ResponseError, match='"plain" does not support chat'):
        client.chat("plain", GREETING, tools=[weather])
    client.delete("plain")


def test_a_model_is_made_of_another_copied_and_deleted(fake: OllamaFake, client: ollama.Client) -> None:
    lines = client.create(
        "pirate",
        from_=MODEL,
        system="You are a pirate.",
        parameters={"temperature": 0, "num_ctx": 384},
        messages=[{"role": "user", "content": "Ahoy"}, {"role": "assistant", "content": "Arr"}],
        stream=True,
    )
    told = [line.status or "" for line in lines]
    assert told[0].startswith("using existing layer sha256:") and told[-2:] == ["writing manifest", "success"]
    assert any(one.startswith("creating new layer sha256:") for one in told)
    shown = ask(fake, "POST", "/api/show", json={"model": "pirate:latest"}).json()
    assert shown["system"] == "You are a pirate." and len(shown["messages"]) == 2
    assert shown["details"]["parent_model"] == MODEL
    assert "num_ctx                        384" in shown["parameters"] and "<|im_end|>" in shown["parameters"]
    plain, pirate = (client.chat(name, GREETING, options={"num_predict": 1}) for name in (MODEL, "pirate"))
    assert (pirate.prompt_eval_count or 0) > (plain.prompt_eval_count or 0)
    assert client.ps().models[0].context_length == 384
    client.copy("pirate", "me/corsair:v1")
    client.delete("pirate")
    assert {"me/corsair:v1", MODEL} <= {model.model for model in client.list().models}
    client.delete("me/corsair:v1")
    with pytest.raises(ResponseError, match="model 'pirate' not found"):
        client.delete("pirate")
    assert client.chat(MODEL, GREETING, options={"num_predict": 1}).done, "its layers are still here"


def test_a_model_is_made_of_a_file_and_quantized(fake: OllamaFake, client: ollama.Client, tmp_path: Path) -> None:
    content = write_f16(tmp_path / "tiny.gguf").read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob = f"/api/blobs/{digest}"
    assert ask(fake, "HEAD", blob).status_code == 404
    assert ask(fake, "POST", f"/api/blobs/sha256:{'0' * 64}", content=content[:-1]).status_code == 400
    assert ask(fake, "POST", "/api/blobs/sha256:0", content=content).json() == {"error": "invalid digest format"}
    assert ask(fake, "POST", blob, content=iter([content[:99], content[99:]])).status_code == 201
    assert ask(fake, "HEAD", blob).status_code == 200
    assert client.create_blob(tmp_path / "tiny.gguf") == digest
    lines = list(client.create("tiny:q4", files={"tiny.gguf": digest}, quantize="q4_K_M", stream=True))
    told = [line.status for line in lines]
    assert told[:2] == ["parsing GGUF", "quantizing F16 model to Q4_K_M"]
    assert lines[1].total == len(content) and "verifying conversion" in told and told[-1] == "success"
    details = client.show("tiny:q4").details
    assert details is not None and details.quantization_level == "Q4_K_M"
    client.delete("tiny:q4")
    with pytest.raises(ResponseError, match="quantization is only supported for F16, BF16 and F32 models"):
        list(client.create("x", from_=MODEL, quantize="q8_0", stream=True))
    (tmp_path / "text.gguf").write_text("no model")
    other = client.create_blob(tmp_path / "text.gguf")
    with pytest.raises(ResponseError, match="supplied file was not in GGUF format"):
        list(client.create("x", files={"text.gguf": other}, stream=True))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_client_that_leaves_stops_the_answer(
    fake: OllamaFake, client: ollama.Client, path: str, stream: bool
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell a long story."}], "stream": stream}
    body |= {"temperature": 2.0, "options": {"num_predict": 2000, "num_ctx": 2048, "temperature": 2.0}}
    # OpenAI's form cannot say num_ctx, and whoever asks with another one loads again.
    client.chat(MODEL, options={"num_ctx": 2048 if path == "/api/chat" else CONTEXT})
    with (
        pytest.raises(httpx2.ReadTimeout),
        httpx2.Client(trust_env=False, timeout=2) as http,
        http.stream("POST", f"{fake.address}{path}", json=body) as answer,
    ):
        for _ in answer.iter_lines():
            raise httpx2.ReadTimeout("enough")
    client.chat(MODEL, keep_alive=0)
    wait_until("nobody works, so it is unloaded", lambda: not client.ps().models)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_it_misbehaves_on_demand_and_once(fake: OllamaFake, path: str) -> None:
    # At temperature 0: a random answer may be over after one token.
    body = {"model": MODEL, "messages": GREETING, "stream": True, "max_tokens": 3, "temperature": 0}
    body |= {"options": {"num_predict": 3, "temperature": 0}}

    def stream() -> tuple[httpx2.Response, bytes]:
        with (
            httpx2.Client(trust_env=False, timeout=2.5) as http,
            http.stream("POST", f"{fake.address}{path}", json=body, timeout=httpx2.Timeout(30, read=read_s)) as answer,
        ):
            try:
                for piece in answer.iter_raw():
                    got.append(piece)
            except httpx2.RemoteProtocolError:
                got.append(b"CUT")
            return answer, b"".join(got)

    got: list[bytes] = []
    read_s = 60.0
    stream()
    fake.fault(path, "html")
    got.clear()
    answer, content = stream()
    assert answer.status_code == 502 and answer.headers["content-type"] == "text/html" and b"<html>" in content
    fake.fault(path, "redirect")
    assert stream()[0].headers["location"] == f"http://elsewhere.invalid{path}"
    fake.fault(path, "error-after-first")
    got.clear()
    answer, content = stream()
    assert answer.status_code == 200
    # OpenAI's form has no place for an error in a stream: Ollama ends it without a last word.
    assert (b'{"error":"' in content) is path.startswith("/api") and b"[DONE]" not in content
    fake.fault(path, "cut")
    got.clear()
    _, content = stream()
    assert content.endswith(b"\xc3CUT") and b'"content":"' in content
    fake.fault(path, "slow", seconds=0.4)
    got.clear()
    started = time.monotonic()
    _, content = stream()
    lines = [line for line in content.splitlines() if line.strip()]
    # A pause before every line but the first one.
    assert len(lines) > 3 and time.monotonic() - started >= 0.4 * (len(lines) - 1)
    fake.fault(path, "silent")
    read_s = 0.5
    with pytest.raises(httpx2.ReadTimeout):
        stream()
    read_s = 60.0
    got.clear()
    answer, content = stream()
    assert answer.status_code == 200 and (b'"done":true' in content or b"[DONE]" in content), "well again"


def test_it_dies_on_demand_and_its_engine_with_it(default_model: Path, tmp_path: Path) -> None:
    with OllamaFake(tmp_path / "ollama", default_model, CONTEXT, [MODEL]) as fake:
        assert ask(fake, "POST", "/api/chat", json={"model": MODEL}).json()["done_reason"] == "load"
        (engine,) = engine_children(fake.pid)
        fake.fault("/api/chat", "die")
        with pytest.raises(httpx2.HTTPError):
            greedy = {"model": MODEL, "messages": GREETING, "options": {"temperature": 0}}
            ask(fake, "POST", "/api/chat", json=greedy)
        wait_until("the engine is gone", lambda: not is_alive(engine))
        with pytest.raises(httpx2.ConnectError):
            ask(fake, "GET", "/")


def test_it_ends_when_its_input_is_closed(default_model: Path, tmp_path: Path) -> None:
    fake = OllamaFake(tmp_path / "ollama", default_model, CONTEXT, [MODEL]).start()
    ask(fake, "POST", "/api/chat", json={"model": MODEL})
    (engine,) = engine_children(fake.pid)
    assert fake.stop() == 0
    wait_until("the engine is gone", lambda: not is_alive(engine))


def test_an_engine_that_dies_in_mid_stream_is_an_error_and_the_next_chat_is_well(
    fake: OllamaFake, client: ollama.Client
) -> None:
    options = {"num_ctx": 2048, "temperature": 0}
    client.chat(MODEL, options=options)
    (engine,) = engine_children(fake.pid)
    answer = client.chat(MODEL, [{"role": "user", "content": "Tell a long story."}], stream=True, options=options)
    next(iter(answer))
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(ResponseError, match="model runner has unexpectedly stopped"):
        list(answer)
    assert client.chat(MODEL, GREETING, options={"num_predict": 1}).done
