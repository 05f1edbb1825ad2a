"""One tokenizer for all engines: the model's own, read from the directory that lab 3 makes of it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from lib.bench.metrics import Count
from lib.convert.reference import ensure_hf
from lib.course.result import Progress
from lib.errors import ModelDamaged

if TYPE_CHECKING:
    from lib.workbench import Workbench


def ensure_counter(workbench: Workbench, model: str) -> Generator[Progress, None, Count]:
    """What counts the tokens of a text as ``model`` does. Raises what making the directory raises, ModelDamaged."""
    place = (yield from ensure_hf(workbench, model)).path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(place))
    except Exception as error:  # the library raises nothing narrower
        raise ModelDamaged(path=str(place), why=str(error).splitlines()[0]) from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
