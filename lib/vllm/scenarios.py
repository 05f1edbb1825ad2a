"""Five command lines for ``vllm serve``, from one developer to a company, and what each needs.

The names are vLLM 0.32's. Whether vLLM takes them, and which of them only say what it would do anyway,
``lib.vllm.trials`` asks vLLM itself.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Value = bool | int | float | str | Mapping[str, object]
# All of one family, for a draft must have the vocabulary of the model that it writes ahead of.
MODEL, AWQ_MODEL, DRAFT = "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-0.6B"


@dataclass(frozen=True)
class Scenario:
    """Options by the names that vLLM's code has for them, in the order in which they are written."""

    id: str
    options: Mapping[str, Value]


@dataclass(frozen=True)
class Needs:
    """What has to be there. ``quantized_weights`` and ``draft_model`` are empty where none is asked for."""

    gpus: int
    """Tensor times pipeline parallelism."""
    memory_share: float
    """Of each GPU, for weights, cache and working memory together; 0 to 1."""
    context_tokens: int
    sequences: int
    batch_tokens: int
    quantized_weights: str = ""
    draft_model: str = ""

    @property
    def most_cache_tokens(self) -> int:
        """Tokens in the KV cache if every sequence filled its context."""
        return self.context_tokens * self.sequences

    def full_sequences(self, gpu_bytes: int, weights_bytes: int, cache_bytes_per_token: int) -> int:
        """How many sequences could fill their context on GPUs of that memory, at most ``sequences``.

        An upper bound: working memory and CUDA graphs come out of the same share. Tensor and pipeline
        parallelism split weights and cache evenly over the GPUs.
        """
        cache_bytes = self.memory_share * gpu_bytes * self.gpus - weights_bytes
        return max(0, min(self.sequences, int(cache_bytes // (cache_bytes_per_token * self.context_tokens))))


def _scenario(id: str, share: float, context: int, sequences: int, batch: int, **more: Value) -> Scenario:
    options: dict[str, Value] = {
        "gpu_memory_utilization": share,
        "max_model_len": context,
        **more,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": batch,
    }
    return Scenario(id, MappingProxyType(options))


_AWQ: Mapping[str, Value] = {"quantization": "awq", "enable_prefix_caching": True}
_DRAFT: Mapping[str, object] = MappingProxyType({"model": DRAFT, "num_speculative_tokens": 5})
_GRAMMAR: Mapping[str, object] = MappingProxyType({"backend": "xgrammar"})

SCENARIOS: Mapping[str, Scenario] = {
    one.id: one
    for one in (
        _scenario("development", 0.6, 2048, 32, 2048, tensor_parallel_size=1),
        _scenario("staging", 0.8, 4096, 64, 4096, **_AWQ),
        _scenario("production_low", 0.85, 4096, 128, 8192, **_AWQ, enable_chunked_prefill=True),
        _scenario("production_high", 0.9, 8192, 256, 16384, tensor_parallel_size=2, speculative_config=_DRAFT),
        _scenario(
            "enterprise",
            0.95,
            16384,
            512,
            32768,
            tensor_parallel_size=4,
            pipeline_parallel_size=2,
            structured_outputs_config=_GRAMMAR,
        ),
    )
}


def arguments(scenario: Scenario, model: str, **overrides: Value | None) -> tuple[str, ...]:
    """What stands after ``vllm`` on the command line. An override of None leaves its option out, a new one is added."""
    found = ["serve", model]
    for name, value in chosen(scenario, **overrides).items():
        found += flag(name, value)
    return tuple(found)


def command(scenario: Scenario, model: str, **overrides: Value | None) -> str:
    """The command as one pastes it into a shell, an option a line."""
    lines = [shlex.join(["vllm", "serve", model])]
    lines += [shlex.join(flag(name, value)) for name, value in chosen(scenario, **overrides).items()]
    return " \\\n  ".join(lines)


def config_yaml(scenario: Scenario, model: str, **overrides: Value | None) -> str:
    """The file for ``vllm serve --config``, which must be called ``.yaml`` or ``.yml``."""
    # Every JSON value is a YAML value.
    values = {"model": model, **chosen(scenario, **overrides)}
    return "".join(f"{name.replace('_', '-')}: {_json(value)}\n" for name, value in values.items())


def needs(scenario: Scenario, **overrides: Value | None) -> Needs:
    """What a scenario needs, with its overrides."""
    options = chosen(scenario, **overrides)
    draft = options.get("speculative_config", {})
    return Needs(
        gpus=_whole(options, "tensor_parallel_size", 1) * _whole(options, "pipeline_parallel_size", 1),
        memory_share=float(str(options["gpu_memory_utilization"])),
        context_tokens=_whole(options, "max_model_len"),
        sequences=_whole(options, "max_num_seqs"),
        batch_tokens=_whole(options, "max_num_batched_tokens"),
        quantized_weights=str(options.get("quantization", "")),
        draft_model=str(draft.get("model", "")) if isinstance(draft, Mapping) else "",
    )


def model_for(scenario: Scenario, **overrides: Value | None) -> str:
    """A model that fits the scenario, to begin with."""
    return AWQ_MODEL if needs(scenario, **overrides).quantized_weights else MODEL


def chosen(scenario: Scenario, **overrides: Value | None) -> dict[str, Value]:
    """The options of a scenario with others in their place."""
    merged = {**scenario.options, **overrides}
    return {name: value for name, value in merged.items() if value is not None}


def flag(name: str, value: Value) -> list[str]:
    """One option as vLLM's parser reads it: a switch on or off, JSON for what has parts."""
    written = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{written}" if value else f"--no-{written}"]
    return [f"--{written}", value if isinstance(value, str) else _json(value)]


def _json(value: Value) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


def _whole(options: Mapping[str, Value], name: str, usual: int | None = None) -> int:
    return int(str(options[name] if usual is None else options.get(name, usual)))
