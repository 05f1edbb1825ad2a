"""What a learner does in a browser, done in a browser."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import settle
from tests.browser.house import House

Open = Callable[..., Page]
REPEAT = "Repeat after me: one two three four five six seven eight."


def run_step(page: Page) -> None:
    button = page.get_by_role("button", name=re.compile("^(play_arrow)? ?(Run|Run again|Executar|Executar de novo)$"))
    expect(button).to_be_enabled(timeout=300_000)
    button.click()


def card_count(house: House, step: str) -> int:
    with closing(sqlite3.connect(house.home / "bancada.db")) as database:
        return int(database.execute("select count(*) from run_cards where step = ?", (step,)).fetchone()[0])


def test_a_direct_link_to_a_lab_is_the_first_thing_a_new_server_sees(
    start_house: Callable[..., House], open_page: Open
) -> None:
    """Streamlit would run the page's file without the house around it."""
    page = open_page(start_house().page("choose?step=estimate"))
    expect(page.get_by_role("link", name="Workbench")).to_be_visible()
    expect(page.get_by_role("heading", name="How much memory will it need?")).to_be_visible()


def test_a_wrong_setting_is_named_on_the_page(start_house: Callable[..., House], chromium: Browser) -> None:
    page = chromium.new_page()
    page.set_default_timeout(60_000)
    page.goto(start_house(BANCADA_SLOTS="-3").page())
    expect(page.get_by_text("BANCADA_SLOTS")).to_be_visible()
    page.close()


def test_a_folder_that_cannot_be_written_is_named_on_the_page(
    start_house: Callable[..., House], chromium: Browser, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    page = chromium.new_page()
    page.set_default_timeout(60_000)
    page.goto(start_house(BANCADA_HOME=str(tmp_path / "file" / "home")).page("choose?step=estimate"))
    expect(page.get_by_text("Bancada cannot write to")).to_be_visible()
    page.close()


def test_a_newcomer_talks_to_the_model_and_sees_what_it_costs(house: House, open_page: Open) -> None:
    page = open_page(house.page())
    expect(page.get_by_text("This machine", exact=True)).to_be_visible()
    box = page.get_by_placeholder("Ask something")
    # No answer to this one is empty, whatever the dice say.
    box.fill(REPEAT)
    box.press("Enter")
    numbers = page.get_by_text(re.compile(r"TTFT .* tokens/s"))
    expect(numbers).to_be_visible()
    assert re.search(r"TTFT [\d.,]+ m?s · [\d.,]+ tokens/s · \d+ tokens", numbers.inner_text())
    page.get_by_role("button", name="Clear the conversation").click()
    expect(numbers).not_to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text(REPEAT).first).to_be_visible()
    page.get_by_role("link", name=re.compile("Lab 1")).click()
    expect(page.get_by_role("heading", name="Which model fits this machine and this task?")).to_be_visible()


