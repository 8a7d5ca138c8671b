"""Warm-up, and rounds of timed blocks.

What is timed is one call of ``infer`` with nothing of ours between the two readings of the clock:
no branch, buffers bound before, events sent after the block, the garbage collector off. Where one
inference is shorter than ``inner_seconds``, a region holds ``inner`` of them and the sample is its
time divided by that number.

In every round each subject has one block, in an order shuffled by a seeded generator, so that drift
falls on all alike. Where there are several subjects a block opens with one inference that is not
timed: it brings the subject's weights back into the caches, and lets the threads of the one before
go to sleep.

With a target for the interval of the median a subject goes on until it is that narrow. The interval
is the one that the host computes later: from the k-th smallest to the k-th largest of R round
medians, widened to hold the median of all samples, k being the largest for which
P(k <= B <= R - k) >= 0.95, B ~ Binomial(R, 1/2). Fewer than 6 rounds cannot reach that level, so
they never end a subject.
"""

import gc
import random
from typing import Any, Callable, Dict, List, Optional, Sequence

from .clock import clock_ns
from .errors import AgentError, Stopped, describe

Infer = Callable[[], Any]

#: Least number of rounds that a fixed number of runs is spread over.
MIN_ROUNDS = 10
#: What the interval of the median covers, in percent.
LEVEL_PERCENT = 95


