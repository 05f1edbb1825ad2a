"""A lab that only tests know: one long step that behaves as it is told."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Annotated

from lib.course.lab import Lab
from lib.course.parameters import Choice, Range, Text
from lib.course.result import Progress, Result
from lib.errors import ModelTooLarge
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=1, number=99, minutes=1)
SLEEPER = "import time; time.sleep(600)"


@LAB.step(predict="slept_s", long=True)
def work(
    workbench: Workbench,
    tag: Annotated[str, Text(40)] = "",
    seconds: Annotated[float, Range(0, 600)] = 0.0,
    how: Annotated[str, Choice(("sleep", "hang", "fail", "defect", "litter", "tell", "tell_and_fail"))] = "sleep",
) -> Iterator[Progress | Result]:
    """Sleep, hang, fail, tell what has been measured so far, or leave a file and a process lying about while at it."""
    workbench.settings.home.mkdir(parents=True, exist_ok=True)
    trace, litter = workbench.settings.home / "trace.txt", workbench.settings.home / f"{tag}.part"
    with trace.open("a") as file:
        file.write(f"start {tag} {time.time()}\n")
    yield Progress(0, seconds, "decode", how)
    if how == "hang":
        time.sleep(600)
    if how.startswith("tell"):
        yield Result({"slept_s": -1.0}).so_far()
    if how.endswith("fail"):
        raise ModelTooLarge(model="drill", need="9,000 MiB", available="1 MiB", context_tokens=8192)
    if how == "defect":
        raise ZeroDivisionError("a drill")
    if how == "litter":
        sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
        litter.write_text(str(sleeper.pid))
    try:
        started = time.monotonic()
        while (slept_s := time.monotonic() - started) < seconds:
            yield Progress(slept_s, seconds, "decode", how)
            time.sleep(0.05)
    finally:
        litter.unlink(missing_ok=True)
    with trace.open("a") as file:
        file.write(f"end {tag} {time.time()}\n")
    yield Result({"slept_s": slept_s})
