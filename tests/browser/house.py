"""Starting the app as a learner does, and a real Chromium to look at it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lib.engines.address import free_port

ROOT = Path(__file__).parent.parent.parent
DEFAULT = "smollm2-135m-instruct"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class House:
    """A running app."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]

    def page(self, path: str = "") -> str:
        """The address of a page."""
        return f"{self.url}/{path}"

    @property
    def log(self) -> str:
        """What the app has written to its terminal."""
        return (self.home / "app.log").read_text()

    def close(self) -> None:
        """End the app as Ctrl-C would."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_app(folder: Path, model: Path | None = None, **environment: str) -> House:
    """An app on a free port with its own folder; ``model`` is the default model's file, linked in."""
    if model is not None:
        (folder / "models").mkdir()
        (folder / "models" / DEFAULT).symlink_to(model.parent, target_is_directory=True)
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"]
    with (folder / "app.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "BANCADA_HOME": str(folder), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    house = House(f"http://localhost:{port}", folder, process)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{house.url}/_stcore/health", timeout=2)
            return house
        except OSError:
            assert process.poll() is None, house.log
            time.sleep(0.05)
    house.close()
    raise AssertionError(house.log)
