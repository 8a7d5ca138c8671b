"""ExecuTorch in the agent: real programs in the real runtime."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices_kit import QUICK, make_subject, named, only, run, shadow

from devices.base import Job, Subject
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]
pytestmark = pytest.mark.skipif(find_spec("executorch") is None, reason="needs edgevit[executorch]")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of ``tanh(a - b)`` and ``a + b``, with XNNPACK."""
    import torch

    from edgevit.capture import capture
    from edgevit.tensorspec import TensorSpec
    from exporters.base import make_options
    from exporters.executorch import ExecuTorchExporter

    class Two(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (a - b).tanh(), a + b

    folder, exporter = tmp_path_factory.mktemp("two"), ExecuTorchExporter()
    program = capture(Two(), [TensorSpec("a", (1, 6)), TensorSpec("b", (1, 6))])
    exporter.export(program, folder, make_options(exporter, {}))
    return folder / exporter.file


@pytest.fixture
def two(written: Path, tmp_path: Path) -> Subject:
    a, b = np.random.default_rng(0).standard_normal((2, 3, 1, 6)).astype(np.float32)
    path = tmp_path / written.name
    path.write_bytes(written.read_bytes())
    outputs = {"difference": np.tanh(a - b), "sum": a + b}
    return make_subject("two", path, {"a": a, "b": b}, outputs, backend="executorch")


@pytest.mark.slow
def test_it_is_checked_and_timed(session: LocalSession, two: Subject) -> None:
    events = run(session, Job("time", (two,), schedule=QUICK, threads=2))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert named(events, "samples")
    loaded = only(events, "loaded")
    version = session.facts()["runtimes"]["executorch"]
    assert loaded["runtime"] == {"name": "executorch", "version": version}
    assert loaded["settings"] == {"threads": 2}


@pytest.mark.slow
def test_another_result_is_no_match(session: LocalSession, two: Subject) -> None:
    wrong = replace(two, outputs=two.outputs[::-1])
    error = only(run(session, Job("time", (wrong,), schedule=QUICK)), "error")
    assert error["kind"] == "mismatch"


@pytest.mark.slow
def test_what_does_not_fit_the_file_is_refused(session: LocalSession, two: Subject) -> None:
    error = only(run(session, Job("check", (replace(two, batch=2),))), "error")
    assert error["message"] == "input a takes 1x6, got 2x6"
    error = only(run(session, Job("check", (replace(two, inputs=two.inputs[:1]),))), "error")
    assert error["message"] == "the file has 2 inputs, expected 1 (a)"
    subject = replace(two, options={"xnnpack": False})
    error = only(run(session, Job("check", (subject,))), "error")
    assert error["message"] == "backend executorch has no option xnnpack; it has: none"


def test_without_it_its_absence_is_told(
    open_session: OpenSession, dense: Subject, tmp_path: Path
) -> None:
    hidden = shadow(tmp_path, "executorch", "raise ImportError('not for this board')")
    subject = replace(dense, backend="executorch")
    error = only(run(open_session(hidden), Job("check", (subject,))), "error")
    assert error["kind"] == "runtime-missing"
    assert "not for this board" in error["message"]
