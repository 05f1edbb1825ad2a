"""Every error a learner can meet.

BancadaError
├── InputError            something the learner typed or chose
│   ├── BadParameter
│   ├── UnknownStep
│   ├── UnknownModel
│   ├── UnknownEngine
│   ├── TextTooShort
│   └── StepFirst
├── ModelError            a model file
│   ├── ModelDamaged
│   ├── ModelNotHere
│   ├── ModelTooLarge
│   ├── ChecksumMismatch
│   ├── QuantizerRefused
│   └── DownloadFailed
├── EngineError           the process that runs a model
│   ├── EngineDidNotStart
│   ├── EngineDied
│   ├── EngineRefused
│   ├── EngineSilent
│   └── PromptTooLong
├── ToolchainError        an environment of its own, for conversions
│   ├── UnknownToolchain
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
├── Offline               the network, where a step needs it
├── Cancelled             the learner stopped it
└── Unforeseen            a defect of ours

An error is an id and its parameters. The sentences (what happened, why, and
what repairs it) live in ``data/text/<language>.toml`` under ``errors.<id>``,
so this module imports nothing of ours and knows no language.
"""

from __future__ import annotations

import re


class BancadaError(Exception):
    """An error with an ``id`` and the parameters its sentences need."""

    def __init__(self, **parameters: object) -> None:
        self.parameters = parameters
        details = ", ".join(f"{name}={value}" for name, value in parameters.items())
        super().__init__(f"{self.id}: {details}" if details else self.id)

    @property
    def id(self) -> str:
        """The class name in kebab case: ``ModelDamaged`` is ``model-damaged``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()


class InputError(BancadaError):
    """The learner's input cannot be used."""


class BadParameter(InputError):
    """Parameters: name, value, allowed."""


class UnknownStep(InputError):
    """Parameters: step, known."""


class UnknownModel(InputError):
    """Parameters: model, known."""


class UnknownEngine(InputError):
    """Parameters: engine, known."""


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


class DownloadFailed(ModelError):
    """Parameters: model, tried (one line a source)."""


class EngineError(BancadaError):
    """The process that runs a model failed."""


class EngineDidNotStart(EngineError):
    """Parameters: model, why, log."""


class EngineDied(EngineError):
    """Parameters: how (signal or exit status)."""


class EngineRefused(EngineError):
    """Parameters: why (the engine's own words)."""


class EngineSilent(EngineError):
    """Parameters: seconds."""


class PromptTooLong(EngineError):
    """Parameters: prompt_tokens, context_tokens."""


class ToolchainError(BancadaError):
    """An environment of its own, or a process in it, failed."""


class UnknownToolchain(ToolchainError):
    """Parameters: toolchain, known."""


class ToolchainFailed(ToolchainError):
    """It could not be built. Parameters: toolchain, why (pip's last words), log."""


class ToolchainUnreachable(ToolchainFailed):
    """The package index could not be reached. Parameters: toolchain, why."""


class ToolchainNeedsCompiler(ToolchainFailed):
    """A package came as source and could not be compiled. Parameters: toolchain, package, log."""


class ToolchainBroken(ToolchainError):
    """It is here and cannot be used. Parameters: toolchain, why."""


class ToolchainDied(ToolchainError):
    """Its process ended without an answer. Parameters: toolchain, how (signal or exit status), log."""


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


class Offline(BancadaError):
    """Parameters: host, why."""


class Cancelled(BancadaError):
    """The learner stopped it."""


class Unforeseen(BancadaError):
    """Parameters: why."""
