"""The tokenizer of a GGUF file as Hugging Face's ``tokenizer.json``, as the file itself describes it.

transformers 4.57 makes a tokenizer that encodes most texts alike, but with
byte fallback, without the file's own way of splitting words, with an end
token that is the first one and a class that other tools take for
SentencePiece: converted back to GGUF, the model would never stop. What is not
in the table below is left as transformers made it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# What tokenizer.ggml.pre names: how text is split before the merges, as in llama.cpp's llama-vocab.cpp.
_SPLITS = {
    "gpt-2": None,
    "smollm": "digits",
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}
_SPECIAL = 3  # llama.cpp's token types: control


def repair(source: Path, folder: Path) -> list[str]:
    """Write the tokenizer that the GGUF file describes over the one in the folder; gives what differed."""
    fields = _fields(source)
    split = fields.get("tokenizer.ggml.pre")
    if fields.get("tokenizer.ggml.model") != "gpt2" or split not in _SPLITS:
        return []
    before = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    made = _tokenizer(fields, _SPLITS[split])
    made.save(str(folder / "tokenizer.json"))
    after = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = ("pre_tokenizer", "post_processor", "decoder")
    differing = [part for part in parts if before.get(part) != after.get(part)]
    if before["model"].get("byte_fallback"):
        differing.append("byte_fallback")
    return differing + _repair_config(fields, folder)


def _tokenizer(fields: dict[str, Any], split: str | None) -> Tokenizer:
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    pairs = [tuple(one.split(" ", 1)) for one in merges]
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=pairs))
    made.pre_tokenizer = _splitting(split)
    made.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    made.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL])
    if fields.get("tokenizer.ggml.add_bos_token"):
        bos = tokens[fields["tokenizer.ggml.bos_token_id"]]
        at = fields["tokenizer.ggml.bos_token_id"]
        made.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, at)]
        )
    return made


def _splitting(split: str | None) -> Any:
    if split is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "digits":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        words = pre_tokenizers.Split(Regex(split), behavior="isolated")
        parts = [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def _repair_config(fields: dict[str, Any], folder: Path) -> list[str]:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    tokens = fields["tokenizer.ggml.tokens"]
    wanted = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token")),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        at = fields.get(f"tokenizer.ggml.{key}_token_id")
        if at is not None:
            wanted[f"{name}_token"], wanted[f"{name}_token_id"] = tokens[at], at
    differing = [name for name, value in wanted.items() if config.get(name) != value and not name.endswith("_id")]
    path.write_text(json.dumps(config | wanted, ensure_ascii=False, indent=2), encoding="utf-8")
    special = {name: wanted[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if name in wanted}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, ensure_ascii=False, indent=2), encoding="utf-8")
    return differing


def _fields(source: Path) -> dict[str, Any]:
    return {
        name: field.contents()
        for name, field in gguf.GGUFReader(source).fields.items()
        if name.startswith("tokenizer.ggml.")
    }
