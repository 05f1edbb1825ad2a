"""Ways to ask Foundry Local for an answer of a form: which of them are kept? For JSON, and for calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.course.result import Progress, outcome, part_of
from lib.engines.chat import stream_chat
from lib.foundry.process import trial
from lib.foundry.trials import Own, serve

if TYPE_CHECKING:
    from lib.workbench import Workbench

FORMS = ("none", "json_object", "strict", "raw_schema", "guidance", "lark")
BY_SDK = ("guidance", "lark")
MAX_TOKENS = 64
TOOL_TOKENS = 40
# Bounded, and of characters that are a token or less: what has no bound, a small model may never end.
NAME = "^[A-Za-z .'-]{1,16}$"
WAYS = ("native", "in_prompt", "constrained")


class City(BaseModel):
    """What an answer has to be; its schema is what is sent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    city: str = Field(pattern=NAME)
    country: str = Field(pattern=NAME)
    population: int = Field(ge=0, le=99_999_999)


# Without the last entry a model may write spaces until its tokens are used up: JSON allows them.
SCHEMA: dict[str, Any] = {**City.model_json_schema(), "x-guidance": {"whitespace_flexible": False}}
GRAMMAR = r"""start: "{\"city\": " NAME ", \"country\": " NAME ", \"population\": " NUMBER "}"
NAME: /"[A-Za-z .'-]{1,16}"/
NUMBER: /0|[1-9][0-9]{0,7}/
"""


@dataclass(frozen=True)
class Formed:
    """One answer that was asked for in a form."""

    form: str
    seed: int
    text: str
    finish: str | None
    is_json: bool
    is_valid: bool
    duration_s: float


@dataclass(frozen=True)
class Tool:
    """A tool and its parameters: a name and the JSON type of each."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def schema(self) -> dict[str, Any]:
        """The parameters as a JSON schema."""
        return {
            "type": "object",
            "properties": dict(self.parameters),
            "required": list(self.parameters),
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class Task:
    """A question with the call that answers it."""

    question: str
    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Called:
    """What came back for a task: a call or not, the right tool or not, the right arguments or not."""

    way: str
    task: Task
    answer: str
    called: bool
    right_tool: bool
    right_arguments: bool
    refusal: str = ""


_NUMBER = {"type": "number", "minimum": -9999, "maximum": 9999}
_NAME = {"type": "string", "minLength": 1, "maxLength": 20}
TOOLS = (
    Tool("get_current_time", "Tell the time in a city.", {"city": _NAME}),
    Tool("add", "Add two numbers.", {"a": _NUMBER, "b": _NUMBER}),
    Tool(
        "convert_temperature",
        "Convert a temperature.",
        {"value": _NUMBER, "to": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    ),
)
TASKS = (
    Task("What time is it in Lisbon?", "get_current_time", {"city": "Lisbon"}),
    Task("How much is 12 plus 30?", "add", {"a": 12, "b": 30}),
    Task("Convert 25 degrees Celsius to Fahrenheit.", "convert_temperature", {"value": 25, "to": "fahrenheit"}),
    Task("Tell me the current time in Tokyo.", "get_current_time", {"city": "Tokyo"}),
    Task("Add 7 and 8.", "add", {"a": 7, "b": 8}),
    Task("How many degrees Celsius are 50 degrees Fahrenheit?", "convert_temperature", {"value": 50, "to": "celsius"}),
    Task("Which time do clocks in Recife show now?", "get_current_time", {"city": "Recife"}),
    Task("What is the sum of 100 and 23?", "add", {"a": 100, "b": 23}),
)
SYSTEM = (
    "You choose tools. "
    + " ".join(f"{one.name}({', '.join(one.parameters)}): {one.description}" for one in TOOLS)
    + " Answer only with JSON that has a tool and its arguments."
)


def ask_forms(workbench: Workbench, own: Own, prompt: str, seeds: int) -> Generator[Progress, None, list[Formed]]:
    """The same request in every form with every seed, at temperature 1; by the web service, the last two by the SDK."""
    said: list[Formed] = []
    tried = [(form, seed) for form in FORMS if form not in BY_SDK for seed in range(1, seeds + 1)]
    engine = yield from part_of(outcome(serve(workbench, own)), 0, 9)
    try:
        client = engine.client(own.served)
        for form, seed in tried:
            yield Progress(1 + 5 * len(said) / len(tried), 9, "ask_forms", own.served)
            options = {"temperature": 1, "seed": seed, "max_tokens": MAX_TOKENS, **response_format(form)}
            messages = [{"role": "user", "content": prompt}]
            *_, reply = stream_chat(client, own.served, messages, **options)
            said.append(_formed(form, seed, reply.text, reply.finish, reply.duration_s))
    finally:
        engine.release(own.served)
    asks = [
        {
            "prompt": prompt,
            "max_output_tokens": MAX_TOKENS,
            "temperature": 1,
            "seed": seed,
            "guidance": guidance(form),
        }
        for form in BY_SDK
        for seed in range(1, seeds + 1)
    ]
    work = trial(workbench, "guided", {"path": str(own.path), "asks": asks}, own.model)
    raw = yield from part_of(outcome(work), 2, 3)
    names = [(form, seed) for form in BY_SDK for seed in range(1, seeds + 1)]
    for (form, seed), one in zip(names, raw["answers"], strict=True):
        said.append(_formed(form, seed, one["text"], one["finish"], one["duration_s"]))
    return said


def response_format(form: str) -> dict[str, Any]:
    """The options of a chat request that ask for a form."""
    if form == "json_object":
        return {"response_format": {"type": "json_object"}}
    if form == "strict":
        named = {"name": "city", "strict": True, "schema": SCHEMA}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if form == "raw_schema":
        return {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}
    return {}


def guidance(form: str) -> tuple[str, str]:
    """The SDK's additional options that ask for a form: ``guidance_type`` and ``guidance_data``."""
    return ("json_schema", json.dumps(SCHEMA)) if form == "guidance" else ("lark_grammar", GRAMMAR)


