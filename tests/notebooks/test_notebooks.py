"""Every notebook runs, in both languages, and gives what page and terminal give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lib.cli import labs
from lib.course import notebook
from lib.course.lab import Lab
from lib.course.result import Result
from lib.course.run import latest_run
from lib.workbench import Workbench
from tests.conftest import ROOT


# For one cell or command: a long step may wait for another test's turn of the machine.
PATIENCE_S = 1800

@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("lab", labs(), ids=lambda lab: lab.id)
def test_a_notebook_runs_from_its_own_folder(
    lab: Lab, language: str, stocked_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = stocked_home
    monkeypatch.setenv("BANCADA_HOME", str(home))
    path = notebook.path_of(lab, language)
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=PATIENCE_S, resources={"metadata": {"path": str(path.parent)}}).execute()
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


def test_page_notebook_and_terminal_give_the_same_results(
    stocked_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters, three roads, one result: facts and table, but for what is measured in seconds."""
    environment = os.environ | {"BANCADA_HOME": str(stocked_home)}
    monkeypatch.setenv("BANCADA_HOME", str(stocked_home))
    for key, parameters in {
        "choose.estimate": {"quantization": "Q4_1", "context_tokens": 4096},
        "choose.catalog": {"task": "chat", "context_tokens": 8192},
        "choose.hub": {"query": "smollm2"},
        "quantize.formats": {"format": "Q2_K"},
        "quantize.quality": {"formats": ("Q4_0", "Q8_0")},
    }.items():
        terminal = _terminal(key, parameters, environment)
        from_notebook = _notebook(key, parameters)
        page = _page(key, parameters)
        for other in (from_notebook, page):
            assert _lasting(other) == _lasting(terminal), key


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
    """What does not change from one moment to the next: free memory does."""
    facts = {name: value for name, value in result.facts.items() if name != "available_bytes"}
    table = None if result.table is None else result.table.astype(object).where(result.table.notna(), None).to_dict()
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
    NotebookClient(book, timeout=PATIENCE_S, resources={"metadata": {"path": str(notebook.path_of(lab, "en").parent)}}).execute()
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
