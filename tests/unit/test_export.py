"""Run cards as files to take along, compared, and plotted."""

from __future__ import annotations

import html
import io
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from lib.course.cards import brief, recall
from lib.course.compared import differing, facts_beside
from lib.course.export import FORMS, as_csv, as_html, as_json, as_tables_csv
from lib.course.plotted import WHEN, axes, measured, points, scatter, spread, varying
from lib.course.result import Listing, Result, note
from lib.course.run import Run
from lib.store import RunCard
from lib.text import LANGUAGES, LenientWords, load_words

HOSTILE = "</script><script>alert(1)</script> & \"quoted\" 'single' <img src=x onerror=alert(1)> ${x} \u2028 é 🦙"
MOMENT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def a_card(lab: str = "choose", step: str = "estimate", number: int = 1, **other: object) -> RunCard:
    result = Result(
        {"total_bytes": 200 * 2**20, "weights_bytes": 90 * 2**20, "fits": True, "formats": ("F16", "Q8_0")},
        pd.DataFrame({"term": ["weights", "compute"], "size_bytes": [90 * 2**20, None], "formula": ["a", HOSTILE]}),
        (note("from_file", name=HOSTILE),),
        {"hidden": 1},
        (Listing("program", HOSTILE, "python"),),
    )
    values = {
        "id": f"c{number:031x}",
        "learner": "me",
        "lab": lab,
        "step": step,
        "parameters": {"model": HOSTILE, "context_tokens": 2048},
        "prediction": 100.0 * 2**20,
        "result": result.to_json(),
        "versions": {"bancada": "0.1.0", "python": "3.11"},
        "machine": {"cpu": HOSTILE, "cores": 2, "memory_bytes": 2**34, "gpus": []},
        "model_sha256": "ab" * 32,
        "duration_s": 1.25,
        "finished_at": MOMENT + timedelta(minutes=number),
    }
    return RunCard(**(values | other))


