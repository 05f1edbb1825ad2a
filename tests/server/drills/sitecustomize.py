"""Puts the drill among the labs of every process that has this folder on its path."""

import os
import sys
from pathlib import Path

import labs

labs.__path__.append(str(Path(__file__).parent / "labs"))
if sys.orig_argv[1:] == ["-m", os.environ.get("DRILL_BREAKS", "")]:
    os._exit(3)