class Schedule:
    """How long to measure; every field of the job's ``schedule``."""

    def __init__(
        self,
        runs: Optional[int] = None,
        min_runs: int = 50,
        min_seconds: float = 2.0,
        max_seconds: float = 60.0,
        warmup_runs: int = 10,
        warmup_seconds: float = 1.0,
        block_seconds: float = 0.1,
        inner_seconds: float = 0.001,
        seed: int = 0,
        interval: Optional[float] = None,
    ) -> None:
        self.runs = runs
        self.min_runs = min_runs
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.warmup_runs = warmup_runs
        self.warmup_seconds = warmup_seconds
        self.block_seconds = block_seconds
        self.inner_seconds = inner_seconds
        self.seed = seed
        self.interval = interval

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> "Schedule":
        """From a job.

        Raises:
            AgentError: a field that there is not.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise AgentError("protocol", "schedule: {}".format(error)) from None


class Stopwatch:
    """One subject's inference being timed, and how far it has come."""

    def __init__(self, name: str, infer: Infer) -> None:
        self.name = name
        self.infer = infer
        self.inner = 1
        self.region_ns = 0.0
        self.count = 0
        self.total_ns = 0
        self._samples: List[int] = []
        self._medians: List[float] = []

    def warm_up(self, schedule: Schedule, checkpoint: Callable[[], None]) -> Dict[str, Any]:
        """Run until both a count and a time are reached; then settle how many make a region."""
        times: List[int] = []
        start = now = clock_ns()
        while len(times) < schedule.warmup_runs or now - start < schedule.warmup_seconds * 1e9:
            times += time_regions(self.infer, 1, limit=1)
            checkpoint()
            now = clock_ns()
        latest = sorted(times[len(times) // 2 :] or time_regions(self.infer, 1, limit=1))
        once = max(1, latest[len(latest) // 2])
        wanted = schedule.inner_seconds * 1e9
        self.inner = 1 if once >= wanted else int(-(-wanted // once))
        self.region_ns = float(once * self.inner)
        return {"runs": len(times), "ns": now - start, "inner": self.inner}

    def block(self, limit: Optional[int], budget_ns: float) -> List[int]:
        """Time one block; see :func:`time_regions`. Samples are ns of one inference."""
        regions = time_regions(self.infer, self.inner, limit=limit, budget_ns=budget_ns)
        samples = regions if self.inner == 1 else [round(ns / self.inner) for ns in regions]
        return self._keep(samples, sum(regions))

    def finished(self, schedule: Schedule) -> bool:
        """Whether count and time are met, or the cap."""
        if schedule.runs is not None:
            return self.count >= schedule.runs
        seconds = self.total_ns / 1e9
        met = self.count >= schedule.min_runs and seconds >= schedule.min_seconds
        if met and schedule.interval is not None:
            met = self._narrow(schedule.interval)
        return met or seconds >= schedule.max_seconds

    def _keep(self, samples: List[int], spent_ns: int) -> List[int]:
        self.count += len(samples)
        self.total_ns += spent_ns
        self._samples += samples
        self._medians.append(median(sorted(samples)))
        return samples

    def _narrow(self, target: float) -> bool:
        """Whether the interval of the median is at most that share of the median wide."""
        self._samples.sort()  # sorted but for the latest block: quick
        width = interval_width(self._samples, self._medians)
        return width is not None and width <= target


def median(ordered: Sequence[float]) -> float:
    """The median of sorted values."""
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return (ordered[middle - 1] + ordered[middle]) / 2


def interval_width(ordered: Sequence[float], medians: Sequence[float]) -> Optional[float]:
    """Width of the interval of the median as a share of the median.

    Args:
        ordered: all samples, sorted.
        medians: of the rounds, in any order.

    Returns:
        None for fewer rounds than the level needs.
    """
    k = interval_order(len(medians))
    if k is None:
        return None
    center, ends = median(ordered), sorted(medians)
    return (max(ends[-k], center) - min(ends[k - 1], center)) / center


def interval_order(rounds: int) -> Optional[int]:
    """The largest k whose interval covers the level; None if none does."""
    outcomes, ways, below = 2**rounds, 1, 0
    k = 0
    # below: outcomes of Binomial(rounds, 1/2) under k; ways: those that are k.
    while 100 * (outcomes - 2 * (below + ways)) >= LEVEL_PERCENT * outcomes:
        below += ways
        k += 1
        ways = ways * (rounds - k + 1) // k
    return k or None


class ToldTimes(Stopwatch):
    """An inference that a runtime times by its own clock, elsewhere than in this process.

    Samples are what it tells. Budgets and caps count what was spent on them, getting them there and
    back included: on a phone that is many times the inference.

    Args:
        name: the subject's.
        measure: see :meth:`devices.agent.backends.base.Backend.measure`.
    """

    def __init__(self, name: str, measure: Callable[[Optional[int], float], List[int]]) -> None:
        super().__init__(name, _nothing)
        self._measure = measure

    def warm_up(self, schedule: Schedule, checkpoint: Callable[[], None]) -> Dict[str, Any]:
        """Run until both a count and a time are reached; a region is one inference."""
        times: List[int] = []
        start = now = clock_ns()
        while len(times) < schedule.warmup_runs or now - start < schedule.warmup_seconds * 1e9:
            times += self._measure(max(1, schedule.warmup_runs - len(times)), float("inf"))
            checkpoint()
            now = clock_ns()
        latest = sorted(times[len(times) // 2 :] or self._measure(1, float("inf")))
        self.region_ns = float(max(1, latest[len(latest) // 2]))
        return {"runs": len(times), "ns": now - start, "inner": 1}

    def block(self, limit: Optional[int], budget_ns: float) -> List[int]:
        """The times of one block, as the runtime tells them."""
        start = clock_ns()
        samples = self._measure(limit, budget_ns)
        return self._keep(samples, clock_ns() - start)


def _nothing() -> None:
    pass


def time_regions(
    infer: Infer, inner: int, limit: Optional[int] = None, budget_ns: float = float("inf")
) -> List[int]:
    """Time regions of ``inner`` inferences until the count or the time is reached, at least one.

    Returns:
        The regions' times in ns.
    """
    most = float("inf") if limit is None else limit
    times: List[int] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock_ns()
        if inner == 1:
            while True:
                before = clock_ns()
                infer()
                after = clock_ns()
                times.append(after - before)
                if len(times) >= most or after - start >= budget_ns:
                    return times
        turns = range(inner)
        while True:
            before = clock_ns()
            for _ in turns:
                infer()
            after = clock_ns()
            times.append(after - before)
            if len(times) >= most or after - start >= budget_ns:
                return times
    finally:
        if collecting:
            gc.enable()


def orders(names: Sequence[str], seed: int) -> Any:
    """Endless orders of the subjects, one a round; they depend on nothing but names and seed."""
    generator = random.Random(seed)
    while True:
        order = list(names)
        generator.shuffle(order)
        yield order


class Rounds:
    """Blocks of all subjects, round after round, until each is finished or failed.

    Args:
        watches: the subjects, warmed up.
        schedule: how long.
        emit: takes an event's name and fields.
        checkpoint: raises to end.
    """

    def __init__(
        self,
        watches: Sequence[Stopwatch],
        schedule: Schedule,
        emit: Callable[..., None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._active = {watch.name: watch for watch in watches}
        self._several = len(self._active) > 1
        self._schedule = schedule
        self._emit = emit
        self._checkpoint = checkpoint
        self._planned = planned_rounds(watches, schedule)

    def run(self) -> None:
        """Measure."""
        for number, order in enumerate(orders(sorted(self._active), self._schedule.seed)):
            if not self._active:
                return
            for name in order:
                if name in self._active:
                    self._block(self._active[name], number)
                    self._checkpoint()

    def _block(self, watch: Stopwatch, number: int) -> None:
        limit, budget_ns = self._extent(number)
        if limit == 0:
            return
        try:
            if self._several:
                watch.infer()
            samples = watch.block(limit, budget_ns)
        except Stopped:
            raise
        except Exception as error:
            del self._active[watch.name]
            message = error.message if isinstance(error, AgentError) else describe(error)
            self._emit("error", id=watch.name, kind="run", message=message)
            return
        finished = watch.finished(self._schedule)
        self._emit(
            "samples",
            id=watch.name,
            round=number,
            inner=watch.inner,
            ns=samples,
            finished=finished,
        )
        if finished:
            del self._active[watch.name]

    def _extent(self, number: int) -> "tuple[Optional[int], float]":
        """How many regions this round's blocks have, and how long they may last, in ns."""
        runs = self._schedule.runs
        if runs is None:
            return None, self._schedule.block_seconds * 1e9
        share = runs * (number + 1) // self._planned - runs * number // self._planned
        return share, float("inf")


def planned_rounds(watches: Sequence[Stopwatch], schedule: Schedule) -> int:
    """Rounds for a fixed number of runs: blocks about as long as asked, but ten rounds at least."""
    if schedule.runs is None or not watches:
        return MIN_ROUNDS
    slowest = max(watch.region_ns for watch in watches)
    wanted = int(-(-schedule.runs * slowest // max(1.0, schedule.block_seconds * 1e9)))
    return max(1, min(schedule.runs, max(MIN_ROUNDS, wanted)))
