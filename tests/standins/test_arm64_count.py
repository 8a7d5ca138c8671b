"""Instructions of an arm64 processor, counted by qemu with the stand-in's Python and runtime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from arm64.rootfs import CannotBuildError, build

import edgevit
from edgevit.source import block_source
from edgevit.verbs.count import count
from edgevit.zoo.counting import count_macs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("qemu-aarch64") and shutil.which("cc")),
        reason="qemu-user or a C compiler is not installed",
    ),
]
RUNS = 100


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in's files, without devices."""
    try:
        tarball = build()
    except CannotBuildError as error:
        pytest.skip(f"no arm64 system: {error}")
    place = tmp_path_factory.mktemp("system")
    subprocess.run(
        ["tar", "-xf", str(tarball), "-C", str(place), "--no-same-owner", "--exclude=./dev/*"],
        check=True,
    )
    return place


def test_qemu_counts_for_an_arm64_processor(system: Path, tmp_path: Path) -> None:
    block = edgevit.BlockSpec("sima", 512, 64, 2)
    bundle = edgevit.export(block, formats=["onnx"], output=tmp_path)
    (result,) = count([bundle], sysroot=system, runs=RUNS, output=None)
    assert (result.status, result.verification.status) == ("ok", "verified")
    assert result.samples_ns == ()
    device = result.context.device
    assert (device.name, device.emulated) == ("qemu-cortex-a72", True)
    assert device.facts["machine"]["arch"] == "aarch64"
    assert result.instructions is not None
    assert result.instructions.method.startswith("qemu, ")
    source = block_source(block)
    macs = count_macs(source.module, source.inputs)
    # NEON multiplies four pairs an instruction.
    assert macs / 4 < result.instructions.per_inference < macs
