"""Lab 4 on the fake of Ollama's server, without any server, and on one that goes wrong."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest

from labs.ollama import measured
from labs.ollama.checks import CONTEXTS, LAB, largest_context
from labs.ollama.served import INSTALL, install_command
from labs.ollama.steps import EMBEDDER, MODEL
from lib.course.result import Progress
from lib.course.run import perform
from lib.engines import ollama, wire
from lib.engines.ollama import OllamaEngine
from lib.errors import (
    BadParameter,
    BancadaError,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineSilent,
    NotAnEngine,
    UnknownModel,
)
from lib.ollama import models as ollama_models
from lib.workbench import Workbench
from tests.fakes.ollama_fake import OllamaFake
from tests.ollama_lab import *  # noqa: F403  the tests
from tests.ollama_lab import LIBRARY, column, keys, opened, ran, row
from tests.server.helpers import clients, engine_children, wait_until
from tests.server.test_quantize import finished

CONTEXT = 2048
STEPS = tuple(LAB.steps)
NEEDS_NO_SERVER = ("names",)


@pytest.fixture(scope="module")
def serving(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaFake]:
    """A server that has two models; for tests that leave it as it was."""
    with OllamaFake(tmp_path_factory.mktemp("ollama"), default_model, CONTEXT, LIBRARY) as started:
        yield started


@pytest.fixture(scope="module")
def bench(
    serving: OllamaFake, default_model: Path, stock: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workbench]:
    """A workbench beside it."""
    yield from beside(serving, default_model, stock, tmp_path_factory.mktemp("ollama-lab"))


# Without a server.


@pytest.fixture(scope="module")
def alone(default_model: Path, stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A workbench with an address at which nobody listens."""
    with socket.socket() as nobody:
        # Bound, so that no other server gets the port meanwhile.
        nobody.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        made = opened(tmp_path_factory.mktemp("alone") / "home", default_model, stock, host)
        yield made
        made.close()
        made.store.close()


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("step", STEPS)
def test_without_a_server_every_step_gives_a_result_and_says_what_is_missing(alone: Workbench, step: str) -> None:
    found = ran(alone, step)
    assert found.facts.get("engine", "embedded") == "embedded"
    if step in NEEDS_NO_SERVER:
        assert "no_server" not in keys(found)
        return
    told = next(one for one in found.notes if one.key == "no_server").parameters
    assert told["install"] == INSTALL[platform.system()] and told["address"] == alone.settings.ollama_host
    for language in ("en", "pt"):
        assert str(told["install"]) in LAB.words(language)("notes.no_server", **told)
    # More than an excuse: something was measured here.
    assert len(found.notes) > 1 or step == "server"
    assert found.table is not None or step == "server"


@pytest.mark.parametrize("symptom", ["slow", "out_of_memory", "not_found", "context_cut"])
def test_without_a_server_every_symptom_is_examined_on_the_embedded_engine(alone: Workbench, symptom: str) -> None:
    found = ran(alone, "troubleshoot", symptom=symptom, context_tokens=4096)
    assert found.facts["first_trouble"] == "answers"
    assert column(found, "check")[:2] == ["answers", "is_there"] and row(found, "check", "is_there")["fine"]


def test_without_a_server_what_does_not_fit_is_refused_with_both_numbers(alone: Workbench) -> None:
    found = ran(alone, "context", num_ctx=256)
    for one in found.table.to_dict("records"):  # type: ignore[union-attr]
        assert one["refused"] is (one["sent_tokens"] > 256) and one["counted_tokens"] == one["sent_tokens"]


