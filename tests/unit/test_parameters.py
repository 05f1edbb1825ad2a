"""Declared parameters: types, bounds and what is refused."""

from __future__ import annotations

from typing import Annotated

import pytest

from lib.course.parameters import Choice, Range, Text, checked, parameters_of
from lib.errors import BadParameter


def example(
    workbench: object,
    count: Annotated[int, Range(1, 10)] = 3,
    share: Annotated[float, Range(0, 1)] = 0.5,
    colour: Annotated[str, Choice(("red", "blue"))] = "red",
    sizes: Annotated[tuple[int, ...], Choice((1, 2, 4))] = (1, 2),
    words: Annotated[str, Text(5)] = "",
    loud: bool = False,
) -> None: ...


PARAMETERS = parameters_of(example)[1:]
BY_NAME = {one.name: one for one in PARAMETERS}


def test_defaults_stand_where_nothing_is_given() -> None:
    assert checked(PARAMETERS, {}) == {
        "count": 3,
        "share": 0.5,
        "colour": "red",
        "sizes": (1, 2),
        "words": "",
        "loud": False,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("count", 11),
        ("count", -1),
        ("count", 10**30),
        ("count", 2.5),
        ("count", True),
        ("count", None),
        ("count", "3"),
        ("share", float("nan")),
        ("share", float("inf")),
        ("share", -0.1),
        ("colour", "green"),
        ("colour", "red\n"),
        ("sizes", ()),
        ("sizes", (1, 3)),
        ("sizes", "12"),
        ("words", "123456"),
        ("loud", "yes"),
        ("nonsense", 1),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadParameter) as error:
        checked(PARAMETERS, {name: value})
    assert error.value.parameters["name"] == name
    assert error.value.parameters["allowed"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "7", 7),
        ("share", "1", 1.0),
        ("sizes", "1, 4", (1, 4)),
        ("loud", "true", True),
        ("colour", "blue", "blue"),
    ],
)
def test_the_command_line_writes_the_same_values(name: str, text: str, value: object) -> None:
    assert BY_NAME[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "seven"),
        ("count", "1e3"),
        ("count", ""),
        ("share", "half"),
        ("sizes", "1,x"),
        ("sizes", ""),
        ("loud", "maybe"),
        ("share", "nan"),
    ],
)
def test_a_text_that_is_no_value_is_refused(name: str, text: str) -> None:
    with pytest.raises(BadParameter):
        BY_NAME[name].parse(text)
