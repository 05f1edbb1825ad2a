"""A declared parameter as a Streamlit widget."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lib.course.parameters import Choice, ModelName, Parameter, Range, Text
from lib.text import Words
from lib.ui.shell import workbench

# Pixels: two stand beside each other on the bench, one on a phone.
WIDTH = 250
# A text that may be longer than a line of the bench gets a box of its own; one as long as a file, a tall one.
ONE_LINE = 200
A_FILE = 4000


def is_long_text(parameter: Parameter) -> bool:
    """Whether a parameter's widget takes the whole width."""
    return isinstance(parameter.rule, Text) and parameter.rule.max_length > ONE_LINE


def ask(parameter: Parameter, key: str, start: Any, said: Words) -> Any:
    """Draw the widget of a parameter, starting at ``start``; gives back the value."""
    label = said.label(parameter.name)
    rule = parameter.rule
    if isinstance(rule, Choice):
        return _choose(parameter, rule, label, key, start, said)
    if isinstance(rule, Range):
        kind = parameter.kind
        return st.number_input(
            label, kind(rule.low), kind(rule.high), kind(start), kind(rule.step or 1), key=key, width=WIDTH
        )
    if isinstance(rule, ModelName):
        names = list(workbench().models.source_names())
        return st.selectbox(label, names, names.index(start) if start in names else 0, key=key, width=WIDTH)
    if isinstance(rule, Text) and rule.max_length > ONE_LINE:
        height = 220 if rule.max_length >= A_FILE else 110
        return st.text_area(label, start, max_chars=rule.max_length, key=key, height=height)
    if isinstance(rule, Text):
        return st.text_input(label, start, max_chars=rule.max_length, key=key, width=WIDTH)
    return st.checkbox(label, start, key=key)


def _choose(parameter: Parameter, rule: Choice, label: str, key: str, start: Any, said: Words) -> Any:
    options = list(rule.values())

    def name(value: Any) -> str:
        return said.number(value) if isinstance(value, int) else said.choice(value, parameter.name)

    if parameter.many:
        chosen = st.pills(
            label, options, selection_mode="multi", default=list(start), format_func=name, key=key, width="stretch"
        )
        return tuple(chosen)
    at = options.index(start) if start in options else 0
    if len(options) > 4 and all(isinstance(value, int) for value in options):
        return st.select_slider(label, options, options[at], format_func=name, key=key)
    return st.selectbox(label, options, at, format_func=name, key=key, width=WIDTH)