@pytest.mark.parametrize("system", [*INSTALL, "FreeBSD"])
def test_every_platform_has_its_own_command(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    said = {"Linux": "install.sh", "Darwin": "brew install", "Windows": "winget install"}.get(system, "https://")
    assert said in install_command()


# With one that goes wrong.


@pytest.fixture
def fake(default_model: Path, tmp_path: Path) -> Iterator[OllamaFake]:
    """A server that a test may harm."""
    with OllamaFake(tmp_path / "ollama", default_model, CONTEXT, LIBRARY) as started:
        yield started


@pytest.fixture
def harmed(fake: OllamaFake, default_model: Path, stock: Path, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench beside it."""
    yield from beside(fake, default_model, stock, tmp_path)


@pytest.fixture
def empty(default_model: Path, tmp_path: Path) -> Iterator[OllamaFake]:
    """A server without models."""
    with OllamaFake(tmp_path / "ollama", default_model, CONTEXT) as started:
        yield started


@pytest.fixture
def beginning(empty: OllamaFake, default_model: Path, stock: Path, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench beside that."""
    yield from beside(empty, default_model, stock, tmp_path)


def beside(fake: OllamaFake, default_model: Path, stock: Path, tmp_path: Path) -> Iterator[Workbench]:
    made = opened(tmp_path / "home", default_model, stock, fake.address)
    yield made
    made.close()
    made.store.close()


def reached(events: Iterator[Progress], what: str, at_least: float = 0.0) -> Progress:
    """The first progress of a kind that is so far in bytes of something large."""
    return next(one for one in events if one.what == what and (not at_least or one.done > at_least))


def own_engines(*fakes: OllamaFake) -> set[int]:
    """The engines that this process started; those of its fakes are theirs."""
    theirs = {pid for one in fakes for pid in engine_children(one.pid)}
    return set(engine_children(os.getpid())) - theirs


def test_a_model_is_fetched_in_layers_and_then_is_there(beginning: Workbench) -> None:
    assert keys(ran(beginning, "models")) == ["none_installed"]
    found = ran(beginning, "pull", name=MODEL)
    assert keys(found) == ["pulled"] and found.facts["found_bytes"] == 0
    assert found.facts["fetched_bytes"] == found.facts["size_bytes"] > 50e6
    assert MODEL in column(ran(beginning, "models"), "name")


def test_a_pull_that_was_cancelled_and_then_cut_goes_on_where_it_was(empty: OllamaFake, beginning: Workbench) -> None:
    before = own_engines(empty)
    # So slow that much is left to do when it is cancelled.
    empty.fault("/api/pull", "slow", seconds=0.2)
    with closing(perform(LAB.steps["pull"], beginning, {"name": MODEL})) as pulling:
        stopped = reached(pulling, "pull", 20e6)
    assert 20e6 < stopped.done < stopped.total
    assert own_engines(empty) == before

    empty.fault("/api/pull", "cut")
    with pytest.raises(EngineError):
        ran(beginning, "pull", name=MODEL)
    assert ollama_models.installed(empty.address) == []

    found = ran(beginning, "pull", name=MODEL)
    assert found.facts["found_bytes"] >= stopped.done
    (weights,) = (one for one in found.table.to_dict("records") if one["size_bytes"] > 50e6)  # type: ignore[union-attr]
    assert weights["found_bytes"] >= stopped.done
    assert [one.name for one in ollama_models.installed(empty.address)] == [MODEL]


def test_an_error_under_http_200_is_told(empty: OllamaFake, beginning: Workbench) -> None:
    empty.fault("/api/pull", "error-after-first")
    with pytest.raises(EngineRefused):
        ran(beginning, "pull", name=MODEL)
    assert ollama_models.installed(empty.address) == []
    with pytest.raises(UnknownModel):
        ran(beginning, "pull", name="bancada-test-nobody")


FAULTS: Mapping[str, type[BancadaError]] = {
    "html": NotAnEngine,
    "redirect": NotAnEngine,
    "silent": EngineSilent,
    "cut": EngineDied,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_not_ollama_is_told_by_the_first_step(
    serving: OllamaFake, bench: Workbench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # Its status is looked at, and then the version.
    serving.fault("/api/version", kind, times=2)
    with monkeypatch.context() as patience:
        if kind == "silent":
            patience.setattr(ollama_models, "LOOK_S", 1.0)
        try:
            with pytest.raises(FAULTS[kind]):
                ran(bench, "server")
        finally:
            used_up(serving, "/api/version")
    assert ran(bench, "server").facts["answers"] is True


def used_up(fake: OllamaFake, route: str) -> None:
    """Ask a route until no fault waits for it."""
    with httpx2.Client(trust_env=False, timeout=1) as client:
        for _ in range(2):
            with suppress(httpx2.HTTPError):
                client.get(f"{fake.address}{route}")


def test_a_slow_server_is_waited_for(serving: OllamaFake, bench: Workbench) -> None:
    for route in ("/api/version", "/api/embed"):
        serving.fault(route, "slow", seconds=0.5)
    assert ran(bench, "server").facts["answers"] is True
    assert ran(bench, "embed").facts["engine"] == "ollama"


@pytest.mark.parametrize("step", ["wire", "options", "context", "keep_alive", "embed"])
def test_what_runs_in_the_cloud_is_not_asked(bench: Workbench, step: str) -> None:
    with pytest.raises(BadParameter) as caught:
        ran(bench, step, name="gpt-oss:120b-cloud")
    assert MODEL in str(caught.value.parameters["allowed"])


def test_a_chat_model_makes_no_vectors(bench: Workbench) -> None:
    with pytest.raises(BadParameter) as caught:
        ran(bench, "embed", name=MODEL)
    assert "all-minilm" in str(caught.value.parameters["allowed"])


def test_a_name_in_other_capitals_is_found(bench: Workbench) -> None:
    assert ran(bench, "wire", name="SmolLM2:135M", max_tokens=8).facts["engine"] == "ollama"
    assert ran(bench, "manage", action="remove", name="SMOLLM2:135m").facts["done"] is False
    checks = ran(bench, "troubleshoot", symptom="out_of_memory", name="SMOLLM2:135m").table
    assert checks is not None and {"is_there", "fits"} <= set(checks["check"])


ASKING = {
    "server": "/api/version",
    "wire": "/api/generate",
    "options": "/v1/chat/completions",
    "context": "/api/chat",
    "keep_alive": "/api/chat",
    "embed": "/api/embed",
    "modelfile": "/v1/chat/completions",
}


@pytest.mark.parametrize("step", ASKING)
def test_a_server_that_dies_in_the_middle_is_told(fake: OllamaFake, harmed: Workbench, step: str) -> None:
    fake.fault(ASKING[step], "die")
    with pytest.raises(EngineError):
        ran(harmed, step)


WRONG = ("html", "redirect", "cut", "error-after-first", "silent")


@pytest.mark.parametrize(
    ("step", "kind"),
    [(step, kind) for step in ("wire", "context", "embed") for kind in WRONG],
)
def test_an_answer_that_goes_wrong_is_told_as_ours(
    serving: OllamaFake, bench: Workbench, monkeypatch: pytest.MonkeyPatch, step: str, kind: str
) -> None:
    # Loaded before: what is silent is to be the answer.
    finished(bench.engine("ollama").ensure(EMBEDDER if step == "embed" else MODEL))
    serving.fault("/api/embed" if step == "embed" else "/api/chat", kind)
    with monkeypatch.context() as patience:
        if kind == "silent":
            patience.setattr(ollama, "SILENT_S", 8.0)
            patience.setattr(wire, "PATIENCE_S", 8.0)
        with pytest.raises(EngineError):
            ran(bench, step)
    assert ran(bench, "embed").facts["engine"] == "ollama"


def test_an_openai_answer_that_ends_without_its_last_word_is_told(serving: OllamaFake, bench: Workbench) -> None:
    serving.fault("/v1/chat/completions", "error-after-first")
    with pytest.raises(EngineError):
        ran(bench, "wire", max_tokens=8)


def test_a_program_that_gets_no_answer_is_told(
    fake: OllamaFake, harmed: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "PROGRAM_S", 4.0)
    fake.fault("/v1/chat/completions", "silent", times=3)
    with suppress(BancadaError):
        assert ran(harmed, "snippets").facts["same_answer"] is not True


def test_settings_that_are_cancelled_leave_no_engine(fake: OllamaFake, harmed: Workbench) -> None:
    before = own_engines(fake)
    with closing(perform(LAB.steps["settings"], harmed, {})) as events:
        seen: set[int] = set()
        # Until the second engine is loading: the first one must be gone by then.
        while len(seen) < 2:
            reached(events, "load")
            seen |= own_engines(fake) - before
    assert own_engines(fake) == before


def test_requests_at_once_that_are_cancelled_leave_no_client(
    fake: OllamaFake, harmed: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "CACHES", measured.CACHES[:1])
    before = own_engines(fake)
    assert not clients()
    with closing(perform(LAB.steps["settings"], harmed, {"context_tokens": 2048})) as events:
        reached(events, "at_once")
        assert clients()
    assert own_engines(fake) == before
    wait_until("the clients are gone", lambda: not clients())
    assert ran(harmed, "wire", max_tokens=8).facts["engine"] == "ollama"


def test_a_model_that_was_removed_while_it_was_loaded_harms_nobody_who_leaves(fake: OllamaFake) -> None:
    engine = OllamaEngine(fake.address)
    ollama_models.copy(fake.address, MODEL, "bancada-test-copy")
    for _ in engine.ensure("bancada-test-copy"):
        pass
    ollama_models.remove(fake.address, "bancada-test-copy")
    engine.release()


@pytest.mark.parametrize(("step", "route"), [("models", "/api/tags"), ("models", "/api/show"), ("manage", "/api/ps")])
def test_a_list_that_never_comes_does_not_hold_the_page_for_minutes(
    fake: OllamaFake, harmed: Workbench, monkeypatch: pytest.MonkeyPatch, step: str, route: str
) -> None:
    # What only lists must not have the patience of what loads: the one is short here, the other is not.
    monkeypatch.setattr(ollama_models, "LIST_S", 1.0)
    fake.fault(route, "silent", times=9)
    with pytest.raises(EngineSilent) as caught:
        ran(harmed, step)
    assert caught.value.parameters["seconds"] == 1.0


@pytest.mark.parametrize(
    ("budget", "requests", "cache", "right"),
    [(96, 1, "f16", 4096), (128, 4, "f16", 1024), (192, 2, "q8_0", 8192), (96, 8, "f16", 512), (512, 8, "q4_0", 8192)],
)
def test_the_exercise_knows_the_largest_context(
    alone: Workbench, budget: int, requests: int, cache: str, right: int
) -> None:
    """SmolLM2's 11,520 numbers a token, in 16, 8.5 or 4.5 bits."""
    per_token = 11_520 * {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}[cache] / 8
    for answer in CONTEXTS:
        verdict = largest_context(alone, budget_mib=budget, requests=requests, cache_type=cache, answer_tokens=answer)
        fits = per_token * answer * requests <= budget * 2**20
        solved = "exercise_right_all" if right == CONTEXTS[-1] else "exercise_right"
        key = solved if answer == right else "exercise_larger_fits" if fits else "exercise_too_large"
        assert (verdict.correct, verdict.result.notes[0].key) == (answer == right, key), answer
