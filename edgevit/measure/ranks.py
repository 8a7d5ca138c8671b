"""The rank test that says whether two sets of round medians differ."""

from __future__ import annotations

from collections.abc import Sequence
from math import erfc, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError

__all__ = ["rank_test"]

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
