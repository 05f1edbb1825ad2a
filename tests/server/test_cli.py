"""The command line as a learner runs it: a process, its exit status, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lib.cli import main
from lib.text import load_words
from tests.conftest import DEFAULT
from tests.server.helpers import FORKS, start_python

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def in_a_process(arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    """The command line in a process of its own that has only its imports behind it."""
    for name in [name for name in os.environ if name.startswith("BANCADA_")]:
        del os.environ[name]
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    for number, name in ((1, "out"), (2, "err")):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.exit(main(arguments))


@pytest.fixture
def bancada(home: Path, tmp_path: Path) -> Command:
    """Runs a command; settings as keywords."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"BANCADA_HOME": str(home), "BANCADA_LANGUAGE": "en", "BANCADA_OFFLINE": "1", **settings}
        process = FORKS.Process(target=in_a_process, args=(arguments, environment, tmp_path))
        process.start()
        process.join(120)
        process.kill()
        process.join()
        out, err = ((tmp_path / name).read_text("utf-8", errors="replace") for name in ("out", "err"))
        assert "Traceback" not in out + err, err
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)

    return run


def test_list_names_every_step_with_its_parameters_and_bounds(bancada: Command) -> None:
    done = bancada("list")
    assert done.returncode == 0
    assert "choose.estimate" in done.stdout
    assert "--context_tokens 2048" in done.stdout
    assert bancada("--lang", "pt", "list").stdout != done.stdout


def test_models_names_the_file_that_is_here(bancada: Command, home: Path) -> None:
    done = bancada("models")
    assert done.returncode == 0
    assert DEFAULT in done.stdout
    assert str(home) in done.stdout


def test_fetch_of_a_model_that_is_here_is_done_at_once(bancada: Command) -> None:
    for arguments in (["fetch"], ["fetch", DEFAULT]):
        done = bancada(*arguments)
        assert done.returncode == 0
        assert DEFAULT in done.stdout


def test_a_model_that_cannot_be_fetched_names_the_way_by_stick(bancada: Command, tmp_path: Path) -> None:
    done = bancada("fetch", BANCADA_HOME=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "offline" in done.stderr
    assert "python -m lib.cli import" in done.stderr


def test_the_doctor_finds_a_sound_workbench_sound(bancada: Command) -> None:
    done = bancada("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("[OK]") >= 6
    assert "[FAIL]" not in done.stdout


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_doctor_names_a_folder_that_cannot_be_and_its_repair(
    bancada: Command, tmp_path: Path, language: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = bancada("--lang", language, "doctor", BANCADA_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 1
    assert "[FAIL]" in done.stdout
    assert str(tmp_path / "file") in done.stdout
    assert "BANCADA_HOME" in done.stdout
    assert done.stderr == ""


BAD = [
    ("choose.estimate", "context_tokens", "-1"),
    ("choose.estimate", "context_tokens", "10" * 3000),
    ("choose.estimate", "context_tokens", "2048.5"),
    ("choose.estimate", "context_tokens", ""),
    ("choose.estimate", "context_tokens", "'; DROP TABLE run_cards; --"),
    ("choose.estimate", "model", "../../etc/passwd"),
    ("choose.shortlist", "wanted_tokens_per_s", "nan"),
    ("choose.shortlist", "wanted_tokens_per_s", "inf"),
    ("choose.shortlist", "wanted_tokens_per_s", "-0.1"),
    ("choose.shortlist", "wanted_tokens_per_s", "1e400"),
    ("choose.measure", "contexts", "512,99999999"),
    ("choose.measure", "contexts", ","),
    ("choose.hub", "limit", "0"),
    ("choose.hub", "query", "x" * 5000),
]


@pytest.mark.parametrize(("step", "name", "value"), BAD)
def test_a_value_out_of_bounds_is_named_with_what_is_allowed(
    bancada: Command, step: str, name: str, value: str
) -> None:
    done = bancada("run", step, f"--{name}={value}")
    what, why, repair = done.stderr.strip().split("\n")
    assert done.returncode == 2
    assert name in what
    assert why.startswith("Allowed: ")
    assert repair == "→ " + load_words("en")("errors.bad-parameter.repair")
    assert done.stdout == ""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_prediction_that_is_no_number_is_refused_and_nothing_is_kept(bancada: Command, value: str) -> None:
    done = bancada("run", "choose.estimate", f"--prediction={value}")
    assert done.returncode == 2
    assert f"“{value}” is not allowed for prediction" in done.stderr


def test_an_unknown_parameter_is_named_with_the_known_ones(bancada: Command) -> None:
    done = bancada("run", "choose.estimate", "--contxt", "4096")
    assert done.returncode == 2
    assert "--contxt 4096" in done.stderr
    assert "--context_tokens" in done.stderr


@pytest.mark.parametrize("language", ["en", "pt"])
def test_an_unknown_step_is_named_with_the_known_ones_in_the_learners_language(bancada: Command, language: str) -> None:
    done = bancada("--lang", language, "run", "choose.everything")
    assert done.returncode == 2
    assert "choose.everything" in done.stderr
    assert "choose.estimate" in done.stderr
    assert load_words(language)("errors.unknown-step.repair") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lang", "xx", "list"], "'en', 'pt'"),
        (["everything"], "'list', 'run'"),
        ([], "COMMAND"),
        (["run"], "LAB.STEP"),
        (["run", "choose.estimate", "--prediction", "many"], "many"),
        (["run", "choose.estimate", "--context_tokens"], "--context_tokens"),
        (["import"], "file"),
        (["import", "/nowhere/nothing.gguf"], "/nowhere/nothing.gguf"),
        (["import", "/tmp"], "/tmp"),
        (["fetch", "gpt-9000"], "gpt-9000"),
        (["fetch", "../../etc/passwd"], "../../etc/passwd"),
        (["export", "no-such-card"], "no-such-card"),
        (["export", "--as", "pdf"], "pdf"),
    ],
)
def test_a_wrong_command_ends_in_status_2_and_names_what_was_meant(
    bancada: Command, arguments: list[str], named: str
) -> None:
    done = bancada(*arguments)
    assert done.returncode == 2
    assert named in done.stderr


def test_a_file_that_is_no_model_is_refused(bancada: Command, tmp_path: Path) -> None:
    (tmp_path / "letter.gguf").write_text("Dear aunt")
    done = bancada("import", str(tmp_path / "letter.gguf"))
    assert done.returncode == 1
    assert "does not begin with GGUF" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("BANCADA_SLOTS", "-3", 2),
        ("BANCADA_SLOTS", "many", 2),
        ("BANCADA_CONTEXT_TOKENS", "1e99", 2),
        ("BANCADA_LANGUAGE", "tlh", 2),
        ("BANCADA_OFFLINE", "perhaps", 2),
        ("BANCADA_LEARNER", "me; rm -rf /", 2),
        ("BANCADA_LEARNER", "a/b", 2),
    ],
)
def test_a_wrong_setting_is_named(bancada: Command, name: str, value: str, status: int) -> None:
    done = bancada("list", **{name: value})
    assert done.returncode == status
    assert done.stderr.startswith(f"{name}: ")


