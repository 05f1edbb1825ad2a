"""Every error a learner can meet.

BancadaError
├── InputError            something the learner typed or chose
│   ├── BadParameter
│   ├── UnknownStep
│   ├── UnknownModel
│   └── UnknownEngine
├── ModelError            a model file
│   ├── ModelDamaged
│   ├── ModelNotHere
│   ├── ModelTooLarge
│   ├── ChecksumMismatch
│   └── DownloadFailed
├── EngineError           the process that runs a model
│   ├── EngineDidNotStart
│   ├── EngineDied
│   ├── EngineRefused
│   ├── EngineSilent
│   └── PromptTooLong
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
