"""Every notebook runs, in both languages, and gives what page and terminal give."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lib.cli import labs
from lib.course import notebook
from lib.course.lab import Lab
from lib.course.result import Result
from lib.course.run import latest_run
from lib.models.fit import verdict
from lib.workbench import Workbench
from tests.conftest import ROOT
from tests.server.test_hub_search import Hub

# For one cell or command: a long step may wait for another test's turn of the machine.
PATIENCE_S = 1800
# The client's own patience is made for a machine with nothing else to do.
CLIENT = {"timeout": PATIENCE_S, "startup_timeout": 600, "iopub_timeout": 600}

# How much memory is free changes from one moment to the next, and so does what fits into it.
MOMENTARY = ("available_bytes", "fitting", "fits")
QUICK = {"rounds": 1, "max_tokens": 16, "requests": 8, "slots": 1}
SHOW = "from lib.course.run import latest_run"


def calls(book: nbformat.NotebookNode, lab: Lab) -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """The cells that call a step, with its name."""
    for cell in book.cells:
        name = cell.source.split("(")[0]
        if cell.cell_type == "code" and name in lab.steps:
            yield name, cell


def read(lab: Lab, language: str) -> nbformat.NotebookNode:
    return nbformat.read(notebook.path_of(lab, language), as_version=4)


@pytest.mark.parametrize("lab", labs(), ids=lambda lab: lab.id)
def test_the_code_of_a_notebook_is_the_same_in_both_languages(lab: Lab) -> None:
    def code(language: str) -> list[str]:
        return [one.source for one in read(lab, language).cells if one.cell_type == "code"]

    assert code("pt") == [one.replace('language="en"', 'language="pt"') for one in code("en")]


@pytest.mark.parametrize("lab", labs(), ids=lambda lab: lab.id)
def test_a_notebook_runs_from_its_own_folder(lab: Lab, stocked_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In English with one round of what is measured in rounds, few requests and short answers, all else as it stands.

    In Portuguese, whose code is the same (see above), each call shows what the English one has measured.
    """
    monkeypatch.setenv("BANCADA_HOME", str(stocked_home))
    english, portuguese = read(lab, "en"), read(lab, "pt")
    assert [name for name, _ in calls(english, lab)] == list(lab.steps), "each step is called in a cell of its own"
    for _, cell in calls(english, lab):
        for long, short in QUICK.items():
            cell.source = re.sub(rf"\b{long}=\d+", f"{long}={short}", cell.source)
    run(lab, english, "en", stocked_home)
    for name, cell in calls(portuguese, lab):
        cell.source = f"{SHOW}\nlatest_run({name}, workbench, workbench.learner)"
    run(lab, portuguese, "pt", stocked_home)