@pytest.mark.parametrize("address", ["garbage", "mysql://me:hush@localhost/db", "postgresql://me:hush@host:x/db"])
def test_a_database_address_that_cannot_be_used_is_named_without_its_password(bancada: Command, address: str) -> None:
    done = bancada("run", "choose.estimate", BANCADA_DATABASE_URL=address)
    assert done.returncode == 1
    assert "hush" not in done.stderr
    assert done.stderr.count("\n") == 3


def test_a_default_model_that_nobody_knows_is_named(bancada: Command) -> None:
    done = bancada("fetch", BANCADA_DEFAULT_MODEL="gpt-9000")
    assert done.returncode == 2
    assert "gpt-9000" in done.stderr


def test_a_result_can_be_had_as_json(bancada: Command) -> None:
    for arguments in (["--json", "choose.estimate"], ["choose.estimate", "--json"]):
        found = json.loads(bancada("run", *arguments).stdout)
        assert found["step"] == "choose.estimate"
        assert found["facts"]["total_bytes"] > 0
        assert found["parameters"]["context_tokens"] == 2048


def test_a_step_speaks_both_languages_and_keeps_its_run(bancada: Command) -> None:
    said = {language: bancada("--lang", language, "run", "choose.estimate").stdout for language in ("en", "pt")}
    assert said["en"] and said["pt"]
    assert said["en"] != said["pt"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_knows_few_characters_gets_the_others_replaced(bancada: Command, encoding: str) -> None:
    for arguments in (["list"], ["--lang", "pt", "run", "choose.estimate"]):
        environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        assert bancada(*arguments, **environment).returncode == 0


def test_a_reader_that_closes_the_pipe_early_is_no_error(home: Path) -> None:
    process = start_python("-m", "lib.cli", "list", environment={"BANCADA_HOME": str(home)})
    process.stdout.close()
    said = process.stderr.read()
    process.wait(60)
    process.stderr.close()
    assert said == ""


def test_an_empty_variable_is_as_good_as_none(bancada: Command) -> None:
    done = bancada("run", "choose.hub", "--json", BANCADA_LEARNER="", BANCADA_SLOTS="")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("--lang", "pt", "run", "choose.hub"), ("run", "choose.hub", "--lang", "pt")])
def test_the_language_may_stand_before_or_after_the_step(bancada: Command, arguments: tuple[str, ...]) -> None:
    assert "Modelos encontrados" in bancada(*arguments).stdout


def test_run_cards_are_listed_and_exported_in_every_form(bancada: Command, tmp_path: Path) -> None:
    assert bancada("cards").stdout.strip() == load_words("en")("cli.cards_none")
    for tokens in ("512", "1024"):
        assert bancada("run", "choose.estimate", "--context_tokens", tokens).returncode == 0
    lines = bancada("cards", "--lab", "choose").stdout.splitlines()
    assert len(lines) == 2 and all("choose.estimate" in line and "MiB" in line for line in lines)
    newest = lines[0].split()[0]
    assert len(json.loads(bancada("export").stdout)["cards"]) == 2
    (card,) = json.loads(bancada("export", newest).stdout)["cards"]
    assert card["id"].startswith(newest) and card["parameters"]["context_tokens"] == 1024
    table = bancada("export", "--as", "csv").stdout.splitlines()
    assert len(table) == 3 and "parameter.context_tokens" in table[0]
    assert "Pesos" in bancada("--lang", "pt", "export", "--as", "html").stdout
    path = tmp_path / "cards.html"
    assert str(path) in bancada("export", "--as", "html", "--output", str(path)).stdout
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert json.loads(bancada("export", "--lab", "quantize").stdout)["cards"] == []


def test_an_export_to_a_place_that_cannot_be_written_is_named(bancada: Command, tmp_path: Path) -> None:
    done = bancada("export", "--output", str(tmp_path / "nowhere" / "cards.json"))
    assert done.returncode == 1
    assert "nowhere" in done.stderr
