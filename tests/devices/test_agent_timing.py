"""The clock's own rules, with inferences whose time is known."""

import gc
import random
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from devices.agent import timing
from devices.agent.timing import (
    Rounds,
    Schedule,
    Stopwatch,
    interval_width,
    median,
    orders,
    planned_rounds,
    time_regions,
)
from edgevit.measure.statistics import Statistics


class FakeClock:
    """A clock that moves when an inference says so, and a little with every reading."""

    def __init__(self) -> None:
        self.now = 0
        self.readings = 0

    def __call__(self) -> int:
        self.readings += 1
        self.now += 1
        return self.now

    def lasting(self, ns: int) -> Callable[[], None]:
        def infer() -> None:
            self.now += ns

        return infer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(timing, "clock_ns", fake)
    return fake


def no_checkpoint() -> None:
    pass


def test_a_region_holds_nothing_but_the_inferences(clock: FakeClock) -> None:
    assert time_regions(clock.lasting(1000), 1, limit=3) == [1001, 1001, 1001]
    assert time_regions(clock.lasting(1000), 5, limit=2) == [5001, 5001]


def test_the_clock_is_read_twice_a_region(clock: FakeClock) -> None:
    time_regions(clock.lasting(10), 100, limit=7)
    assert clock.readings == 1 + 2 * 7


def test_a_block_ends_with_its_time_but_has_one_region(clock: FakeClock) -> None:
    assert len(time_regions(clock.lasting(1000), 1, budget_ns=10_000)) == 10
    assert len(time_regions(clock.lasting(50_000), 1, budget_ns=10_000)) == 1


def test_the_garbage_collector_is_off_inside_and_on_after() -> None:
    seen = []
    assert gc.isenabled()
    time_regions(lambda: seen.append(gc.isenabled()), 2, limit=2)
    assert seen == [False] * 4
    assert gc.isenabled()


def test_the_garbage_collector_is_on_again_after_an_error() -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        time_regions(fail, 1, limit=1)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("once_ns", "inner"), [(5_000_000, 1), (1_000_000, 1), (400_000, 3), (10_000, 100)]
)
def test_inner_fills_a_millisecond(clock: FakeClock, once_ns: int, inner: int) -> None:
    watch = Stopwatch("a", clock.lasting(once_ns - 1))
    assert watch.warm_up(Schedule(warmup_seconds=0), no_checkpoint)["inner"] == inner
    samples = watch.block(limit=4, budget_ns=1e12)
    assert len(samples) == 4
    assert samples[0] == pytest.approx(once_ns, abs=1)


def test_warm_up_meets_count_and_time(clock: FakeClock) -> None:
    slow = Stopwatch("a", clock.lasting(1_000_000_000))
    warmed = slow.warm_up(Schedule(warmup_runs=3, warmup_seconds=1), no_checkpoint)
    assert warmed["runs"] == 3
    quick = Stopwatch("b", clock.lasting(10_000_000))
    warmed = quick.warm_up(Schedule(warmup_runs=3, warmup_seconds=1), no_checkpoint)
    assert warmed["runs"] == pytest.approx(100, abs=1)
    assert warmed["ns"] >= 1_000_000_000


def test_warm_up_may_be_none(clock: FakeClock) -> None:
    schedule = Schedule(warmup_runs=0, warmup_seconds=0)
    warmed = Stopwatch("a", clock.lasting(100_000)).warm_up(schedule, no_checkpoint)
    assert warmed["runs"] == 0
    assert warmed["inner"] == 10


def test_inner_goes_by_the_later_half_of_the_warm_up(clock: FakeClock) -> None:
    lasting = iter([50_000_000, 50_000_000, 50_000_000, *[100_000] * 10])

    def infer() -> None:
        clock.now += next(lasting)

    warmed = Stopwatch("a", infer).warm_up(Schedule(warmup_runs=8, warmup_seconds=0), no_checkpoint)
    assert warmed["inner"] == 10


def test_orders_are_permutations_that_the_seed_decides() -> None:
    names = ["a", "b", "c", "d"]
    first = list(islice(orders(names, 3), 20))
    assert first == list(islice(orders(names, 3), 20))
    assert first != list(islice(orders(names, 4), 20))
    assert all(sorted(order) == names for order in first)
    assert len({tuple(order) for order in first}) > 10


def measure(watches: list[Stopwatch], schedule: Schedule) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for watch in watches:
        watch.warm_up(schedule, no_checkpoint)

    def emit(event: str, **fields: Any) -> None:
        told.append({"event": event, **fields})

    Rounds(watches, schedule, emit, no_checkpoint).run()
    return told


def test_slow_and_fast_have_the_same_rounds_for_a_number_of_runs(clock: FakeClock) -> None:
    slow = Stopwatch("slow", clock.lasting(50_000_000))
    fast = Stopwatch("fast", clock.lasting(2_000_000))
    told = measure([slow, fast], Schedule(runs=100, warmup_seconds=0))
    rounds = {name: [e["round"] for e in told if e["id"] == name] for name in ("slow", "fast")}
    # 100 runs of 50 ms in blocks of 100 ms.
    assert rounds["slow"] == rounds["fast"] == list(range(51))
    assert sum(len(e["ns"]) for e in told if e["id"] == "fast") == 100


