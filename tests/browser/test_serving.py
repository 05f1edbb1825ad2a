"""Lab 4 in a browser: with a server, its stand-in, and without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lib.ollama.models import copy, installed, pull
from tests.browser.conftest import settle
from tests.browser.house import House
from tests.browser.test_pages import Open, run_step
from tests.fakes.ollama_fake import OllamaFake
from tests.server.test_quantize import finished

MODEL = "smollm2:135m"


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaFake]:
    with OllamaFake(tmp_path_factory.mktemp("ollama"), default_model) as started:
        yield started


@pytest.fixture(scope="module")
def served(start_house: Callable[..., House], server: OllamaFake) -> House:
    return start_house(OLLAMA_HOST=server.address)


def fill(page: Page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Tab")
    settle(page)


def test_without_a_server_the_page_names_the_command_and_goes_on_with_llama_cpp(
    start_house: Callable[..., House], open_page: Open
) -> None:
    house = start_house(OLLAMA_HOST="http://127.0.0.1:9")
    page = open_page(house.page("ollama?step=server"))
    settle(page)
    run_step(page)
    expect(page.get_by_text("No Ollama server answers at http://127.0.0.1:9")).to_be_visible()
    page.goto(house.page("ollama?step=context"))
    settle(page)
    run_step(page)
    expect(page.get_by_text("The embedded engine cuts nothing")).to_be_visible(timeout=300_000)


def test_a_pull_has_a_bar_for_each_layer_is_cancelled_and_goes_on(
    served: House, server: OllamaFake, open_page: Open
) -> None:
    server.fault("/api/pull", "slow", 1, seconds=0.4)
    page = open_page(served.page("ollama?step=pull"))
    settle(page)
    run_step(page)
    # The whole's bar, and one for the layer that is on its way.
    expect(page.get_by_text(re.compile(r"^[0-9a-f]{12} · .* MiB / 93\.8 MiB$"))).to_be_visible(timeout=300_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Stopped. Nothing was kept")).to_be_visible()
    assert not installed(server.address)
    settle(page)
    run_step(page)
    expect(page.get_by_text("This pull went on where an earlier one had stopped")).to_be_visible(timeout=300_000)
    expect(page.get_by_text("This server is not Ollama.")).to_be_visible()
    assert [one.name for one in installed(server.address)] == [MODEL]


def test_a_modelfile_shows_all_its_problems_with_what_is_meant(served: House, open_page: Open) -> None:
    page = open_page(served.page("ollama?step=modelfile"))
    settle(page)
    fill(page, "Modelfile", "FROM smollm2:135m\nPARAMETER context_length 4096\nFILE ./guidelines.txt\n")
    run_step(page)
    expect(page.get_by_text("context_length is no parameter of Ollama's")).to_be_visible(timeout=300_000)
    expect(page.get_by_text("Line 3: FILE is no instruction, though older texts use it")).to_be_visible()


def test_a_name_is_removed_only_when_it_is_really_meant(served: House, server: OllamaFake, open_page: Open) -> None:
    finished(pull(server.address, MODEL))
    copy(server.address, MODEL, "tutor")
    page = open_page(served.page("ollama?step=manage"))
    settle(page)
    page.get_by_role("combobox", name=re.compile("What to do")).click()
    page.get_by_role("option", name="remove", exact=True).click()
    fill(page, "Name", "tutor")
    run_step(page)
    expect(page.get_by_text("Nothing has been removed.")).to_be_visible()
    assert len(installed(server.address)) == 2
    page.get_by_test_id("stCheckbox").get_by_text("really").click()
    settle(page)
    run_step(page)
    expect(page.get_by_text("tutor:latest was removed.")).to_be_visible()
    # The permission was for this once.
    settle(page)
    expect(page.get_by_role("checkbox", name="really")).not_to_be_checked()
    assert [one.name for one in installed(server.address)] == [MODEL]
