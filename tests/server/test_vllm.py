"""vLLM beyond the contract of all engines: its key, its several processes, and what it says when it cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lib.bench.load import Answer, Target, closed_loop, run_load
from lib.convert.kept import CONVERTED, MANIFEST
from lib.engines import vllm_server
from lib.engines.child import ChildEngine
from lib.engines.vllm import TOOLCHAIN, VllmEngine, VllmOptions
from lib.errors import (
    BancadaError,
    EngineDidNotStart,
    EngineDied,
    ModelDamaged,
    ModelNotHere,
    ToolchainUnreachable,
    ToolchainUnsupported,
)
from lib.toolchains import Toolchains
from lib.toolchains.registry import TOOLCHAINS
from tests.conftest import DEFAULT
from tests.server.helpers import drain, is_alive, wait_until
from tests.server.test_engine_contract import built_home  # noqa: F401  a fixture
from tests.server.tiny import write_tiny_directory

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")
MODEL = f"{DEFAULT}.hf"
WEIGHTS = "model.safetensors"
# A start takes most of a minute on two cores that have nothing else to do.
START_S = 900.0


def engine_of(home: Path, toolchains: Toolchains | None = None) -> VllmEngine:
    options = VllmOptions(context_tokens=512, sequences=4)
    return VllmEngine(home, home / "logs", toolchains or Toolchains(home / "toolchains", home / "logs"), options)


@pytest.fixture(scope="module")
def engine(built_home: Path) -> Iterator[VllmEngine]:  # noqa: F811
    """One engine for the file, ready; a test that harms it waits until it is back."""
    made = engine_of(built_home)
    drain(made.ensure(MODEL))
    yield made
    made.release()


def tree(engine: ChildEngine) -> list[psutil.Process]:
    """The wrapper and all below it."""
    pid = engine.status().pid
    assert pid is not None
    wrapper = psutil.Process(pid)
    return [wrapper, *wrapper.children(recursive=True)]


def core_of(engine: ChildEngine) -> psutil.Process:
    """The process that computes; vLLM names it."""
    (found,) = [one for one in tree(engine) if "EngineCore" in " ".join([one.name(), *one.cmdline()])]
    return found


def test_the_key_is_on_no_command_line(engine: VllmEngine) -> None:
    key = engine.client(MODEL).api_key
    assert len(key) > 20
    processes = tree(engine)
    lines = [" ".join(one.cmdline()) for one in processes]
    # The wrapper, the supervisor, vLLM's server and what computes.
    assert len(processes) >= 4 and any("vllm.entrypoints" in one for one in lines)
    assert not [one for one in lines if key in one]


def test_its_memory_is_that_of_all_its_processes_each_page_counted_once(engine: VllmEngine) -> None:
    told, processes = engine.status().memory_bytes, tree(engine)
    each = {one.pid: one.memory_info().rss for one in processes}
    assert told and told > 2 * each[processes[0].pid]
    # More than any of them alone holds for itself, and no more than their sum.
    assert max(one.memory_full_info().uss for one in processes) < told <= sum(each.values())


def test_what_computes_may_die_under_load_and_the_engine_comes_back(engine: VllmEngine) -> None:
    before, core = engine.status(), core_of(engine)
    old = [one.pid for one in tree(engine)]
    target = Target(engine, MODEL, {"extra_body": {"ignore_eos": True}})
    made = run_load(target, closed_loop(2), ["Tell a long story.", "Describe the sea."], 400)
    while next(made).done < 8:
        pass
    core.kill()
    answers: list[Answer] = []
    try:
        while True:
            next(made)
    except StopIteration as end:
        answers = end.value
    assert len(answers) == 2 and not any(one.answered for one in answers)
    assert all(isinstance(one.error, BancadaError) for one in answers) and any(one.text for one in answers)
    wait_until("it is noticed", lambda: engine.status().restarts == before.restarts + 1, START_S)
    assert engine.status().incident
    wait_until("it is back", lambda: engine.status().state == "ready", START_S)
    assert not [pid for pid in old if is_alive(pid)]
    again = run_load(target, closed_loop(2), ["Say hello."], 4)
    try:
        while True:
            next(again)
    except StopIteration as end:
        answers = end.value
    assert [(one.answered, one.completion_tokens) for one in answers] == [(True, 4)] * 2


def test_without_its_wrapper_nothing_of_vllm_goes_on(engine: VllmEngine) -> None:
    """The last one that needs the engine: it is not waited for again."""
    wrapper, *below = tree(engine)
    assert len(below) >= 3
    os.kill(wrapper.pid, signal.SIGKILL)
    wait_until("all of it is gone", lambda: not [one for one in below if is_alive(one.pid)])
    # A new one starts by itself; who gives it back in the middle of that ends it as well.
    wait_until("it comes back", lambda: engine.status().pid not in (None, wrapper.pid))
    wait_until("its server starts", lambda: len(tree(engine)) >= 3)
    again = tree(engine)
    engine.release()
    wait_until("all of it is gone", lambda: not [one for one in again if is_alive(one.pid)])
    assert engine.status().state == "stopped"
    with pytest.raises(EngineDied):
        engine.client(MODEL)


@pytest.fixture
def own_home(tmp_path: Path, built_home: Path) -> Path:  # noqa: F811
    """A home with vLLM's toolchain, and a directory of a model to which a test does something.

    It lies so deep that no socket could be named by its whole path there.
    """
    home = tmp_path / "a-home-that-lies-deep" / ("b" * 40) / "home"
    home.mkdir(parents=True)
    (home / "toolchains").symlink_to(built_home / "toolchains", target_is_directory=True)
    whole, own = built_home / CONVERTED / DEFAULT / "hf", home / CONVERTED / "own" / "hf"
    own.mkdir(parents=True)
    for one in whole.iterdir():
        if one.suffix != ".safetensors":
            shutil.copy(one, own)
    return home


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_damaged_directory_is_told_before_anything_starts(
    own_home: Path,
    built_home: Path,  # noqa: F811
    name: str,
) -> None:
    own = own_home / CONVERTED / "own" / "hf"
    with (built_home / CONVERTED / DEFAULT / "hf" / WEIGHTS).open("rb") as whole:
        (own / WEIGHTS).write_bytes(whole.read(1 << 20))
    if name != WEIGHTS:  # what comes before the weights
        (own / name).unlink()
    engine = engine_of(own_home)
    with pytest.raises(ModelDamaged) as caught:
        drain(engine.ensure("own.hf"))
    assert name in str(caught.value.parameters)
    assert engine.status().state == "stopped" and not (own_home / "logs").exists()


def test_what_only_vllm_can_see_ends_the_start_with_its_own_reason(
    own_home: Path,
    built_home: Path,  # noqa: F811
) -> None:
    own = own_home / CONVERTED / "own" / "hf"
    shutil.copy(built_home / CONVERTED / DEFAULT / "hf" / WEIGHTS, own)
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"hidden_size": config["hidden_size"] + 1}))
    engine = engine_of(own_home)
    with pytest.raises(EngineDidNotStart) as caught:
        drain(engine.ensure("own.hf"))
    # Not the status with which it ended, and not what it warned of on the way.
    assert "hidden" in str(caught.value.parameters["why"])
    assert Path(str(caught.value.parameters["log"])).is_file()
    assert engine.status().state == "stopped" and engine.status().pid is None


SAID = {
    "(EngineCore pid=7) ERROR 11-21 22:57:27 [core.py:1100] ValueError: No available memory": "ValueError: No available memory",
    "(EngineCore pid=7) safetensors_rust.SafetensorError: header too large": "SafetensorError: header too large",
    "json.decoder.JSONDecodeError: Expecting value": "JSONDecodeError: Expecting value",
    "MemoryError": "MemoryError",
    "(APIServer pid=7) WARNING 11-21 22:57:27 [a.py:1] This can cause errors like `OSError: [Errno 24] x`.": "",
    '    raise ValueError("no")': "",
    "(APIServer pid=7) INFO 11-21 22:57:27 [a.py:1] Not an Error: all is well": "",
}


@pytest.mark.parametrize("line", SAID)
def test_the_reason_is_the_last_line_of_a_traceback_and_no_mere_warning(line: str) -> None:
    found = vllm_server._WHY.search(line)
    assert (": ".join(filter(None, found.groups())) if found else "") == SAID[line]


def test_a_model_that_is_not_here_is_told_before_a_toolchain_is_built(tmp_path: Path) -> None:
    toolchains = Toolchains(tmp_path / "toolchains", tmp_path / "logs", offline=True)
    engine = engine_of(tmp_path, toolchains)
    with pytest.raises(ModelNotHere):
        drain(engine.ensure(MODEL))
    assert not (tmp_path / "toolchains").exists() and engine.status().state == "stopped"
    # A directory that was left half made is none.
    place = tmp_path / CONVERTED / DEFAULT / "hf"
    place.mkdir(parents=True)
    with pytest.raises(ModelNotHere):
        drain(engine.ensure(MODEL))
    place.rmdir()
    write_tiny_directory(place)
    (place / MANIFEST).write_text("{}")
    with pytest.raises(ToolchainUnreachable):
        drain(engine.ensure(MODEL))


def test_where_there_are_no_packages_of_vllm_it_says_so(tmp_path: Path) -> None:
    place = tmp_path / CONVERTED / DEFAULT / "hf"
    write_tiny_directory(place)
    (place / MANIFEST).write_text("{}")
    elsewhere = {TOOLCHAIN: replace(TOOLCHAINS[TOOLCHAIN], where='sys_platform == "amiga"')}
    engine = engine_of(tmp_path, Toolchains(tmp_path / "toolchains", tmp_path / "logs", True, elsewhere))
    with pytest.raises(ToolchainUnsupported) as caught:
        drain(engine.ensure(MODEL))
    assert caught.value.parameters["toolchain"] == TOOLCHAIN
    assert engine.status().state == "stopped"
