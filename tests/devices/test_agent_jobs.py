"""Jobs run for real: checked, timed and weighed by the agent in a child process."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from devices_kit import (
    QUICK,
    make_dense,
    make_subject,
    named,
    only,
    run,
    shadow,
    write_onnx,
)

from devices.base import Job, Schedule, Subject
from devices.local import LocalSession
from edgevit.bundle import save_golden

OpenSession = Callable[..., LocalSession]


def test_check_passes_a_right_file(session: LocalSession, dense: Subject) -> None:
    events = run(session, Job("check", (dense,)))
    checked = only(events, "checked")
    assert checked["ok"]
    assert checked["samples"] == 4
    assert checked["outputs"][0]["cosine"] > 0.999
    assert checked["outputs"][0]["max_abs"] <= 5e-5 * checked["outputs"][0]["scale"]
    assert not named(events, "samples")
    assert not named(events, "error")
    assert events[-1] == {"event": "done", "stopped": False}


def test_time_tells_load_first_and_steady_apart(session: LocalSession, dense: Subject) -> None:
    events = run(session, Job("time", (dense,), schedule=QUICK))
    order = [e["event"] for e in events if e["event"] not in ("progress", "samples")]
    assert order == ["facts", "loaded", "checked", "conditions", "warmed", "conditions", "done"]
    loaded = only(events, "loaded")
    assert loaded["load_ns"] > loaded["first_ns"] > 0
    assert loaded["settings"]["threads"] == 1
    assert loaded["runtime"]["name"] == "onnxruntime"
    samples = [ns for event in named(events, "samples") for ns in event["ns"]]
    assert len(samples) >= QUICK.min_runs
    assert all(isinstance(ns, int) and ns > 0 for ns in samples)


def test_an_inference_below_a_millisecond_shares_its_region(
    session: LocalSession, dense: Subject
) -> None:
    events = run(session, Job("time", (dense,), schedule=QUICK))
    blocks = named(events, "samples")
    inner = only(events, "warmed")["inner"]
    assert inner > 1
    assert {block["inner"] for block in blocks} == {inner}
    # A sample is one inference, not the region of a millisecond or so that it was taken from.
    assert min(ns for block in blocks for ns in block["ns"]) < 500_000


def test_inner_is_one_when_a_region_may_be_as_short(session: LocalSession, dense: Subject) -> None:
    schedule = replace(QUICK, inner_seconds=0.0)
    events = run(session, Job("time", (dense,), schedule=schedule))
    assert {block["inner"] for block in named(events, "samples")} == {1}


@pytest.mark.parametrize("runs", [3, 10, 57])
def test_runs_gives_exactly_that_many(
    session: LocalSession, dense: Subject, tmp_path: Path, runs: int
) -> None:
    other = make_dense(tmp_path, "other")
    schedule = replace(QUICK, runs=runs, inner_seconds=1e-5)
    events = run(session, Job("time", (dense, other), schedule=schedule))
    for subject in (dense, other):
        blocks = [b for b in named(events, "samples") if b["id"] == subject.id]
        assert sum(len(block["ns"]) for block in blocks) == runs
        assert len(blocks) >= min(runs, 10)


def test_seconds_must_be_met_too(session: LocalSession, dense: Subject) -> None:
    schedule = replace(QUICK, min_runs=1, min_seconds=0.2)
    events = run(session, Job("time", (dense,), schedule=schedule))
    total = sum(b["inner"] * sum(b["ns"]) for b in named(events, "samples"))
    assert total >= 0.19e9


def test_the_cap_ends_what_would_not_end(session: LocalSession, dense: Subject) -> None:
    schedule = replace(QUICK, min_runs=10**9, max_seconds=0.1)
    events = run(session, Job("time", (dense,), schedule=schedule))
    total = sum(b["inner"] * sum(b["ns"]) for b in named(events, "samples"))
    assert total * 1.01 >= 0.1e9
    assert events[-1] == {"event": "done", "stopped": False}


def test_orders_differ_between_rounds_and_repeat_with_the_seed(
    session: LocalSession, tmp_path: Path
) -> None:
    subjects = tuple(make_dense(tmp_path, f"m{i}") for i in range(4))
    schedule = replace(QUICK, runs=10, inner_seconds=1e-5, seed=7)
    first = _orders(run(session, Job("time", subjects, schedule=schedule)))
    again = _orders(run(session, Job("time", subjects[::-1], schedule=schedule)))
    other = _orders(run(session, Job("time", subjects, schedule=replace(schedule, seed=8))))
    assert len({tuple(order) for order in first}) > 3
    assert all(sorted(order) == ["m0", "m1", "m2", "m3"] for order in first)
    assert first == again
    assert first != other


def test_a_mismatch_is_never_timed_and_ends_nothing_else(
    session: LocalSession, dense: Subject, tmp_path: Path
) -> None:
    wrong = make_dense(tmp_path, "wrong", golden_scale=1.001)
    events = run(session, Job("time", (wrong, dense), schedule=QUICK))
    assert {event["id"] for event in named(events, "samples")} == {"dense"}
    error = only(events, "error")
    assert (error["id"], error["kind"]) == ("wrong", "mismatch")
    assert "y is off by" in error["message"]
    checked = {event["id"]: event for event in named(events, "checked")}
    assert not checked["wrong"]["ok"]
    assert checked["wrong"]["reason"] == error["message"]
    assert checked["dense"]["ok"]


def test_only_one_wrong_sample_is_enough(session: LocalSession, tmp_path: Path) -> None:
    subject = make_dense(tmp_path, "last")
    golden = Path(subject.golden or "")
    with np.load(golden) as arrays:
        x, y = arrays["input.x"], arrays["output.y"]
    y[-1] += 0.01
    save_golden(golden.parent, {"x": x}, {"y": y})
    assert only(run(session, Job("check", (subject,))), "error")["kind"] == "mismatch"


def test_nan_is_a_mismatch_with_its_reason(session: LocalSession, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Log", ["x"], ["y"])]
    path = write_onnx(tmp_path / "log.onnx", nodes, {"x": [1, 3]}, {"y": [1, 3]}, {})
    x = np.array([[[1.0, 2.0, -3.0]]], dtype=np.float32)
    subject = make_subject("log", path, {"x": x}, {"y": np.zeros_like(x)})
    events = run(session, Job("time", (subject,), schedule=QUICK))
    checked = only(events, "checked")
    assert not checked["ok"]
    assert checked["reason"] == "y is not finite (NaN or infinite)"
    assert checked["outputs"][0]["max_abs"] is None
    assert not named(events, "samples")


def test_another_shape_is_a_mismatch(session: LocalSession, dense: Subject, tmp_path: Path) -> None:
    save_golden(tmp_path, {"x": np.ones((1, 1, 6))}, {"y": np.ones((1, 1, 3))})
    golden = str(tmp_path / "golden.npz")
    events = run(session, Job("check", (replace(dense, golden=golden),)))
    assert only(events, "error")["message"] == "y has shape (1, 4), expected (1, 3)"


def test_another_file_is_refused_before_it_is_loaded(
    session: LocalSession, dense: Subject, tmp_path: Path
) -> None:
    with Path(dense.file).open("ab") as stream:
        stream.write(b"\0")
    events = run(session, Job("time", (dense,), schedule=QUICK))
    assert only(events, "error")["kind"] == "hash"
    assert not named(events, "loaded")
    assert not named(events, "samples")


def test_a_file_that_is_not_there(session: LocalSession, dense: Subject) -> None:
    Path(dense.file).unlink()
    error = only(run(session, Job("check", (dense,))), "error")
    assert error["kind"] == "load"
    assert "is not on this device" in error["message"]


def test_a_file_that_is_no_model(session: LocalSession, dense: Subject) -> None:
    Path(dense.file).write_bytes(b"nothing")
    error = only(run(session, Job("check", (replace(dense, sha256=None),))), "error")
    assert (error["id"], error["kind"]) == ("dense", "load")


def test_golden_tensors_that_are_not_there(session: LocalSession, dense: Subject) -> None:
    error = only(run(session, Job("check", (replace(dense, golden="/nowhere.npz"),))), "error")
    assert error["kind"] == "load"
    assert "golden tensors" in error["message"]


def test_without_golden_tensors_it_is_timed_but_called_unverified(
    session: LocalSession, dense: Subject
) -> None:
    events = run(session, Job("time", (replace(dense, golden=None),), schedule=QUICK))
    assert only(events, "warning")["kind"] == "unverified"
    assert not named(events, "checked")
    assert named(events, "samples")


def test_every_row_of_a_larger_batch_is_compared(session: LocalSession, tmp_path: Path) -> None:
    # Row i is scaled by i: only the rows after the second one are wrong.
    scale = np.array([[1.0], [1.0], [2.0]], dtype=np.float32)
    nodes = [onnx.helper.make_node("Mul", ["x", "s"], ["y"])]
    path = write_onnx(tmp_path / "rows.onnx", nodes, {"x": ["n", 6]}, {"y": ["n", 6]}, {"s": scale})
    x = np.random.default_rng(0).standard_normal((2, 1, 6)).astype(np.float32)
    subject = replace(make_subject("rows", path, {"x": x}, {"y": x}), batch=3)
    checked = only(run(session, Job("check", (subject,))), "checked")
    assert not checked["ok"]
    assert checked["outputs"][0]["max_abs"] == pytest.approx(np.abs(x).max(), rel=1e-5)


def test_a_larger_batch_is_timed(session: LocalSession, dense: Subject) -> None:
    subject = replace(dense, batch=3)
    events = run(session, Job("time", (subject,), schedule=QUICK))
    assert only(events, "checked")["ok"]
    assert named(events, "samples")


def test_a_static_batch_says_so(session: LocalSession, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    path = write_onnx(tmp_path / "one.onnx", nodes, {"x": [1, 6]}, {"y": [1, 6]}, {})
    x = np.ones((1, 1, 6), dtype=np.float32)
    subject = replace(make_subject("one", path, {"x": x}, {"y": x}), batch=2)
    error = only(run(session, Job("check", (subject,))), "error")
    assert error["kind"] == "load"
    assert error["message"] == "input x takes 1x6, got 2x6"


def test_an_nhwc_input_is_transposed(session: LocalSession, tmp_path: Path) -> None:
    # Only the mean over height and width of an NHWC picture leaves its three channels.
    nodes = [onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)]
    path = write_onnx(tmp_path / "mean.onnx", nodes, {"x": [1, 4, 5, 3]}, {"y": [1, 3]}, {})
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 4, 5)).astype(np.float32)
    subject = make_subject("mean", path, {"x": x}, {"y": x.mean((3, 4))}, layout="NHWC")
    events = run(session, Job("time", (subject,), schedule=QUICK))
    assert only(events, "checked")["ok"]
    assert named(events, "samples")


def test_inputs_go_by_name(session: LocalSession, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Sub", ["a", "b"], ["y"])]
    path = write_onnx(tmp_path / "s.onnx", nodes, {"b": [1, 2], "a": [1, 2]}, {"y": [1, 2]}, {})
    a, b = np.random.default_rng(0).standard_normal((2, 3, 1, 2)).astype(np.float32)
    subject = make_subject("s", path, {"a": a, "b": b}, {"y": a - b})
    assert only(run(session, Job("check", (subject,))), "checked")["ok"]


def test_a_missing_runtime_is_named(
    open_session: OpenSession, dense: Subject, tmp_path: Path
) -> None:
    hidden = shadow(tmp_path, "onnxruntime", "raise ImportError('GLIBC_2.99 not found')")
    error = only(run(open_session(hidden), Job("check", (dense,))), "error")
    assert (error["id"], error["kind"]) == ("dense", "runtime-missing")
    assert "GLIBC_2.99" in error["message"]


def test_without_numpy_facts_are_told_and_the_rest_is_refused(
    open_session: OpenSession, dense: Subject, tmp_path: Path
) -> None:
    hidden = shadow(tmp_path, "numpy", "raise ImportError('no numpy')")
    session = open_session(hidden)
    assert session.facts()["python"]["version"]
    events = run(session, Job("check", (dense,)))
    assert only(events, "error")["kind"] == "runtime-missing"
    assert "numpy" in only(events, "error")["message"]
    assert events[-1]["event"] == "done"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "abacus"}, "unknown backend 'abacus'"),
        ({"options": {"xnnpack": True}}, "has no option xnnpack"),
        ({"options": {"optimization": "most"}}, "optimization must be"),
    ],
)
def test_a_subject_that_makes_no_sense(
    session: LocalSession, dense: Subject, changes: dict[str, Any], said: str
) -> None:
    error = only(run(session, Job("check", (replace(dense, **changes),))), "error")
    assert error["kind"] in ("protocol", "load")
    assert said in error["message"]


def test_a_provider_that_is_not_there_is_no_silent_fallback(
    session: LocalSession, dense: Subject
) -> None:
    subject = replace(dense, options={"providers": ["TensorrtExecutionProvider"]})
    error = only(run(session, Job("check", (subject,))), "error")
    assert error["kind"] == "runtime-missing"
    assert "TensorrtExecutionProvider" in error["message"]


def test_memory_is_the_peak_above_the_imports(session: LocalSession, tmp_path: Path) -> None:
    # 32 MiB of weights have to be resident, and little else.
    weight = np.random.default_rng(0).standard_normal((2048, 4096)).astype(np.float32)
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    shapes: tuple[dict[str, list[int | str]], dict[str, list[int | str]]]
    shapes = {"x": [1, 2048]}, {"y": [1, 4096]}
    path = write_onnx(tmp_path / "big.onnx", nodes, *shapes, {"w": weight})
    x = np.random.default_rng(1).standard_normal((1, 1, 2048)).astype(np.float32)
    subject = make_subject("big", path, {"x": x}, {"y": x @ weight})
    events = run(session, Job("memory", (subject,)))
    memory = only(events, "memory")
    assert memory["method"] in ("VmHWM", "getrusage")
    assert weight.nbytes < memory["peak_bytes"] - memory["baseline_bytes"] < 6 * weight.nbytes
    assert memory["baseline_bytes"] > 20 << 20, "Python, numpy and onnxruntime"
    assert memory["baseline_bytes"] < memory["loaded_bytes"] <= memory["peak_bytes"]


def test_memory_of_a_wrong_model_is_not_told(session: LocalSession, tmp_path: Path) -> None:
    wrong = make_dense(tmp_path, "wrong", golden_scale=2.0)
    events = run(session, Job("memory", (wrong,)))
    assert only(events, "error")["kind"] == "mismatch"
    assert not named(events, "memory")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="threads are counted in /proc")
def test_threads_reach_the_runtime(open_session: OpenSession, endless: Subject) -> None:
    def started(threads: int) -> int:
        with open_session({"OPENBLAS_NUM_THREADS": "1"}) as session:  # numpy's own pool
            events = session.run(Job("check", (endless,), threads=threads))
            pid = next(events)["pid"]
            time.sleep(1.5)  # into the first inference
            status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("Threads:")[2].split()[0])

    assert started(4) == started(1) + 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak starts anew there")
def test_the_peak_of_the_imports_is_forgotten() -> None:
    from devices.agent import memory

    held = np.ones(1 << 24)
    before = memory.peak_bytes()
    del held
    assert memory.forget_peak()
    assert memory.peak_bytes() < before - (1 << 26)
    assert memory.peak_bytes() >= (memory.resident_bytes() or 0) - (1 << 22)


def test_a_schedule_survives_the_way_to_the_agent() -> None:
    from devices.agent.timing import Schedule as AgentSchedule

    schedule = Schedule(runs=5, min_runs=3, seed=9, block_seconds=0.5)
    assert vars(AgentSchedule.from_json(schedule.to_json())) == schedule.to_json()
    assert vars(AgentSchedule()) == Schedule().to_json(), "the same defaults on both sides"


def _orders(events: list[Any]) -> list[list[str]]:
    rounds: dict[int, list[str]] = {}
    for block in named(events, "samples"):
        rounds.setdefault(block["round"], []).append(block["id"])
    return [rounds[number] for number in sorted(rounds)]
