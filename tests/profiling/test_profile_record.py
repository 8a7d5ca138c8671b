import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.errors import BundleError, OptionError, UsageError
from edgevit.measure.profile import (
    BlockTime,
    OpTime,
    Profile,
    Roof,
    interval_order,
    read_profiles,
)
from edgevit.measure.record import Context, Device, Subject, Verification
from edgevit.measure.results import read_results
from edgevit.profiling.summary import bounds, exp_shares, of_roof, overhead, shares, summary


def op(name: str, kind: str, layer: str | None, *ms: int, flops: int = 0) -> OpTime:
    placed = "unknown" if layer is None else "name"
    times = tuple(number * 1_000_000 for number in ms)
    return OpTime(name, name, kind, layer, placed, (), ((2,),), ((2,),), flops, 16, times)


@pytest.fixture
def profile() -> Profile:
    return Profile(
        context=Context("2026-01-01T00:00:00+00:00", "0", "edgevit", {}, Device("local")),
        subject=Subject("model", "tiny", "onnx", "onnxruntime", "fp32", 1, 1, ()),
        verification=Verification("verified"),
        method="onnxruntime's profiler",
        ops=(
            op("Conv", "product", "stem.0", 6, 6, 7, flops=12_000_000),
            op("Softmax", "softmax", "stages.0.blocks.0.attn", 2, 2, 2, flops=2),
            op("Gelu", "activation", "stages.0.blocks.0.mlp", 9, 1, 1, flops=2),
            op("Transpose", "reshape", None, 1, 1, 1),
        ),
        plain_ns=(8_000_000, 8_000_000, 9_000_000),
        profiled_ns=(10_000_000, 12_000_000, 20_000_000),
        roof=Roof(4e9, 1e9, 1, {"flops": "f", "bytes": "b"}, "2026-01-01T00:00:00+00:00"),
        blocks=(BlockTime("stem", reason="its shape"),),
    )


def test_shares(profile: Profile) -> None:
    found = {s.name: s for s in shares(profile, "block")}
    assert [s.name for s in shares(profile, "block")] == ["stem", "stages.0.blocks.0", "(unknown)"]
    assert found["stages.0.blocks.0"].ms == 3
    assert found["stem"].share == pytest.approx(0.6)
    assert found["stem"].gflops_per_s == pytest.approx(2.0)
    assert found["(unknown)"].placed == 0
    assert shares(profile, "op")[0].name == "Conv"
    assert sum(s.share for s in shares(profile, "stage")) == pytest.approx(1)


def test_what_bounds_it_and_exp(profile: Profile) -> None:
    found = bounds(profile)
    assert found == pytest.approx(
        {"products": 0.6, "softmax": 0.2, "memory_bound": 0.2, "other": 0}
    )
    assert exp_shares(profile) == pytest.approx(
        {"softmax": 0.2, "GELU": 0.1, "other": 0, "total": 0.3}
    )


def test_overhead_and_the_sum_of_operators(profile: Profile) -> None:
    assert overhead(profile) == pytest.approx(0.5)
    # The median of the sums (18, 10, 11), not the sum of medians.
    assert profile.ops_ms == 11
    assert summary(profile)["ops_over_plain"] == pytest.approx(11 / 8)


def test_the_roof_is_that_of_its_intensity(profile: Profile) -> None:
    share = shares(profile, "kind")[0]
    assert profile.roof is not None
    assert of_roof(share, profile.roof) == pytest.approx(2 / 4)
    slow = replace(profile.roof, bytes_per_s=1.0)
    assert share.intensity is not None
    assert of_roof(share, slow) == pytest.approx(2 / (share.intensity / 1e9))


def test_an_unknown_way_to_sum_up(profile: Profile) -> None:
    with pytest.raises(OptionError, match="blok"):
        shares(profile, "blok")


def test_a_profile_survives_its_file_and_is_no_result(profile: Profile, tmp_path: Path) -> None:
    file = profile.write(tmp_path)
    assert read_profiles(tmp_path) == [profile]
    assert read_profiles(file) == [profile]
    with pytest.raises(UsageError, match="holds no results"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile_schema_version": 0}, "schema version 0"),
        ({"plain_ns": [-1]}, "negative"),
        ({"ops": "none"}, "ops"),
        ({"more": 1}, "more"),
    ],
)
def test_damaged_profiles(
    profile: Profile, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file = tmp_path / "x.profile"
    file.write_text(json.dumps({**profile.to_json(), **change}))
    with pytest.raises(BundleError, match=message):
        Profile.read(file)


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "x.profile").write_text('{"profile')
    with pytest.raises(BundleError, match="damaged"):
        read_profiles(tmp_path)
    (tmp_path / "x.profile").write_text("[]")
    with pytest.raises(BundleError, match="not a profile"):
        read_profiles(tmp_path)


def test_a_block_is_compared_within_rounds() -> None:
    # The machine slows down by 10 ms from round to round; the block takes 2 ms all the while.
    whole = {r: [(10 * r + 5) * 1_000_000] for r in range(8)}
    without = {r: [(10 * r + 3) * 1_000_000] for r in range(8)}
    found = BlockTime.of_rounds("b", whole, without)
    assert (found.takes_ms, found.low_ms, found.high_ms, found.rounds) == (2, 2, 2, 8)
    assert BlockTime.of_rounds("b", whole, {99: [1]}).takes_ms is None


def test_intervals_need_six_rounds() -> None:
    assert [interval_order(n) for n in (5, 6, 9, 20)] == [0, 1, 2, 6]
