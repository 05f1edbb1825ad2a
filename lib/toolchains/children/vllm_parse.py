"""vLLM's own judgement of command lines: its parser, then its configuration, up to where weights or a GPU begin.

A name on the hub is stood in for by a folder with a configuration and no weights; a folder is taken as it is.
"""

from __future__ import annotations

import sys

# vLLM's parser has the help of its options only in a process that was asked for it.
sys.argv[1:] = ["--help"]

import contextlib
import dataclasses
import io
import json
import logging
import os
import tempfile
import warnings
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import wire

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_hidden_layers": 4}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
_STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "plain": _LLAMA,
    "awq": _LLAMA | {"quantization_config": _AWQ},
    "draft": _LLAMA | _SMALL,
    "other_vocabulary": _LLAMA | _SMALL | {"vocab_size": 32064},
}
_PLACES = {
    "gpu_memory_utilization": "cache_config",
    "enable_prefix_caching": "cache_config",
    "max_model_len": "model_config",
    "quantization": "model_config",
    "enable_chunked_prefill": "scheduler_config",
    "max_num_seqs": "scheduler_config",
    "max_num_batched_tokens": "scheduler_config",
    "tensor_parallel_size": "parallel_config",
    "pipeline_parallel_size": "parallel_config",
}
_SHOWN = {
    "speculative_config": ("method", "num_speculative_tokens"),
    "structured_outputs_config": ("backend",),
}


class _Said(logging.Handler):
    """The warnings that vLLM writes, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if line not in self.lines:
            self.lines.append(line)


class _Refused(Exception):
    """vLLM's refusal, with the stage at which it came: ``parser``, ``serve`` or ``engine``."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class _Vllm:
    """``vllm serve`` without the serving: its parser twice, once with every default left out, and its configuration."""

    def __init__(self, folder: Path) -> None:
        from vllm.engine import arg_utils
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.version import __version__

        self.folder = folder
        self.version: str = __version__
        self._arguments = arg_utils
        self._serve = ServeSubcommand()
        parsers = []
        for _ in range(2):
            parser = FlexibleArgumentParser(description="vLLM CLI", prog="vllm")
            parsers.append(
                (parser, self._serve.subparser_init(parser.add_subparsers(required=False, dest="subparser")))
            )
        (self._parser, serve), (self._bare, bare) = parsers
        self.actions: dict[str, Action] = {one.dest: one for one in serve._actions}
        for action in bare._actions:
            action.default = SUPPRESS
        for name, shape in _STAND_INS.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(shape))

    def parse(self, arguments: Sequence[str], bare: bool = False) -> Any:
        """The namespace of a command line, ``bare`` only with what it names; raises _Refused."""
        printed = io.StringIO()
        parser = self._bare if bare else self._parser
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                return parser.parse_args(list(arguments))
        except SystemExit as left:  # argparse prints and leaves
            raise _Refused("parser", _said_by_argparse(printed.getvalue()) or f"exit status {left.code}") from left
        except Exception as error:
            raise _Refused("parser", _words(error)) from error

    def configured(self, space: Any, weights: str, draft: str) -> Any:
        """The engine's configuration that ``vllm serve`` would start with; raises _Refused."""
        from vllm.usage.usage_lib import UsageContext

        try:
            self._serve.validate(space)
        except Exception as error:
            raise _Refused("serve", _words(error)) from error
        space.model = self._stand_in(space.model if space.model_tag is None else space.model_tag, weights)
        space.tokenizer = None
        if space.spec_model is not None:
            space.spec_model = self._stand_in(space.spec_model, draft)
        if isinstance(space.speculative_config, dict) and "model" in space.speculative_config:
            wanted = str(space.speculative_config["model"])
            space.speculative_config = space.speculative_config | {"model": self._stand_in(wanted, draft)}
        try:
            engine = self._arguments.AsyncEngineArgs.from_cli_args(space)
            return engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        except Exception as error:
            raise _Refused("engine", _words(error)) from error

    def batch_of(self, memory_gib: int, name: str) -> dict[str, Any]:
        """What vLLM's own rule chooses for one GPU of that memory and name."""
        from vllm.usage.usage_lib import UsageContext

        card = SimpleNamespace(
            get_device_total_memory=lambda: memory_gib << 30,
            get_device_name=lambda: name,
            is_tpu=lambda: False,
            is_cpu=lambda: False,
        )
        real, self._arguments.current_platform = self._arguments.current_platform, card
        try:
            tokens, sequences = self._arguments.EngineArgs.get_batch_defaults(1)
        finally:
            self._arguments.current_platform = real
        usage = UsageContext.OPENAI_API_SERVER
        return {
            "memory_gib": memory_gib,
            "name": name,
            "max_num_seqs": sequences[usage],
            "max_num_batched_tokens": tokens[usage],
        }

    def _stand_in(self, model: str, shape: str) -> str:
        return model if Path(model).is_dir() else str(self.folder / shape)


