"""Lab 5 with the real SDK and the default model as lab 3 built it: real children, real kills, real refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from labs.foundry.checks import LAB, how_many_sessions_fit
from labs.foundry.rows import extra_bytes
from lib.bench.parallel import at_once
from lib.convert.builders import ensure_genai
from lib.convert.reference import ensure_reference
from lib.course.run import Run, execute, latest_run
from lib.errors import (
    BancadaError,
    EngineDidNotStart,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineUnsupported,
    ModelDamaged,
    ModelTooLarge,
    TextTooShort,
)
from lib.foundry import process
from lib.foundry.calls import REHEARSALS
from lib.foundry.process import MODULE, trial
from lib.foundry.recorder import recorder
from lib.foundry.trials import CONTEXT_TOKENS, Own, budget, ensure_own, serve
from lib.workbench import Workbench
from tests.conftest import DEFAULT, STOCKED
from tests.lab_runs import ran_and_drawn
from tests.server.helpers import clients, end, is_alive, start_python, wait_until
from tests.server.test_quantize import finished

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")
MIB = 1 << 20
GONE_S = 60.0
TELEMETRY = "mobile.events.data.microsoft.com"
CATALOG = "api.catalog.azureml.ms"


@pytest.fixture(scope="module")
def workbench(lab_home: Path) -> Iterator[Workbench]:
    """A workbench that has the model as ONNX Runtime GenAI wants it."""
    made = Workbench.open(home=lab_home, language="en", _env_file=None)
    finished(ensure_genai(made, finished(ensure_reference(made, DEFAULT)), "int4", CONTEXT_TOKENS))
    yield made
    made.close()
    made.store.close()


@pytest.fixture(scope="module")
def own(workbench: Workbench) -> Own:
    return finished(ensure_own(workbench, DEFAULT))


def ran(workbench: Workbench, step: str, **given: object) -> Run:
    run = ran_and_drawn(LAB, workbench, step, **given)
    assert not children(), "a child outlived its step"
    return run


def children(pid: int | None = None) -> list[int]:
    """The trial processes below a process."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(pid or os.getpid()).children(recursive=True):
            with suppress(psutil.Error):
                if MODULE in one.cmdline() and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one.pid)
    return found


def scratches(workbench: Workbench) -> list[str]:
    return [one.name for one in (workbench.settings.home / "scratch").glob("*")]


def test_install_tells_what_is_here_and_checks_what_older_texts_say(workbench: Workbench) -> None:
    result = ran(workbench, "install").result
    assert result.facts["sdk"] == "2.2.1" and result.facts["wheel_made"] is True
    assert result.facts["library_bytes"] > MIB  # type: ignore[operator]
    assert result.table is not None
    table = result.table.set_index("old")
    known = table["checked"].dropna()
    assert set(known) == {"absent"} and len(known) >= 9
    assert set(table["checked_today"].dropna()) == {"there"}


def test_the_local_catalog_has_the_learner_s_model_and_nobody_waits_for_the_public_one(
    workbench: Workbench, lab_home: Path
) -> None:
    away = Workbench.open(home=lab_home, language="en", offline=True, _env_file=None)
    try:
        result = ran(away, "catalog").result
    finally:
        away.close()
        away.store.close()
    assert result.facts["network"] == "not_asked" and result.facts["public_models"] is None
    assert result.facts["local_models"] == 1 and result.table is not None
    assert result.table["context_tokens"].tolist() == [CONTEXT_TOKENS]
    assert result.facts["reach_s"] is None and "public_not_asked" in [one.key for one in result.notes]


