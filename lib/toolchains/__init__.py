"""Toolchains: stacks that cannot share one environment, each in its own, run as child processes.

An environment is made on demand from a pinned requirement file in
``data/toolchains`` and used through its Python alone: a child is a script of
``children/`` that reads one request and writes JSON lines.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from lib.course.result import Progress
from lib.toolchains import child as children

HERE = "here"


class Toolchains:
    """The environments under one folder; ``offline`` never builds one."""

    def __init__(self, folder: Path, logs: Path, offline: bool = False) -> None:
        self.folder = folder
        self.logs = logs
        self._offline = offline

    def ensure(self, name: str) -> Generator[Progress, None, Path]:
        """The Python of a toolchain."""
        yield from ()
        return Path(sys.executable)

    def call(self, name: str, child: str, request: Mapping[str, Any]) -> Generator[Progress, None, dict[str, Any]]:
        """Run ``children/<child>.py`` on the request; ``here`` is this interpreter. Closing the generator ends it.

        Raises what ``ensure`` raises, the error that the child names, ChildFailed and ToolchainDied.
        """
        python = yield from self.ensure(name)
        script = children.CHILDREN / f"{child}.py"
        return (yield from children.run(python, script, request, name, self.folder, self.logs))
