"""What a learner does with the measurements that are kept: find, read, compare, draw, take along, delete, undo."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from lib.course.labs import find_step
from lib.course.run import run_at_once
from lib.workbench import Workbench
from tests.browser.conftest import settle
from tests.browser.house import House

Open = Callable[..., Page]
CONTEXTS = (512, 1024, 2048, 4096)
ROW, HEAD = 35, 36


@pytest.fixture(scope="module")
def new_house(start_house: Callable[..., House]) -> House:
    return start_house()


@pytest.fixture(scope="module")
def measured_house(new_house: House) -> House:
    """Four estimates of lab 1, one with a prediction, and one look into the catalog, the newest of all."""
    workbench = Workbench.open(home=new_house.home, language="en", _env_file=None)
    for tokens in CONTEXTS:
        prediction = 100.0 if tokens == 4096 else None
        run_at_once(find_step("choose.estimate"), workbench, {"context_tokens": tokens}, prediction)
    run_at_once(find_step("choose.catalog"), workbench, {}, None)
    workbench.close()
    workbench.store.close()
    return new_house


@pytest.fixture
def page(measured_house: House, open_page: Open) -> Page:
    made = open_page(measured_house.page("measurements"))
    expect(made.get_by_text("5 of 5 measurements")).to_be_visible()
    settle(made)
    return made


def grid(page: Page) -> Locator:
    return page.get_by_test_id("stDataFrame").first


def tick(page: Page, *rows: int) -> None:
    """Tick lines of the list, which is a canvas, counted from 0."""
    for row in rows:
        settle(page)
        grid(page).click(position={"x": 22, "y": HEAD + ROW * row + ROW / 2})
    settle(page)


def seek(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name="Search")
    box.fill(text)
    box.press("Enter")
    settle(page)


def choose(page: Page, name: str, option: str) -> None:
    box = page.get_by_role("combobox", name=name, exact=True)
    box.scroll_into_view_if_needed()  # its list closes when the page scrolls
    settle(page)
    box.click()
    page.get_by_role("option", name=option).click()
    settle(page)


def test_a_new_house_without_measurements_leads_to_the_first_lab(new_house: House, open_page: Open) -> None:
    page = open_page(new_house.page("measurements"))  # the first test: the others measure
    expect(page.get_by_text("You have not measured anything yet")).to_be_visible()
    page.get_by_test_id("stMain").get_by_role("link", name=re.compile("Lab 1")).click()
    expect(page.get_by_role("heading", name="Which model fits this machine and this task?")).to_be_visible()


def test_a_measurement_is_found_read_and_opened_in_its_lab(page: Page) -> None:
    seek(page, "estimate 4096")
    expect(page.get_by_text("1 of 5 measurements")).to_be_visible()
    tick(page, 0)
    expect(page.get_by_role("heading", name="The measurement", exact=True)).to_be_visible()
    expect(page.get_by_text("Your prediction").first).to_be_visible()
    page.get_by_text("Machine and versions").click()
    expect(page.get_by_role("cell", name="bancada")).to_be_visible()
    page.get_by_role("link", name=re.compile("Open this step in its lab")).click()
    expect(page.get_by_role("heading", name="How much memory will it need?")).to_be_visible()
    assert "step=estimate" in page.url


def test_what_is_filtered_is_taken_along(page: Page) -> None:
    choose(page, "Step", "1 · Choose a model: Estimate")
    expect(page.get_by_text("4 of 5 measurements")).to_be_visible()
    page.get_by_role("button", name=re.compile("Download$")).first.click()
    with page.expect_download() as caught:
        page.get_by_role("button", name=re.compile("for programs")).click()
    cards = json.loads(caught.value.path().read_text("utf-8"))["cards"]
    assert sorted(one["parameters"]["context_tokens"] for one in cards) == list(CONTEXTS)


def test_two_are_set_side_by_side_by_keyboard_even_when_a_filter_hides_one(page: Page) -> None:
    tick(page, 1)
    seek(page, "estimate 512")
    expect(page.get_by_text("1 of 5 measurements")).to_be_visible()
    grid(page).click(position={"x": 200, "y": HEAD + ROW / 2})
    page.keyboard.press("Shift+Space")
    expect(page.get_by_role("heading", name="Two side by side")).to_be_visible()
    expect(page.get_by_text("2 ticked, some of them hidden by a filter.")).to_be_visible()
    expect(page.get_by_role("cell", name="4,096 tokens")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="KV cache")
    expect(row.get_by_role("cell", name="8.00 ×")).to_be_visible()
    expect(page.get_by_text("did not run under the same conditions")).to_have_count(0)


def test_a_fact_is_drawn_against_a_parameter_with_its_table(page: Page) -> None:
    chart = page.get_by_test_id("stPlotlyChart").last
    expect(chart.get_by_text("Context (tokens)")).to_be_visible()
    choose(page, "Upwards", "KV cache")
    expect(chart.get_by_text("KV cache (MiB)")).to_be_visible()
    choose(page, "Across", "Quantization")
    page.get_by_text("The numbers behind it").last.click()
    line = page.get_by_role("row").filter(has_text="Q4_1")
    expect(line.get_by_role("cell", name="4", exact=True)).to_be_visible()


def test_what_is_deleted_comes_back_at_once_and_after_a_reload(page: Page) -> None:
    tick(page, 0)
    page.get_by_role("button", name="Delete the ticked ones").click()
    expect(page.get_by_text("4 of 4 measurements")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("5 of 5 measurements")).to_be_visible()
    tick(page, 0, 1)
    page.get_by_role("button", name="Delete the ticked ones").click()
    expect(page.get_by_text("2 measurements deleted. The steps stay marked as done.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("3 of 3 measurements")).to_be_visible()
    settle(page)
    page.get_by_text("Recently deleted").click()
    page.get_by_role("button", name="Bring back").click()
    expect(page.get_by_text("5 of 5 measurements")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_accessibility_violation_while_two_are_compared(
    measured_house: House, open_page: Open, dark: bool
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(measured_house.page("measurements"), dark=dark)
    tick(page, 0, 1)
    expect(page.get_by_role("heading", name="Two side by side")).to_be_visible()
    settle(page)
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, json.dumps([(one["id"], [node["html"][:160] for node in one["nodes"]]) for one in serious])


def test_a_phone_shows_it_in_portuguese_without_sideways_scrolling(measured_house: House, open_page: Open) -> None:
    page = open_page(measured_house.page("measurements?lang=pt"), width=390)
    expect(page.get_by_text("5 de 5 medições")).to_be_visible()
    tick(page, 0, 1)
    expect(page.get_by_role("heading", name="Duas lado a lado")).to_be_visible()
    settle(page)
    main = page.get_by_test_id("stMain")
    assert main.evaluate("element => element.scrollWidth - element.clientWidth") <= 1
