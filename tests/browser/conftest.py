"""A real server and a real Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import DEFAULT, ROOT, missing

# A page of these is drawn on two busy cores, where a step may take seconds to begin.
expect.set_options(timeout=60_000)

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
        return f"{self.url}/{path}"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        missing("Chromium (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def start_house(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Callable[..., House]]:
    """Starts an app of its own on a free port, its model already here."""
    started: list[House] = []

    def start(**environment: str) -> House:
        folder = tmp_path_factory.mktemp("house")
        (folder / "models").mkdir()
        (folder / "models" / DEFAULT).symlink_to(default_model.parent, target_is_directory=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            "app.py",
            f"--server.port={port}",
            "--server.headless=true",
        ]
        with (folder / "app.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"BANCADA_HOME": str(folder)} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        house = House(f"http://localhost:{port}", folder, process)
        started.append(house)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{house.url}/_stcore/health", timeout=2)
                return house
            except OSError:
                assert process.poll() is None, (folder / "app.log").read_text()
                time.sleep(0.2)
        raise AssertionError((folder / "app.log").read_text())

    yield start
    for house in started:
        house.process.terminate()
        try:
            house.process.wait(15)
        except subprocess.TimeoutExpired:
            house.process.kill()
        log = (house.home / "app.log").read_text()
        assert "Traceback" not in log, log[-4000:]


@pytest.fixture(scope="session")
def house(start_house: Callable[..., House]) -> House:
    return start_house()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a tab; fails the test for an error in its console or a request beyond this machine."""
    contexts, faults = [], []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: faults.append(f"error in the page: {error}"))
        page.on(
            "request",
            lambda request: (
                faults.append(f"request to {request.url}")
                if not request.url.startswith(("http://localhost:", "ws://localhost:", "data:", "blob:"))
                else None
            ),
        )

    def open_(url: str, *, dark: bool = False, width: int = 1280, locale: str = "en-US") -> Page:
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", locale=locale
        )
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(url)
        expect(page.locator("h1")).to_be_visible()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults, faults


def settle(page: Page) -> None:
    """Wait until the page has stopped running its script."""
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'", timeout=60_000
    )
