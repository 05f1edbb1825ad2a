"""What lab 4 finds on a server of Ollama's that answers honestly: one suite, for the real one and for its fake.

A test module imports these tests and defines the fixture ``bench``, a workbench whose ``ollama_host`` answers and
which has ``MODEL``. Every step goes the road that page, notebook and terminal take, and every result is drawn. What a
test makes on the server goes again; what the library has is left there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from labs.ollama import measured, taking
from labs.ollama.checks import LAB
from labs.ollama.rows import names_and_weights
from labs.ollama.served import serve
from labs.ollama.steps import EMBEDDER, MODEL, SENTENCES
from lib.bench.speed import measure_speed
from lib.course.draw import to_text
from lib.course.result import Note, Result
from lib.course.run import from_card, perform
from lib.engines.wire import Exchange
from lib.errors import BadParameter, Offline, UnknownModel
from lib.gguf.formats import FORMATS
from lib.ollama import models as ollama_models
from lib.text import LANGUAGES
from lib.workbench import Workbench
from tests.conftest import DEFAULT, link_stock
from tests.lab_runs import watched
from tests.server.test_quantize import finished

OWN = "bancada-test-"
LIBRARY = (MODEL, f"{EMBEDDER}:latest")
ROUTES = ("/api/chat", "/api/generate", "/v1/chat/completions")
LONG = "You are a patient teacher of physics who answers in one short sentence without any difficult words. " * 4


def opened(home: Path, default_model: Path, stock: Path, host: str) -> Workbench:
    """A workbench with the default model and the stock's files, for the server at ``host``."""
    (home / "models").mkdir(parents=True)
    (home / "models" / DEFAULT).symlink_to(default_model.parent, target_is_directory=True)
    link_stock(home, stock)
    return Workbench.open(home=home, language="en", ollama_host=host, _env_file=None)


def ran(bench: Workbench, step: str, **given: object) -> Result:
    """A step's result as a run card keeps it, drawn with all its words in every language."""
    performed, moved = watched(perform(LAB.steps[step], bench, given))
    for language in LANGUAGES:
        said = LAB.words(language)
        run = from_card(LAB.steps[step], performed.card(bench.learner, None), said)
        assert to_text(run, said)
        run.figure(said)
        assert all(said(f"progress.{one.what}") for one in moved)
    return run.result


def notes(result: Result) -> list[Note]:
    """A result's notes, all but the one that the server is a stand-in."""
    return [one for one in result.notes if one.key != "fake"]


def keys(result: Result) -> list[str]:
    """The keys of these notes."""
    return [one.key for one in notes(result)]


def column(result: Result, name: str) -> list[object]:
    """A column of a result's table."""
    assert result.table is not None
    return result.table[name].tolist()


def row(result: Result, name: str, value: object) -> dict[str, object]:
    """The one row of a result's table that has a value."""
    assert result.table is not None
    (found,) = result.table[result.table[name] == value].to_dict("records")
    return found


def host_of(bench: Workbench) -> str:
    return bench.settings.ollama_host


def names_on(bench: Workbench) -> set[str]:
    """The models that the server has."""
    return {one.name for one in ollama_models.installed(host_of(bench))}


def is_loaded(bench: Workbench, name: str = MODEL) -> bool:
    return name in {one.name for one in ollama_models.loaded(host_of(bench))}


def stands_in(bench: Workbench) -> bool:
    """Whether the server is the fake of one."""
    return ollama_models.server(host_of(bench)).version.endswith("-fake")


@pytest.fixture
def cleaned(bench: Workbench) -> Iterator[None]:
    """What the test makes on the server is removed."""
    before = names_on(bench)
    yield
    for name in names_on(bench) - before - set(LIBRARY):
        bench.engine("ollama").release(name)
        ollama_models.remove(host_of(bench), name)


