"""Every error a learner can meet.

BancadaError
├── InputError            something the learner typed or chose
│   ├── BadParameter
│   ├── UnknownStep
│   ├── UnknownModel
│   ├── UnknownEngine
│   ├── UnknownToolchain
│   ├── TextTooShort
│   └── StepFirst
├── ModelError            a model file
│   ├── ModelDamaged
│   ├── ModelNotHere
│   ├── ModelTooLarge
│   ├── ChecksumMismatch
│   ├── QuantizerRefused
│   ├── UnsafeModel
│   ├── UnsupportedArchitecture
│   └── DownloadFailed
├── EngineError           the process that runs a model
│   ├── AnswerBrokenOff
│   ├── EngineDidNotStart
│   ├── EngineAway
│   ├── EngineDied
│   ├── EngineRefused
│   ├── EngineSilent
│   ├── EngineUnsupported
│   ├── KeyRefused
│   ├── ModelInUse
│   ├── NotAnEngine
│   └── PromptTooLong
├── ToolchainError        an environment of its own, for conversions
│   ├── ToolchainUnsupported
│   ├── ToolchainFailed   it could not be built
│   │   ├── ToolchainUnreachable
│   │   └── ToolchainNeedsCompiler
│   ├── ToolchainBroken
│   ├── ToolchainDied
│   └── ChildFailed
├── PlaceError            disk and database
│   ├── DiskFull
│   ├── CannotWrite
│   ├── NotADatabase
│   └── DatabaseBusy
├── JobDied               the process that runs a step
├── Offline               the network, where a step needs it
├── Cancelled             the learner stopped it
└── Unforeseen            a defect of ours

An error is an id and its parameters. The sentences (what happened, why, and
what repairs it) live in ``data/text/<language>.toml`` under ``errors.<id>``,
so this module imports nothing of ours and knows no language.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any


class BancadaError(Exception):
    """An error with an ``id`` and the parameters its sentences need."""

    def __init__(self, **parameters: object) -> None:
        self.parameters = parameters
        details = ", ".join(f"{name}={value}" for name, value in parameters.items())
        super().__init__(f"{self.id}: {details}" if details else self.id)

    def record(self) -> dict[str, object]:
        """The error as plain JSON values; ``from_record`` gives it back."""
        return {"id": self.id, "parameters": {name: _plain(value) for name, value in self.parameters.items()}}

    @property
    def id(self) -> str:
        """The class name in kebab case: ``ModelDamaged`` is ``model-damaged``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()


def from_record(record: Mapping[str, Any]) -> BancadaError:
    """The error that ``record`` wrote; one that this version does not know is a defect."""
    kind = next((one for one in _kinds(BancadaError) if one().id == record["id"]), None)
    if kind is None:
        return Unforeseen(why=f"{record['id']} {record['parameters']}")
    return kind(**record["parameters"])


def _kinds(kind: type[BancadaError]) -> Iterator[type[BancadaError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)


def _plain(value: object) -> object:
    plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)


class InputError(BancadaError):
    """The learner's input cannot be used."""


class BadParameter(InputError):
    """Parameters: name, value, allowed."""


class UnknownStep(InputError):
    """Parameters: step, known."""


class UnknownModel(InputError):
    """Parameters: model, known."""


class NotMeasured(InputError):
    """Parameters: step, whose run card is asked for."""


class UnknownEngine(InputError):
    """Parameters: engine, known."""


class UnknownToolchain(InputError):
    """Parameters: toolchain, known."""


class TextTooShort(InputError):
    """Parameters: need, found (tokens)."""


class StepFirst(InputError):
    """A step needs what another one makes. Parameters: step (its key)."""


class ModelError(BancadaError):
    """A model file cannot be used."""


class ModelDamaged(ModelError):
    """Parameters: path, why."""


class ModelNotHere(ModelError):
    """Parameters: model."""


class ModelTooLarge(ModelError):
    """Parameters: model, need, available, context_tokens."""


class ChecksumMismatch(ModelError):
    """Parameters: path, expected, found."""


class QuantizerRefused(ModelError):
    """Parameters: why (llama.cpp's own words)."""


class UnsafeModel(ModelError):
    """It carries a program, and was not opened. Parameters: path, file, why (pickle, a suffix, a setting, a link)."""


class UnsupportedArchitecture(ModelError):
    """Parameters: architecture, tool, known."""


class DownloadFailed(ModelError):
    """Parameters: model, tried (one line a source)."""


class EngineError(BancadaError):
    """The process that runs a model failed."""


class EngineDidNotStart(EngineError):
    """Parameters: model, why, log."""


class EngineAway(EngineError):
    """No server answers. Parameters: engine, address, why."""


class EngineDied(EngineError):
    """Parameters: how (signal or exit status)."""


class AnswerBrokenOff(EngineError):
    """A server ended an answer that repeated itself, without a last word. Parameters: piece."""


class EngineRefused(EngineError):
    """Parameters: why (the engine's own words)."""


class EngineSilent(EngineError):
    """Parameters: seconds."""


class EngineUnsupported(EngineError):
    """Its packages are not here, or not made for this system. Parameters: engine, system, why."""


class ModelInUse(EngineError):
    """Parameters: model."""


class KeyRefused(EngineError):
    """A server asked for another key. Parameters: address, why."""


class NotAnEngine(EngineError):
    """What answers there does not speak the engine's language. Parameters: address, why."""


class PromptTooLong(EngineError):
    """Parameters: prompt_tokens, context_tokens."""


class ToolchainError(BancadaError):
    """An environment of its own, or a process in it, failed."""


class ToolchainUnsupported(ToolchainError):
    """Its packages are not made for this system. Parameters: toolchain, system."""


class ToolchainFailed(ToolchainError):
    """It could not be built. Parameters: toolchain, why (pip's last words), log."""


class ToolchainUnreachable(ToolchainFailed):
    """The package index could not be reached. Parameters: toolchain, why."""


class ToolchainNeedsCompiler(ToolchainFailed):
    """A package came as source and could not be compiled. Parameters: toolchain, package, log."""


class ToolchainBroken(ToolchainError):
    """It is here and cannot be used. Parameters: toolchain, why."""


class ToolchainDied(ToolchainError):
    """Its process ended without an answer. Parameters: toolchain, log, how (signal or exit status)."""


class ChildFailed(ToolchainError):
    """A library in it raised. Parameters: toolchain, why, log."""


class PlaceError(BancadaError):
    """Disk or database."""


class DiskFull(PlaceError):
    """Parameters: path, need, free."""


class CannotWrite(PlaceError):
    """Parameters: path, why."""


class NotADatabase(PlaceError):
    """Parameters: path."""


class DatabaseBusy(PlaceError):
    """Parameters: path, seconds."""


class JobDied(BancadaError):
    """Parameters: how (signal or exit status), log."""


class Offline(BancadaError):
    """Parameters: host, why."""


class Cancelled(BancadaError):
    """The learner stopped it."""


class Unforeseen(BancadaError):
    """Parameters: why."""
