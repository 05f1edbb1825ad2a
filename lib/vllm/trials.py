"""Command lines tried on vLLM itself: its parser, then its configuration, in the toolchain ``vllm``.

It ends where weights or a GPU begin. Nothing here says that a model fits, or that as many GPUs are there.
Only for command lines that the program made: an option of vLLM's can name code to load.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lib.course.result import Progress
from lib.errors import ToolchainDied
from lib.vllm.old_names import OLD_NAMES, OldName
from lib.vllm.scenarios import MODEL, Scenario, Value, arguments, model_for, needs

if TYPE_CHECKING:
    from lib.workbench import Workbench

Stage = Literal["", "parser", "serve", "engine"]
Shape = Literal["plain", "awq"]
Draft = Literal["draft", "other_vocabulary"]
# Importing vLLM takes ten seconds on two cores, and many times that where thirty learners do it at once.
PATIENCE_S = 300.0
# While a toolchain is built, its own news may stand still for longer.
_OURS = ("toolchain_start", "vllm_load", "vllm_parse")


@dataclass(frozen=True)
class Trial:
    """What stands after ``vllm``. A name on the hub is stood in for by a folder of that shape, without weights.

    ``config`` is the text of a file that is given by ``--config``.
    """

    arguments: tuple[str, ...]
    weights: Shape = "plain"
    draft: Draft = "draft"
    config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What vLLM said: ``stage`` at which it refused, with its message; ``warnings`` that the bare command has not.

    ``parsed`` are the options that were named, as vLLM read them; ``chosen`` what it would start with.
    """

    accepted: bool
    stage: Stage
    message: str
    warnings: tuple[str, ...]
    parsed: Mapping[str, Any]
    chosen: Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """An option as the parser knows it: its flags, its default (None where vLLM decides later), its help."""

    flags: tuple[str, ...]
    default: Any
    help: str


@dataclass(frozen=True)
class Card:
    """A GPU, and what vLLM's rule chooses for it when nobody says otherwise."""

    name: str
    memory_gib: int
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0


@dataclass(frozen=True)
class Judged:
    """The answers in the order of the trials; ``usual`` is what vLLM starts with when only a model is named."""

    version: str
    answers: tuple[Answer, ...]
    usual: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Described]
    cards: tuple[Card, ...]

    def usual_for(self, weights: Shape, card: Card | None = None) -> dict[str, Any]:
        """vLLM's own choices for weights of that shape, and for a GPU if one is given."""
        # The longest context is that of the model, for which a folder without weights stood in.
        found = {**self.usual[weights], "max_model_len": None}
        if card is not None:
            found |= {name: getattr(card, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
        return found


CARDS = (Card("NVIDIA L4", 24), Card("NVIDIA A100", 80), Card("NVIDIA H100", 80), Card("NVIDIA B200", 180))


def judge(
    workbench: Workbench, trials: Sequence[Trial], cards: Sequence[Card] = CARDS, patience_s: float = PATIENCE_S
) -> Generator[Progress, None, Judged]:
    """Try the command lines, all in one process.

    Raises what the toolchain raises, and ToolchainDied when nothing new comes for ``patience_s``.
    """
    request = {"op": "check", "trials": [_sent(one) for one in trials], "cards": [asdict(one) for one in cards]}
    with closing(workbench.toolchains.call("vllm", "vllm_parse", request)) as events:
        last, since = None, time.monotonic()
        while True:
            try:
                progress = next(events)
            except StopIteration as stop:
                return _judged(stop.value)
            if progress != last or progress.what not in _OURS:
                last, since = progress, time.monotonic()
            elif time.monotonic() - since > patience_s:
                # Thrown in, so that its log stays.
                how = f"it said nothing new for {patience_s:.0f} s"
                events.throw(ToolchainDied(toolchain="vllm", how=how, log=workbench.logs))
            yield progress


def trial_of(scenario: Scenario, model: str = "", **overrides: Value | None) -> Trial:
    """A scenario as it would be started."""
    wanted = model or model_for(scenario, **overrides)
    return Trial(arguments(scenario, wanted, **overrides), weights=shape_of(scenario, **overrides))


def trials_of(old: OldName) -> tuple[Trial, Trial]:
    """An old name, and what says the same today."""
    model = ("serve", MODEL)
    return Trial((*model, *old.arguments), environment=old.environment), Trial((*model, *old.today))


def judge_old_names(
    workbench: Workbench, names: Sequence[OldName] = OLD_NAMES
) -> Generator[Progress, None, tuple[tuple[OldName, Answer, Answer], ...]]:
    """Each old name with vLLM's answer to it and to what says the same today; raises what ``judge`` does."""
    judged = yield from judge(workbench, [trial for one in names for trial in trials_of(one)])
    return paired(names, judged.answers)


def paired(names: Sequence[OldName], answers: Sequence[Answer]) -> tuple[tuple[OldName, Answer, Answer], ...]:
    """The answers to ``trials_of`` of every name, by name."""
    return tuple(zip(names, answers[::2], answers[1::2], strict=True))


def shape_of(scenario: Scenario, **overrides: Value | None) -> Shape:
    """The kind of weights that a scenario asks for."""
    return "awq" if needs(scenario, **overrides).quantized_weights else "plain"


def _sent(trial: Trial) -> dict[str, Any]:
    return {**vars(trial), "arguments": list(trial.arguments), "environment": dict(trial.environment)}


def _judged(raw: Mapping[str, Any]) -> Judged:
    return Judged(
        version=raw["version"],
        answers=tuple(Answer(**{**one, "warnings": tuple(one["warnings"])}) for one in raw["answers"]),
        usual=raw["usual"],
        options={
            name: Described(tuple(one["flags"]), one["default"], one["help"]) for name, one in raw["options"].items()
        },
        cards=tuple(Card(**one) for one in raw["cards"]),
    )
