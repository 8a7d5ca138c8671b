"""TensorRT through its own program. No GPU is here: a stand-in named trtexec takes its place."""

import os
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from devices_kit import QUICK, make_dense, make_subject, named, only, run, write_onnx
from test_agent_floor import environment_of

from devices.agent.backends import trtexec
from devices.base import Job, Schedule, Subject
from devices.local import LocalDevice, LocalSession
from devices.profile import DeviceProfile, RuntimeProfile
from edgevit.source import BlockSpec
from edgevit.verbs.bench import bench
from edgevit.verbs.export import export
from edgevit.verify import tolerance_for

OpenSession = Callable[..., LocalSession]
STANDIN = Path(__file__).with_name("standins") / "trtexec.py"
SCHEDULE = replace(QUICK, runs=20, warmup_runs=1)


@pytest.fixture
def board(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine that has the stand-in, and a cache of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "trtexec"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDIN}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "STANDIN_TRTEXEC_LOG": str(tmp_path / "log"),
    }


@pytest.fixture
def engine(dense: Subject) -> Subject:
    return replace(dense, backend="tensorrt")


def commands(tmp_path: Path) -> list[str]:
    """The command lines that the stand-in got."""
    return (tmp_path / "log").read_text().splitlines()


def test_an_engine_is_built_checked_and_timed(
    open_session: OpenSession, engine: Subject, board: dict[str, str], tmp_path: Path
) -> None:
    events = run(open_session(board), Job("time", (engine,), schedule=SCHEDULE))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert only(events, "checked")["samples"] == 4
    loaded = only(events, "loaded")
    assert loaded["runtime"] == {"name": "tensorrt", "version": "8.2.1"}
    assert loaded["load_ns"] == 12_500_000, "what trtexec itself said"
    assert loaded["settings"]["build_ns"] > 0
    assert loaded["settings"]["tf32"] is False
    samples = [ns for block in named(events, "samples") for ns in block["ns"]]
    assert len(samples) == 20
    assert set(samples) <= {2_593_750 + 1000 * n for n in range(7)}, "the program's own latencies"
    timing = [line for line in commands(tmp_path) if "--warmUp=200" in line]
    assert len(timing) >= 10, "rounds are runs of their own"
    assert all("--exposeDMA" in line and "--loadInputs=x:" in line for line in timing)
    assert not list((tmp_path / "cache/edgevit/trtexec").iterdir()), "nothing is left behind"


@pytest.mark.parametrize("version", ["8201", "8601", "100300"])
def test_flags_fit_the_version(
    open_session: OpenSession, engine: Subject, board: dict[str, str], tmp_path: Path, version: str
) -> None:
    options = {"fp16": True, "workspace_mib": 256}
    board["STANDIN_TRTEXEC_VERSION"] = version
    subject = replace(engine, options=options)
    events = run(open_session(board), Job("check", (subject,)))
    assert not named(events, "error")
    (build,) = [line for line in commands(tmp_path) if "--onnx" in line]
    old = version == "8201"
    assert ("--buildOnly" in build, "--skipInference" in build) == (old, not old)
    assert ("--workspace=256" in build, "--memPoolSize=workspace:256" in build) == (old, not old)
    assert "--fp16" in build
    assert only(events, "loaded")["settings"]["fp16"] is True


def test_an_engine_is_kept_for_the_same_file_and_flags(
    open_session: OpenSession, engine: Subject, board: dict[str, str], tmp_path: Path
) -> None:
    def built(subject: Subject) -> bool:
        events = run(open_session(board), Job("check", (subject,)))
        return only(events, "loaded")["settings"]["build_ns"] is not None

    assert built(engine)
    assert not built(engine)
    assert built(replace(engine, options={"fp16": True}))
    board["STANDIN_TRTEXEC_VERSION"] = "8502"
    assert built(engine), "engines are of one version of TensorRT"
    other = make_dense(tmp_path, "other")
    assert not built(replace(other, backend="tensorrt")), "the same content under another name"


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_batch_is_given_where_the_file_leaves_it_open(
    open_session: OpenSession, board: dict[str, str], tmp_path: Path, dynamic: bool
) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    size: list[int | str] = ["n" if dynamic else 4, 3]
    path = write_onnx(tmp_path / "relu.onnx", nodes, {"x": size}, {"y": size}, {})
    x = np.random.default_rng(0).standard_normal((2, 1, 3)).astype(np.float32)
    subject = make_subject("relu", path, {"x": x}, {"y": np.maximum(x, 0)}, backend="tensorrt")
    events = run(open_session(board), Job("check", (replace(subject, batch=4),)))
    assert only(events, "checked")["ok"]
    builds = ["--shapes=x:4x3" in line for line in commands(tmp_path) if "--onnx" in line]
    assert builds == ([True] if dynamic else [True, False])


@pytest.mark.slow
def test_the_oldest_python_drives_it_too(
    open_session: OpenSession, engine: Subject, board: dict[str, str]
) -> None:
    session = open_session(board, python=environment_of("3.6"))
    events = run(session, Job("time", (engine,), schedule=SCHEDULE))
    assert not named(events, "error")
    assert only(events, "facts")["python"]["version"].startswith("3.6.")
    assert only(events, "checked")["ok"]
    assert sum(len(block["ns"]) for block in named(events, "samples")) == 20


def test_wrong_outputs_are_never_timed(
    open_session: OpenSession, engine: Subject, board: dict[str, str]
) -> None:
    board["STANDIN_TRTEXEC_SCALE"] = "1.01"
    events = run(open_session(board), Job("time", (engine,), schedule=SCHEDULE))
    assert only(events, "error")["kind"] == "mismatch"
    assert not named(events, "samples")


