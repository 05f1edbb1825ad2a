"""The tasks of step 7: narrow ones and reasoning ones, answered under a grammar and scored."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from lib.course.result import Progress
from lib.engines.chat import translated

TASKS = Path(__file__).parent / "tasks.toml"
SECONDS_A_MONTH = 30 * 24 * 3600
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Answered:
    """One task, what was expected, what the model said."""

    kind: str
    prompt: str
    expected: str
    answered: str
    right: bool


def answer_all(client: OpenAI, model: str) -> Iterator[Progress | list[Answered]]:
    """Put every task to the model at temperature 0, each answer bound to its choices by a JSON schema."""
    raw = tomllib.loads(TASKS.read_text(encoding="utf-8"))
    shots = [turn for one in raw["example"] for turn in _turns(one["prompt"], one["label"])]
    answered: list[Answered] = []
    for task in raw["task"]:
        narrow = task["kind"] == "narrow"
        choices = raw["labels"] if narrow else task["choices"]
        said = _ask(client, model, [*(shots if narrow else []), {"role": "user", "content": _prompt(task)}], choices)
        answered.append(Answered(task["kind"], task["prompt"], task["answer"], said, said == task["answer"]))
        yield Progress(len(answered), len(raw["task"]), "ask_tasks")
    yield answered


def price_per_million(machine_price_per_month: float, tokens_per_s: float) -> float:
    """What a million tokens cost on a machine that never rests, in the currency of its monthly price."""
    return machine_price_per_month / (tokens_per_s * SECONDS_A_MONTH / 1e6)


def _prompt(task: Mapping[str, Any]) -> str:
    if "choices" not in task:
        return str(task["prompt"])
    return f"{task['prompt']}\nChoose one: {', '.join(task['choices'])}."


def _turns(prompt: str, label: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": json.dumps({"answer": label})}]


def _ask(client: OpenAI, model: str, messages: Sequence[Mapping[str, str]], choices: Sequence[str]) -> str:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(choices)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    with translated(PATIENCE_S):
        # The client types every keyword; messages and schema come from a file here.
        talk: Any = client.with_options(timeout=PATIENCE_S).chat.completions
        reply = talk.create(
            model=model,
            messages=list(messages),
            temperature=0,
            max_tokens=40,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "choice", "strict": True, "schema": schema},
            },
        )
    return str(json.loads(reply.choices[0].message.content or "{}").get("answer", ""))