def check(request: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of each trial: accepted with what became of its options, or refused, where and why.

    Beside that, what it chooses when only a model is named (for every option that has a place here), and for GPUs.
    """
    wire.progress(0, len(request["trials"]) + 1, "vllm_load")
    with tempfile.TemporaryDirectory() as folder:
        vllm = _Vllm(Path(folder))
        usual = {
            kind: _judged(vllm, {"arguments": ["serve", "m"], "weights": kind}, set()) for kind in ("plain", "awq")
        }
        noise = {line for one in usual.values() for line in one["warnings"]}
        answers = []
        for done, trial in enumerate(request["trials"]):
            wire.progress(done + 1, len(request["trials"]) + 1, "vllm_parse", " ".join(trial["arguments"])[:120])
            answers.append(_judged(vllm, trial, noise))
        options = {name: _described(vllm.actions[name]) for name in (*_PLACES, *_SHOWN)}
        return {
            "version": vllm.version,
            "answers": answers,
            "usual": {kind: one["chosen"] for kind, one in usual.items()},
            "options": options,
            "cards": [vllm.batch_of(one["memory_gib"], one["name"]) for one in request["cards"]],
        }


def _judged(vllm: _Vllm, trial: Mapping[str, Any], noise: set[str]) -> dict[str, Any]:
    arguments = list(trial["arguments"])
    if trial.get("config"):
        path = vllm.folder / "config.yaml"
        path.write_text(trial["config"], encoding="utf-8")
        arguments += ["--config", str(path)]
    answer: dict[str, Any] = {"accepted": False, "stage": "", "message": "", "parsed": {}, "chosen": {}}
    with _listening() as said, _environment(trial.get("environment", {})):
        try:
            space = vllm.parse(arguments)
            answer["parsed"] = _named(vllm.parse(arguments, bare=True))
            config = vllm.configured(space, trial.get("weights", "plain"), trial.get("draft", "draft"))
            answer |= {"accepted": True, "chosen": _chosen(config)}
        except _Refused as refused:
            answer |= {"stage": refused.stage, "message": str(refused)[:4000]}
    return answer | {"warnings": [line for line in said.lines if line not in noise]}


def _named(space: Any) -> dict[str, Any]:
    """The options that a command line names, by the names that vLLM's code has for them."""
    skipped = ("subparser", "model_tag", "config")
    return {name: _plain(value) for name, value in vars(space).items() if name not in skipped}


def _chosen(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {name: _plain(getattr(getattr(config, at), name)) for name, at in _PLACES.items()}
    for name, fields in _SHOWN.items():
        part = getattr(config, name)
        found[name] = None if part is None else {one: _plain(getattr(part, one)) for one in fields}
    return found


def _described(action: Action) -> dict[str, Any]:
    first = (action.help or "").replace("%%", "%").split("\n\n", 1)[0]
    flags = [one for one in action.option_strings if not one.startswith("--no-")]
    return {"flags": flags, "default": _plain(action.default), "help": " ".join(first.split())}


def _plain(value: object) -> Any:
    """A value as JSON has it; of a configuration only what differs from its defaults."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: one.default for one in dataclasses.fields(value)}
        return {name: _plain(getattr(value, name)) for name, usual in fields.items() if getattr(value, name) != usual}
    return str(value)


def _said_by_argparse(printed: str) -> str:
    """Its message without the usage before it."""
    message = printed.split(": error: ", 1)[-1].strip()
    return "\n".join(line for line in message.splitlines() if "errors.pydantic.dev" not in line)


def _words(error: Exception) -> str:
    """An exception's words; of a validation every field's own, without pydantic's frame."""
    listed = getattr(error, "errors", None)
    if not callable(listed):
        return str(error) or type(error).__name__
    found = [(".".join(str(at) for at in one["loc"]), one["msg"]) for one in listed(include_url=False)]
    return "\n".join(f"{place}: {message}" if place else message for place, message in found)


@contextlib.contextmanager
def _listening() -> Iterator[_Said]:
    from vllm import logger

    # vLLM says some things once a process; here every trial is as if it were the first.
    logger._print_warning_once.cache_clear()
    said = _Said()
    own = logging.getLogger("vllm")
    own.addHandler(said)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            yield said
    finally:
        own.removeHandler(said)
    said.lines += [" ".join(str(one.message).split()) for one in heard if "vllm" in one.filename]


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


if __name__ == "__main__":
    wire.serve({"check": check})