def ask_tools(workbench: Workbench, own: Own) -> Generator[Progress, None, list[Called]]:
    """Every task natively, by words in the prompt alone, and with the answer held to a schema; all greedy."""
    tools = [{"name": one.name, "description": one.description, "parameters": one.schema} for one in TOOLS]
    questions = [one.question for one in TASKS]
    asked = {"path": str(own.path), "tools": tools, "questions": questions, "max_tokens": TOOL_TOKENS}
    native = yield from part_of(outcome(trial(workbench, "tools", asked, own.model)), 0, 2)
    held = ("json_schema", json.dumps(tool_schema(TOOLS)))
    common = {"system": SYSTEM, "max_output_tokens": TOOL_TOKENS, "temperature": 0}
    asks = [{"prompt": question, **common, "guidance": guide} for guide in ((), held) for question in questions]
    work = trial(workbench, "guided", {"path": str(own.path), "asks": asks}, own.model)
    raw = yield from part_of(outcome(work), 1, 2)
    said = [_natively(task, one) for task, one in zip(TASKS, native["answers"], strict=True)]
    ways = [(way, task) for way in WAYS[1:] for task in TASKS]
    for (way, task), one in zip(ways, raw["answers"], strict=True):
        said.append(judged(way, task, one["text"]))
    return said


def tool_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """One object with a tool's name and that tool's arguments."""
    calls = [
        {
            "type": "object",
            "properties": {"tool": {"const": one.name}, "arguments": one.schema},
            "required": ["tool", "arguments"],
            "additionalProperties": False,
        }
        for one in tools
    ]
    return {"anyOf": calls, "x-guidance": {"whitespace_flexible": False}}


def judged(way: str, task: Task, text: str) -> Called:
    """A text taken as a call, if it is one."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        call = json.loads(found[0]) if found else None
    except ValueError:
        call = None
    if not isinstance(call, Mapping) or not isinstance(call.get("arguments"), Mapping):
        return Called(way, task, text, False, False, False)
    return _compared(way, task, text, str(call.get("tool")), call["arguments"])


def _natively(task: Task, one: Mapping[str, Any]) -> Called:
    calls = [item for item in one["items"] if item["kind"] == "ToolCallItem"]
    if not calls:
        return Called("native", task, " ".join(item["text"] for item in one["items"]), False, False, False, one["why"])
    try:
        arguments = json.loads(calls[0]["arguments"])
    except ValueError:
        arguments = {}
    return _compared("native", task, json.dumps(calls[0]), calls[0]["name"], arguments)


def _compared(way: str, task: Task, text: str, tool: str, arguments: Mapping[str, Any]) -> Called:
    known = tool in {one.name for one in TOOLS}
    right = tool == task.tool
    return Called(way, task, text, known, right, right and _same(arguments, task.arguments))


def _same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether the arguments are those expected; numbers count, not how they are written, nor the case of names."""
    return set(found) == set(expected) and all(_plain(found[name]) == _plain(expected[name]) for name in expected)


def _plain(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _formed(form: str, seed: int, text: str, finish: str | None, duration_s: float) -> Formed:
    return Formed(form, seed, text, finish, _is_json(text), is_city(text), duration_s)


def is_city(text: str) -> bool:
    """Whether a text is JSON that the schema allows."""
    try:
        City.model_validate_json(text)
    except ValidationError:
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
