"""What options of ``edgevit bench`` become."""

import pytest

from edgevit.cli.bench import _schedule


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, (0, 0)), (2.0, (10, 2.0))])
def test_no_warm_up_is_none_at_all(seconds: float, expected: tuple[int, float]) -> None:
    schedule = _schedule(1, None, seconds, None, 0)
    assert (schedule.warmup_runs, schedule.warmup_seconds) == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fp16"], "--runtime tensorrt"),
        (["--bf16"], "--format openvino"),
        (["--bf16", "--runtime", "tensorrt"], "--bf16 is for OpenVINO"),
        (["--fp16", "--bf16", "--format", "openvino"], "exclude each other"),
    ],
)
def test_less_precision_is_asked_of_what_has_it(edgevit, flags, said):
    outcome = edgevit("bench", "elevit", *flags)
    assert outcome.code == 2
    assert said in outcome.err
