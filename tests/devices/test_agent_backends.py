"""Other runtimes than ONNX Runtime, which test_agent_jobs.py has: real files in real runtimes."""

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices_kit import QUICK, make_dense, make_subject, named, only, run, shadow

from devices.base import Job, Subject
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]

FLOAT, INT32 = 0, 2  # TFLite's numbers of element types
MEAN, SUB = 40, 41  # and of operators


def write_tflite(
    path: Path,
    *,
    operator: int,
    tensors: list[tuple[str, list[int], np.ndarray[Any, Any] | None]],
    operands: list[int],
    inputs: list[int],
    signature: list[int] | None = None,
) -> Path:
    """A TFLite file of one operator, whose result is the last tensor.

    Args:
        path: where to write it.
        operator: its number.
        tensors: name, shape, and content if it is a constant.
        operands: tensors that the operator takes.
        inputs: tensors that are the file's inputs, in the file's order.
        signature: tensors that the signature calls args_0, args_1, ...; none is written for None.
    """
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors, result = [], len(tensors) - 1
    for name, shape, content in tensors:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, FLOAT, 0
        if content is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), dtype=np.uint8)
            tensor.type, tensor.buffer = INT32, len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = inputs, [result]
    code, step = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    step.opcodeIndex, step.inputs, step.outputs = 0, operands, [result]
    kind, options = {
        MEAN: (schema.BuiltinOptions.ReducerOptions, schema.ReducerOptionsT()),
        SUB: (schema.BuiltinOptions.SubOptions, schema.SubOptionsT()),
    }[operator]
    step.builtinOptionsType, step.builtinOptions = kind, options
    model.operatorCodes, graph.operators = [code], [step]
    if signature is not None:
        model.signatureDefs = [_signature(schema, signature, result)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _signature(schema: Any, inputs: list[int], result: int) -> Any:
    def entry(name: str, index: int) -> Any:
        mapped = schema.TensorMapT()
        mapped.name, mapped.tensorIndex = name, index
        return mapped

    definition = schema.SignatureDefT()
    definition.signatureKey, definition.subgraphIndex = "serving_default", 0
    definition.inputs = [entry(f"args_{i}", index) for i, index in enumerate(inputs)]
    definition.outputs = [entry("output_0", result)]
    return definition


@pytest.fixture
def picture_mean(tmp_path: Path) -> Subject:
    """A TFLite file that takes NHWC and gives each channel's mean."""
    path = write_tflite(
        tmp_path / "mean.tflite",
        operator=MEAN,
        tensors=[
            ("picture", [1, 4, 5, 3], None),
            ("axes", [2], np.array([1, 2], dtype=np.int32)),
            ("means", [1, 3], None),
        ],
        operands=[0, 1],
        inputs=[0],
    )
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 4, 5)).astype(np.float32)
    outputs = {"y": x.mean((3, 4))}
    return make_subject("mean", path, {"x": x}, outputs, backend="tflite", layout="NHWC")


def test_tflite_is_checked_and_timed(session: LocalSession, picture_mean: Subject) -> None:
    events = run(session, Job("time", (picture_mean,), schedule=QUICK))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert named(events, "samples")
    loaded = only(events, "loaded")
    assert loaded["runtime"]["name"] in ("ai_edge_litert", "tflite_runtime")
    assert loaded["runtime"]["version"]
    assert loaded["settings"] == {"threads": 1, "xnnpack": True}


def test_tflite_without_its_delegate(session: LocalSession, picture_mean: Subject) -> None:
    subject = replace(picture_mean, options={"xnnpack": False})
    events = run(session, Job("check", (subject,)))
    assert only(events, "checked")["ok"]
    assert only(events, "loaded")["settings"]["xnnpack"] is False


def test_a_tflite_file_has_one_batch(session: LocalSession, picture_mean: Subject) -> None:
    error = only(run(session, Job("check", (replace(picture_mean, batch=2),))), "error")
    assert error["message"] == "input x takes 1x4x5x3, got 2x4x5x3"


def test_tflite_without_the_layout_is_refused(session: LocalSession, picture_mean: Subject) -> None:
    inputs = (replace(picture_mean.inputs[0], layout=None),)
    error = only(run(session, Job("check", (replace(picture_mean, inputs=inputs),))), "error")
    assert error["message"] == "input x takes 1x4x5x3, got 1x3x4x5"


@pytest.mark.parametrize("names", [("a", "b"), ("args_0", "args_1")])
def test_tflite_inputs_go_by_the_signature(
    session: LocalSession, tmp_path: Path, names: tuple[str, str]
) -> None:
    # The file lists the second argument first; only its signature tells.
    path = write_tflite(
        tmp_path / "sub.tflite",
        operator=SUB,
        tensors=[("q", [1, 2], None), ("p", [1, 2], None), ("difference", [1, 2], None)],
        operands=[1, 0],
        inputs=[0, 1],
        signature=[1, 0],
    )
    a, b = np.random.default_rng(0).standard_normal((2, 3, 1, 2)).astype(np.float32)
    subject = make_subject("sub", path, {names[0]: a, names[1]: b}, {"y": a - b}, backend="tflite")
    assert only(run(session, Job("check", (subject,))), "checked")["ok"]


def test_without_litert_its_absence_is_told(
    open_session: OpenSession, picture_mean: Subject, tmp_path: Path
) -> None:
    hidden = shadow(tmp_path, "ai_edge_litert", "raise ImportError('not for this board')")
    hidden |= shadow(tmp_path, "tflite_runtime", "raise ImportError('nor this one')")
    error = only(run(open_session(hidden), Job("check", (picture_mean,))), "error")
    assert error["kind"] == "runtime-missing"
    assert "not for this board" in error["message"]
    assert "nor this one" in error["message"]


@pytest.mark.slow
def test_a_torch_program_is_checked_and_timed(session: LocalSession, tmp_path: Path) -> None:
    import torch

    module = torch.nn.Linear(6, 4).eval()
    x = torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "linear.pt2"
    torch.export.save(torch.export.export(module, (x[0],)), path)
    y = module(x).detach().numpy()
    subject = make_subject("linear", path, {"x": x.numpy()}, {"y": y}, backend="torch")
    events = run(session, Job("time", (subject,), schedule=QUICK))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert named(events, "samples")
    assert only(events, "loaded")["settings"]["threads"] == 1
    assert only(events, "loaded")["runtime"]["version"].startswith(torch.__version__)


def test_two_runtimes_in_one_job(
    session: LocalSession, picture_mean: Subject, tmp_path: Path
) -> None:
    dense = make_dense(tmp_path, "dense")
    events = run(session, Job("time", (picture_mean, dense), schedule=QUICK))
    assert {event["id"] for event in named(events, "samples")} == {"mean", "dense"}
    assert all(event["ok"] for event in named(events, "checked"))


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")
def test_core_ml_is_for_macs(session: LocalSession, dense: Subject) -> None:
    subject = replace(dense, backend="coreml")
    error = only(run(session, Job("check", (subject,))), "error")
    assert (error["kind"], error["message"]) == ("runtime-missing", "Core ML runs on macOS only")
    wrong = replace(subject, options={"compute_unit": "TPU"})
    error = only(run(session, Job("check", (wrong,))), "error")
    assert "cpu or gpu or ane or all" in error["message"]
