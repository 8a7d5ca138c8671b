"""Profiles over a real SSH server: the board's agent does the work, the host places operators."""

from pathlib import Path

import pytest
from sshd_kit import Boards

from devices.base import Schedule
from edgevit.errors import UnavailableError
from edgevit.profiling.summary import shares
from edgevit.source import BlockSpec
from edgevit.verbs.export import export
from edgevit.verbs.peak import peak
from edgevit.verbs.profile import profile

QUICK = Schedule(runs=6, warmup_runs=1, warmup_seconds=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = BlockSpec("softmax", 16, 8, 2, projections=True)
    return export(spec, output=tmp_path_factory.mktemp("exports"), formats=["onnx"]).path


def test_a_profile_comes_from_a_board(boards: Boards, folder: Path) -> None:
    made = profile(folder, device=boards.device(), schedule=QUICK, peak=False, output=None)
    assert made.context.device.name != "local"
    assert made.context.device.facts["runtimes"]
    assert len(made.profiled_ns) >= 6
    assert made.conditions.before is not None
    assert made.conditions.after is not None
    kinds = {share.name for share in shares(made, "kind")}
    assert {"product", "softmax"} <= kinds


def test_a_boards_peak(boards: Boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = boards.device()
    roof = peak(device)
    assert roof.flops_per_s > 1e8
    assert peak(device) == roof


def test_a_board_without_the_runtime(boards: Boards, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not on this board')")
    device = boards.device(environment={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(UnavailableError, match="not on this board"):
        profile(folder, device=device, schedule=QUICK, peak=False, output=None)
