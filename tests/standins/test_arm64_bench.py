"""Models and blocks on an arm64 system with its own runtimes, over SSH: what they compute there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm64.board import Board

from devices.base import Event, Job, Schedule
from devices.hosts import Host
from devices.ssh import SshDevice, SshSession
from edgevit.bundle import GOLDEN, MANIFEST, Bundle, hash_file, save_golden
from edgevit.measure.results import Result
from edgevit.report.render import render
from edgevit.report.table import build_table
from edgevit.source import BlockSpec
from edgevit.verbs.bench import bench
from edgevit.verbs.export import export

pytestmark = pytest.mark.slow

FORMATS = ("onnx", "tflite")
#: Under ten million multiply-accumulates each: an emulator is hundreds of times slower.
MODELS: dict[str, dict[str, Any]] = {
    "elevit": {
        "image_size": 64,
        "model_options": {"widths": (16, 24, 32), "depths": (1, 1, 1), "stem": (8, 8)},
    },
    "efficientvit_m0": {"image_size": 64},
    "deit_tiny+sima": {"image_size": 32, "model_options": {"depth": 4}},
    "vip_cifar10": {"image_size": 16, "model_options": {"depth": 1}},
    "pvt_tiny": {
        "image_size": 32,
        "model_options": {
            "widths": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4),
        },
    },
}  # fmt: skip
BLOCKS = {
    "sima": BlockSpec("sima", tokens=64, head_dim=16, heads=4),
    "softmax": BlockSpec("softmax", tokens=64, head_dim=16, heads=4),
    "xca": BlockSpec("xca", tokens=64, head_dim=16, heads=4, projections=True),
}
#: As few as there can be: what is timed here is an emulator.
SCHEDULE = Schedule(
    min_runs=2, min_seconds=0, max_seconds=1, warmup_runs=1, warmup_seconds=0, block_seconds=0.01
)
#: Long enough for something to happen meanwhile.
LONGER = dataclasses.replace(SCHEDULE, min_seconds=1.5, max_seconds=3)
Meddle = Callable[[], None]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Every model and block, in both formats."""
    folder = tmp_path_factory.mktemp("exports")
    made = {name: export(name, formats=FORMATS, output=folder, **o) for name, o in MODELS.items()}
    return made | {
        name: export(block, formats=FORMATS, output=folder) for name, block in BLOCKS.items()
    }


@pytest.fixture(scope="module")
def results(
    bundles: dict[str, Bundle], running_pi: Board, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Result]]:
    """All of them, on the stand-in, whose entry does not say that it is one."""
    home = tmp_path_factory.mktemp("home")
    running_pi.calm()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        board = dataclasses.replace(running_pi.introduce(home), emulated=False)
        yield bench(
            list(bundles.values()),
            device=SshDevice(board),
            formats=FORMATS,
            schedule=SCHEDULE,
            memory=False,
            output=home / "results",
        )


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", [*MODELS, *BLOCKS])
def test_it_computes_there_what_it_computes_here(
    bundles: dict[str, Bundle], results: list[Result], name: str, format_: str
) -> None:
    (result,) = (
        r for r in results
        if r.subject.format == format_
        and r.subject.manifest_sha256 == bundles[name].digest
    )  # fmt: skip
    assert result.status in ("ok", "unstable"), result.reason
    assert result.verification.status == "verified"
    for output in result.verification.outputs:
        # Another processor rounds differently, and never by more than that.
        assert output["max_abs"] <= 1e-5 * output["scale"]
    _, outputs = bundles[name].golden()
    for array in outputs.values():
        assert np.ptp(array, axis=0).max() > 0.01 * np.abs(array).max(), "deaf to its input"


def test_every_result_says_that_no_board_was_measured(results: list[Result]) -> None:
    assert len(results) == len(FORMATS) * (len(MODELS) + len(BLOCKS))
    for result in results:
        device = result.context.device
        assert (device.name, device.profile, device.emulated) == ("pi", "rpi4", True)
        assert device.facts["emulated"]
        assert device.facts["machine"]["arch"] == "aarch64"
        assert result.subject.runtime_version
        assert json.loads(json.dumps(result.to_json()))["context"]["device"]["emulated"] is True


