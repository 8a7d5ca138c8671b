"""Which candidate is faster, from rounds in which both were timed.

The rounds of a job are interleaved, so that whatever happens to the machine happens to all: the
quotient of two candidates' medians in one round is free of it. The interval of the median quotient
comes from order statistics (the sign test turned round), as that of a latency does, and holds the
true one in 99 of 100 cases; fewer than 8 rounds reach no such level.

Where a runtime puts weights and buffers when it opens a file stays for the whole job, and is worth
some percent of a small model's time. So the interval is widened by what that luck may be, which
shrinks with the root of the number of jobs.

    slower      the interval lies above 1, and the median quotient above what counts as alike
    faster      the inverse
    the same    the interval lies within the regret on both sides of 1
    not faster  it does so on the lower side: the other one can be taken
    open        none of these; more rounds may tell
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, exp, log, sqrt
from statistics import median
from typing import Any

__all__ = ["ALIKE", "REGRET", "Rounds", "Verdict", "fastest", "judge"]

#: Median ns of one inference by stage, slice and round: rounds of the same key were interleaved.
Rounds = Mapping[tuple[int, int, int], float]

#: Share below which a difference does not count.
ALIKE = 0.01
#: Share by which another one may be faster than what is taken, as far as is shown. To show less
#: takes as many openings as a budget of minutes has not.
REGRET = 0.03
#: How far the quotient of two files in one job may be off by luck. Its standard deviation, with
#: both files opened ten times, was 0.9 to 2.2 % (efficientvit_m0, efficientvit_m4, levit_cifar10,
#: soft_tiny in onnxruntime).
LUCK = 0.04
#: Percent of cases in which the interval holds the true quotient.
LEVEL = 99


@dataclass(frozen=True)
class Verdict:
    """One candidate against another.

    Args:
        word: ``"slower"``, ``"faster"``, ``"the same"``, ``"not faster"`` or ``"open"``.
        ratio: median quotient of its time to the other's; None without common rounds.
        interval: of that, luck included; None for too few rounds.
        rounds: how many they have in common.
    """

    word: str
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        """As ``tune.json`` holds it."""
        interval = list(self.interval) if self.interval else None
        return {
            "verdict": self.word, "ratio": self.ratio, "interval": interval, "rounds": self.rounds,
        }  # fmt: skip


def judge(own: Rounds, other: Rounds) -> Verdict:
    """A candidate against another, from the rounds that both have."""
    common = own.keys() & other.keys()
    quotients = sorted(own[key] / other[key] for key in common)
    if not quotients:
        return Verdict("open")
    ratio, interval = median(quotients), _interval(quotients)
    if interval is None:
        return Verdict("open", ratio, None, len(quotients))
    luck = 1 + LUCK / sqrt(len({(stage, part) for stage, part, _ in common}))
    low, high = interval = interval[0] / luck, interval[1] * luck
    if low > 1 and ratio > 1 + ALIKE:
        word = "slower"
    elif high < 1 and ratio * (1 + ALIKE) < 1:
        word = "faster"
    elif low * (1 + REGRET) >= 1:
        word = "the same" if high <= 1 + REGRET else "not faster"
    else:
        word = "open"
    return Verdict(word, ratio, interval, len(quotients))


def fastest(names: Sequence[str], rounds: Mapping[str, Rounds]) -> list[str]:
    """Names in the order of their level, the fastest first.

    The level of each is its mean distance (in logarithms) from all others, so that rounds which not
    all have in common do no harm.
    """

    def level(name: str) -> float:
        ratios = [judge(rounds[name], rounds[other]).ratio for other in names if other != name]
        logs = [log(ratio) for ratio in ratios if ratio]
        return exp(sum(logs) / len(logs)) if logs else 1.0

    return sorted(names, key=level)


def _interval(ordered: Sequence[float]) -> tuple[float, float] | None:
    """From the k-th smallest to the k-th largest, the widest k that covers the level."""
    count, below, k = len(ordered), 0, 0
    while 100 * (2**count - 2 * (below + comb(count, k))) >= LEVEL * 2**count:
        below += comb(count, k)
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else None