def run(lab: Lab, book: nbformat.NotebookNode, language: str, home: Path) -> None:
    """Run a notebook; no cell of it fails or complains, and it shows every chart there is."""
    folder = notebook.path_of(lab, language).parent
    NotebookClient(book, **CLIENT, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "a notebook draws it on red"
    figures = [output for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    workbench = Workbench.open(home=home, _env_file=None)
    ran = {step.id: latest_run(step, workbench, "me") for step in lab.steps.values()}
    workbench.store.close()
    assert all(ran.values()), ran
    # Every chart is in the notebook; a step that found nothing to draw has none.
    assert len(figures) == sum(run is not None and run.figure() is not None for run in ran.values())
    assert len(figures) >= len(lab.steps) - 1


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.shutdown()
    made.server_close()


def test_page_notebook_and_terminal_give_the_same_results(
    stocked_home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters, three roads, one result: facts and table, but for what is measured in seconds."""
    monkeypatch.setenv("BANCADA_HOME", str(stocked_home))
    # Nobody answers there, on a learner's machine neither.
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    # The real Hub counts a download more between two questions.
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    environment = dict(os.environ)
    for key, parameters in {
        "choose.estimate": {"quantization": "Q4_1", "context_tokens": 4096},
        "choose.catalog": {"task": "chat", "context_tokens": 8192},
        "choose.hub": {"query": "smollm2"},
        "quantize.formats": {"format": "Q2_K"},
        "quantize.quality": {"formats": ("Q4_0", "Q8_0")},
        "ollama.names": {"name": "qwen2.5:0.5b", "quantization": "Q8_0"},
        "ollama.context": {"num_ctx": 256},
        "foundry.install": {},
        "compare.old_names": {},
    }.items():
        terminal = _terminal(key, parameters, environment)
        from_notebook = _notebook(key, parameters)
        page = _page(key, parameters)
        for other in (from_notebook, page):
            assert _lasting(other) == _lasting(terminal), key
        if key == "choose.hub":
            assert terminal.facts["source"] == "hub" and len(hub.asked) >= 3
        if key == "choose.catalog":
            for one in (terminal, from_notebook, page):
                assert one.table is not None
                sizes, free = one.table["estimate_bytes"], one.facts["available_bytes"]
                assert isinstance(free, int)
                assert list(one.table["fits"]) == [verdict(size, free) for size in sizes]


def test_the_same_question_gets_the_same_answer_everywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 7 puts twenty tasks to the model at temperature 0."""
    environment = os.environ | {"BANCADA_HOME": str(home)}
    monkeypatch.setenv("BANCADA_HOME", str(home))
    terminal = _terminal("choose.slm_or_llm", {}, environment)
    for other in (_notebook("choose.slm_or_llm", {}), _page("choose.slm_or_llm", {})):
        assert terminal.table is not None and other.table is not None
        assert other.table.to_dict() == terminal.table.to_dict()
        assert other.facts["narrow_percent"] == terminal.facts["narrow_percent"]


def _lasting(result: Result) -> object:
    """What does not change from one moment to the next."""
    facts = {name: value for name, value in result.facts.items() if name not in MOMENTARY}
    table = None
    if result.table is not None:
        lasting = result.table.drop(columns=[name for name in MOMENTARY if name in result.table])
        table = lasting.astype(object).where(lasting.notna(), None).to_dict()
    return facts, json.loads(json.dumps(table)), result.notes


def _terminal(key: str, parameters: dict[str, object], environment: dict[str, str]) -> Result:
    texts = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in parameters.items()}
    options = [part for name, text in texts.items() for part in (f"--{name}", text)]
    done = subprocess.run(
        [sys.executable, "-m", "lib.cli", "run", key, *options, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return Result.from_json(done.stdout)


def _notebook(key: str, parameters: dict[str, object]) -> Result:
    """The notebook's own cells up to the step's source, then a call of what the learner sees."""
    lab_id, step_id = key.split(".")
    lab = next(one for one in labs() if one.id == lab_id)
    book = nbformat.reads(notebook.build(lab, "en"), as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    source = next(cell for cell in code if f"def {step_id}(" in cell.source)
    arguments = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    call = nbformat.v4.new_code_cell(f"print('RESULT' + {step_id}(workbench, {arguments}).result.to_json())")
    book.cells = [*code[:2], source, call]
    NotebookClient(
        book, **CLIENT, resources={"metadata": {"path": str(notebook.path_of(lab, "en").parent)}}
    ).execute()
    text = "".join(output.get("text", "") for output in book.cells[-1].outputs)
    return Result.from_json(text.split("RESULT", 1)[1])


def _page(key: str, parameters: dict[str, object]) -> Result:
    """What the page does when Run is pressed: a job or, for a short step, a run at once; read back from the store."""
    script = f"""
import sys
import time
from lib.course.labs import find_step
from lib.course.run import latest_run, run_at_once
from lib.jobs import Jobs
from lib.workbench import Workbench
from lib.settings import Settings
workbench = Workbench(Settings())
step = find_step({key!r})
if step.long:
    jobs = Jobs(workbench)
    jobs.start_watching()
    job = jobs.submit(workbench.learner, step, {parameters!r})
    while job.active:
        time.sleep(0.2)
        job = jobs.get(job.id)
    assert job.state == "done", job
    jobs.close()
else:
    run_at_once(step, workbench, {parameters!r}, None)
print("RESULT" + latest_run(step, workbench, workbench.learner).result.to_json())
workbench.close()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return Result.from_json(done.stdout.split("RESULT", 1)[1])
