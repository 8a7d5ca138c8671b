"""Races between files, all in one process, by its CPU time.

They take turns in shuffled order, a block of runs each, round after round; then all are
opened anew, and so on, since the same file opened twice can differ by some percent.
"""

from __future__ import annotations

import gc
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ratios import compare
from exporters.quiet import quiet

__all__ = ["Array", "Limits", "Orders", "Racer", "Run", "race"]

Array = NDArray[np.float32]
Run = Callable[[Array], Array]

#: Seconds of a block of runs.
BLOCK_S = 0.04
#: Runs before an opening's rounds; one is enough where it takes so long.
WARM_UP, SLOW_S = 3, 0.3
#: Of an opening, and openings of a race, however long they take.
LEAST_ROUNDS, LEAST_OPENINGS = 2, 4


@dataclass
class Racer:
    """What can be opened anew, and its CPU seconds a run, round by round of each opening."""

    name: str
    open: Callable[[], Run]
    run: Run | None = None
    inner: int = 0
    seconds: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """How long a race lasts.

    Args:
        openings: of every file, but fewer where the seconds are over.
        rounds: of an opening, but fewer where its share of the seconds is over.
        seconds: of rounds, all openings together.
        floor: where the last candidate is shown to be on one side of it, the race is over.
    """

    openings: int = 12
    rounds: int = 15
    seconds: float = 60.0
    floor: float | None = None

    def part(self, parts: int, floor: float | None) -> Limits:
        """Those of one race where several share the openings and the seconds.

        An order and its reverse belong together, so each has an even number of openings.
        """
        openings = 2 * math.ceil(self.openings / parts / 2)
        return Limits(openings, self.rounds, self.seconds / parts, floor)


def race(racers: Sequence[Racer], x: Array, limits: Limits, seed: str = "") -> float | None:
    """Fill in CPU seconds a run: a block each, in shuffled order, round after round.

    Returns:
        How many cores others kept busy meanwhile; None where that cannot be told.
    """
    orders, turns = Orders(racers, f"{seed} openings"), Orders(racers, f"{seed} rounds")
    watch, spent_s = OthersWatch(), 0.0
    for opening in range(limits.openings):
        # An order and its reverse belong together.
        ended = opening >= LEAST_OPENINGS and opening % 2 == 0
        if ended and spent_s > limits.seconds:
            break
        if ended and limits.floor and is_told(racers, limits.floor):
            break
        open_all(orders.next(), x)
        start = time.perf_counter()
        for number in range(limits.rounds):
            taken_s = time.perf_counter() - start
            if number >= LEAST_ROUNDS and taken_s > limits.seconds / limits.openings:
                break
            for racer in turns.next():
                block(racer, x)
        gc.enable()
        spent_s += time.perf_counter() - start
    return watch.cores()


class Orders:
    """Shuffled orders, each followed by its reverse: on average everybody has the same place.

    Of ten copies of a file (efficientvit_m4), the first opened was slower by 2.1 +- 1.1 % than the
    mean, the last faster by 1.2 +- 0.4 %; and the machine drifts.
    """

    def __init__(self, racers: Sequence[Racer], seed: str) -> None:
        self._order, self._shuffler, self._shuffled = list(racers), random.Random(seed), False

    def next(self) -> Sequence[Racer]:
        """The next one."""
        self._shuffled = not self._shuffled
        if self._shuffled:
            self._shuffler.shuffle(self._order)
        else:
            self._order.reverse()
        return self._order


def open_all(racers: Sequence[Racer], x: Array) -> None:
    """Open every file anew, in this order, with nothing of the last opening left."""
    for racer in racers:
        racer.run = None
    gc.enable()
    gc.collect()
    for racer in racers:
        with quiet():
            racer.run = racer.open()
        taken_s = [0.0]
        while len(taken_s) <= WARM_UP and taken_s[-1] < SLOW_S:
            start = time.perf_counter()
            racer.run(x)
            taken_s.append(time.perf_counter() - start)
        racer.inner = racer.inner or max(1, round(BLOCK_S / statistics.mean(taken_s[1:])))
        racer.seconds.append([])
    gc.disable()


def is_told(racers: Sequence[Racer], floor: float) -> bool:
    """Whether the last one's speed is above or below a share of the first one's."""
    found = compare(racers[0].seconds, racers[-1].seconds)
    return len(racers) > 1 and not found.low <= floor <= found.high


def block(racer: Racer, x: Array) -> None:
    """One round of one candidate."""
    assert racer.run is not None
    if racer.inner > 1:
        racer.run(x)  # its own weights back into the caches, whoever ran before
    start_ns = time.process_time_ns()
    for _ in range(racer.inner):
        racer.run(x)
    racer.seconds[-1].append((time.process_time_ns() - start_ns) / racer.inner / 1e9)


class OthersWatch:
    """How many cores processes other than this one keep busy, from its making on."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float | None]:
        return time.perf_counter(), time.process_time(), _busy_seconds()

    def cores(self) -> float | None:
        """Mean number of cores; None where the system does not tell."""
        (wall, own, busy), (wall0, own0, busy0) = self._now(), self._start
        if busy is None or busy0 is None:
            return None
        return round(max(0.0, (busy - busy0 - (own - own0)) / (wall - wall0)), 3)


def _busy_seconds() -> float | None:
    """Seconds that all cores together were busy, of Linux's own count."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *rest = map(int, line[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
