"""What every engine's child process has in common: options in, an address out, an end with the parent.

Reads its options as one JSON line, answers with one JSON line when the model is
loaded, and lives as long as its standard input stays open: when the parent
dies, however it dies, the pipe closes and this process ends with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from lib.pipes import read_line

Ready = Callable[[str], None]


def run(serve: Callable[[dict[str, Any], Ready], None]) -> None:
    """Call ``serve`` with the options and what tells the parent the address; it returns only by raising."""
    # Native libraries log to standard error, but one may print: answers get a stream of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(message: dict[str, str]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    options = read_line()
    if not options:
        return
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        serve(json.loads(options), lambda address: say({"address": address}))
    except Exception as error:
        say({"error": str(error) or type(error).__name__})
        os._exit(1)


def _die_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)
