"""The rank test that says whether two sets of round medians differ, and by which ratio.

The interval of the ratio is the test turned round. Scale the first side by r: of the m n quotients
second / first, those below r are the pairs in which the first is the greater, Mann and Whitney's U.
The interval holds every r that the test would not reject. So with u the largest U that it rejects,
and the quotients in order, q[0] <= q[1] <= ..., the interval goes from q[u] to q[m n - 1 - u], and
excludes 1 where the test says that the sides differ (Hodges and Lehmann, 1963; Moses).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import erfc, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError

__all__ = ["rank_test", "ratio_interval", "smallest_p"]

_EXACT_LIMIT = 30


def rank_test(
    first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any]
) -> float:
    """Two-sided p-value of the Mann-Whitney rank test that two samples come from one distribution.

    Exact, ties included, up to 30 values a side (the sums of midranks of all splits are counted);
    above, the normal approximation with corrections for ties and continuity.

    Args:
        first: values of one side, such as the round medians of one subject.
        second: values of the other side.

    Raises:
        UsageError: a side is empty or holds NaN.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        raise UsageError("rank test: both sides need at least one value, and no NaN")
    ranks = _doubled_midranks(np.concatenate([a, b]))
    if max(len(a), len(b)) <= _EXACT_LIMIT:
        return _exact_p(ranks, len(a))
    return _normal_p(ranks, len(a))


def smallest_p(first: int, second: int) -> float:
    """The smallest p-value that so many values a side can reach: that of sides wholly apart."""
    return _p_without_ties(first, second, 0)


def ratio_interval(
    first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any], alpha: float
) -> tuple[float, float] | None:
    """Interval of the ratio of the second side's level to the first's.

    Args:
        first: positive values of one side, such as the round medians of a result.
        second: positive values of the other side.
        alpha: the interval covers the ratio with a probability of ``1 - alpha`` at least.

    Returns:
        Its ends; None if there are too few values for any interval.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    rejected = _rejected(len(a), len(b), alpha)
    if rejected is None:
        return None
    quotients = np.sort((b[None, :] / a[:, None]).ravel())
    return float(quotients[rejected]), float(quotients[-1 - rejected])


@lru_cache(maxsize=256)
def _rejected(first: int, second: int, alpha: float) -> int | None:
    """The largest U, below its mean, at which the test without ties gives ``alpha`` or less."""
    low, high = -1, first * second // 2
    while low < high:
        middle = (low + high + 1) // 2
        if _p_without_ties(first, second, middle) <= alpha:
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else low


@lru_cache(maxsize=1024)
def _p_without_ties(first: int, second: int, u: int) -> float:
    """The p-value of a split in which ``u`` pairs have the first side's value above the other's."""
    above, rest = divmod(u, second)
    # So many of the first side lie above all of the second, one lies above `rest` of it.
    places = [-1.0] * (first - above) + [float(second)] * above
    if rest:
        places[0] = rest - 0.5
    spread = np.asarray(places) + np.linspace(0, 0.25, first)
    return rank_test(spread, np.arange(second, dtype=np.float64))


def _doubled_midranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Twice the mean rank of each value, a whole number even where values are tied."""
    ordered = np.sort(values)
    low = np.searchsorted(ordered, values, "left")
    high = np.searchsorted(ordered, values, "right")
    return np.asarray(low + high + 1, np.int64)


def _exact_p(ranks: NDArray[np.int64], count: int) -> float:
    total = int(ranks.sum())
    # ways[k, s]: in how many ways k of the values have ranks that sum to s.
    ways = np.zeros((count + 1, total + 1))
    ways[0, 0] = 1
    for rank in ranks.tolist():
        ways[1:, rank:] += ways[:-1, :-rank]
    # Distance of the rank sum from its mean, times the number of values to stay whole.
    distance = np.abs(np.arange(total + 1) * len(ranks) - count * total)
    observed = distance[int(ranks[:count].sum())]
    return float(ways[count, distance >= observed].sum() / ways[count].sum())


def _normal_p(ranks: NDArray[np.int64], count: int) -> float:
    n, others = len(ranks), len(ranks) - count
    _, ties = np.unique(ranks, return_counts=True)
    spread = n + 1 - float((ties**3 - ties).sum()) / (n * (n - 1))
    variance = count * others * spread / 12
    if variance <= 0:
        return 1.0
    distance = abs(float(ranks[:count].sum()) / 2 - count * (n + 1) / 2)
    return erfc(max(0.0, distance - 0.5) / sqrt(2 * variance))
