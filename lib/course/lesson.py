"""A lesson: Markdown with one section per step, the same ids in every language."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HEADING = re.compile(r"^## (?P<title>.+?) \{#(?P<id>[a-z0-9_-]+)\}\s*$", re.MULTILINE)
_TITLE = re.compile(r"\A# (?P<title>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """One section: its heading and the Markdown below it."""

    id: str
    title: str
    body: str


@dataclass(frozen=True)
class Lesson:
    """The title, what stands before the first section, and the sections by id, in order."""

    title: str
    introduction: str
    sections: Mapping[str, Section]


def read_lesson(path: Path) -> Lesson:
    """The lesson in the file; ValueError when it has no title or repeats an id."""
    text = path.read_text(encoding="utf-8")
    title = _TITLE.search(text)
    if title is None:
        raise ValueError(f"{path.name}: the first line must be '# Title'")
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    sections = {
        heading["id"]: Section(heading["id"], heading["title"], text[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    }
    if len(sections) != len(headings):
        raise ValueError(f"{path.name}: a section id stands twice")
    first = headings[0].start() if headings else len(text)
    return Lesson(title["title"], text[title.end() : first].strip(), sections)
