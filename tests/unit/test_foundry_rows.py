"""Lab 5 without a runtime: what counts as valid, as a call, as a fit, and what its charts draw."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pandas as pd
import pytest

from labs.foundry import rows
from labs.foundry.checks import LAB
from lib.bench.parallel import Row, at_once, total_tokens_per_s
from lib.engines.genai import shape_of
from lib.errors import BancadaError, EngineUnsupported, from_record
from lib.foundry import cli
from lib.foundry.calls import REHEARSALS
from lib.foundry.forms import SCHEMA, TASKS, TOOLS, Formed, is_city, judged, response_format, tool_schema
from lib.foundry.recorder import recorder
from lib.foundry.trials import with_context

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"city": "Paris", "country": "France", "population": 2000000}', True),
        ('{"population": 0, "country": "F", "city": "P"}', True),
        ('{"city": "Paris", "country": "France"}', False),
        ('{"city": "Paris", "country": "France", "population": "many"}', False),
        ('{"city": "Paris", "country": "France", "population": 1, "mayor": "x"}', False),
        ('{"city": "Paris", "country": "France", "population": 123456789}', False),
        ('{"city": "", "country": "France", "population": 1}', False),
        ('Here it is: {"city": "Paris", "country": "France", "population": 1}', False),
        ("{}", False),
        ("", False),
    ],
)
def test_an_answer_is_valid_when_the_schema_that_was_sent_allows_it(text: str, valid: bool) -> None:
    assert is_city(text) is valid


def test_every_form_asks_differently_and_the_schemas_are_the_same() -> None:
    strict = response_format("strict")["response_format"]["json_schema"]
    assert strict["strict"] is True and strict["schema"] == SCHEMA
    assert response_format("raw_schema")["response_format"]["json_schema"] == SCHEMA
    assert response_format("none") == {} and SCHEMA["additionalProperties"] is False


@pytest.mark.parametrize(
    ("text", "called", "tool", "arguments"),
    [
        ('{"tool": "add", "arguments": {"a": 12, "b": 30}}', True, True, True),
        ('{"tool": "add", "arguments": {"a": 12.0, "b": 30}}', True, True, True),
        ('Sure! {"tool": "add", "arguments": {"a": 12, "b": 30}}', True, True, True),
        ('{"tool": "add", "arguments": {"a": 30, "b": 12}}', True, True, False),
        ('{"tool": "add", "arguments": {"a": 12}}', True, True, False),
        ('{"tool": "get_current_time", "arguments": {"a": 12, "b": 30}}', True, False, False),
        ('{"tool": "multiply", "arguments": {"a": 12, "b": 30}}', False, False, False),
        ('{"tool": "add", "arguments": "12 and 30"}', False, False, False),
        ('{"tool": "add"', False, False, False),
        ("42", False, False, False),
    ],
)
def test_a_text_is_a_call_only_with_a_known_tool_and_arguments(
    text: str, called: bool, tool: bool, arguments: bool
) -> None:
    found = judged("in_prompt", TASKS[1], text)
    assert (found.called, found.right_tool, found.right_arguments) == (called, tool, arguments)


def test_every_task_has_its_tool_and_the_schema_knows_every_tool() -> None:
    known = {one.name: set(one.parameters) for one in TOOLS}
    assert len(TASKS) == 8 and {one.tool for one in TASKS} == set(known)
    assert all(set(task.arguments) == known[task.tool] for task in TASKS)
    names = {one["properties"]["tool"]["const"] for one in tool_schema(TOOLS)["anyOf"]}
    assert names == set(known)


def test_a_form_s_share_counts_every_answer() -> None:
    said = [
        Formed(form, seed, "{}", "stop", True, form == "lark" and seed == 1, 1.0)
        for form in ("none", "json_object", "strict", "raw_schema", "guidance", "lark")
        for seed in (1, 2)
    ]
    table = rows.forms(said).set_index("form")
    assert table["valid_percent"]["lark"] == 50 and table["valid_percent"]["strict"] == 0
    assert table["json_percent"]["none"] == 100 and table["answers"].tolist() == [2] * 6
    keys = [one.key for one in rows.form_notes(said)]
    assert keys == ["strict_not_enforced", "valid_is_not_true"]


def table_of_sessions(context: int, loaded: int, extra: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "context_tokens": context,
                "sessions": many,
                "measured_bytes": loaded + many * extra,
                "loaded_bytes": loaded,
            }
            for many in (1, 2, 3)
        ]
    )


def test_one_more_session_is_the_rise_and_not_the_level() -> None:
    assert rows.extra_bytes(table_of_sessions(512, 250 * MIB, 30 * MIB)) == 30 * MIB


def test_older_texts_lines_are_checked_where_a_program_can() -> None:
    table = rows.errata({"module": False, "/status": True, "/health": False}).set_index("old")
    assert table["checked"]["GET /health"] == "absent" and table["checked_today"]["GET /health"] == "there"
    assert pd.isna(table["checked"]["foundry-local init"]) and pd.isna(table["checked"]["GET /metrics"])


def test_speed_in_all_is_over_the_time_of_the_slowest() -> None:
    got = [Row(1, "p", "t", 0.1, 2.0, 10, 5.0), Row(2, "p", "t", 0.1, 4.0, 10, 2.5)]
    assert total_tokens_per_s(got) == 5.0


def test_an_error_of_one_client_ends_all_of_them() -> None:
    class Refusing:
        def client(self, model: str) -> Any:
            from openai import OpenAI

            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)

    with pytest.raises(BancadaError):
        list(at_once(Refusing(), "m", ["a"], 3, 8))  # type: ignore[arg-type]


def test_a_recorder_writes_every_call_down_and_lets_none_through() -> None:
    with recorder() as made:
        client = httpx2.Client(proxy=made.address, timeout=5.0)
        for url in ("https://one.example/a", "https://two.example:8443/", "http://three.example/x?y=1"):
            try:
                assert client.get(url).status_code == 403
            except httpx2.TransportError:
                assert url.startswith("https")
        assert [one.host for one in made.calls] == ["one.example", "two.example", "three.example"]
        assert all(0 <= one.at_s < 60 for one in made.calls)
        script = "import os; print([name for name in os.environ if name.lower().endswith('_proxy')])"
        done = subprocess.run(
            [sys.executable, "-c", script], env=dict(made.environment), capture_output=True, text=True, check=True
        )
        assert "HTTPS_PROXY" in done.stdout and "all_proxy" in done.stdout
    with pytest.raises(httpx2.TransportError):
        httpx2.get(made.address, timeout=1.0, trust_env=False)


def test_another_context_is_a_copy_of_links_and_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    decoder = {"num_hidden_layers": 30, "num_key_value_heads": 3, "head_size": 64}
    config = {"model": {"context_length": 2048, "decoder": decoder}, "search": {"max_length": 2048}}
    (source / "genai_config.json").write_text(json.dumps(config))
    (source / "model.onnx").write_bytes(b"x")
    made = with_context(source, tmp_path / "512", 512)
    assert shape_of(made).cache_bytes * 4 == shape_of(source).cache_bytes == 90 * MIB
    assert json.loads((made / "genai_config.json").read_text())["search"]["max_length"] == 512
    assert (made / "model.onnx").is_symlink() and shape_of(source).context_length == 2048


@pytest.mark.parametrize(
    ("script", "version", "current"),
    [
        ("echo 0.10.2", "0.10.2", True),
        ("echo 'foundry 0.8.113+abc'", "0.8.113", False),
        ("echo nothing", "", None),
        ("exit 3", "", None),
    ],
)
def test_an_old_command_line_is_told_from_a_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, version: str, current: bool | None
) -> None:
    if sys.platform == "win32":
        pytest.skip("a shell script")
    command = tmp_path / "foundry"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = cli.find_cli()
    assert found is not None and (found.version, found.current) == (version, current)


def test_a_system_without_a_wheel_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(cli.platform, "machine", lambda: "x86_64")
    assert not cli.has_wheel()
    error = EngineUnsupported(engine="Foundry Local", system="Darwin x86_64", why="No module named foundry_local_sdk")
    assert isinstance(from_record(error.record()), EngineUnsupported)


@pytest.mark.parametrize("language", ["en", "pt"])
def test_every_choice_and_listing_has_its_words(language: str) -> None:
    said = LAB.words(language)
    for of, values in {
        "form": ("none", "json_object", "strict", "raw_schema", "guidance", "lark"),
        "way": ("native", "in_prompt", "constrained", "sdk", "web"),
        "rehearsal": tuple(REHEARSALS),
        "network": ("not_asked", "away", "reached"),
        "checked": ("there", "absent"),
        "checked_today": ("there", "absent"),
    }.items():
        assert all(said.has(f"choices.{of}.{one}") for one in values), of
    for one in ("start", "import", "initialise", "register", "load_model", "answer", "unload", "trim"):
        assert said.has(f"choices.{one}") and said.has(f"progress.{one}")
    todays = {one.today for one in rows.ERRATA if one.today.isidentifier()}
    assert all(said.has(f"choices.today.{one}") for one in todays), todays


def test_a_guess_of_tokens_is_what_older_texts_make_it() -> None:
    facts = {"longest_tokens": 1000, "guess_tokens": rows.guessed(1000), "refused": True}
    (off, sent) = rows.budget_notes(facts)
    assert rows.guessed(100) == 130 and off.key == "guess_high" and off.parameters["percent"] == pytest.approx(30)
    assert sent.key == "one_more_refused"
