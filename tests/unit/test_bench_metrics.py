"""What a load comes to, on answers written by hand; arrivals, noise and energy."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.bench.energy import EnergyMeter
from lib.bench.load import Answer, closed_loop, open_loop
from lib.bench.metrics import Bounds, jain, measure, percentile, tpot_s
from lib.bench.noise import Spread, chance_of_apart
from lib.errors import EngineRefused

NAN = float("nan")
POSITIVE = st.floats(min_value=1e-6, max_value=1e6)


def answer(
    *arrivals_s: float, due_s: float = 0.0, end_s: float = 0.0, tokens: int | None = None, text: str = "a b c"
) -> Answer:
    """An answer whose pieces came at these moments, and that ended with the last of them unless told otherwise."""
    made = Answer(0, "?", due_s, due_s + 0.001, end_s or max(arrivals_s, default=0.0), list(arrivals_s), text)
    made.completion_tokens = len(arrivals_s) if tokens is None else tokens
    return made


def failed(*arrivals_s: float) -> Answer:
    made = answer(*arrivals_s)
    made.error = EngineRefused(why="no")
    return made


def test_two_answers_come_to_what_one_can_work_out_on_paper() -> None:
    slow = answer(1.0, 1.5, 2.5, 3.0, end_s=4.0)
    quick = answer(2.5, 3.0, 3.5, due_s=2.0, end_s=3.5)
    found = measure([slow, quick], 4)
    assert (found.requests, found.failures, found.short, found.tokens) == (2, 0, 1, 7)
    assert (found.seconds, found.tokens_per_s, found.requests_per_s) == (4.0, 7 / 4, 2 / 4)
    # TTFT 1.0 and 0.5; TPOT 3 s over 3 tokens and 1 s over 2; end to end 4.0 and 1.5.
    assert found.ttft_p50_s == pytest.approx(0.75) and found.ttft_p95_s == pytest.approx(0.975)
    assert found.tpot_p50_s == pytest.approx(0.75) and found.tpot_p95_s == pytest.approx(0.975)
    assert found.e2e_p50_s == pytest.approx(2.75)
    # Pauses 0.5, 1.0, 0.5 and 0.5, 0.5: none between one answer's last piece and another's first.
    assert found.itl_p50_s == 0.5 and found.itl_p99_s == pytest.approx(0.98)
    assert found.fairness == pytest.approx(jain([1.0, 2.0]))


def test_an_answer_of_one_token_has_no_time_per_token_after_the_first() -> None:
    found = measure([answer(0.5)], 1)
    assert math.isnan(tpot_s(answer(0.5), 1)) and math.isnan(found.tpot_p50_s) and math.isnan(found.itl_p50_s)
    assert (found.tokens, found.tokens_per_s, found.ttft_p50_s, found.short) == (1, 2.0, 0.5, 0)
    # Nothing came too slowly, so it counts as kept.
    assert found.goodput_per_s == found.requests_per_s == 2.0


def test_one_token_among_others_leaves_their_percentiles_alone() -> None:
    several = [answer(1.0, 2.0), answer(1.0, 4.0)]
    assert measure([*several, answer(1.0)], 2).tpot_p50_s == measure(several, 2).tpot_p50_s == 2.0


@pytest.mark.parametrize("answers", [[], [failed()], [failed(1.0, 2.0), answer()]], ids=["none", "refused", "silent"])
def test_where_nothing_was_answered_rates_are_zero_and_times_are_unknown(answers: list[Answer]) -> None:
    found = measure(answers, 4)
    assert (found.requests, found.failures) == (len(answers), len(answers))
    assert (found.short, found.tokens, found.engine_tokens, found.seconds) == (0, 0, 0, 0.0)
    assert (found.tokens_per_s, found.requests_per_s, found.goodput_per_s) == (0.0, 0.0, 0.0)
    times = [found.ttft_p50_s, found.tpot_p95_s, found.itl_p99_s, found.e2e_p95_s, found.fairness]
    assert all(math.isnan(one) for one in times)


def test_what_a_failed_request_had_received_counts_nowhere_but_as_a_failure() -> None:
    found = measure([answer(1.0, 2.0), failed(0.1, 9.0)], 2)
    assert (found.requests, found.failures, found.tokens) == (2, 1, 2)
    assert (found.ttft_p50_s, found.seconds, found.itl_p99_s) == (1.0, 2.0, 1.0)


def test_one_tokenizer_for_all_counts_instead_of_the_engine() -> None:
    told = answer(1.0, 3.0, tokens=7, text="one two three four five")
    own, engines = measure([told], 7, lambda text: len(text.split())), measure([told], 7)
    assert (own.tokens, own.engine_tokens, own.tpot_p50_s) == (5, 7, 2 / 4)
    assert (engines.tokens, engines.engine_tokens, engines.tpot_p50_s) == (7, 7, 2 / 6)
    # Whether it stopped too early is between the engine and what it was asked for.
    assert (own.short, own.fairness, own.tokens_per_s) == (0, 1.0, 5 / 3)


@pytest.mark.parametrize(
    ("arrivals_s", "kept"),
    [((2.0, 2.1), True), ((2.1, 2.2), False), ((1.0, 1.2), False), ((0.5,), True), ((2.1,), False)],
    ids=["on both bounds", "a late first token", "slow tokens", "one token", "one late token"],
)
def test_goodput_counts_what_kept_both_bounds(arrivals_s: tuple[float, ...], kept: bool) -> None:
    found = measure([answer(*arrivals_s)], 2, bounds=Bounds(2.0, 0.1 + 1e-9))
    assert found.goodput_per_s == (found.requests_per_s if kept else 0.0)


def test_the_times_of_a_request_count_from_when_it_was_due() -> None:
    late = answer(3.0, 4.0, due_s=1.0)
    late.sent_s = 2.5
    assert (late.ttft_s, late.e2e_s) == (2.0, 3.0)


def test_percentiles_interpolate_and_leave_out_what_is_unknown() -> None:
    assert percentile([4.0, NAN, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0], 95) == pytest.approx(1.95)
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50)) and math.isnan(percentile([NAN, NAN], 50))


@given(st.lists(POSITIVE, min_size=1, max_size=40))
def test_percentiles_stay_within_what_was_measured_and_in_order(values: list[float]) -> None:
    found = [percentile(values, share) for share in (0, 50, 95, 99, 100)]
    assert found == sorted(found) and (found[0], found[-1]) == (min(values), max(values))
    assert found[1] == pytest.approx(median(values))


@given(st.lists(POSITIVE, min_size=1, max_size=40), POSITIVE)
def test_fairness_lies_between_one_of_many_and_one_whatever_the_unit(shares: list[float], unit: float) -> None:
    found = jain(shares)
    assert 1 / len(shares) - 1e-9 <= found <= 1 + 1e-9
    assert jain([one * unit for one in shares]) == pytest.approx(found)


def test_fairness_is_one_for_equals_and_one_nth_when_one_gets_everything() -> None:
    assert jain([3.0] * 7) == pytest.approx(1.0)
    assert jain([5.0, 0.0, 0.0, 0.0]) == 0.25
    assert math.isnan(jain([])) and math.isnan(jain([0.0, 0.0]))


def test_a_closed_loop_has_a_request_for_each_client_unless_told_otherwise() -> None:
    assert (closed_loop(4).requests, closed_loop(4, 9).requests, closed_loop(4).due_s) == (4, 9, ())


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    one, same, other = open_loop(3.0, 50, 7), open_loop(3.0, 50, 7), open_loop(3.0, 50, 8)
    assert one == same != other
    assert len(one.due_s) == one.requests == one.clients == 50
    assert list(one.due_s) == sorted(one.due_s) and one.due_s[0] > 0


@pytest.mark.parametrize("seed", range(6))
def test_few_arrivals_come_at_the_rate_that_was_asked_for(seed: int) -> None:
    # Left to chance, 25 of them would miss it by a fifth, and "125 % of what it bears" would be 100.
    assert open_loop(4.0, 25, seed).due_s[-1] == pytest.approx(25 / 4.0)


@pytest.mark.parametrize("rate", [0.5, 4.0, 200.0])
def test_arrivals_are_as_far_apart_as_those_of_people_who_know_nothing_of_each_other(rate: float) -> None:
    due_s = open_loop(rate, 20_000, 1).due_s
    gaps = [after - before for before, after in itertools.pairwise((0.0, *due_s))]
    # An exponential's mean is its spread; an even or a uniform one would have less.
    assert mean(gaps) * rate == pytest.approx(1.0, abs=0.03)
    assert stdev(gaps) * rate == pytest.approx(1.0, abs=0.03)
    for waited in (0.1, 0.5, 1.0, 2.0, 3.0):
        share = sum(one * rate > waited for one in gaps) / len(gaps)
        assert share == pytest.approx(math.exp(-waited), abs=0.015)
    # Nor does one gap tell the next.
    centred = [one * rate - 1 for one in gaps]
    assert mean(a * b for a, b in itertools.pairwise(centred)) == pytest.approx(0.0, abs=0.03)


def test_the_spread_is_median_smallest_and_largest_of_what_is_known() -> None:
    assert Spread.of([3.0, NAN, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    for nothing in ([], [NAN]):
        with pytest.raises(ValueError):
            Spread.of(nothing)


def test_two_differ_when_no_round_of_one_reaches_into_the_others() -> None:
    low, high, between = Spread.of([1.0, 2.0, 3.0]), Spread.of([4.0, 5.0, 6.0]), Spread.of([2.5, 7.0, 9.0])
    assert low.differs(high) and high.differs(low)
    assert not low.differs(between) and not between.differs(low) and not low.differs(low)
    assert not low.differs(Spread.of([3.0, 8.0, 9.0]))


def test_one_round_tells_nothing_however_far_apart() -> None:
    once, often = Spread.of([1.0]), Spread.of([100.0, 101.0, 102.0])
    assert not once.differs(Spread.of([100.0])) and not once.differs(often) and not often.differs(once)
    # One round that was measured among several that were not is one round.
    assert not Spread.of([1.0, NAN, NAN]).differs(often)


@pytest.mark.parametrize("rounds", [2, 3, 4, 5])
def test_how_often_equals_come_apart_by_chance_is_what_counting_every_order_gives(rounds: int) -> None:
    places = range(2 * rounds)
    orders = [set(one) for one in itertools.combinations(places, rounds)]
    apart = sum(
        Spread.of([*map(float, one)]).differs(Spread.of([float(at) for at in places if at not in one]))
        for one in orders
    )
    assert chance_of_apart(rounds) == apart / len(orders)


def test_equals_come_apart_as_often_as_said() -> None:
    chance = random.Random(5)
    draws = 20_000
    apart = 0
    for _ in range(draws):
        one, other = (Spread.of([chance.lognormvariate(0, 0.4) for _ in range(3)]) for _ in range(2))
        apart += one.differs(other)
    assert apart / draws == pytest.approx(chance_of_apart(3), abs=0.01)


class Machine:
    """A tree as Linux shows it: packages, the parts within them, and what else counts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def zone(self, where: str, name: str, joules: float, most: float = 1000.0) -> Path:
        """Set a counter, in joules, ``most`` its largest."""
        place = self.folder / where
        place.mkdir(parents=True, exist_ok=True)
        (place / "name").write_text(f"{name}\n")
        (place / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
        (place / "max_energy_range_uj").write_text(f"{int(most * 1e6)}\n")
        return place


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Two packages with a part each, in both places where Linux shows a part; and a control without a counter."""
    made = Machine(tmp_path)
    (tmp_path / "intel-rapl").mkdir()
    made.zone("intel-rapl:0", "package-0", 100.0)
    made.zone("intel-rapl:1", "package-1", 200.0)
    for part in ("intel-rapl:0:0", "intel-rapl:0/intel-rapl:0:0", "intel-rapl:1:0"):
        made.zone(part, "core", 10.0)
    yield made


def test_energy_is_that_of_all_packages_and_no_part_counts_twice(machine: Machine) -> None:
    meter = EnergyMeter(machine.folder)
    assert meter.joules() == 0.0
    machine.zone("intel-rapl:0", "package-0", 103.0)
    machine.zone("intel-rapl:1", "package-1", 204.5)
    machine.zone("intel-rapl:0:0", "core", 12.0)
    assert meter.joules() == pytest.approx(7.5)


def test_a_laptops_count_of_the_whole_platform_holds_the_package_already(machine: Machine) -> None:
    machine.zone("intel-rapl:2", "psys", 500.0)
    meter = EnergyMeter(machine.folder)
    machine.zone("intel-rapl:0", "package-0", 102.0)
    machine.zone("intel-rapl:2", "psys", 509.0)
    assert meter.joules() == pytest.approx(2.0)


def test_a_counter_that_starts_again_goes_on_where_it_was(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 995.0)
    meter = EnergyMeter(machine.folder)
    machine.zone("intel-rapl:0", "package-0", 2.0)
    machine.zone("intel-rapl:1", "package-1", 201.0)
    assert meter.joules() == pytest.approx(5.0 + 2.0 + 1.0)


def test_a_machine_that_does_not_tell_gives_nothing_and_no_zero(machine: Machine, tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "elsewhere").joules() is None
    (machine.folder / "intel-rapl:1" / "energy_uj").unlink()
    assert EnergyMeter(machine.folder).joules() is None
    (machine.folder / "intel-rapl:1" / "energy_uj").write_text("not a number\n")
    assert EnergyMeter(machine.folder).joules() is None


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_counter_that_we_may_not_read_gives_nothing(
    machine: Machine, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, forbidden = Path.read_text, machine.folder / "intel-rapl:0" / "energy_uj"

    def read(path: Path, *arguments: str, **more: str) -> str:
        # By its mode a file is closed to everybody but root, whom tests may run as.
        if path == forbidden:
            raise PermissionError(13, "Permission denied")
        return whole(path, *arguments, **more)

    if when == "before":
        monkeypatch.setattr(Path, "read_text", read)
    meter = EnergyMeter(machine.folder)
    monkeypatch.setattr(Path, "read_text", read)
    assert meter.joules() is None
