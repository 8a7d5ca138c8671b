import numpy as np
import pytest

from edgevit.verify import TOLERANCES, compare, verify_outputs

WANT = np.random.default_rng(0).standard_normal((3, 1, 10)).astype(np.float32)


def check(got, tolerance=1e-4, want=WANT):
    return verify_outputs(
        ["logits"], [want], [got], label="test", proves="verified", tolerance=tolerance
    )


def test_equal_arrays_are_verified():
    result = check(WANT.copy())
    assert (result.status, result.reason) == ("verified", None)
    assert result.worst.max_abs == 0
    assert result.worst.cosine == pytest.approx(1)


def test_tolerance_is_a_share_of_the_output_scale():
    scale = np.abs(WANT).max()
    got = WANT.copy()
    got[1, 0, 3] += 0.9e-4 * scale
    assert check(got).ok
    got[1, 0, 3] += 0.2e-4 * scale
    result = check(got)
    assert result.status == "mismatch"
    assert "logits is off by" in result.reason


def test_the_sample_that_differs_shows():
    got = WANT.copy()
    got[2] += 1
    comparison = check(got).worst
    assert comparison.per_sample[:2] == (0, 0)
    assert comparison.per_sample[2] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad):
    got = WANT.copy()
    got[0, 0, 0] = bad
    result = check(got, tolerance=1e9)
    assert result.status == "mismatch"
    assert "not finite" in result.reason


def test_a_model_that_gives_nan_is_named_as_the_culprit():
    want = WANT.copy()
    want[0] = np.nan
    assert "of the model itself" in check(want.copy(), want=want).reason


def test_another_shape_is_a_mismatch():
    assert "has shape" in check(WANT.reshape(3, 10, 1)).reason


def test_another_number_of_outputs_is_a_mismatch():
    result = verify_outputs(
        ["a", "b"], [WANT, WANT], [WANT], label="t", proves="verified", tolerance=1
    )
    assert result.status == "mismatch"


def test_zero_outputs_agree_only_with_zero():
    zero = np.zeros_like(WANT)
    assert check(zero.copy(), want=zero).ok
    assert not check(WANT, want=zero).ok


def test_spread_tells_an_output_that_ignores_its_input():
    constant = np.repeat(WANT[:1], 3, axis=0)
    assert compare("logits", constant, constant).spread == 0
    assert compare("logits", WANT, WANT).spread > 1


def test_tolerances_grow_with_what_is_rounded():
    order = ("exact", "passes", "fp32", "fp16-weights", "fp16", "bf16")
    values = [TOLERANCES[name] for name in order]
    assert values == sorted(values)


def test_json_holds_no_infinity():
    got = WANT.copy()
    got[0] = np.nan
    comparison = check(got).to_json()["comparisons"][0]
    assert comparison["max_abs"] is None
    assert comparison["per_sample_max_abs"][0] is None
