"""Lab 6 in a browser, as a learner walks through it: nothing measured, a race, advice, a race that is cancelled.

The tests go on from one another, on a real engine: what one of them measures, the next ones look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from lib.bench.tokens import ensure_counter
from lib.workbench import Workbench
from tests.browser.conftest import settle
from tests.browser.house import House
from tests.browser.test_pages import Open, card_count, run_step
from tests.conftest import DEFAULT, link_stock
from tests.server.test_quantize import finished

LONG = 900_000
OTHERS = ("ONNX Runtime GenAI",)


@pytest.fixture(scope="module")
def bench(start_house: Callable[..., House], stock: Path) -> House:
    """A house without measurements; the tokenizer that counts for every engine is made once for all tests."""
    made = start_house()
    link_stock(made.home, stock)
    with closing(Workbench.open(home=made.home, language="en", _env_file=None)) as workbench:
        finished(ensure_counter(workbench, DEFAULT))
        workbench.store.close()
    return made


@pytest.fixture
def raced(bench: House) -> House:
    """The house after its first race."""
    if not card_count(bench, "race"):
        pytest.skip("goes on from the race of the test before")
    return bench


def type_in(page: Page, label: str | re.Pattern[str], value: str) -> None:
    box = page.get_by_label(label).first
    box.fill(value)
    box.press("Tab")
    settle(page)


def enter_llama_cpp_alone(page: Page, labels: tuple[str, str], rounds: int) -> None:
    """Take everybody else out of the race, and make it short: sixteen tokens an answer."""
    chosen = page.get_by_test_id("stButtonGroup").filter(has_text=OTHERS[0])
    for name in OTHERS:
        chosen.get_by_role("button", name=name, exact=True).click()
        settle(page)
    type_in(page, labels[0], str(rounds))
    page.get_by_role("combobox", name=re.compile(labels[1])).click()
    page.get_by_role("option", name="16", exact=True).click()
    settle(page)


def progress_beyond(page: Page, percent: int) -> None:
    """Wait for the bar of the step that runs to have come further than so much."""
    page.wait_for_function(
        """(percent) => {
            const bar = document.querySelector("[data-testid=stProgress] [role=progressbar]");
            return bar && Number(bar.getAttribute("aria-valuenow")) > percent;
        }""",
        arg=percent,
        timeout=LONG,
    )


def chart_of(page: Page) -> Locator:
    return page.get_by_test_id("stPlotlyChart").first


def test_without_a_race_advice_and_exercise_name_the_step_to_run_first(bench: House, open_page: Open) -> None:
    page = open_page(bench.page("compare?step=recommend"))
    settle(page)
    run_step(page)
    card = page.get_by_role("alert").filter(has_text="There is nothing of yours to look at yet.")
    expect(card).to_contain_text("you have none of compare.race")
    expect(card).to_contain_text("python -m lib.cli run compare.race")
    page.goto(bench.page("compare?step=exercise"))
    settle(page)
    page.get_by_role("button", name=re.compile("Check my answer")).click()
    expect(page.get_by_text("There is no race of yours yet. Run step 2 first")).to_be_visible()


def test_a_race_is_predicted_run_and_answers_four_questions(bench: House, open_page: Open) -> None:
    page = open_page(bench.page("compare?step=race"))
    settle(page)
    enter_llama_cpp_alone(page, ("Rounds", "Tokens of an answer at most"), rounds=1)
    type_in(page, re.compile("First your prediction"), "99999")
    run_step(page)
    progress_beyond(page, 25)
    chart = chart_of(page)
    expect(chart).to_be_visible(timeout=LONG)
    settle(page)
    for question in ("fastest alone", "gives most", "least memory", "speaks first"):
        expect(chart.get_by_text(re.compile(question))).to_be_visible()
    expect(chart.locator(".barlayer .bars")).to_have_count(4)
    expect(chart.get_by_text("Your prediction")).to_be_visible()
    metrics = page.get_by_test_id("stMetric")
    expect(metrics.filter(has_text="Your prediction")).to_contain_text("99,999 tokens/s")
    expect(metrics.filter(has_text="% too high")).to_contain_text("Speed of the fastest, alone")
    expect(page.get_by_text("One round tells nothing about noise, so no engine counts as faster")).to_be_visible()
    page.get_by_text("The numbers behind it").click()
    table = page.get_by_role("table").filter(has_text="Clients at once")
    for clients in ("1", "4", "16"):
        row = table.get_by_role("row").filter(has=page.get_by_role("cell", name=clients, exact=True))
        expect(row.filter(has_text="llama.cpp").first).to_be_visible()


def test_the_advice_names_the_fastest_of_the_race_beside_the_courses_table(raced: House, open_page: Open) -> None:
    page = open_page(raced.page("compare?step=recommend"))
    settle(page)
    # Bounds that a busy machine keeps as well.
    type_in(page, "Memory limit (MiB)", "65536")
    type_in(page, "Bound for the TTFT (s)", "60")
    run_step(page)
    said = page.get_by_test_id("stMetric").filter(has_text="Your figures say")
    expect(said).to_contain_text("llama.cpp")
    expect(page.get_by_text("The courses' table: for many users at once vLLM")).to_be_visible()
    expect(page.get_by_text("The table names vLLM, and your race has no figures for it.")).to_be_visible()
    page.goto(raced.page("compare?step=exercise"))
    settle(page)
    page.get_by_role("combobox", name=re.compile("Which engine")).click()
    page.get_by_role("option", name="llama.cpp", exact=True).click()
    page.get_by_role("combobox", name=re.compile("Memory limit")).click()
    page.get_by_role("option", name="4,096", exact=True).click()
    settle(page)
    page.get_by_role("button", name=re.compile("Check my answer")).click()
    expect(page.get_by_text("Right: with 16 clients and 4,096 MiB")).to_be_visible()


def test_a_race_cancelled_after_its_first_round_shows_that_round_in_portuguese(raced: House, open_page: Open) -> None:
    before = card_count(raced, "race")
    page = open_page(raced.page("compare?step=race&lang=pt"))
    settle(page)
    type_in(page, "Rodadas", "10")
    run_step(page)
    # Making ready is the first quarter, and a round a tenth of the rest.
    progress_beyond(page, 33)
    page.get_by_role("button", name="Cancelar").click()
    expect(
        page.get_by_text("Esta execução não chegou ao fim; o que você vê é o que já tinha sido medido.")
    ).to_be_visible()
    # So much was kept, and nothing says otherwise.
    expect(page.get_by_text("Nada dela foi guardado")).to_have_count(0)
    expect(chart_of(page).get_by_text("Quem é mais rápido sozinho?")).to_be_visible()
    settle(page)
    expect(page.get_by_role("button", name="Executar de novo")).to_be_enabled()
    assert card_count(raced, "race") == before + 1


def test_the_whole_race_is_taken_along_and_of_both_in_the_list_the_cancelled_one_is_marked(
    raced: House, open_page: Open
) -> None:
    page = open_page(raced.page("compare?step=take_along"))
    settle(page)
    run_step(page)
    code = page.get_by_role("tabpanel").get_by_test_id("stCode")
    expect(code.filter(has_text='"step": "race"')).to_be_visible()
    cards = json.loads(code.first.inner_text())["cards"]
    # A race that came to its end goes before a newer one that did not.
    assert {one["step"]: one["result"]["partial"] for one in cards} == {"race": False, "recommend": False}
    page.get_by_role("tab", name="CSV").click()
    expect(code.filter(has_text="compare,race")).to_be_visible()
    page.goto(raced.page("measurements"))
    expect(page.get_by_text("4 of 4 measurements")).to_be_visible()
    page.get_by_role("textbox", name="Search").fill("compare.race")
    page.get_by_role("textbox", name="Search").press("Enter")
    expect(page.get_by_text("2 of 4 measurements")).to_be_visible()
    settle(page)
    # The list is a canvas; what a screen reader hears of it is inside.
    found = page.get_by_test_id("stDataFrame").first.locator("canvas [role=gridcell]", has_text="Fastest alone")
    expect(found).to_have_count(2)
    expect(found.filter(has_text="Incomplete")).to_have_count(1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_race_with_its_result_has_no_serious_accessibility_violation_and_fits_a_phone(
    raced: House, open_page: Open, dark: bool
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(raced.page("compare?step=race"), dark=dark, width=390)
    expect(chart_of(page)).to_be_visible()
    settle(page)
    main = page.get_by_test_id("stMain")
    assert main.evaluate("element => element.scrollWidth - element.clientWidth") <= 1
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, json.dumps([(one["id"], [node["html"][:160] for node in one["nodes"]]) for one in serious])
