"""What older texts write after ``vllm serve``, and what says the same today: both to be tried, not believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lib.vllm.scenarios import DRAFT

_SPECULATIVE = f'{{"model": "{DRAFT}", "num_speculative_tokens": 5}}'


@dataclass(frozen=True)
class OldName:
    """Arguments, or a variable of the environment, as they were; ``today`` is empty where nothing is needed any more.

    ``still`` are those that older texts use and that ought to be as they were.
    """

    id: str
    arguments: tuple[str, ...] = ()
    today: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    still: bool = False

    @property
    def written(self) -> str:
        """As the older text has it."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment.items()), *self.arguments])


def _same(*arguments: str) -> OldName:
    return OldName(arguments[0].removeprefix("--").replace("-", "_"), arguments, arguments, still=True)


OLD_NAMES: tuple[OldName, ...] = (
    OldName(
        "guided_decoding_backend",
        ("--guided-decoding-backend", "xgrammar"),
        ("--structured-outputs-config", '{"backend": "xgrammar"}'),
    ),
    OldName(
        "guided_decoding_disable_any_whitespace",
        ("--guided-decoding-disable-any-whitespace",),
        ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
    ),
    OldName(
        "speculative_model",
        ("--speculative-model", DRAFT, "--num-speculative-tokens", "5"),
        ("--speculative-config", _SPECULATIVE),
    ),
    OldName("num_speculative_tokens", ("--num-speculative-tokens", "5"), ("--spec-model", DRAFT, "--spec-tokens", "5")),
    OldName(
        "speculative_draft_tensor_parallel_size",
        ("--speculative-draft-tensor-parallel-size", "1"),
        ("--speculative-config", f'{_SPECULATIVE[:-1]}, "draft_tensor_parallel_size": 1}}'),
    ),
    OldName(
        "ngram_prompt_lookup_max",
        ("--speculative-model", "[ngram]", "--ngram-prompt-lookup-max", "4"),
        ("--speculative-config", '{"method": "ngram", "prompt_lookup_max": 4, "num_speculative_tokens": 5}'),
    ),
    OldName("use_v2_block_manager", ("--use-v2-block-manager",)),
    OldName("num_scheduler_steps", ("--num-scheduler-steps", "8")),
    OldName("num_lookahead_slots", ("--num-lookahead-slots", "5")),
    OldName("preemption_mode", ("--preemption-mode", "recompute")),
    OldName("swap_space", ("--swap-space", "4")),
    OldName("max_seq_len_to_capture", ("--max-seq-len-to-capture", "8192")),
    OldName("disable_log_requests", ("--disable-log-requests",)),
    OldName("engine_use_ray", ("--engine-use-ray",)),
    OldName("worker_use_ray", ("--worker-use-ray",), ("--distributed-executor-backend", "ray")),
    OldName("tokenizer_pool_size", ("--tokenizer-pool-size", "2")),
    OldName("device", ("--device", "cuda")),
    OldName("task", ("--task", "generate"), ("--runner", "generate")),
    OldName(
        "vllm_attention_backend",
        today=("--attention-backend", "FLASH_ATTN"),
        environment={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"},
    ),
    OldName("vllm_use_v1", environment={"VLLM_USE_V1": "1"}),
    _same("--enable-chunked-prefill"),
    _same("--enable-prefix-caching"),
    _same("--kv-cache-dtype", "fp8"),
    _same("--block-size", "32"),
    _same("--enforce-eager"),
    # Not a name at all: Python's parser takes the beginning of one for the whole.
    OldName("tensor_parallel", ("--tensor-parallel", "2"), ("--tensor-parallel-size", "2")),
)