def test_rounds_for_a_number_of_runs(clock: FakeClock) -> None:
    watch = Stopwatch("a", clock.lasting(1))
    watch.region_ns = 1e6
    assert planned_rounds([watch], Schedule(runs=10_000)) == 100
    assert planned_rounds([watch], Schedule(runs=50)) == 10
    assert planned_rounds([watch], Schedule(runs=4)) == 4


def test_a_block_opens_with_an_untimed_inference_if_others_ran_between(clock: FakeClock) -> None:
    def cold(name: str) -> Callable[[], None]:
        def infer() -> None:
            clock.now += 3_000_000 if ran[0] != name else 2_000_000
            ran[0] = name

        return infer

    ran = [""]
    watches = [Stopwatch(name, cold(name)) for name in ("a", "b", "c")]
    told = measure(watches, Schedule(runs=20, warmup_seconds=0))
    assert {ns for event in told for ns in event["ns"]} == {2_000_001}


def test_a_subject_that_fails_leaves_the_others(clock: FakeClock) -> None:
    left = iter(range(15))

    def fail() -> None:
        clock.now += 2_000_000
        if next(left, None) is None:
            raise ValueError("out of memory")

    watches = [Stopwatch("bad", fail), Stopwatch("good", clock.lasting(2_000_000))]
    told = measure(watches, Schedule(runs=30, warmup_runs=2, warmup_seconds=0))
    (error,) = [event for event in told if event["event"] == "error"]
    assert (error["id"], error["kind"]) == ("bad", "run")
    assert error["message"] == "ValueError: out of memory"
    assert sum(len(e["ns"]) for e in told if e["event"] == "samples" and e["id"] == "good") == 30


@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 6, 7, 8, 20, 41, 400, 1500])
def test_the_interval_is_the_one_that_results_hold(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    values = (1e6 * generator.lognormal(0, 0.1, (rounds, 5))).astype(int).tolist()
    medians = [median(sorted(row)) for row in values]
    width = interval_width(sorted(ns for row in values for ns in row), medians)
    if rounds < 6:
        assert width is None
    else:
        assert width == pytest.approx(Statistics.from_rounds(values).interval_width, rel=1e-12)


def unsteady(clock: FakeClock, share: float) -> Callable[[], None]:
    """Inferences of about 20 ms that differ by a seeded share from block to block."""
    generator = random.Random(5)

    def infer() -> None:
        clock.now += int(20e6 * (1 + share * generator.uniform(-1, 1)))

    return infer


def test_a_narrow_interval_is_waited_for(clock: FakeClock) -> None:
    short = Schedule(min_runs=5, min_seconds=0.1, max_seconds=500, warmup_seconds=0)
    target = Schedule(**{**vars(short), "interval": 0.02})
    plain = measure([Stopwatch("a", unsteady(clock, 0.3))], short)
    narrow = measure([Stopwatch("a", unsteady(clock, 0.3))], target)
    assert len(narrow) > 3 * len(plain)
    rounds = [[int(ns) for ns in event["ns"]] for event in narrow]
    assert Statistics.from_rounds(rounds).interval_width <= 0.02
    assert Statistics.from_rounds(rounds[:-1]).interval_width > 0.02


def test_no_more_is_measured_than_the_interval_needs(clock: FakeClock) -> None:
    schedule = Schedule(min_runs=5, min_seconds=0.1, interval=0.02, warmup_seconds=0)
    told = measure([Stopwatch("a", clock.lasting(20_000_000))], schedule)
    assert len(told) == 6  # rounds that the level needs


def test_the_cap_ends_what_never_gets_narrow(clock: FakeClock) -> None:
    schedule = Schedule(min_seconds=0.1, max_seconds=3, interval=1e-6, warmup_seconds=0)
    told = measure([Stopwatch("a", unsteady(clock, 0.5))], schedule)
    assert sum(ns for event in told for ns in event["ns"]) == pytest.approx(3e9, rel=0.05)


def test_the_last_samples_say_that_they_are(clock: FakeClock) -> None:
    watches = [Stopwatch("slow", clock.lasting(50_000_000)), Stopwatch("b", clock.lasting(2_000))]
    told = measure(watches, Schedule(runs=30, warmup_seconds=0))
    for name in ("slow", "b"):
        said = [event["finished"] for event in told if event["id"] == name]
        assert said == [False] * (len(said) - 1) + [True]


def test_the_loop_costs_next_to_nothing() -> None:
    # An empty inference of a hundred turns: what is left is the loop and the clock.
    per_inference = min(time_regions(lambda: None, 1000, limit=50)) / 1000
    assert per_inference < 2_000  # ns; tens of ns on a quiet machine


def test_the_clock_counts_nanoseconds() -> None:
    from devices.agent.clock import clock_ns

    before = clock_ns()
    time.sleep(0.01)
    assert 9e6 < clock_ns() - before < 5e9
