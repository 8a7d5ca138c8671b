"""The agent's rule is the host's rule: both judge the same arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from devices.agent.errors import AgentError
from devices.agent.golden import Golden, OutputCheck, load_golden, noise, to_layout
from devices.agent.subjects import hash_path
from edgevit.bundle import hash_file, save_golden
from edgevit.verify import verify_outputs

Array = NDArray[Any]
TOLERANCE = 5e-5


def judge(want: Array, got: Array) -> dict[str, object]:
    check = OutputCheck("y", TOLERANCE)
    for i in range(len(want)):
        check.add(got[i], want[i])
    return check.result()


def variants() -> list[tuple[str, Array, Array]]:
    want = np.random.default_rng(0).standard_normal((3, 1, 5)).astype(np.float32)
    scale = np.abs(want).max()
    just_in, just_out = want.copy(), want.copy()
    just_in[1, 0, 2] += 0.9 * TOLERANCE * scale
    just_out[1, 0, 2] += 1.1 * TOLERANCE * scale
    nan, infinite = want.copy(), want.copy()
    nan[2, 0, 0], infinite[0, 0, 0] = np.nan, np.inf
    zero = np.zeros_like(want)
    return [
        ("equal", want, want),
        ("just in", want, just_in),
        ("just out", want, just_out),
        ("nan", want, nan),
        ("infinite", want, infinite),
        ("nan expected", nan, nan),
        ("zero", zero, zero),
        ("almost zero", zero, zero + 1e-30),
        ("another shape", want, want[:, :, :4]),
        ("half precision", want.astype(np.float16), want.astype(np.float16)),
        ("whole numbers", np.arange(6).reshape(2, 1, 3), np.arange(6).reshape(2, 1, 3)),
    ]


@pytest.mark.parametrize(
    ("want", "got"), [v[1:] for v in variants()], ids=[v[0] for v in variants()]
)
def test_agent_and_host_agree(want: Array, got: Array) -> None:
    mine = judge(want, got)
    host = verify_outputs(["y"], [want], [got], label="x", proves="verified", tolerance=TOLERANCE)
    assert mine["ok"] == host.ok
    assert mine["reason"] == host.reason
    if mine["max_abs"] is not None:
        assert mine["max_abs"] == host.comparisons[0].max_abs
        assert mine["scale"] == host.comparisons[0].scale
        assert mine["cosine"] == pytest.approx(host.comparisons[0].cosine)


def test_the_variants_are_not_all_alike() -> None:
    assert {judge(want, got)["ok"] for _, want, got in variants()} == {True, False}


def test_a_batch_repeats_a_sample_for_checks_and_mixes_them_for_timing() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
    golden = Golden([x], {"y": x[:, :, :1]})
    assert golden.inputs_of(1, 2)[0].tolist() == [[2, 3], [2, 3]]
    assert golden.output_of("y", 1, 2).tolist() == [[2], [2]]
    assert golden.mixed(5)[0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]


def test_a_golden_batch_must_fill_the_batch() -> None:
    golden = Golden([np.ones((1, 2, 3))], {})
    assert golden.inputs_of(0, 4)[0].shape == (4, 3)
    with pytest.raises(AgentError, match="batch 2 do not fill a batch of 3"):
        golden.inputs_of(0, 3)


def test_layouts_are_contiguous_memory() -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    nhwc = to_layout(x, "NHWC")
    assert nhwc.shape == (1, 3, 4, 2)
    assert nhwc.flags.c_contiguous
    assert nhwc[0, 1, 2, 1] == x[0, 1, 1, 2]
    assert to_layout(x, None) is x


def test_noise_is_seeded_normal_noise() -> None:
    spec = [{"name": "x", "shape": [1, 3, 4, 4], "dtype": "float32"}]
    one, same, other = (noise(spec, 2, seed).inputs[0] for seed in (1, 1, 2))
    assert one.shape == (1, 2, 3, 4, 4)
    assert one.dtype == np.float32
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_golden_tensors_must_have_every_name(tmp_path: Path) -> None:
    save_golden(tmp_path, {"x": np.ones((1, 1, 2))}, {})
    with pytest.raises(AgentError, match=r"lack output\.y"):
        load_golden(str(tmp_path / "golden.npz"), ["x"], ["y"])


def test_agent_and_host_hash_alike(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"w" * 3_000_000)
    assert hash_path(str(file)) == hash_file(file)
    package = tmp_path / "model.mlpackage"
    for name in ("Data/a/weights.bin", "Data/a.b/model", "Data/a-b", "Manifest.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
    assert hash_path(str(package)) == hash_file(package)
    (package / "Manifest.json").write_text("edited")
    before = hash_path(str(package))
    (package / "Data" / "a-b").rename(package / "Data" / "a-c")
    assert hash_path(str(package)) != before
