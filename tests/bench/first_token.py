"""From the start of the app to the first token in a learner's browser, in seconds.

    python tests/bench/first_token.py [--rounds 5] [--model FILE]

Starts ``streamlit run app.py`` with an empty folder and, with ``--model``, the model's file already
in it; without, the download is part of the time. Opens the page in Chromium, asks, and stops the
clock at the first text. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from playwright.sync_api import Browser, sync_playwright

from tests.browser.house import FLAGS, start_app


def once(browser: Browser, model: Path | None) -> dict[str, float]:
    """Seconds from process start to: the page drawn, the chat ready, the first token."""
    folder = Path(tempfile.mkdtemp(prefix="bancada-bench-"))
    started = time.perf_counter()
    house = start_app(folder, model)
    page = browser.new_page()
    try:
        page.goto(house.url)
        page.locator("h1").wait_for(timeout=120_000)
        drawn = time.perf_counter() - started
        box = page.get_by_placeholder("Ask something")
        box.wait_for(timeout=600_000)
        ready = time.perf_counter() - started
        box.fill("Say hello.")
        box.press("Enter")
        page.get_by_text(re.compile("TTFT")).first.wait_for(timeout=120_000)
        return {"page_s": drawn, "chat_ready_s": ready, "first_token_s": time.perf_counter() - started}
    finally:
        page.close()
        house.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Repeat and print medians and spread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        rows = [once(browser, options.model) for _ in range(options.rounds)]
        browser.close()
    print(
        json.dumps(
            {name: [round(f([row[name] for row in rows]), 2) for f in (min, median, max)] for name in rows[0]}
            | {"rounds": options.rounds, "download": options.model is None}
        )
    )


if __name__ == "__main__":
    main()