def engines_of(house: House) -> list[psutil.Process]:
    """The living engine processes of an app."""
    children = psutil.Process(house.process.pid).children(recursive=True)
    found = []
    for child in children:
        # One that has ended meanwhile is none.
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "embedded_server" in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_for_engine(house: House) -> psutil.Process:
    """The shared engine's process, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if engines := engines_of(house):
            return engines[0]
        time.sleep(0.1)
    raise AssertionError("no engine process within a minute")


def test_the_engine_dies_in_mid_answer_and_comes_back(house: House, open_page: Open) -> None:
    page = open_page(house.page())
    box, died = (
        page.get_by_placeholder("Ask something"),
        page.get_by_text("The engine stopped in the middle of its work").first,
    )
    for attempt in range(6):
        # An answer may end before the kill: the model decides how much it says. Then ask again.
        expect(box).to_be_visible()
        engine = wait_for_engine(house)
        box.fill("Count from one to five hundred, with one number on every line.")
        box.press("Enter")
        expect(page.get_by_text(re.compile("TTFT"))).to_have_count(attempt + 1)
        engine.kill()
        try:
            expect(died).to_be_visible(timeout=15_000)
            break
        except AssertionError:
            continue
    expect(died).to_be_visible()
    wait_for_engine(house)
    settle(page)
    asked = page.get_by_text("Are you back?").first
    for _ in range(6):
        # What is typed while the page is being drawn anew stays in the box: then press again.
        box.fill("Are you back?")
        box.press("Enter")
        try:
            expect(asked).to_be_visible(timeout=15_000)
            break
        except AssertionError:
            settle(page)
    expect(asked).to_be_visible()
    expect(page.get_by_text(re.compile(r"TTFT")).nth(1)).to_be_visible()


def test_a_question_half_typed_outlives_the_engine(house: House, open_page: Open) -> None:
    page = open_page(house.page())
    box = page.get_by_placeholder("Ask something")
    expect(box).to_be_enabled()
    box.fill("Half a ques")
    # Nobody types or clicks while the engine is away: the page has to be drawn anew in just that time.
    engine = wait_for_engine(house)
    engine.kill()
    page.get_by_text("How many days are there").click()
    expect(page.get_by_text("The engine stopped").or_(page.get_by_text(re.compile("TTFT"))).first).to_be_visible()
    wait_for_engine(house)
    settle(page)
    expect(box).to_have_value("Half a ques")
    expect(box).to_be_enabled()


def test_predict_run_and_compare(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose?step=estimate"))
    page.get_by_label("First your prediction").fill("100")
    page.get_by_label("First your prediction").press("Tab")
    settle(page)
    run_step(page)
    expect(page.get_by_text("Your prediction").first).to_be_visible()
    expect(page.get_by_text(re.compile(r"% too low"))).to_be_visible()
    expect(page.locator(".main-svg").first).to_be_visible()
    page.get_by_text("The code that runs").click()
    expect(page.get_by_text("def estimate(")).to_be_visible()
    page.get_by_text("The numbers behind it").click()
    expect(page.get_by_role("cell", name="KV cache")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Your prediction").first).to_be_visible()


def test_a_run_goes_on_when_the_tab_closes_and_its_result_waits(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose?step=measure"))
    page.get_by_role("button", name="4,096", exact=True).click()
    settle(page)
    before = card_count(house, "measure")
    run_step(page)
    expect(page.get_by_text(re.compile("Running for"))).to_be_visible()
    page.close()
    again = open_page(house.page("choose?step=measure"))
    expect(again.get_by_text("Estimate and measurement")).to_be_visible(timeout=300_000)
    assert card_count(house, "measure") == before + 1


def test_a_run_is_cancelled_and_leaves_no_engine_behind(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose?step=measure"))
    settle(page)
    before = card_count(house, "measure")
    run_step(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Stopped. Nothing was kept")).to_be_visible()
    assert card_count(house, "measure") == before
    assert len(engines_of(house)) <= 1, "only the shared engine may be left"


def test_a_format_is_predicted_planned_and_drawn(house: House, open_page: Open) -> None:
    page = open_page(house.page("quantize?step=formats"))
    page.get_by_label("First your prediction").fill("4.85")
    page.get_by_label("First your prediction").press("Tab")
    settle(page)
    run_step(page)
    expect(page.get_by_text("The type of every tensor")).to_be_visible(timeout=300_000)
    expect(page.get_by_text(re.compile("% too low"))).to_be_visible()
    expect(page.get_by_text("181 of 272 tensors could not get the type that the name promises")).to_be_visible()
    # One cell for every tensor of the file.
    settle(page)
    page.get_by_text("The numbers behind it").click()
    expect(page.get_by_role("table").get_by_text("token_embd")).to_be_visible()


def test_quantizing_goes_on_behind_a_closed_tab_and_the_queue_shows_it(house: House, open_page: Open) -> None:
    page = open_page(house.page("quantize?step=quantize"))
    settle(page)
    run_step(page)
    expect(page.get_by_text(re.compile("Running for"))).to_be_visible()
    page.close()
    queue = open_page(house.page("queue"))
    expect(queue.get_by_text("Quantize", exact=False).first).to_be_visible()
    again = open_page(house.page("quantize?step=quantize"))
    expect(again.get_by_text("Size of each file, forecast and real")).to_be_visible(timeout=300_000)
    assert {path.name for path in (house.home / "models/made").glob("*/*.gguf")} >= {
        "F16.gguf",
        "Q4_0.gguf",
        "Q8_0.gguf",
    }
    assert not list((house.home / "models/made").glob("*/*.part"))


def test_a_learners_own_directory_with_a_program_in_it_is_refused_on_the_page(
    house: House, open_page: Open, tmp_path: Path
) -> None:
    canary = tmp_path / "executed"
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_own.Own"}}')
    (own / "modeling_own.py").write_text(f"open({str(canary)!r}, 'w')")
    page = open_page(house.page("convert?step=to_gguf"))
    settle(page)
    page.get_by_role("textbox", name=re.compile("directory", re.IGNORECASE)).fill(str(own))
    page.keyboard.press("Control+Enter")
    settle(page)
    run_step(page)
    expect(page.get_by_role("alert").filter(has_text=str(own)).first).to_be_visible(timeout=300_000)
    assert not canary.exists()


def test_the_language_changes_everywhere_and_stays(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose?step=estimate"))
    page.get_by_role("radio", name="Português (Brasil)").click()
    expect(page.get_by_role("heading", name="Qual modelo serve para esta máquina e esta tarefa?")).to_be_visible()
    assert "lang=pt" in page.url
    page.locator("[data-testid=stTopNavLink]").first.click()
    expect(page.get_by_text("Esta máquina", exact=True)).to_be_visible()


def test_a_brazilian_browser_is_greeted_in_portuguese(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose"), locale="pt-BR")
    expect(page.get_by_role("heading", name="Qual modelo serve para esta máquina e esta tarefa?")).to_be_visible()


def test_the_quiz_explains_and_remembers(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose?step=quiz"))
    page.locator("[data-testid=stRadioOption]").first.click()
    expect(page.get_by_text(re.compile("^(Right\\.|Not quite\\.)")).first).to_be_visible()
    settle(page)
    page.reload()
    expect(page.get_by_text(re.compile("^(Right\\.|Not quite\\.)")).first).to_be_visible()


def test_a_step_runs_by_keyboard_alone(house: House, open_page: Open) -> None:
    page = open_page(house.page("choose?step=catalog"))
    settle(page)
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement?.innerText || ''").strip().endswith(("Run", "Run again")):
            break
    else:
        pytest.fail("Tab never reached the Run button")
    page.keyboard.press("Enter")
    expect(page.get_by_text("What each model would need here")).to_be_visible()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "choose?step=machine",
        "choose?step=estimate",
        "choose?step=quiz",
        "quantize?step=quality",
        "convert",
        "ollama?step=modelfile",
        "foundry?step=sessions",
        "queue",
    ],
)
def test_a_phone_needs_no_sideways_scrolling(house: House, open_page: Open, path: str) -> None:
    page = open_page(house.page(path), width=390)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    main = page.locator("[data-testid=stMain]")
    assert main.evaluate("element => element.scrollWidth - element.clientWidth") <= 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    "path",
    [
        *("", "choose?step=estimate", "choose?step=exercise", "choose?step=quiz"),
        *("quantize?step=formats", "quantize?step=quality", "convert?step=genai", "queue"),
        *("ollama?step=options", "ollama?step=modelfile", "foundry?step=structured"),
    ],
)
def test_no_serious_accessibility_violation(house: House, open_page: Open, path: str, dark: bool) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(house.page(path), dark=dark)
    settle(page)
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    # Streamlit's own frame (menu, header) is not ours to mend.
    serious = [
        f"{one['id']}: {[node['html'][:160] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)
