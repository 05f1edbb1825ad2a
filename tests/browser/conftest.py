"""A real server and a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.house import FLAGS, House, start_app
from tests.conftest import missing

# A page of these is drawn on two busy cores, where a step may take seconds to begin.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        missing("Chromium (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def start_house(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Callable[..., House]]:
    """Starts an app of its own on a free port, its model already here."""
    started: list[House] = []

    def start(**environment: str) -> House:
        started.append(start_app(tmp_path_factory.mktemp("house"), default_model, **environment))
        return started[-1]

    yield start
    for house in started:
        house.close()
    for house in started:
        assert "Traceback" not in house.log, house.log[-4000:]


@pytest.fixture(scope="package")
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
        context.set_default_timeout(60_000)
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
    """Wait until the page is whole and still: the script has ended, no widget is a placeholder, nothing fades."""
    page.evaluate(
        """async (limit) => {
            const moves = (one) => one.playState === "running" && one.effect.getTiming().iterations !== Infinity;
            const still = () =>
                document.querySelector("[data-testid=stApp]")?.dataset.testScriptState === "notRunning" &&
                !document.querySelector("[data-testid=stSkeleton], [data-stale=true]") &&
                !document.getAnimations().some(moves);
            const end = performance.now() + limit;
            // Between the script's end and a widget's first frame there is a moment in which all seems still.
            for (let seen = 0; seen < 4; seen = still() ? seen + 1 : 0) {
                if (performance.now() > end) throw new Error("the page does not settle");
                await new Promise((resolve) => setTimeout(resolve, 100));
            }
        }""",
        60_000,
    )
