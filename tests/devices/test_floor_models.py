"""A whole model, exported for a Jetson Nano, in the runtime that such a board has."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_agent_floor import environment_of

from devices.base import Schedule
from devices.local import LocalDevice
from devices.profile import DeviceProfile, RuntimeProfile, load_profile
from edgevit.verbs.bench import bench
from edgevit.verbs.export import export


class Old(LocalDevice):
    """This machine with the software of an old board."""

    def __init__(self, folder: Path) -> None:
        super().__init__(python=environment_of("3.6"), environment={"TMPDIR": str(folder)})
        self.name = "old"  # type: ignore[misc]

    @property
    def profile(self) -> DeviceProfile:
        return load_profile("jetson-nano")


@pytest.mark.slow
def test_a_model_exported_for_the_board_loads_and_verifies_there(tmp_path: Path) -> None:
    board = Old(tmp_path)
    bundle = export("efficientvit_m0", device="jetson-nano", output=tmp_path)
    facts = bundle.artifact("onnx")["facts"]
    assert (facts["opset"], facts["ir_version"]) == (15, 8)
    schedule = Schedule(runs=10, warmup_runs=1, warmup_seconds=0)
    (result,) = bench([bundle.path], device=board, schedule=schedule, output=None)
    assert result.subject.runtime_version == "1.10.0"
    assert result.context.device.facts["python"]["version"].startswith("3.6.")
    assert result.verification.status == "verified", result.verification.reason
    assert result.statistics is not None
    assert result.statistics.n == 10


@pytest.mark.slow
def test_without_the_boards_limits_it_does_not_load_there(tmp_path: Path) -> None:
    """The limits are real: the default opset is refused by that runtime."""

    class Unlimited(Old):
        @property
        def profile(self) -> DeviceProfile:
            anything = RuntimeProfile(formats=("onnx",))
            return DeviceProfile("old", "a board", "x86-64", runtimes={"onnxruntime": anything})

    bundle = export("efficientvit_m0", output=tmp_path)
    schedule = Schedule(runs=10, warmup_runs=1, warmup_seconds=0)
    (result,) = bench(
        [bundle.path], device=Unlimited(tmp_path), schedule=schedule, memory=False, output=None
    )
    assert result.status == "failed"
    assert result.reason is not None
    assert "opset" in result.reason.lower()
