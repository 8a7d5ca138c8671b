"""Benches with real agents: several devices, accidents, and going on after them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from bench_kit import QUICK, Board, Listener, limited, modes

from edgevit.errors import DeviceError, OutputError, UsageError
from edgevit.measure.results import read_results
from edgevit.source import BlockSpec
from edgevit.verbs import bench as verb
from edgevit.verbs import runs
from edgevit.verbs.bench import bench

pytest.importorskip("onnxruntime")
SMALL, SLOW = BlockSpec("softmax", 16, 8, 2), BlockSpec("softmax", 1024, 64, 8)
OTHER = BlockSpec("sima", 16, 8, 2)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three blocks as ONNX: two quick ones and one that takes tens of milliseconds."""
    from edgevit.verbs.export import export

    folder = tmp_path_factory.mktemp("exports")
    return [export(spec, output=folder).path for spec in (SMALL, OTHER, SLOW)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No waiting for boards that never come back."""
    monkeypatch.setattr(runs, "PATIENCE_S", (0,))


def measure(bundles, device, output, **options):
    options = {"memory": False, "schedule": QUICK, **options}
    return bench(bundles, device=device, output=output, **options)


def statuses(results):
    return {(r.context.device.name, r.subject.name): r.status for r in results}


GOOD = ("ok", "unstable")


# -- several devices -------------------------------------------------------------------------------


def test_devices_work_at_the_same_time(bundles, tmp_path):
    boards = [Board(name, tmp_path) for name in ("a", "b")]
    listener = Listener()
    results = measure(bundles[:2], boards, tmp_path / "out", progress=listener, memory=True)
    assert [r.context.device.name for r in results] == ["a", "a", "b", "b"]
    assert all(r.status in GOOD and r.memory for r in results)
    assert {name for name, _ in listener.steps} == {"a", "b"}
    # Both had begun when the first result came.
    first = next(i for i, (_, detail) in enumerate(listener.steps) if detail.endswith(" ms"))
    assert {name for name, _ in listener.steps[:first]} == {"a", "b"}
    assert len(read_results(tmp_path / "out")) == 4


def test_a_device_that_cannot_be_reached_leaves_the_others(bundles, tmp_path):
    good, gone = Board("good", tmp_path), Board("gone", tmp_path)
    measure(bundles[:1], gone, tmp_path / "out")
    (before,) = (tmp_path / "out").glob("*.json")
    kept = before.read_text()
    gone.unreachable = "gone: no route to host"
    listener = Listener()
    results = measure(bundles[:2], [gone, good], tmp_path / "out", progress=listener)
    assert [r.status for r in results[:2]] == ["failed", "failed"]
    assert {r.reason for r in results[:2]} == {"gone: no route to host"}
    assert all(r.status in GOOD for r in results[2:])
    assert "gone: no route to host; is it switched on?" in listener.notes
    # What was measured there before is still there.
    assert before.read_text() == kept
    assert len(read_results(tmp_path / "out")) == 4


def test_the_only_device_that_cannot_be_reached_is_an_error(bundles, tmp_path):
    gone = Board("gone", tmp_path)
    gone.unreachable = "gone: no route to host"
    with pytest.raises(DeviceError, match="no route") as caught:
        measure(bundles[:1], gone, tmp_path / "out")
    assert caught.value.hint == "is it switched on?"


def test_a_failed_device_is_exit_code_3_and_the_table_still_comes(
    bundles, tmp_path, monkeypatch, capfd
):
    from edgevit.cli import app, common

    boards = {"good": Board("good", tmp_path), "gone": Board("gone", tmp_path)}
    boards["gone"].unreachable = "gone: no route to host"
    monkeypatch.setattr(verb, "find_device", boards.__getitem__)
    common.error_console.cache_clear()
    common.out_console.cache_clear()
    command = ["bench", str(bundles[0]), "-d", "good,gone", "--runs", "20", "--no-memory"]
    monkeypatch.setattr(sys, "argv", ["edgevit", *command, "-o", str(tmp_path / "out")])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        app.main()
    out, err = capfd.readouterr()
    assert stop.value.code == 3
    assert "no route to host" in err
    assert "failed" in out
    assert "good" in out
    lines = [line for line in err.splitlines() if line.startswith("  good: ")]
    assert lines[0] == "  good: timing softmax-n16-d8-h2.onnx, 1 thread"
    assert " ms" in lines[1]


def test_an_emulated_device_says_so_in_its_results(bundles, tmp_path):
    board = Board("arm", tmp_path)
    board.emulated = True
    (result,) = measure(bundles[:1], board, tmp_path / "out")
    assert result.context.device.emulated


def test_results_that_cannot_be_written_end_everything(bundles, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        measure(bundles[:1], [Board("a", tmp_path), Board("b", tmp_path)], tmp_path / "out")


def test_more_threads_than_cores_are_warned_of(bundles, tmp_path):
    listener = Listener()
    board = Board("one", tmp_path, profile=limited("one"))
    results = measure(bundles[:1], board, None, threads=[1, 2], progress=listener)
    assert [r.subject.threads for r in results] == [1, 2]
    assert listener.notes == ["one has 1 CPUs; 2 threads share them"]


# -- accidents -------------------------------------------------------------------------------------


def test_what_was_finished_when_the_agent_was_killed_is_kept(bundles, tmp_path):
    """SIGKILL in the rounds: the quick block has all its samples, the slow one is run again."""
    seen = []

    def kill(session, job, event):
        if event["event"] == "samples" and len(job.subjects) > 1:
            seen.append(event)
            if event["finished"]:
                session.kill()

    board = Board("a", tmp_path, happens=kill)
    results = measure([bundles[0], bundles[2]], board, tmp_path / "out")
    assert [r.status in GOOD for r in results] == [True, True], results
    quick, slow = results
    taken = [tuple(e["ns"]) for e in seen if e["id"] == seen[-1]["id"]]
    assert [block.ns for block in quick.samples_ns] == taken
    assert "ended before the conditions" in quick.warnings[0]
    assert modes(board) == [
        ("time", ("softmax-n16-d8-h2.onnx", "softmax-n1024-d64-h8.onnx")),
        ("time", ("softmax-n1024-d64-h8.onnx",)),
    ]
    assert slow.statistics.n >= QUICK.min_runs
    assert slow.warnings == ()


#: Run by the agent's interpreter at its start: opening one file is the end.
DEADLY = """
import os, signal, sys

def watch(event, arguments):
    if event == "open" and "sima" in str(arguments[0]) and str(arguments[0]).endswith(".onnx"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""


def test_a_file_that_kills_the_agent_fails_alone(bundles, tmp_path):
    """Killed while it loads one file: that one has failed, and is not tried again."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    for memory, jobs in ((False, 2), (True, 4)):
        board = Board("a", tmp_path, PYTHONPATH=str(tmp_path))
        out = tmp_path / f"out-{memory}"
        results = measure(bundles, board, out, memory=memory)
        assert [r.status in GOOD for r in results] == [True, False, True]
        assert "was killed by SIGKILL" in results[1].reason
        assert len(board.jobs) == jobs
        assert sum("sima-n16-d8-h2.onnx" in files for _, files in modes(board)) == 1
        assert not list(out.glob(".bench-*"))  # nothing is left to be done


def test_an_unexplained_death_in_the_rounds_is_looked_into_one_by_one(bundles, tmp_path):
    def kill(session, job, event):
        sima = [s.id for s in job.subjects if s.id.startswith("sima")]
        if event["event"] == "samples" and sima and event["round"] == 0:
            session.kill()

    board, listener = Board("a", tmp_path, happens=kill), Listener()
    # Long enough for the agent to be in its rounds still when the signal comes.
    schedule = replace(QUICK, min_seconds=1.5)
    results = measure(bundles, board, tmp_path / "out", progress=listener, schedule=schedule)
    assert [r.status in GOOD for r in results] == [True, False, True]
    assert "SIGKILL" in results[1].reason
    assert [len(files) for _, files in modes(board)] == [3, 1, 1, 1]
    assert any("timing them one by one" in note for note in listener.notes)


class Cut:
    """Loses the connection at the first samples, as often as told."""

    def __init__(self, times):
        self.left = times

    def __call__(self, session, job, event):
        if event["event"] == "samples" and self.left:
            self.left -= 1
            session.kill()
            raise DeviceError("a: the connection was lost")


def test_a_lost_connection_is_taken_up_once(bundles, tmp_path):
    board, listener = Board("a", tmp_path, happens=Cut(1)), Listener()
    results = measure(bundles, board, tmp_path / "out", progress=listener)
    assert all(r.status in GOOD for r in results)
    assert board.opened == 2
    assert [len(files) for _, files in modes(board)] == [3, 3]
    assert listener.notes == ["a: the connection was lost; reaching it again"]


def test_a_connection_lost_twice_costs_the_device_and_can_be_resumed(bundles, tmp_path):
    board = Board("a", tmp_path, happens=Cut(2))
    results = measure(bundles, board, tmp_path / "out", threads=[1, 2])
    assert [r.status for r in results] == ["failed"] * 6
    assert {r.reason for r in results} == {"a: the connection was lost"}
    assert len(board.jobs) == 2
    again = Board("a", tmp_path)
    results = measure(bundles, again, tmp_path / "out", threads=[1, 2])
    assert all(r.status in GOOD for r in results)
    assert not list((tmp_path / "out").glob(".bench-*"))


def test_a_board_that_starts_again_is_waited_for(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE_S", (0, 0.1, 0.1))
    board = Board("a", tmp_path, happens=Cut(1))
    open_board, refusals = board.open, iter([None, "refused", "refused"])

    def reluctant():
        if (why := next(refusals, None)) is not None:
            raise DeviceError(why)
        return open_board()

    monkeypatch.setattr(board, "open", reluctant)
    results = measure(bundles[:1], board, tmp_path / "out")
    assert [r.status in GOOD for r in results] == [True]


# -- going on --------------------------------------------------------------------------------------


def test_only_what_is_missing_is_measured_after_a_failure(bundles, tmp_path):
    good, gone = Board("good", tmp_path), Board("gone", tmp_path)
    gone.unreachable = "gone: no route to host"
    first = measure(bundles[:2], [good, gone], tmp_path / "out")
    good.jobs.clear()
    gone.unreachable = None
    listener = Listener()
    second = measure(bundles[:2], [good, gone], tmp_path / "out", progress=listener)
    assert good.jobs == []
    assert second[:2] == first[:2]
    assert all(r.status in GOOD for r in second)
    assert "2 of 4 results are there; --fresh starts over" in listener.notes[0]
    # A finished one starts anew.
    measure(bundles[:2], [good, gone], tmp_path / "out")
    assert len(good.jobs) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"fresh": True},
        {"seed": 1},
        {"threads": 2},
        {"memory": True},
        {"schedule": type(QUICK)(runs=10)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_a_result_starts_anew(bundles, tmp_path, change):
    good, gone = Board("good", tmp_path), Board("gone", tmp_path)
    gone.unreachable = "gone"
    measure(bundles[:1], [good, gone], tmp_path / "out")
    good.jobs.clear()
    measure(bundles[:1], [good, gone], tmp_path / "out", **change)
    assert [job.mode for job in good.jobs][-1] == "time"


def command_line(bundles, out):
    command = [sys.executable, "-m", "edgevit", "bench", *map(str, bundles), "--threads", "1,2"]
    return [*command, "--seconds", "3", "--warmup", "0", "--no-memory", "-o", str(out)]


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(bundles, tmp_path):
    """The real command line: interrupted after its first group, continued, and then anew."""
    command, out = command_line(bundles[:2], tmp_path / "out"), tmp_path / "out"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    while "2 threads" not in (line := process.stderr.readline()):
        assert line, "it ended before its second group"
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    first = {file.name: json.loads(file.read_text()) for file in out.glob("*.json")}
    settled = {n: r for n, r in first.items() if r["status"] in GOOD}
    assert {r["subject"]["threads"] for r in settled.values()} == {1}
    assert len(list(out.glob(".bench-*.journal"))) == 1
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 results are there; --fresh starts over" in done.stderr
    assert "1 thread:" not in done.stderr
    second = {file.name: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert {n: second[n] for n in settled} == settled
    assert all(r["status"] in GOOD for r in second.values())
    assert not list(out.glob(".bench-*"))


@pytest.mark.slow
def test_killing_the_command_loses_the_group_under_way_alone(bundles, tmp_path):
    command, out = command_line(bundles[:2], tmp_path / "out"), tmp_path / "out"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    while "2 threads" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert {r.subject.threads for r in read_results(out)} == {1}
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 results are there" in done.stderr


# -- exports ---------------------------------------------------------------------------------------


@pytest.fixture
def exported(monkeypatch):
    """Names of bundles that were exported, formats and the opset that was fixed for each."""
    from edgevit.verbs import export

    calls, real = [], export.export_source

    def spy(source, plan, *arguments, **options):
        (opset,) = {getattr(o, "opset", None) for _, o in plan.formats.values()}
        calls.append((source.name, sorted(plan.formats), source.inputs[0].shape[0], opset))
        return real(source, plan, *arguments, **options)

    monkeypatch.setattr(export, "export_source", spy)
    return calls


def test_nothing_is_exported_twice(tmp_path, exported, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    boards = [
        Board("old", tmp_path, profile=limited("old", max_opset=15, max_ir=8)),
        Board("older", tmp_path, profile=limited("older", max_opset=15)),
        Board("new", tmp_path, profile=limited("new", max_opset=25)),
    ]
    name = "softmax-n16-d8-h2"
    results = measure([SMALL], boards, None)
    assert all(r.status in GOOD for r in results)
    assert exported == [(name, ["onnx"], 1, 15), (name, ["onnx"], 1, None)]
    assert len({r.subject.file_sha256 for r in results}) == 2
    measure([SMALL], boards, None)
    assert len(exported) == 2
    measure([SMALL], boards[2:], None, batch=4)
    assert exported[2:] == [(name, ["onnx"], 4, None)]
    measure([SMALL], Board("any", tmp_path), None, formats=["onnx", "torch"])
    assert exported[3:] == [(name, ["torch"], 1, None)]


@pytest.fixture
def refusing(monkeypatch):
    """An ONNX exporter that gives up on SimA."""
    from edgevit.errors import ConversionError
    from exporters.onnx import OnnxExporter

    real = OnnxExporter.export

    def export(self, program, folder, options):
        if any("abs" in str(node.target) for node in program.exported.graph.nodes):
            raise ConversionError("ONNX: no way to write this")
        return real(self, program, folder, options)

    monkeypatch.setattr(OnnxExporter, "export", export)


def test_what_cannot_be_exported_has_failed_and_the_rest_goes_on(tmp_path, refusing, monkeypatch):
    from edgevit.report.table import build_table

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listener = Listener()
    results = measure(
        [OTHER, SMALL], Board("a", tmp_path), tmp_path / "out", formats=["onnx", "torch"],
        progress=listener,
    )  # fmt: skip
    assert {(r.subject.name, r.subject.format): r.status in GOOD for r in results} == {
        ("sima-n16-d8-h2", "onnx"): False,
        ("sima-n16-d8-h2", "torch"): True,
        ("softmax-n16-d8-h2", "onnx"): True,
        ("softmax-n16-d8-h2", "torch"): True,
    }
    failed = next(r for r in results if r.status == "failed")
    assert failed.reason == "could not be exported: ONNX: no way to write this"
    assert "sima-n16-d8-h2 (onnx) has failed: ONNX: no way to write this" in listener.notes
    assert "failed: sima-n16-d8-h2" in " ".join(build_table(results, include="all").attrs["notes"])
    kept = [(r.subject.name, r.reason) for r in read_results(tmp_path / "out") if r.reason]
    assert ("sima-n16-d8-h2", failed.reason) in kept


def test_why_it_could_not_be_exported_is_forgotten_once_it_could(tmp_path, refusing, monkeypatch):
    from edgevit.errors import ConversionError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    board, out = Board("a", tmp_path), tmp_path / "out"
    with pytest.raises(ConversionError):
        measure([OTHER], board, out, formats=["onnx"])
    assert [r.status for r in read_results(out)] == ["failed"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure([OTHER], board, out, formats=["onnx"])
    assert [r.status in GOOD for r in read_results(out)] == [True]


def test_a_device_that_is_not_there_is_found_before_any_export(tmp_path, exported):
    gone, off, good = (Board(name, tmp_path) for name in ("gone", "off", "good"))
    gone.unreachable, off.unreachable = "gone: no route to host", "off: refused"
    with pytest.raises(DeviceError, match=r"^gone: no route to host$") as caught:
        measure([SMALL], gone, tmp_path / "out")
    assert caught.value.hint == "is it switched on?"
    with pytest.raises(DeviceError, match=r"none of .*: gone: no route to host; off: refused$"):
        measure([SMALL], [gone, off], tmp_path / "out")
    assert exported == []
    results = measure([SMALL], [gone, good], tmp_path / "out", formats=["onnx"])
    assert [r.status in GOOD for r in results] == [False, True]


def test_a_board_gets_files_for_what_setup_brings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    board = Board("a", tmp_path)
    assert "torch" in board.profile.formats
    results = measure([SMALL], board, None)
    assert "torch" not in {r.subject.format for r in results}
    (result,) = measure([SMALL], board, None, formats=["torch"])
    assert result.status in GOOD, result.reason


def test_a_device_that_refuses_is_not_asked_again(bundles, tmp_path):
    from edgevit.errors import RefusedError

    def refuse(session, job, event):
        raise RefusedError("a: there is no python3 on the board", hint="install it")

    board, listener = Board("a", tmp_path, happens=refuse), Listener()
    results = measure(bundles[:2], board, tmp_path / "out", progress=listener)
    assert [r.status for r in results] == ["failed", "failed"]
    assert board.opened == 1
    assert listener.notes == ["a: there is no python3 on the board; install it"]


def test_if_nothing_can_be_exported_that_is_the_error(tmp_path, refusing, monkeypatch):
    from edgevit.errors import ConversionError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConversionError, match="no way to write this"):
        measure([OTHER], Board("a", tmp_path), None, formats=["onnx"])


def test_a_wrong_name_or_thread_count_is_found_before_any_export(tmp_path, exported):
    for subjects, options in (([SMALL, "elevitt"], {}), ([SMALL], {"threads": 0})):
        with pytest.raises(UsageError):
            measure(subjects, Board("a", tmp_path), None, seed=77, **options)
    assert exported == []


def test_a_bundle_that_the_board_cannot_load_is_refused_before_it_is_reached(bundles, tmp_path):
    board = Board("old", tmp_path, profile=limited("old", max_opset=15))
    with pytest.raises(UsageError, match="has opset 17; the onnxruntime") as caught:
        measure(bundles[:1], board, tmp_path / "out")
    assert caught.value.hint == "edgevit export softmax-n16-d8-h2 --for old"
    assert board.opened == 0


def test_options_of_a_backend_are_in_the_result_and_keep_it_apart(bundles, tmp_path):
    board = Board("a", tmp_path)
    for options in ({}, {"optimization": "none"}, {"optimization": "basic"}):
        (result,) = measure(
            bundles[:1],
            board,
            tmp_path / "out",
            backends={"onnxruntime": options} if options else None,
        )
        assert result.subject.options == options
        assert result.status in GOOD, result.reason
        assert result.subject.settings["optimization"] == options.get("optimization", "all")
    assert len(read_results(tmp_path / "out")) == 3


def test_the_runtime_is_the_devices_or_the_one_asked_for(bundles):
    from devices.profile import RuntimeProfile
    from edgevit.bundle import Bundle
    from edgevit.verbs.subjects import entries_of

    def backend(*names, runtime=None):
        runtimes = {name: RuntimeProfile(formats=("onnx",)) for name in names}
        profile = replace(limited("x"), runtimes=runtimes)
        (entry,) = entries_of(
            Bundle.open(bundles[0]), profile, ["onnx"], device="x", batch=1, options={},
            runtime=runtime, progress=Listener(),
        )  # fmt: skip
        assert entry.on_device("/there").backend == entry.record.backend
        return entry.record.backend

    assert backend("onnxruntime", "tensorrt") == "onnxruntime"
    assert backend("tensorrt", "onnxruntime") == "onnxruntime"
    assert backend("onnxruntime", "tensorrt", runtime="tensorrt") == "tensorrt"
    assert backend("tensorrt") == "tensorrt"
    assert backend("onnxruntime", runtime="tensorrt") == "onnxruntime"


def test_half_precision_of_tensorrt_is_judged_as_such(bundles):
    from devices.profile import RuntimeProfile
    from edgevit.bundle import Bundle
    from edgevit.verbs.subjects import entries_of
    from edgevit.verify import tolerance_for

    names = ("onnxruntime", "tensorrt")
    runtimes = {name: RuntimeProfile(formats=("onnx",)) for name in names}
    profile = replace(limited("x"), runtimes=runtimes)
    for runtime, precision in (("onnxruntime", "fp32"), ("tensorrt", "fp16")):
        (entry,) = entries_of(
            Bundle.open(bundles[0]), profile, ["onnx"], device="x", batch=1,
            options={"tensorrt": {"fp16": True}}, runtime=runtime, progress=Listener(),
        )  # fmt: skip
        assert entry.record.precision == precision
        assert entry.on_device("/there").tolerance == tolerance_for(precision)


def test_a_runtime_that_no_device_has(bundles, tmp_path):
    with pytest.raises(UsageError, match="runtime: expected onnxruntime for one, got 'tensorrt'"):
        measure(
            bundles[:1], Board("one", tmp_path, profile=limited("one")), None, runtime="tensorrt"
        )


def test_the_boards_threads_are_the_default(bundles, tmp_path):
    board = Board("two", tmp_path, profile=replace(limited("two"), default_threads=2))
    assert [r.subject.threads for r in measure(bundles[:1], board, None)] == [2]


def test_notes_of_exports_come_one_of_a_kind():
    from edgevit.verbs.subjects import _NotesOnly

    listener = Listener()
    notes = _NotesOnly(listener, "m")
    for message in ("fold left a: why", "fold left b: why", "fold left c: why", "tflite: many"):
        notes.note(message)
    notes.summarize()
    assert listener.notes == [
        "m: fold left a: why",
        "m: tflite: many",
        "m: fold left ... 2 more like that",
    ]


# -- suites ----------------------------------------------------------------------------------------


def test_a_suite_stands_in_its_results_and_meets_the_published_figures(tmp_path):
    from edgevit.report.table import build_table
    from edgevit.verbs.suites import Suite

    blocks = (BlockSpec("xca", 64, 256), BlockSpec("sima", 64, 256, options={"order": "dd"}))
    suite = Suite("part", "a part of Table 3", blocks, runs=10, published=True)
    board = Board("a", tmp_path)
    results = bench(suite=suite, device=board, output=tmp_path / "out", memory=False)
    assert [r.context.suite for r in results] == ["part", "part"]
    assert {r.subject.format for r in results} == {"onnx"}
    assert [r.statistics.n for r in results] == [10, 10]
    assert len(board.jobs) == 1
    frame = build_table(results, include="all", published=True)
    printed = frame[frame["origin"] == "published"]
    assert set(printed["published"]) >= {"20.5 ms", "36.1 ms", "53.2 ms", "178.7 ms"}
    assert read_results(tmp_path / "out")[0].context.suite == "part"


def test_files_that_are_compared_share_a_job_if_there_are_many(tmp_path):
    from edgevit.verbs.runs import TOGETHER, group_entries
    from edgevit.verbs.suites import find_suite

    class Fake:
        def __init__(self, compared, threads):
            self.compared = compared
            self.record = type("Record", (), {"threads": threads})

    few = [Fake(word, 1) for word in "aabbc"]
    assert [len(group.entries) for group in group_entries(few)] == [5]
    many = [Fake(word, t) for t in (1, 2) for word in "aabbcccccc"]
    assert len(many) > TOGETHER
    assert [(g.threads, len(g.entries)) for g in group_entries(many)] == [
        (1, 2), (1, 2), (1, 6), (2, 2), (2, 2), (2, 6),
    ]  # fmt: skip
    assert len({(s.tokens, s.head_dim) for s in find_suite("sima-table3").subjects}) == 2