def test_a_machine_without_a_network_hears_so_before_the_sdk_tries(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorder() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        result = ran(workbench, "catalog").result
        assert result.facts["network"] == "away" and result.facts["public_s"] is None
        assert [one.host for one in made.calls] == [CATALOG], "the SDK asked although nobody answers there"


def test_loading_is_followed_from_the_start_to_memory_given_back(workbench: Workbench, own: Own) -> None:
    result = ran(workbench, "load").result
    facts, table = result.facts, result.table
    assert table is not None
    reached = dict(zip(table["stage"], table["rss_bytes"], strict=True))
    assert table["at_s"].is_monotonic_increasing
    assert facts["peak_bytes"] >= max(reached.values()) - MIB  # type: ignore[operator]
    assert facts["loaded_bytes"] > reached["initialise"] + own.weights_bytes  # type: ignore[operator]
    # The cache is set aside by the first answer, and not before.
    assert reached["answer"] - reached["load_model"] >= own.shape.cache_bytes
    if facts["after_trim_bytes"] is not None:  # glibc
        assert facts["after_trim_bytes"] < facts["after_unload_bytes"] - own.weights_bytes  # type: ignore[operator]


def test_both_doors_give_the_same_text_and_count_the_same_tokens(workbench: Workbench) -> None:
    result = ran(workbench, "chat", prompt="What is the capital of France?", max_tokens=32).result
    assert result.facts["same_text"] is True and "Paris" in result.listings[0].text
    assert result.table is not None and result.table["prompt_tokens"].nunique() == 1
    assert result.table["completion_tokens"].tolist() == [32] * 6
    for way in ("sdk", "web"):
        came = [float(str(one)) for one in result.more[way]]  # type: ignore[union-attr]
        assert came == sorted(came) and len(came) > 20
    assert workbench.engine("foundry").status().state == "stopped"


def test_preflight_says_what_fits_and_one_word_more_is_refused(workbench: Workbench) -> None:
    result = ran(workbench, "budget", reserve_tokens=512).result
    facts, table = result.facts, result.table
    assert table is not None
    assert facts["context_tokens"] == CONTEXT_TOKENS and facts["refused"] is True
    room = CONTEXT_TOKENS - 512
    assert room - 8 <= facts["longest_tokens"] <= room  # type: ignore[operator]
    assert ((table["required_tokens"] <= CONTEXT_TOKENS) == table["fits"]).all()
    assert table["counted_tokens"].is_monotonic_increasing and table["fits"].nunique() == 2
    assert str(CONTEXT_TOKENS) in result.listings[0].text


def test_a_text_without_a_word_is_the_learners_input_and_an_empty_box_means_the_labs_own(
    workbench: Workbench, own: Own
) -> None:
    with pytest.raises(TextTooShort):
        finished(budget(workbench, own, "   ", (8,), 64))
    assert ran(workbench, "budget", text="").result.facts["refused"] is True


def test_sending_a_prompt_that_is_too_long_raises(workbench: Workbench, own: Own) -> None:
    ask = {"prompt": "word " * 3000, "max_output_tokens": 8}
    with pytest.raises(EngineRefused, match="exceeds the model's maximum context length"):
        finished(trial(workbench, "guided", {"path": str(own.path), "asks": [ask]}, own.model))


def test_guided_forms_are_always_valid_and_openai_s_strict_form_is_not(workbench: Workbench) -> None:
    facts = ran(workbench, "structured", seeds=3).result.facts
    for enforced in ("raw_schema", "guidance", "lark"):
        assert facts[f"{enforced}_valid_percent"] == 100, enforced
    assert facts["strict_valid_percent"] < 100  # type: ignore[operator]
    assert facts["none_valid_percent"] < 100  # type: ignore[operator]


def test_tools_are_called_when_a_schema_holds_the_answer_and_natively_not(workbench: Workbench) -> None:
    result = ran(workbench, "tools").result
    assert result.facts["native_called_percent"] == 0
    assert result.facts["constrained_called_percent"] == 100
    assert "native_refused" in [one.key for one in result.notes]
    assert result.table is not None and len(result.table) == 24
    assert not (result.table["right_arguments"] & ~result.table["right_tool"]).any()


def test_a_session_takes_its_cache_while_it_writes_and_the_exercise_knows_it(workbench: Workbench, own: Own) -> None:
    answers = {"memory_mib": 1024, "context_tokens": 512}
    if latest_run(LAB.steps["sessions"], workbench, workbench.learner) is None:
        assert exercise(workbench, answer_sessions=3, **answers) == (False, "exercise_no_card")
    run = ran(workbench, "sessions", contexts=(512, 2048))
    facts, table = run.result.facts, run.result.table
    assert table is not None and table["sessions"].tolist() == [1, 2, 3] * 2
    cache = own.shape.cache_bytes
    assert facts["cache_bytes"] == cache
    assert 0.9 * cache < facts["extra_bytes"] < 1.5 * cache  # type: ignore[operator]
    # Between answers a session holds no cache: three that take turns need the room of one.
    assert facts["in_turn_bytes"] < facts["at_once_bytes"] - 1.5 * cache  # type: ignore[operator]
    at = table[table["context_tokens"] == 512]
    extra = extra_bytes(at)
    assert 0.9 * cache / 4 < extra < facts["extra_bytes"]  # type: ignore[operator]
    fit = int((1024 * MIB - at["loaded_bytes"].iloc[0]) // extra)
    assert exercise(workbench, answer_sessions=fit, **answers) == (True, "exercise_right")
    assert exercise(workbench, answer_sessions=fit + 1, **answers) == (False, "exercise_too_many")
    assert exercise(workbench, answer_sessions=fit - 1, **answers) == (False, "exercise_more_fit")
    other = {"memory_mib": 1024, "context_tokens": 1024}
    assert exercise(workbench, answer_sessions=1, **other) == (False, "exercise_not_measured")


def exercise(workbench: Workbench, **given: object) -> tuple[bool, str]:
    """The verdict on an answer, its sentence said in both languages."""
    verdict = how_many_sessions_fit(workbench, **given)
    (said,) = verdict.result.notes
    assert all(LAB.words(language)(f"notes.{said.key}", **said.parameters) for language in ("en", "pt"))
    return verdict.correct, said.key


def test_several_clients_get_whole_answers_at_once(workbench: Workbench) -> None:
    result = ran(workbench, "concurrency", max_tokens=16).result
    assert result.table is not None
    assert result.table["clients"].tolist() == [1, 2, 2, 4, 4, 4, 4]
    assert result.table["completion_tokens"].tolist() == [16] * 7
    assert result.facts["four_ttft_s"] > 0 and result.facts["one_ttft_s"] > 0  # type: ignore[operator]


def test_the_web_service_has_the_routes_it_has_and_asks_for_no_key(workbench: Workbench) -> None:
    result = ran(workbench, "web").result
    assert result.table is not None
    status = dict(zip(result.table["route"], result.table["status"], strict=True))
    assert {route for route, code in status.items() if code == 404} == {
        "GET /health",
        "GET /metrics",
        "GET /api/metrics",
    }
    assert {route for route, code in status.items() if code == 200} == {
        "GET /status",
        "GET /v1/models",
        "GET /models/loaded",
        "POST /v1/chat/completions",
        "POST /v1/responses",
    }
    assert result.facts["asks_for_key"] is False
    compile(result.listings[0].text, "python", "exec")


def test_nobody_is_called_with_ci_and_the_local_catalog_and_somebody_is_without(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A report that is seen after a second by itself may need many on busy cores.
    monkeypatch.setattr("lib.foundry.calls.WAIT_S", 20.0)
    result = ran(workbench, "offline").result
    assert result.facts["calls_with_ci"] == 0
    assert result.facts["answered_offline"] is True
    called = {name: {str(one).split(" ", 1)[1] for one in result.more[name]} for name in REHEARSALS}  # type: ignore[union-attr]
    assert called == {"setting": {TELEMETRY}, "ci": set(), "ci_public": {CATALOG}}


def test_ci_in_our_own_environment_does_not_keep_a_child_quiet(
    workbench: Workbench, own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    with recorder() as made:
        asked = {"path": str(own.path), "prompt": "Hi", "max_tokens": 2, "public": False, "wait_s": 120.0}
        with closing(trial(workbench, "rehearse", asked, own.model, made.environment)) as events:
            for _ in events:
                if made.calls:
                    break
        assert {one.host for one in made.calls} == {TELEMETRY}


def test_a_cancelled_step_leaves_no_child_and_no_file(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its children would listen for ten minutes more.
    monkeypatch.setattr("lib.foundry.calls.WAIT_S", 600.0)
    with closing(execute(LAB.steps["offline"], workbench, {})) as events:
        for moved in events:
            if moved.what == "listen":
                break
        pids = children()
        assert len(pids) == len(REHEARSALS)
    wait_until("the children's end", lambda: not any(map(is_alive, pids)), GONE_S)
    assert not scratches(workbench)


def test_clients_that_are_closed_stop_the_engine_s_work_and_leave_it_ready(workbench: Workbench, own: Own) -> None:
    engine = finished(serve(workbench, own))
    try:
        with closing(at_once(engine, own.served, ["Tell a very long story."], 4, 1500)) as events:
            assert next(events).what == "at_once"
        # They would write for minutes.
        wait_until("the clients' end", lambda: not clients(), GONE_S)
        (row,) = finished(at_once(engine, own.served, ["Hi"], 1, 4))
        assert row.ttft_s < GONE_S and row.completion_tokens <= 4
    finally:
        engine.release(own.served)


def test_clients_that_are_cancelled_stop_and_the_service_with_them(workbench: Workbench) -> None:
    with closing(execute(LAB.steps["concurrency"], workbench, {"max_tokens": 64})) as events:
        for moved in events:
            if moved.what == "at_once" and moved.detail == "4":
                break
        assert workbench.engine("foundry").status().state == "ready"
    assert workbench.engine("foundry").status().state == "stopped"
    wait_until("the clients' end", lambda: not clients())


def test_a_service_that_is_killed_under_its_clients_is_an_error_of_ours(workbench: Workbench) -> None:
    engine, killed = workbench.engine("foundry"), False
    with (
        pytest.raises(EngineError),
        closing(execute(LAB.steps["concurrency"], workbench, {"max_tokens": 64})) as events,
    ):
        for moved in events:
            if moved.what == "at_once" and moved.detail == "4" and not killed:
                killed = True
                pid = engine.status().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
    assert engine.status().state == "stopped"


def test_a_child_that_is_killed_is_an_error_of_ours(workbench: Workbench, own: Own) -> None:
    killed = False
    with pytest.raises(EngineDied, match="SIGKILL"), closing(execute(LAB.steps["chat"], workbench, {})) as events:
        for moved in events:
            if moved.what == "answer_sdk" and not killed:
                killed = True
                os.kill(children()[0], signal.SIGKILL)
    wait_until("the child's end", lambda: not children(), GONE_S)
    assert not scratches(workbench)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent_however_that_dies(workbench: Workbench, own: Own, how: signal.Signals) -> None:
    script = f"""
from pathlib import Path
from lib.foundry.process import trial
from lib.workbench import Workbench
workbench = Workbench.open(home=Path({str(workbench.settings.home)!r}), _env_file=None)
asked = {{"path": {str(own.path)!r}, "prompt": "Hi", "max_tokens": 2, "public": False, "wait_s": 60.0}}
for one in trial(workbench, "rehearse", asked, "m"):
    print(one.what, flush=True)
"""
    process = start_python("-c", script, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listen"):
                break
        (pid,) = children(process.pid)
        os.kill(process.pid, how)
        process.wait(GONE_S)
        wait_until("the child's end", lambda: not is_alive(pid), GONE_S)
    finally:
        end(process)
    finished(trial(workbench, "versions", {"paths": []}))
    assert not scratches(workbench), "what a killed process left goes when the next one begins"


def damaged(workbench: Workbench, own: Own, tmp_path: Path, config: str) -> Workbench:
    """A workbench whose built model has another configuration."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    for one in (workbench.settings.home / "models").iterdir():
        (home / "models" / one.name).symlink_to(one.resolve(), target_is_directory=True)
    for name in STOCKED:
        if name == "toolchains":
            (home / name).symlink_to(workbench.settings.home / name, target_is_directory=True)
    built = home / "converted" / DEFAULT
    built.mkdir(parents=True)
    for one in own.path.parent.iterdir():
        if one.is_dir() and one.name != own.path.name:
            (built / one.name).symlink_to(one)
    (built / own.path.name).mkdir()
    for one in own.path.iterdir():
        (built / own.path.name / one.name).symlink_to(one)
    place = built / own.path.name / "genai_config.json"
    place.unlink()
    place.write_text(config, encoding="utf-8")
    return Workbench.open(home=home, language="en", _env_file=None)


@pytest.mark.parametrize("wrong", ["nonsense", "shape", "empty_search", "other_file"])
def test_a_damaged_configuration_is_told_as_such(workbench: Workbench, own: Own, tmp_path: Path, wrong: str) -> None:
    config = json.loads((own.path / "genai_config.json").read_text())
    if wrong == "shape":
        del config["model"]["decoder"]["head_size"]
    if wrong == "empty_search":
        config["search"] = {"max_length": "many"}
    if wrong == "other_file":
        config["model"]["decoder"]["filename"] = "nowhere.onnx"
    made = damaged(workbench, own, tmp_path, "{" if wrong == "nonsense" else json.dumps(config))
    try:
        with pytest.raises((ModelDamaged, EngineDidNotStart)) as caught:
            ran(made, "load")
        for language in ("en", "pt"):
            assert all(LAB.words(language).error(caught.value))
    finally:
        made.close()
        made.store.close()
    assert not children()


def test_a_model_that_does_not_fit_is_not_loaded(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.foundry.trials.available_memory_bytes", lambda: 200 * MIB)
    with pytest.raises(ModelTooLarge):
        ran(workbench, "sessions")


def test_an_environment_without_the_sdk_is_told_so_and_install_still_looks(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A module of that name that cannot be imported, found before the real one.
    (tmp_path / "foundry_local_sdk.py").write_text("raise ImportError('no wheel for this machine')")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from lib.foundry import sdk; sdk.main()"
    real = process.Supervised

    def without(command: list[str], *rest: object) -> object:
        return real([sys.executable, "-c", script], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "Supervised", without)
    with pytest.raises(EngineUnsupported, match="no wheel for this machine"):
        ran(workbench, "load")
    result = ran(workbench, "install").result
    assert result.facts["sdk"] is None and result.table is not None
    assert result.table["checked"].isna().all()


def test_two_steps_at_once_do_not_harm_each_other(workbench: Workbench, own: Own) -> None:
    asked = {"path": str(own.path), "prompt": "What is the capital of France?", "max_tokens": 24, "rounds": 2}
    alone = finished(trial(workbench, "chat", asked, own.model))["rounds"][0]["text"]
    said: list[str] = []
    errors: list[BancadaError] = []

    def work() -> None:
        other = Workbench.open(home=workbench.settings.home, _env_file=None)
        try:
            said.extend(one["text"] for one in finished(trial(other, "chat", asked, own.model))["rounds"])
        except BancadaError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and said == [alone] * 4
    assert not scratches(workbench) and not children()