def test_what_trtexec_says_is_the_error(
    open_session: OpenSession, engine: Subject, board: dict[str, str]
) -> None:
    board["STANDIN_TRTEXEC_FAIL"] = "Error[3]: no importer registered for op: Einsum"
    error = only(run(open_session(board), Job("check", (engine,))), "error")
    assert error["kind"] == "load"
    assert "no importer registered for op: Einsum" in error["message"]


def test_memory_of_another_program_is_not_ours_to_tell(
    open_session: OpenSession, engine: Subject, board: dict[str, str]
) -> None:
    events = run(open_session(board), Job("memory", (engine,)))
    error = only(events, "error")
    assert (error["kind"], error["message"]) == (
        "unsupported",
        "tensorrt runs in a program of its own",
    )
    assert not named(events, "memory")


def test_without_trtexec_its_absence_is_told(
    open_session: OpenSession, engine: Subject, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    session = open_session({"PATH": str(tmp_path / "empty"), "EDGEVIT_SYSROOT": str(tmp_path)})
    error = only(run(session, Job("check", (engine,))), "error")
    assert error["kind"] == "runtime-missing"
    assert "there is no trtexec on PATH nor at /usr/src/tensorrt/bin/trtexec" in error["message"]


def test_a_long_build_ends_when_it_is_told_to(
    open_session: OpenSession, engine: Subject, board: dict[str, str], tmp_path: Path
) -> None:
    board["STANDIN_TRTEXEC_SECONDS"] = "600"
    session = open_session(board)
    events = []
    for event in session.run(Job("time", (engine,), schedule=Schedule())):
        events.append(event)
        if event["event"] == "progress":
            wait_for(lambda: (tmp_path / "log").exists() and "--onnx" in commands(tmp_path)[-1])
            session.stop()
    assert events[-1] == {"event": "done", "stopped": True}
    assert not named(events, "error")
    wait_for(lambda: not builders(tmp_path))
    cache = tmp_path / "cache" / "edgevit"
    left = [*(cache / "trtexec").iterdir(), *(cache / "engines").iterdir()]
    assert not left, "it ended by itself, and tidied up"


def test_a_build_does_not_outlive_a_killed_agent(
    open_session: OpenSession, engine: Subject, board: dict[str, str], tmp_path: Path
) -> None:
    board["STANDIN_TRTEXEC_SECONDS"] = "600"
    session = open_session(board)
    for event in session.run(Job("time", (engine,))):
        if event["event"] == "progress":
            wait_for(lambda: bool(builders(tmp_path)))
            assert session._process is not None
            os.kill(session._process.pid, 9)
    wait_for(lambda: not builders(tmp_path))


def wait_for(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def builders(tmp_path: Path) -> list[str]:
    """Running processes that build an engine of this test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "--saveEngine" in line and str(tmp_path) in line:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # x", "8.2.1"),
        ("[TensorRT v7103]", "7.1.3"),
        ("[TensorRT v8503]", "8.5.3"),
        ("[TensorRT v100300] [b26]", "10.3.0"),
        ("nothing", None),
    ],
)
def test_versions_are_read(said: str, version: str | None) -> None:
    assert trtexec.version_from(said) == version


def test_times_of_the_warm_up_are_left_out(tmp_path: Path) -> None:
    # As sampleReporting.cpp of TensorRT 8.0 writes it: comma first, warm-up included.
    path = tmp_path / "times.json"
    path.write_text(
        '[\n  { "startEnqMs" : 1, "startComputeMs" : 1.1, "latencyMs" : 9.9, "endToEndMs" : 10 }\n'
        ', { "startEnqMs" : 201, "startComputeMs" : 201.1, "latencyMs" : 1.25 }\n]\n'
    )
    assert trtexec.read_times(str(path), 200) == [1_250_000]
    assert trtexec.read_times(str(path), 0) == [9_900_000, 1_250_000]


def test_outputs_that_are_not_finite_are_read(tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(
        '[\n  { "name" : "nan-inf"\n  , "dimensions" : "1x2x2"\n'
        '  , "values" : [ 1.5, nan, -inf, inf ]\n  }\n]\n'
    )
    outputs = trtexec.read_outputs(str(path))
    np.testing.assert_array_equal(outputs["nan-inf"], [[[1.5, np.nan], [-np.inf, np.inf]]])


class Jetson(LocalDevice):
    """This machine with TensorRT's stand-in."""

    @property
    def profile(self) -> DeviceProfile:
        return replace(super().profile, runtimes={"tensorrt": RuntimeProfile(formats=("onnx",))})


@pytest.mark.parametrize(("fp16", "status"), [(True, "verified"), (False, "mismatch")])
def test_half_precision_may_be_as_far_off_as_half_precision_is(
    board: dict[str, str], tmp_path: Path, fp16: bool, status: str
) -> None:
    bundle = export(BlockSpec("sima", 16, 8, 2), output=tmp_path / "exports").path
    device = Jetson(environment={**board, "STANDIN_TRTEXEC_SCALE": "1.01"})
    (result,) = bench(
        [bundle], device=device, runs=10, memory=False, output=None,
        backends={"tensorrt": {"fp16": fp16}},
    )  # fmt: skip
    assert result.verification.status == status, result.reason
    assert result.subject.precision == ("fp16" if fp16 else "fp32")
    assert result.verification.tolerance == tolerance_for(result.subject.precision)
