"""Tables of the ollama lab from made-up answers: what went over a wire, how close texts are, what would be removed."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest

from labs.ollama import rows, taking
from labs.ollama.steps import LAB
from lib.engines.wire import Exchange, Line
from lib.errors import BadParameter, EngineError, UnknownModel
from lib.ollama.modelfile import read_modelfile
from lib.text import LANGUAGES
from lib.workbench import Workbench

NDJSON, SSE = "application/x-ndjson", "text/event-stream"


def exchange(route: str, kind: str, texts: list[str]) -> Exchange:
    lines = tuple(Line(0.1 * at, text) for at, text in enumerate(texts, 1))
    return Exchange(route, {}, 200, kind, lines, sum(len(one.encode()) + 1 for one in texts))


def native(text: str, done: bool = False, **more: object) -> str:
    return json.dumps({"message": {"content": text}, "done": done, **more}, ensure_ascii=False)


def event(text: str | None, **more: object) -> str:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    return "data: " + json.dumps({"choices": choices, **more}, ensure_ascii=False)


CHAT = exchange(
    "/api/chat", NDJSON, [native("Olá"), native(" 🙂"), native("", True, eval_count=4, eval_duration=2_000_000_000)]
)
OPENAI = exchange(
    "/v1/chat/completions",
    SSE,
    [": a comment", event("Olá"), event(" 🙂"), event(None, usage={"completion_tokens": 4}), "data: [DONE]"],
)
GENERATE = exchange(
    "/api/generate",
    NDJSON,
    ['{"response": "Olá", "done": false}', '{"response": " 🙂", "done": true, "eval_count": 4, "eval_duration": 1000}'],
)
LLAMA = exchange(
    "/completion",
    SSE,
    ['data: {"content": "Olá 🙂"}', 'data: {"content": "", "timings": {"predicted_n": 4, "predicted_ms": 500.0}}'],
)


def test_every_wire_has_the_same_text_and_the_engines_own_count() -> None:
    table = rows.wire_table([CHAT, GENERATE, OPENAI, LLAMA]).set_index("route")
    assert table["text_bytes"].tolist() == [len("Olá 🙂".encode())] * 4
    assert table["completion_tokens"].tolist() == [4] * 4
    assert table.loc["/api/chat", "tokens_per_s"] == pytest.approx(2)
    assert table.loc["/api/generate", "tokens_per_s"] == pytest.approx(4e6)
    assert table.loc["/completion", "tokens_per_s"] == pytest.approx(8)
    assert math.isnan(table.loc["/v1/chat/completions", "tokens_per_s"])
    for one in (CHAT, GENERATE, OPENAI, LLAMA):
        assert table.loc[one.route, "bytes_per_token"] == one.size_bytes / 4
        assert table.loc[one.route, "lines"] == len(one.lines)
        assert table.loc[one.route, "first_line_s"] == pytest.approx(0.1)


def test_an_answer_without_a_word_is_a_row_too() -> None:
    table = rows.wire_table([exchange("/api/chat", NDJSON, []), CHAT])
    assert table["completion_tokens"].tolist() == [0, 4] and table["lines"].tolist() == [0, 3]
    assert pd.isna(table.loc[0, "bytes_per_token"]) and pd.isna(table.loc[0, "first_line_s"])


@pytest.mark.parametrize(
    "more",
    [
        ["", "event: ping", "data:", "not JSON", "[1, 2]", "<html>"],
        ['{"choices": []}', '{"choices": [{"finish_reason": "stop"}]}', '{"done": true}'],
        ['{"message": {"content": null}}', '{"message": {}}', '{"response": null}'],
    ],
)
def test_lines_without_text_add_none(more: list[str]) -> None:
    odd = exchange("/api/chat", NDJSON, [*more, *(line.text for line in CHAT.lines)])
    (found,) = rows.wire_table([odd]).to_dict("records")
    assert found["text_bytes"] == len("Olá 🙂".encode()) and found["completion_tokens"] == 4
    assert found["lines"] == len(odd.lines)


@pytest.mark.parametrize("broken", ['{"message": {"content": "Ol', '{"message"', "data: {"])
def test_a_line_that_breaks_off_is_told_as_ours(broken: str) -> None:
    with pytest.raises(EngineError):
        rows.wire_table([exchange("/api/chat", NDJSON, [native("Olá"), broken])])


def test_what_went_over_the_wire_is_listed_and_a_long_answer_shortened() -> None:
    long = exchange("/api/chat", NDJSON, [native(f"{at}") for at in range(20)])
    few, many = rows.wire_listings([CHAT, long])
    assert few.name == many.name == "native_chat" and few.language == "http"
    assert all(line.text in few.text for line in CHAT.lines) and "…" not in few.text
    assert "… 14 …" in many.text and native("0") in many.text and native("19") in many.text
    assert native("10") not in many.text
    for language in LANGUAGES:
        said = LAB.words(language)
        assert all(said(f"listings.{one.name}") for one in rows.wire_listings([CHAT, GENERATE, OPENAI, LLAMA]))


def test_every_pair_is_compared_once_and_each_text_with_itself() -> None:
    table = rows.similarity_table(["a", "b", "c"], [[3, 4], [4, 3], [-6, -8]])
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("a", "a"),
        ("a", "b"),
        ("a", "c"),
        ("b", "b"),
        ("b", "c"),
        ("c", "c"),
    ]
    assert table["similarity"].tolist() == pytest.approx([1, 0.96, -1, 1, -0.96, 1])


def test_length_does_not_count() -> None:
    small, large = (rows.similarity_table(["a", "b"], [[k, 0], [k, k]])["similarity"][1] for k in (1e-6, 1e6))
    assert small == pytest.approx(large) == pytest.approx(math.sqrt(0.5))


def test_a_vector_without_a_direction_harms_no_other_pair() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = rows.similarity_table(["a", "b", "none"], [[1, 0], [1, 1], [0, 0]])
    known = table[(table["first"] != "none") & (table["second"] != "none")]
    assert known["similarity"].tolist() == pytest.approx([1, math.sqrt(0.5), 1])
    others = table[(table["first"] == "none") | (table["second"] == "none")]["similarity"]
    assert all(pd.isna(one) or one == 0 for one in others)


def test_a_vector_without_a_direction_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows.similarity_table(["a", "none"], [[1, 0], [0, 0]])


NAMES = pd.DataFrame(
    [
        ("smollm2:135m", 100, "a" * 64, True),
        ("tutor:latest", 101, "a" * 64, False),
        ("other:latest", 50, "b" * 64, False),
    ],
    columns=["name", "size_bytes", "weights", "loaded"],
)


def fates(action: str, name: str, new_name: str = "new") -> dict[str, str]:
    table = rows.plan_table(NAMES, taking.plan(NAMES, action, name, new_name))
    return dict(zip(table["name"], table["fate"], strict=True))


def test_a_plan_says_what_becomes_of_every_name() -> None:
    rest = {"other:latest": "stays"}
    assert fates("remove", "smollm2:135m") == {"smollm2:135m": "goes", "tutor:latest": "shares", **rest}
    assert fates("remove", "tutor") == {"tutor:latest": "goes", "smollm2:135m": "shares", **rest}
    assert fates("remove", "other") == {"smollm2:135m": "stays", "tutor:latest": "stays", "other:latest": "goes"}
    copied = fates("copy", "other", "new")
    assert copied == {
        "smollm2:135m": "stays",
        "tutor:latest": "stays",
        "other:latest": "copied",
        "new:latest": "new",
    }
    new = rows.plan_table(NAMES, taking.plan(NAMES, "copy", "other", "new")).set_index("name")
    assert new.loc["new:latest", "size_bytes"] == 0
    assert new.loc["new:latest", "weights"] == new.loc["other:latest", "weights"] == "b" * 12


@pytest.mark.parametrize(("name", "frees"), [("smollm2:135m", 0), ("tutor", 0), ("other", 50)])
def test_only_the_last_name_of_some_weights_frees_them(name: str, frees: int) -> None:
    plan = taking.plan(NAMES, "remove", name, "")
    assert plan.frees_bytes == frees and bool(plan.sharing) is (frees == 0)
    assert taking.plan(NAMES, "copy", name, "new").frees_bytes == 0
    told = [one.key for one in rows.plan_notes(plan, False)]
    assert told[:2] == ["remove_asked", "shared_weights" if plan.sharing else "only_name"]
    assert ("in_use" in told) is plan.loaded is (name == "smollm2:135m")
    assert "in_use" not in [one.key for one in rows.plan_notes(plan, True)]


def test_a_plan_for_what_is_not_there_or_taken_is_refused() -> None:
    with pytest.raises(UnknownModel):
        taking.plan(NAMES, "remove", "nobody", "")
    with pytest.raises(UnknownModel):
        taking.plan(NAMES.iloc[:0], "remove", "smollm2:135m", "")
    for taken in ("other", "other:latest", " tutor "):
        with pytest.raises(BadParameter):
            taking.plan(NAMES, "copy", "smollm2:135m", taken)


def layers(*pairs: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame([("x", *pair, 0.1) for pair in pairs], columns=["layer", "size_bytes", "found_bytes", "took_s"])


def test_a_pull_says_whether_anything_was_here_before() -> None:
    for found, key in ((((10, 10), (2, 2)), "all_here"), (((10, 4), (2, 0)), "resumed"), (((10, 0), (2, 0)), "pulled")):
        assert [one.key for one in rows.pull_notes(layers(*found))] == [key]


def test_an_update_that_keeps_the_weights_does_not_say_that_all_layers_were_fetched() -> None:
    assert [one.key for one in rows.pull_notes(layers((10, 10), (2, 0)))] != ["pulled"]


def test_every_problem_of_a_modelfile_has_a_sentence_in_every_language() -> None:
    text = (
        "PARAMETER context_length 1\nFILE x\nNONSENSE y\nPARAMETER odd 1\nPARAMETER num_ctx many\nPARAMETER seed\n"
        'PARAMETER mirostat 1\nMESSAGE User hi\nMESSAGE bot hi\nREQUIRES new\nTEMPLATE\nSYSTEM a # b\nSYSTEM "open\n'
    )
    found = read_modelfile(text)
    assert len({one.kind for one in found.problems}) == 11
    table = rows.problem_table(found)
    assert len(table) == len(found.problems)
    for one in rows.problem_notes(found):
        for language in LANGUAGES:
            assert "$" not in LAB.words(language)(f"notes.{one.key}", **one.parameters)


@pytest.mark.parametrize(
    ("source", "is_name"),
    [("smollm2:135m", True), ("hf.co/a/b", True), ("./x.gguf", False), ("/x.gguf", False), ("~/x.gguf", False)],
)
def test_a_from_names_a_model_or_a_file(source: str, is_name: bool) -> None:
    assert rows.is_library_name(source) is is_name


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("a" * 300, id="long"),
        pytest.param("~nobody-of-that-name/x.gguf", id="home"),
        pytest.param("x\x00y", id="zero"),
    ],
)
def test_an_odd_from_does_not_break_the_step(source: str) -> None:
    assert rows.is_library_name(source) in (True, False)


@pytest.mark.parametrize("name", ["phi4:mini", "nobody-knows-this", "me/tutor:latest"])
def test_a_name_of_which_nothing_is_known_is_told(name: str) -> None:
    # The step asks the workbench only for files that are here.
    workbench: Workbench = SimpleNamespace(models=SimpleNamespace(sources=lambda: ()))  # type: ignore[assignment]
    found = LAB.steps["names"].function(workbench, name=name)
    assert found.table is None and str(found.facts["full_name"]).endswith(name if ":" in name else f"{name}:latest")  # type: ignore[union-attr]
    assert [one.key for one in found.notes] == ["meant" if name == "phi4:mini" else "unknown_size"]  # type: ignore[union-attr]
