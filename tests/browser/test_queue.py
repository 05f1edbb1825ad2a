"""What a learner sees of runs that wait, run, and are interrupted."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import settle
from tests.browser.house import House
from tests.browser.test_pages import run_step

Open = Callable[..., Page]
STEP = re.compile("1 · Choose a model: Measure")


@pytest.fixture(scope="module")
def idle_house(start_house: Callable[..., House]) -> House:
    return start_house()


def begin_measuring(house: House, open_page: Open) -> Page:
    page = open_page(house.page("choose?step=measure"))
    settle(page)
    run_step(page)
    expect(page.get_by_text(re.compile("Running for"))).to_be_visible()
    return page


def test_the_queue_is_empty_then_shows_a_run_and_stops_it(idle_house: House, open_page: Open) -> None:
    queue = open_page(idle_house.page("queue"))
    expect(queue.get_by_text("Nothing is running and nobody is waiting")).to_be_visible()
    page = begin_measuring(idle_house, open_page)
    expect(queue.get_by_role("heading", name="Running now")).to_be_visible()
    expect(queue.get_by_text(STEP).first).to_be_visible()
    # A second step, asked for by the same learner, waits and says so.
    waits = open_page(idle_house.page("choose?step=machine"))
    settle(waits)
    run_step(waits)
    expect(waits.get_by_text("One run comes before yours.")).to_be_visible()
    expect(queue.get_by_role("heading", name="Waiting, in the order in which they will run")).to_be_visible()
    waits.get_by_role("button", name="Cancel").click()
    expect(waits.get_by_text("Stopped. Nothing was kept")).to_be_visible()
    expect(queue.get_by_role("button", name="Cancel")).to_have_count(1)
    queue.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Stopped. Nothing was kept")).to_be_visible()
    expect(queue.get_by_text("Nothing is running and nobody is waiting")).to_be_visible()
    expect(queue.get_by_text(re.compile("stopped after"))).to_be_visible()


def test_a_run_whose_worker_is_killed_says_so_and_runs_again(idle_house: House, open_page: Open) -> None:
    page = begin_measuring(idle_house, open_page)
    for child in psutil.Process(idle_house.process.pid).children(recursive=True):
        # The worker's own children end with it.
        with suppress(psutil.NoSuchProcess):
            if "lib.jobs.worker" in child.cmdline():
                child.kill()
    expect(page.get_by_text("This run was interrupted")).to_be_visible()
    settle(page)
    page.reload()
    expect(page.get_by_text("This run was interrupted")).to_be_visible()
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_text(re.compile("Running for"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Stopped. Nothing was kept")).to_be_visible()


def test_the_queue_fits_a_phone_while_something_runs_and_waits(idle_house: House, open_page: Open) -> None:
    begin_measuring(idle_house, open_page)
    page = open_page(idle_house.page("queue"), width=390)
    expect(page.get_by_role("heading", name="Running now")).to_be_visible()
    settle(page)
    main = page.locator("[data-testid=stMain]")
    assert main.evaluate("element => element.scrollWidth - element.clientWidth") <= 1
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Nothing is running and nobody is waiting")).to_be_visible()