def test_no_table_shows_its_times(results: list[Result]) -> None:
    frame = build_table(results, include="all")
    assert len(frame) == len(results)
    assert frame["emulated"].all()
    assert set(frame["status"]) <= {"emulated", "unstable"}
    for column in ("median_ms", "first_ms", "load_ms", "images_per_s", "memory_mib"):
        assert column not in frame or frame[column].isna().all()
    assert "pi (emulated)" in render(frame, "md")


# -- a board that does not keep still --------------------------------------------------------------


class Restless(SshDevice):
    """The board, to which something happens as soon as the runs have begun."""

    def __init__(self, host: Host, meddle: Meddle) -> None:
        super().__init__(host)
        self._meddle = meddle

    def open(self) -> SshSession:
        session, run, happened = super().open(), SshSession.run, []

        def watched(job: Job, **options: Any) -> Iterator[Event]:
            for event in run(session, job, **options):
                if event["event"] == "warmed" and not happened:
                    happened.append(event)
                    self._meddle()
                yield event

        session.run = watched  # type: ignore[method-assign, assignment]
        return session


CHANGES = {
    "under-voltage": (
        lambda pi: pi.throttled(0x50005), "throttled: under-voltage, throttled"
    ),
    "throttled meanwhile": (
        lambda pi: pi.throttled(0x20000), "throttled: frequency-capped"
    ),
    "heat": (
        lambda pi: pi.heat(84.0), "cpu-thermal reached 84 °C, the throttle point is 80 °C"
    ),
    "governor": (
        lambda pi: pi.governor("powersave"), "the governor changed from performance to powersave"
    ),
    "clock": (
        lambda pi: pi.clock(600_000), "the clock changed from 1500 to 600 MHz"
    ),
    "limit": (
        lambda pi: pi.clock(1_500_000, most=1_000_000),
        "the highest allowed clock changed from 1500 to 1000 MHz",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The smallest of all, which is quickly done."""
    return export(BLOCKS["sima"], formats="onnx", output=tmp_path_factory.mktemp("block"))


def measure(bundle: Bundle, device: SshDevice) -> Result:
    (result,) = bench(
        [bundle], device=device, formats="onnx", schedule=LONGER, memory=False, output=None
    )
    return result


@pytest.mark.parametrize("change", CHANGES)
def test_a_board_that_changes_in_the_run_makes_it_unstable(
    block: Bundle, pi: Board, pi_host: Host, change: str
) -> None:
    meddle, reason = CHANGES[change]
    result = measure(block, Restless(pi_host, lambda: meddle(pi)))
    assert result.status == "unstable"
    assert reason in str(result.reason).split("; ")
    said = str(result.reason)
    assert not any(other in said for _, other in CHANGES.values() if other not in reason)


def test_a_board_at_rest_is_blamed_for_nothing(block: Bundle, pi_host: Host) -> None:
    result = measure(block, SshDevice(pi_host))
    assert result.conditions.before is not None
    assert result.conditions.after is not None
    for shown in (result.conditions.before, result.conditions.after):
        assert shown["governor"] == dict.fromkeys("0123", "performance")
        assert shown["temperature_c"] == {"cpu-thermal": 45.0}
        assert shown["throttled"] == {"raw": "0x0", "now": [], "since_boot": []}
    assert not any(reason in str(result.reason) for _, reason in CHANGES.values())


# -- a board that computes something else ----------------------------------------------------------


def test_wrong_results_are_a_mismatch_without_any_time(
    block: Bundle, pi_host: Host, tmp_path: Path
) -> None:
    result = measure(promising_something_else(block, tmp_path / "changed"), SshDevice(pi_host))
    assert (result.status, result.verification.status) == ("mismatch", "mismatch")
    assert result.samples_ns == ()
    assert result.statistics is None
    (row,) = build_table([result], include="all").to_dict("records")
    assert row["status"] == "mismatch"
    assert not any(key.endswith("_ms") and row[key] == row[key] for key in row)


def promising_something_else(bundle: Bundle, folder: Path) -> Bundle:
    """The same files, with other golden outputs, as if the board computed wrongly."""
    shutil.copytree(bundle.path, folder)
    inputs, outputs = bundle.golden()
    (folder / GOLDEN).unlink()
    save_golden(folder, inputs, {name: array * 1.001 for name, array in outputs.items()})
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][GOLDEN]["sha256"] = hash_file(folder / GOLDEN)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(folder)
