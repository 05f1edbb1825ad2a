"""Builds a lab's notebook from the lab itself: lesson, the steps' own source, and a call.

A notebook is never edited by hand; a test builds it again and compares.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

from lib.course.lab import Lab, Step
from lib.course.parameters import Parameter
from lib.text import Words

ROOT = Path(__file__).parent.parent.parent / "notebooks"

_SETUP = """\
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "app.py").exists())
sys.path.insert(0, str(root))"""


def build(lab: Lab, language: str) -> str:
    """The notebook of a lab in a language, as JSON text."""
    # Imported here: it takes seconds, and every command of the command line would wait for it.
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells = []
    for number, (kind, text) in enumerate(_cells(lab, language)):
        make = new_code_cell if kind == "code" else new_markdown_cell
        made = make(text)
        made["id"] = hashlib.sha256(f"{lab.id} {number}".encode()).hexdigest()[:8]
        cells.append(made)
    book = new_notebook(cells=cells)
    book["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(book)
    return str(nbformat.writes(book)) + "\n"


def path_of(lab: Lab, language: str) -> Path:
    """Where the notebook of a lab stands."""
    return ROOT / language / f"{lab.number:02d}-{lab.id}.ipynb"


def write(lab: Lab, language: str) -> Path:
    """Build and write a notebook."""
    path = path_of(lab, language)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(build(lab, language), encoding="utf-8")
    return path


def _cells(lab: Lab, language: str) -> Iterator[tuple[str, str]]:
    said, lesson = lab.words(language), lab.lesson(language)
    yield "markdown", f"# {lesson.title}\n\n{lesson.introduction}"
    yield "markdown", said("notebook.setup")
    module = inspect.getmodule(next(iter(lab.steps.values())).function)
    assert module is not None
    yield "code", f"{_SETUP}\n\nfrom labs.{lab.id}.checks import LAB\n{_imports(module.__file__)}"
    yield "code", f'workbench = Workbench.open(language="{language}")'
    for step in lab.steps.values():
        section = lesson.sections[step.id]
        yield "markdown", f"## {section.title}\n\n{section.body}"
        yield "code", step.source
        if step.predict is not None:
            what = said.label(step.predict.fact)
            ask = "notebook.predict" if step.predict.unit else "notebook.predict_number"
            yield "markdown", said(ask, what=what, unit=step.predict.unit)
        yield "code", _call(step)
    yield from _exercise(lab, language, said)
    yield from _quiz(lab, language, said)


def _exercise(lab: Lab, language: str, said: Words) -> Iterator[tuple[str, str]]:
    section = lab.lesson(language).sections.get("exercise")
    if lab.exercise is None or section is None:
        return
    yield "markdown", f"## {section.title}\n\n{section.body}"
    arguments = ", ".join(f"{one.name}={one.default!r}" for one in lab.exercise.parameters)
    yield "code", f"LAB.exercise.try_it(workbench, {arguments})"


def _quiz(lab: Lab, language: str, said: Words) -> Iterator[tuple[str, str]]:
    yield "markdown", f"## {said('places.quiz')}\n\n{said('notebook.quiz')}"
    for question in lab.quiz(language):
        options = "\n".join(f"- **{one.letter})** {one.text}" for one in question.options)
        yield "markdown", f"**{question.ask}**\n\n{options}"
        yield "code", f'LAB.answer(workbench, "{question.id}", "?")'


def _call(step: Step) -> str:
    arguments = [_argument(parameter) for parameter in step.parameters]
    if step.predict is not None:
        arguments.insert(0, "prediction=None")
    if not arguments:
        return f"{step.id}(workbench)"
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"{step.id}(\n    workbench,\n{lines})"


def _argument(parameter: Parameter) -> str:
    # As the formatter would write it, so that a learner's copy passes the same checks.
    text = repr(parameter.default)
    if '"' not in text:
        text = text.replace("'", '"')
    return f"{parameter.name}={text}"


def _imports(path: str | None) -> str:
    """The import lines of the steps' own module, and the constants that its steps use."""
    assert path is not None
    source = Path(path).read_text(encoding="utf-8")
    body = ast.parse(source).body
    imports = [
        node
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"
    ]
    constants = [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) != "LAB"]
    parts = ["\n".join(ast.get_source_segment(source, node) or "" for node in part) for part in (imports, constants)]
    return "\n\n".join(part for part in parts if part)