def runs(language: str = "en") -> list[Run]:
    return [recall(a_card(), language), recall(a_card("lost", "forgotten", 2), language)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_json_holds_the_whole_card_and_reads_back_as_it_was(language: str) -> None:
    found = json.loads(as_json(runs(language), load_words(language)))
    card = a_card()
    (first, second) = found["cards"]
    assert first["result"] == json.loads(card.result)
    assert Result.from_json(json.dumps(first["result"])).to_json() == card.result
    for name in ("id", "lab", "step", "parameters", "prediction", "versions", "machine", "model_sha256", "duration_s"):
        assert first[name] == getattr(card, name), name
    assert datetime.fromisoformat(first["finished_at"]) == card.finished_at
    assert first["labels"]["total_bytes"] == load_words(language, Path("labs/choose").resolve()).label("total_bytes")
    assert (second["lab"], second["title"]) == ("lost", "lost: forgotten")
    assert as_json(runs(language), load_words(language)) == as_json(runs(language), load_words(language))


def test_json_has_no_number_that_json_does_not_know() -> None:
    card = a_card(result=Result({"speed_s": float("nan"), "slow_s": float("inf")}).to_json())

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(as_json([recall(card, "en")], load_words("en")), parse_constant=refuse)
    assert found["cards"][0]["result"]["facts"] == {"speed_s": None, "slow_s": None}


def test_csv_is_one_row_per_card_in_pandas_with_numbers_as_numbers() -> None:
    table = pd.read_csv(io.BytesIO(FORMS["csv"].make(runs(), load_words("en"))))
    assert list(table["card"]) == [run.card_id for run in runs()]
    assert list(table["lab"]) == ["choose", "lost"]
    assert list(table["fact.total_bytes"]) == [200 * 2**20] * 2
    assert list(table["parameter.model"]) == [HOSTILE] * 2
    assert list(table["fact.formats"]) == ["F16; Q8_0"] * 2
    assert pd.to_datetime(table["finished_at"])[0] == MOMENT + timedelta(minutes=1)
    parts = [name.partition(".")[0] for name in table if "." in name]
    assert list(dict.fromkeys(parts)) == ["parameter", "fact", "machine", "version"]


def test_the_tables_of_the_results_come_as_csv_too() -> None:
    table = pd.read_csv(io.BytesIO(FORMS["tables"].make(runs(), load_words("en"))))
    assert list(table["term"]) == ["weights", "compute"] * 2
    assert list(table["formula"]) == ["a", HOSTILE] * 2
    assert table["size_bytes"].tolist()[0] == 90 * 2**20 and pd.isna(table["size_bytes"][1])


def test_a_tables_own_step_is_not_taken_for_the_cards() -> None:
    result = Result({}, pd.DataFrame({"step": ["race", "burst"], "took_s": [1.0, 2.0]}))
    run = recall(a_card("compare", "take_along", result=result.to_json()), "en")
    table = pd.read_csv(io.StringIO(as_tables_csv([run])))
    assert list(table["step"]) == ["take_along"] * 2 and list(table["table.step"]) == ["race", "burst"]


def test_the_time_of_a_database_that_has_a_zone_is_told_in_utc() -> None:
    there = timezone(timedelta(hours=-3))
    assert recall(a_card(finished_at=MOMENT.astimezone(there)), "en").finished_at.hour == MOMENT.hour


@pytest.mark.parametrize(
    ("fact", "title"),
    [
        ("capacity_per_s", "Capacity, answers a second (/s)"),
        ("alone_tokens_per_s", "Speed of the fastest, alone (tokens/s)"),
        ("took_s", "Took (s)"),
    ],
)
def test_an_axis_names_its_unit_once(fact: str, title: str) -> None:
    said = load_words("en", Path("labs/compare").resolve())
    many = briefs_of(({"ttft_bound_s": 1.0}, {fact: 5.0}), ({"ttft_bound_s": 2.0}, {fact: 6.0}))
    table = points(many, "parameter.ttft_bound_s", f"fact.{fact}", None, said)
    made = scatter(table, spread(table, f"fact.{fact}", said), "parameter.ttft_bound_s", f"fact.{fact}", said)
    assert made.layout.yaxis.title.text == title
    assert made.layout.xaxis.title.text == "Bound for the TTFT (s)"


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    run = recall(a_card(parameters={"model": text, text: 1}), "en")
    for made in (as_csv([run]), as_tables_csv([run])):
        for line in pd.read_csv(io.StringIO(made), header=None, dtype=str).to_numpy().tolist():
            assert not any(str(cell).startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)
    assert "-1" in as_csv([recall(a_card(parameters={"change": -1}), "en")]), "a number stays a number"


def test_nothing_to_export_is_an_empty_file_and_no_error() -> None:
    said = load_words("en")
    assert json.loads(as_json([], said))["cards"] == []
    assert as_csv([]).strip() == "" and as_tables_csv([]).strip() == ""
    assert "<script" not in as_html([], said)


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside programs and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_shows_what_a_card_holds_as_text_and_in_the_language(language: str) -> None:
    said = load_words(language, Path("labs/choose").resolve())
    page = Elements(as_html(runs(language), load_words(language)))
    assert page.elements[0][1]["lang"] == {"en": "en-US", "pt": "pt-BR"}[language]
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags and not any(name.startswith("on") for _, names in page.elements for name in names)
    assert page.text.count("alert(1)") >= 8, "formula, note, listing, parameter and machine, of both cards"
    for text in (
        said.label("total_bytes"),
        said.value("total_bytes", 200 * 2**20),
        said.value("", MOMENT + timedelta(minutes=1)),
        "ab" * 32,
        "0.1.0",
        said("measurements.machine"),
    ):
        assert text in page.text, text
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_stands_alone_and_holds_plotly_once() -> None:
    text = as_html([recall(a_card(number=number), "en") for number in (1, 2, 3)], load_words("en"))
    page = Elements(text)
    assert not [names for _, names in page.elements if names.keys() & {"src", "srcset", "action"}]
    assert all(str(names.get("href", "#")).startswith("#") for _, names in page.elements)
    assert 4.5e6 < len(text) < 6e6
    assert "default-src 'none'" in text and "script-src 'sha256-" in text
    assert sum(names.get("class") == "chart" for _, names in page.elements) == 3


def test_no_name_in_a_chart_ends_the_block_that_holds_it() -> None:
    name = "</script><script>alert(1)</script>"
    table = pd.DataFrame({"term": ["weights", name], "size_bytes": [90 * 2**20, 2**20]})
    text = as_html([recall(a_card(result=Result({"total_bytes": 1}, table).to_json()), "en")], load_words("en"))
    (data,) = re.findall('<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert name in json.loads(data)["data"][1]["name"]


def test_only_the_pages_own_programs_may_run() -> None:
    import base64
    import hashlib

    text = as_html(runs(), load_words("en"))
    (policy,) = re.findall('Security-Policy" content="([^"]*)"', text)
    programs = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in programs]
    assert re.findall("'sha256-([^']*)'", html.unescape(policy)) == hashes and len(hashes) == 2
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


@pytest.mark.parametrize("result", [{}, {"facts": {"total_bytes": 1}}], ids=["empty", "no table"])
def test_a_card_that_the_chart_of_today_cannot_draw_is_shown_without_it(result: dict[str, object]) -> None:
    raw = {"facts": {}, "table": None, "notes": [], "more": {}} | result
    run = recall(a_card(result=json.dumps(raw)), "en")
    assert run.figure() is None
    assert run.card_id in as_html([run], load_words("en"))


def test_two_runs_are_set_beside_each_other_with_difference_and_ratio() -> None:
    first = recall(a_card(result=Result({"total_bytes": 2**30, "only": 1, "fits": True}).to_json()), "en")
    second = recall(a_card(number=2, result=Result({"total_bytes": 3 * 2**29, "fits": False}).to_json()), "en")
    size, fits = facts_beside(first, second, first.words)
    assert size[1:] == ("1.0 GiB", "1.5 GiB", "+512 MiB", "1.50 ×")
    assert fits[1:] == ("yes", "no", "–", "–")
    assert facts_beside(second, first, first.words)[0][3:] == ("-512 MiB", "0.67 ×")
    nothing = recall(a_card(result=Result({"total_bytes": 0}).to_json()), "en")
    assert facts_beside(nothing, first, first.words)[0][3:] == ("+1.0 GiB", "–")


def test_only_what_differs_is_named_lists_as_their_values() -> None:
    said = load_words("en")
    assert differing({"gpus": [], "cores": 2}, {"gpus": (), "cores": 2}, said) == []
    (one, other) = differing({"cores": 2, "gpus": []}, {"cores": 4}, said)
    assert one == ("Cores", "2", "4") and other[1:] == ("none", "–")


def briefs_of(*rows: tuple[dict[str, object], dict[str, object]]) -> list[object]:
    return [
        brief(a_card(number=number, parameters=parameters, result=json.dumps({"facts": facts})))
        for number, (parameters, facts) in enumerate(rows)
    ]


def test_any_fact_against_any_parameter_with_the_spread_of_runs_that_share_it() -> None:
    said = load_words("en", Path("labs/choose").resolve())
    many = briefs_of(
        ({"context_tokens": 512, "model": "m"}, {"total_bytes": 2**20}),
        ({"context_tokens": 512, "model": "m"}, {"total_bytes": 3 * 2**20}),
        ({"context_tokens": 8192, "model": "n"}, {"total_bytes": 9 * 2**20, "fits": True}),
        ({"model": "n"}, {"total_bytes": 9 * 2**20}),
    )
    assert set(axes(many)) == {WHEN, *(f"{one}" for one in ("parameter.context_tokens", "parameter.model", "fact.total_bytes", "fact.fits"))}  # fmt: skip
    assert measured(many) == ["fact.total_bytes"]
    assert varying(many)[0] == "parameter.context_tokens"
    table = points(many, "parameter.context_tokens", "fact.total_bytes", "parameter.model", said)
    assert list(table["x"]) == [512, 512, 8192] and list(table["group"]) == ["m", "m", "n"]
    grouped = spread(table, "fact.total_bytes", said)
    assert grouped[["count", "min", "median", "max"]].to_numpy().tolist()[0] == [2, 2**20, 2 * 2**20, 3 * 2**20]
    made = scatter(table, grouped, "parameter.context_tokens", "fact.total_bytes", said)
    bar = next(trace for trace in made.data if trace.error_y.array is not None)
    assert (list(bar.y), list(bar.error_y.array), list(bar.error_y.arrayminus)) == ([2.0], [1.0], [1.0])
    assert made.layout.yaxis.title.text.endswith("(MiB)")


@pytest.mark.parametrize("x", [WHEN, "parameter.formats", "parameter.model", "fact.fits", "parameter.mixed"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_dates_lists_texts_and_mixtures_can_stand_across(x: str, language: str) -> None:
    said = load_words(language)
    many = briefs_of(
        ({"formats": ["F16", "Q8_0"], "model": "m", "mixed": 1}, {"peak_bytes": 5, "fits": True}),
        ({"formats": ["F16"], "model": "n", "mixed": "one"}, {"peak_bytes": 6, "fits": False}),
    )
    lenient = LenientWords.over(said)
    table = points(many, x, "fact.peak_bytes", None, lenient)
    assert len(table) == 2
    made = scatter(table, spread(table, "fact.peak_bytes", lenient), x, "fact.peak_bytes", lenient)
    assert (made.layout.xaxis.type == "category") is (x != WHEN)
    assert made.layout.separators == {"en": ".,", "pt": ",."}[language]


def test_a_run_that_was_stopped_is_marked_incomplete_wherever_it_goes() -> None:
    card = a_card(result=Result({"total_bytes": 1}, partial=True).to_json())
    run, said = recall(card, "en"), load_words("en")
    assert brief(card).partial and not brief(a_card()).partial
    assert json.loads(as_json([run], said))["cards"][0]["result"]["partial"] is True
    assert list(pd.read_csv(io.StringIO(as_csv([run, *runs()])))["partial"]) == [True, False, False]
    assert said("measurements.partial_why") in as_html([run], said)
    assert said("measurements.partial_why") not in as_html(runs(), said)
