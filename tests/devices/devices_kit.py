"""Tiny models for real runtimes, and short ways to read events."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.base import Event, Job, Schedule, Subject, SubjectInput
from devices.local import LocalSession
from edgevit.bundle import hash_file, save_golden

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

QUICK = Schedule(
    min_runs=5, min_seconds=0.02, max_seconds=5, warmup_runs=2, warmup_seconds=0, block_seconds=0.01
)
WEIGHT = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)


def make_dense(folder: Path, name: str, *, golden_scale: float = 1.0) -> Subject:
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
        onnx.helper.make_node("Relu", ["product"], ["y"]),
    ]
    path = write_onnx(
        folder / f"{name}.onnx", nodes, {"x": ["n", 6]}, {"y": ["n", 4]}, {"w": WEIGHT}
    )
    x = np.random.default_rng(2).standard_normal((4, 1, 6)).astype(np.float32)
    y = np.maximum(x @ WEIGHT, 0)
    assert np.ptp(y, axis=0).max() > 0.1, "the outputs must depend on the inputs"
    return make_subject(name, path, {"x": x}, {"y": golden_scale * y})


def make_subject(
    name: str,
    path: Path,
    inputs: dict[str, np.ndarray[Any, Any]],
    outputs: dict[str, np.ndarray[Any, Any]],
    *,
    backend: str = "onnxruntime",
    layout: str | None = None,
) -> Subject:
    """A subject with golden tensors of its own beside the file."""
    folder = path.parent / f"{name}-golden"
    folder.mkdir()
    save_golden(folder, inputs, outputs)
    return Subject(
        id=name,
        backend=backend,
        file=str(path),
        inputs=tuple(SubjectInput(n, a.shape[1:], layout) for n, a in inputs.items()),
        outputs=tuple(outputs),
        tolerance=5e-5,
        sha256=hash_file(path),
        golden=str(folder / "golden.npz"),
    )


def write_onnx(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    constants: dict[str, np.ndarray[Any, Any]],
) -> Path:
    """An ONNX file that even the oldest runtime reads: opset 13, IR 7."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, real, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, real, s) for n, s in outputs.items()],
        [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=7), path)
    return path


def make_endless(folder: Path) -> Subject:
    helper, types = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Sin", ["carried"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", types.INT64, []),
            helper.make_tensor_value_info("going", types.BOOL, []),
            helper.make_tensor_value_info("carried", types.FLOAT, [1, 6]),
        ],
        [
            helper.make_tensor_value_info("still_going", types.BOOL, []),
            helper.make_tensor_value_info("next", types.FLOAT, [1, 6]),
        ],
    )
    loop = helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)
    turns = {"turns": np.array(10**12, dtype=np.int64)}
    path = write_onnx(folder / "endless.onnx", [loop], {"x": [1, 6]}, {"y": [1, 6]}, turns)
    inputs = (SubjectInput("x", (1, 6)),)
    return Subject("endless", "onnxruntime", str(path), inputs, ("y",), tolerance=5e-5)


def run(session: LocalSession, job: Job, **options: Any) -> list[Event]:
    """All events of a job."""
    return list(session.run(job, **options))


def named(events: list[Event], name: str) -> list[Event]:
    """The events of one name."""
    return [event for event in events if event["event"] == name]


def only(events: list[Event], name: str) -> Event:
    """The one event of that name."""
    (event,) = named(events, name)
    return event


def shadow(folder: Path, module: str, source: str) -> dict[str, str]:
    """Variables that put a module of ours before the real one."""
    package = folder / "shadow" / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    return {"PYTHONPATH": str(folder / "shadow")}


def interpreter(version: str) -> str | None:
    """Path of a Python of that version, such as ``"3.6"``; None if this machine has none."""
    import shutil

    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    found = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")
