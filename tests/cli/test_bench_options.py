"""What options of ``edgevit bench`` become."""

import pytest

from edgevit.cli.bench import _schedule


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, (0, 0)), (2.0, (10, 2.0))])
def test_no_warm_up_is_none_at_all(seconds: float, expected: tuple[int, float]) -> None:
    schedule = _schedule(1, None, seconds, None, 0)
    assert (schedule.warmup_runs, schedule.warmup_seconds) == expected


def test_half_precision_is_tensorrts(edgevit):
    outcome = edgevit("bench", "elevit", "--fp16")
    assert outcome.code == 2
    assert "--runtime tensorrt" in outcome.err