def test_the_server_says_what_it_is_and_which_doors_it_has(bench: Workbench) -> None:
    found = ran(bench, "server")
    assert found.facts["answers"] is True and found.facts["version"]
    status = dict(zip(column(found, "route"), column(found, "http_status"), strict=True))
    assert {status[one] for one in ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models")} == {200}
    assert status["/api/health"] == status["/metrics"] == 404
    assert found.facts["models"] == len(names_on(bench)) > 0
    assert "no_key" in keys(found)
    for one in (found, ran(bench, "models", name=MODEL)):
        assert ("fake" in [said.key for said in one.notes]) is stands_in(bench)


def test_a_name_is_taken_apart_and_its_file_forecast(bench: Workbench) -> None:
    found = ran(bench, "names", name=MODEL, quantization="Q8_0")
    assert found.facts["full_name"] == f"registry.ollama.ai/library/{MODEL}" and found.facts["size_in_tag"] == "135m"
    assert found.facts["registry"] == "registry.ollama.ai" and found.facts["namespace"] == "library"
    assert column(found, "format") == list(FORMATS)
    assert found.facts["forecast_bytes"] == row(found, "format", "Q8_0")["formula_bytes"] == 134_515_008 * 34 // 32


def test_a_second_pull_fetches_nothing(bench: Workbench) -> None:
    try:
        found = ran(bench, "pull", name=MODEL)
    except Offline as error:
        pytest.skip(f"Ollama has no network: {error}")
    assert keys(found) == ["all_here"]
    assert found.facts["fetched_bytes"] == 0 and found.facts["found_bytes"] == found.facts["size_bytes"]
    assert len(column(found, "layer")) == found.facts["layers"] >= 2
    size = next(one.size_bytes for one in ollama_models.installed(host_of(bench)) if one.name == MODEL)
    assert found.facts["size_bytes"] == pytest.approx(size, rel=0.01)


def test_a_model_is_listed_on_the_disk_and_in_memory_with_what_it_brings(bench: Workbench) -> None:
    finished(bench.engine("ollama").ensure(MODEL))
    found = ran(bench, "models", name=MODEL)
    assert set(column(found, "name")) == names_on(bench) and found.facts["models"] == len(names_on(bench))
    mine = row(found, "name", MODEL)
    assert mine["size_bytes"] > 50e6 and mine["loaded_bytes"] > 0 and mine["until"]
    assert found.facts["disk_bytes"] == sum(column(found, "size_bytes"))
    assert found.facts["context_tokens"] >= 2048 and "completion" in found.facts["capabilities"]
    texts = {one.name: one.text for one in found.listings}
    assert texts["template"] and "FROM" in texts["modelfile"]


def test_a_model_that_is_not_there_is_told_with_those_that_are(bench: Workbench) -> None:
    for step, given in (("models", {}), ("manage", {"new_name": f"{OWN}x"})):
        with pytest.raises(UnknownModel) as caught:
            ran(bench, step, name=f"{OWN}nobody", **given)
        assert MODEL in str(caught.value.parameters["known"])


def test_a_question_changes_nothing(bench: Workbench) -> None:
    before = ollama_models.installed(host_of(bench))
    copy = ran(bench, "manage", action="copy", name=MODEL, new_name=f"{OWN}copy")
    removal = ran(bench, "manage", action="remove", name=MODEL)
    assert copy.facts["done"] is False and keys(copy)[0] == "copy_asked"
    assert row(copy, "name", f"{OWN}copy:latest")["fate"] == "new" and row(copy, "name", MODEL)["fate"] == "copied"
    assert removal.facts["done"] is False and keys(removal)[0] == "remove_asked"
    assert row(removal, "name", MODEL)["fate"] == "goes"
    assert ollama_models.installed(host_of(bench)) == before


@pytest.mark.usefixtures("cleaned")
def test_a_copy_shares_the_weights_and_its_removal_frees_nothing(bench: Workbench) -> None:
    name = f"{OWN}copy:latest"
    made = ran(bench, "manage", action="copy", name=MODEL, new_name=f"{OWN}copy", really=True)
    assert made.facts["done"] is True and name in names_on(bench)
    weights = names_and_weights(host_of(bench)).set_index("name")["weights"]
    assert weights[name] == weights[MODEL]

    asked = ran(bench, "manage", action="remove", name=name)
    assert asked.facts["frees_bytes"] == 0 and MODEL in asked.facts["sharing"]
    assert row(asked, "name", MODEL)["fate"] == "shares"

    gone = ran(bench, "manage", action="remove", name=name, really=True)
    assert gone.facts["done"] is True and gone.facts["frees_bytes"] == 0
    assert name not in names_on(bench) and MODEL in names_on(bench)
    *_, reply = ollama_models.chat(host_of(bench), MODEL, measured.says("Hello"), {"num_predict": 4, "temperature": 0})
    assert reply.text


def test_a_name_that_is_taken_is_refused(bench: Workbench) -> None:
    with pytest.raises(BadParameter):
        ran(bench, "manage", action="copy", name=MODEL, new_name=MODEL, really=True)


def test_what_old_texts_put_into_a_modelfile_is_found(bench: Workbench) -> None:
    text = f"FROM {MODEL}\nPARAMETER context_length 4096\nFILE ./guidelines.txt\nPARAMETER num_ctx 2048\n"
    before = names_on(bench)
    found = ran(bench, "modelfile", text=text, name=f"{OWN}bad", create_it=True)
    assert found.facts["valid"] is False and found.facts["with_tokens"] is None
    problems = list(zip(*(column(found, one) for one in ("line", "problem", "word", "instead")), strict=True))
    assert problems == [
        (2, "unknown-parameter", "context_length", "num_ctx"),
        (3, "unknown-instruction", "FILE", "SYSTEM"),
    ]
    assert names_on(bench) == before


@pytest.mark.usefixtures("cleaned")
def test_a_modelfile_becomes_a_model_and_its_words_cost_what_is_said(bench: Workbench) -> None:
    question = "Why is the sky blue?"
    text = f'FROM {MODEL}\nPARAMETER temperature 0\nSYSTEM """{LONG}"""\n'
    found = ran(bench, "modelfile", text=text, question=question, name=f"{OWN}teacher", create_it=True)
    assert found.facts["valid"] is True and found.facts["created"] == f"{OWN}teacher:latest"
    assert f"{OWN}teacher:latest" in names_on(bench)
    texts = {one.name: one.text for one in ran(bench, "models", name=f"{OWN}teacher").listings}
    assert LONG.strip() in texts["modelfile"]
    assert found.facts["with_tokens"] > found.facts["without_tokens"] + 40 > 40
    # What the model that was made really reads.
    asked = {"num_predict": 1}
    *_, reply = ollama_models.chat(host_of(bench), f"{OWN}teacher", measured.says(question), asked)
    assert reply.prompt_tokens == found.facts["with_tokens"]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured in one short round: how well they are measured is tested elsewhere."""
    monkeypatch.setattr(taking, "measure_speed", partial(measure_speed, rounds=1, tokens=16))


@pytest.mark.parametrize("by", ["llama.cpp", "ollama"])
@pytest.mark.usefixtures("cleaned", "brief")
def test_ones_own_file_answers_alike_in_both_engines(bench: Workbench, by: str) -> None:
    if f"bancada-{DEFAULT}:q4_k_m" in names_on(bench):
        pytest.skip("somebody has a model of this name, which the step would replace")
    found = ran(bench, "own_model", model=DEFAULT, format="Q4_K_M", quantized_by=by)
    assert column(found, "by") == ["embedded", "ollama"] and keys(found)[0] == "made_in_ollama"
    here, there = (str(one).split() for one in column(found, "answer"))
    assert here and there
    ours, theirs = column(found, "prompt_tokens")
    assert ("other_template" in keys(found)) is (ours != theirs)
    # Another template is another question. The stand-in tells that it quantizes, and keeps weights of another format.
    if ours == theirs and (by == "llama.cpp" or not stands_in(bench)):
        assert here[0] == there[0], (here, there)
    assert all(one > 0 for one in column(found, "tokens_per_s")) and found.facts["create_s"] > 0
    if by == "llama.cpp":
        file, kept = column(found, "size_bytes")
        assert kept == pytest.approx(file, rel=0.01)

    name = str(notes(found)[0].parameters["name"])
    asked = ran(bench, "manage", action="remove", name=name)
    if by == "llama.cpp":
        assert asked.facts["frees_bytes"] == found.facts["size_bytes"] and "only_name" in keys(asked)
    bench.engine("ollama").release(name)
    ran(bench, "manage", action="remove", name=name, really=True)
    assert name not in names_on(bench)


@pytest.mark.parametrize("step", ["wire", "options", "context", "keep_alive", "embed", "settings"])
def test_a_name_alone_fetches_nothing(bench: Workbench, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "CACHES", ())
    before = names_on(bench)
    # The library has it, so that a pull would bring it.
    if "smollm2:latest" in before:
        pytest.skip("this server has smollm2:latest already")
    with pytest.raises(UnknownModel):
        ran(bench, step, name="smollm2")
    assert names_on(bench) == before


@pytest.mark.usefixtures("cleaned")
def test_a_model_of_somebody_elses_is_never_replaced(bench: Workbench) -> None:
    before = {one.name: one.digest for one in ollama_models.installed(host_of(bench))}
    for taken in (MODEL, MODEL.upper(), f"library/{MODEL}"):
        with pytest.raises(BadParameter):
            ran(bench, "modelfile", text=f"FROM {MODEL}\nSYSTEM mine\n", name=taken, create_it=True)
        with pytest.raises(BadParameter):
            ran(bench, "manage", action="copy", name=MODEL, new_name=taken, really=True)
    assert {one.name: one.digest for one in ollama_models.installed(host_of(bench))} == before


@pytest.mark.parametrize("place", ["/etc/hostname", "~nobody-of-that-name/x.gguf"])
def test_only_a_gguf_is_handed_to_the_server(bench: Workbench, place: str) -> None:
    with pytest.raises(BadParameter):
        ran(bench, "modelfile", text=f"FROM {place}\n", name="bancada-test-x", create_it=True)
    assert "bancada-test-x:latest" not in names_on(bench)


def test_ollama_quantizes_only_to_what_it_knows(bench: Workbench) -> None:
    with pytest.raises(BadParameter):
        ran(bench, "own_model", format="Q5_1", quantized_by="ollama")


def test_three_wires_bring_one_answer(bench: Workbench) -> None:
    found = ran(bench, "wire", name=MODEL, prompt="Write one sentence about the sea.", max_tokens=24)
    assert column(found, "route") == list(ROUTES) and found.facts["engine"] == "ollama"
    assert column(found, "content_type") == ["application/x-ndjson", "application/x-ndjson", "text/event-stream"]
    assert found.table is not None
    for one in found.table.to_dict("records"):
        assert one["bytes_per_token"] > one["text_bytes"] / one["completion_tokens"] > 0, one["route"]
        # Only the native answers end with the server's own durations.
        assert (one["tokens_per_s"] > 0) is (one["route"] != ROUTES[2])
    for one in found.listings[:2]:
        assert '"eval_duration":' in one.text and '"total_duration":' in one.text
    assert "data: [DONE]" in found.listings[2].text

    exchanges = finished(measured.exchanges(bench, finished(serve(bench, MODEL)), "Count from one to ten.", 24))
    chat, _, openai = exchanges
    text = "".join(one["message"]["content"] for one in chat.objects)
    assert text and text == "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks(openai))
    counts = json.loads(chat.lines[-1].text)
    assert counts["eval_count"] == openai.objects[-1]["usage"]["completion_tokens"] > 0
    assert counts["prompt_eval_count"] == openai.objects[-1]["usage"]["prompt_tokens"] > 0


def chunks(exchange: Exchange) -> list[dict[str, object]]:
    """The chunks of an OpenAI stream that have a choice."""
    return [one for one in exchange.objects if one.get("choices")]


def test_like_lies_beside_like(bench: Workbench) -> None:
    found = ran(bench, "embed", name=EMBEDDER)
    lines = SENTENCES.splitlines()
    assert found.facts["engine"] == "ollama" and found.table is not None
    assert len(found.table) == len(lines) * (len(lines) + 1) // 2
    same = found.table[found.table["first"] == found.table["second"]]
    assert same["similarity"].tolist() == pytest.approx([1.0] * len(lines), abs=1e-6)
    assert found.table["similarity"].between(-1 - 1e-6, 1 + 1e-6).all()
    assert found.facts["closest_pair"] == f"{lines[0]} ↔ {lines[1]}"
    assert found.facts["embedding_length"] > 100


def test_chance_obeys_temperature_and_seed(bench: Workbench) -> None:
    found = ran(bench, "options", name=MODEL, temperatures=("0", "1.6"), tries=4)
    assert found.table is not None and len(found.table) == 2 * 4 + 3
    free = found.table[~found.table["same_seed"].astype(bool)]
    assert free[free["temperature"] == 0]["answer"].nunique() == 1
    assert free[free["temperature"] == 1.6]["seed"].nunique() == 4
    assert found.facts["same_seed_same_answer"] is True
    assert found.facts["different_answers"] > 1


def test_what_does_not_fit_is_cut_and_only_the_count_tells(bench: Workbench) -> None:
    found = ran(bench, "context", name=MODEL, num_ctx=512)
    assert found.table is not None and "cut_silently" in keys(found) and found.facts["refused"] == 0
    counts = list(zip(column(found, "sent_tokens"), column(found, "counted_tokens"), strict=True))
    assert all(counted <= 512 for _, counted in counts)
    short = [(sent, counted) for sent, counted in counts if sent < 490]
    assert len(short) >= 3 and all(sent == counted for sent, counted in short)
    sent, counted = counts[-1]
    assert sent > 2.5 * 512 and counted < sent and found.facts["lost_tokens"] == sent - counted


@pytest.mark.parametrize("keep", ["0", "30", "5m", "-1"])
def test_a_model_stays_as_long_as_it_was_told(bench: Workbench, keep: str) -> None:
    try:
        found = ran(bench, "keep_alive", name=MODEL, keep=keep)
        assert column(found, "ask") == ["cold", "warm", "cold_again"] and found.facts["engine"] == "ollama"
        assert found.facts["cold_load_s"] > 0 and found.facts["held_bytes"] > 0
        assert found.facts["stays"] is (keep != "0") and is_loaded(bench) is (keep != "0")
        told = {"0": "gone", "-1": "stays_for_ever"}.get(keep, "stays_until")
        assert keys(found) == [told]
        if told == "stays_until":
            said = datetime.fromisoformat(f"{notes(found)[-1].parameters['until']}+00:00") - datetime.now(UTC)
            least, most = {"30": (-60, 31), "5m": (31, 360)}[keep]
            assert timedelta(seconds=least) < said < timedelta(seconds=most)
        if keep != "0":
            # Ollama goes on with what a request said; this step leaves what is usual.
            (one,) = (one for one in ollama_models.loaded(host_of(bench)) if one.name == MODEL)
            assert one.until is not None
            assert timedelta(seconds=31) < one.until - datetime.now(UTC) < timedelta(minutes=6)
    finally:
        ollama_models.unload(host_of(bench), MODEL)


def test_smaller_types_make_smaller_caches_and_all_who_ask_at_once_are_answered(bench: Workbench) -> None:
    found = ran(bench, "settings", name=MODEL, context_tokens=4096)
    assert found.facts["engine"] == "ollama"
    measured_bytes = [found.facts[f"{one}_cache_bytes"] for one in ("q4_0", "q8_0", "f16")]
    assert measured_bytes == sorted(measured_bytes) and len(set(measured_bytes)) == 3
    for name in ("f16", "q8_0", "q4_0"):
        cache = row(found, "name", name)
        assert cache["cache_bytes"] == pytest.approx(cache["forecast_bytes"], rel=0.1)
    assert found.table is not None
    clients = found.table[found.table["kind"] == "clients"]
    assert clients["name"].tolist() == ["1", "2", "4"]
    assert (clients["tokens_per_s"] > 0).all() and (clients["each_tokens_per_s"] > 0).all()


def test_three_programs_say_the_same_words(bench: Workbench) -> None:
    found = ran(bench, "snippets")
    here = {"python": True, "javascript": bool(shutil.which("node")), "curl": bool(shutil.which("curl"))}
    assert found.table is not None
    for one in found.table.to_dict("records"):
        assert (one["took_s"] > 0) is here[one["language"]]
    answers = {one for one in column(found, "output") if one}
    assert (
        len(answers) == 1 and found.facts["same_answer"] is True and found.facts["programs_run"] == sum(here.values())
    )
    # The words are an answer, not an error that all of them met.
    *_, reply = ollama_models.chat(
        host_of(bench), MODEL, measured.says("Write one sentence about the sea."), {"temperature": 0, "num_predict": 48}
    )
    assert answers == {reply.text.strip()}


@pytest.mark.parametrize("symptom", ["slow", "out_of_memory", "not_found", "context_cut"])
def test_every_symptom_is_examined(bench: Workbench, symptom: str) -> None:
    found = ran(bench, "troubleshoot", symptom=symptom, name=MODEL, context_tokens=2048)
    fine = dict(zip(column(found, "check"), column(found, "fine"), strict=True))
    assert list(fine)[:2] == ["answers", "is_there"] and fine["answers"] and fine["is_there"]
    assert found.facts["questions"] == len(fine)
    failed = [name for name, well in fine.items() if well is False]
    assert found.facts["first_trouble"] == (failed[0] if failed else None)
    assert keys(found) == ([f"repair_{one}" for one in failed] or ["nothing_found"])
    if symptom != "not_found":
        assert len(fine) > 2


@pytest.mark.parametrize("wrong", ["smolm2:135m", "smollm2-135m", "smollm2:135"])
def test_a_wrong_name_is_found_and_the_right_one_proposed(bench: Workbench, wrong: str) -> None:
    for symptom in ("not_found", "slow"):
        found = ran(bench, "troubleshoot", symptom=symptom, name=wrong)
        assert column(found, "check") == ["answers", "is_there"] and found.facts["first_trouble"] == "is_there"
        (repair,) = notes(found)
        assert repair.key == "repair_is_here" and repair.parameters["other"] == MODEL


def test_a_context_beyond_the_models_own_is_told(bench: Workbench) -> None:
    found = ran(bench, "troubleshoot", symptom="context_cut", name=MODEL, context_tokens=32_768)
    most = row(found, "check", "context_most")
    assert most["fine"] is False and int(str(most["found"])) < 32_768
    assert "repair_context_most" in keys(found)
