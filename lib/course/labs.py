"""The labs of the course, found by folder: the library does not import the course."""

from __future__ import annotations

import importlib
import pkgutil

from lib.course.lab import Lab, Step
from lib.errors import UnknownStep


def labs() -> list[Lab]:
    """Every lab of the course, in order."""
    return sorted((find_lab(name) for name in _names()), key=lambda lab: lab.number)


def find_lab(name: str) -> Lab:
    """The lab in a folder; imports no other one."""
    lab: Lab = importlib.import_module(f"labs.{name}.checks").LAB
    return lab


def find_step(key: str) -> Step:
    """The step that is called so, as ``choose.estimate``; raises UnknownStep."""
    lab, _, step = key.partition(".")
    if lab in _names() and step in (steps := find_lab(lab).steps):
        return steps[step]
    raise UnknownStep(
        step=key, known=", ".join(one for lab in labs() for one in (f"{lab.id}.{id}" for id in lab.steps))
    )


def _names() -> list[str]:
    return [one.name for one in pkgutil.iter_modules(importlib.import_module("labs").__path__)]
