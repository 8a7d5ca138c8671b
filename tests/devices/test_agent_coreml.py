"""Core ML through the real Python of coremltools.

Its native library is not to be had here: FakeCoreMLRuntime (``standins/mac/libcoremlpython.py``)
takes its place. What these tests prove is that the agent calls coremltools as it wants to be
called; nothing of it has run on Core ML.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apple_kit import mac_environment, package_subject, with_options, wrong_golden
from devices_kit import QUICK, named, only, run

from devices.agent.backends.coreml import UNITS, Placement, feed, placement
from devices.base import Job, Subject
from devices.local import LocalSession

pytest.importorskip("coremltools")
OpenSession = Callable[..., LocalSession]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return package_subject(tmp_path_factory.mktemp("package"))[0]


@pytest.fixture
def mac(tmp_path: Path) -> dict[str, str]:
    return mac_environment(tmp_path)


def test_each_unit_is_checked_timed_and_told_apart(
    open_session: OpenSession, package: Subject, mac: dict[str, str], tmp_path: Path
) -> None:
    subjects = [with_options(package, unit, compute_unit=unit) for unit in UNITS]
    wrong = replace(subjects[0], id="wrong", golden=str(wrong_golden(package, tmp_path)))
    events = run(open_session(mac), Job("time", (*subjects, wrong), schedule=QUICK))
    errors = {event["id"]: event["kind"] for event in named(events, "error")}
    assert errors == {"wrong": "mismatch"}
    assert {e["id"] for e in named(events, "samples")} == set(UNITS)
    checked = {e["id"]: e for e in named(events, "checked")}
    assert len(checked["ane"]["outputs"]) == 2
    loaded = {e["id"]: e for e in named(events, "loaded")}
    assert {u: loaded[u]["settings"]["compute_units"] for u in UNITS} == UNITS
    ops = {unit: loaded[unit]["settings"]["ops_by_unit"] for unit in UNITS}
    total = sum(ops["cpu"].values())
    assert set(ops["cpu"]) == {"cpu"}
    assert ops["gpu"] == {"gpu": total - 1, "cpu": 1}
    assert ops["ane"] == ops["all"] == {"ane": total - 1, "cpu": 1}
    assert loaded["cpu"]["settings"]["compile_ns"] > 0
    assert loaded["gpu"]["settings"]["compile_ns"] is None, "the same file is compiled once"
    warned = {e["id"]: e["message"] for e in named(events, "warning")}
    assert warned["ane"] == (
        f"asked for ane, 1 of {total} operators run elsewhere (1 on cpu: 1 reshape)"
    )
    assert set(warned) == {"gpu", "ane"}


@pytest.mark.slow
def test_what_the_neural_engine_does_not_run_is_told(
    open_session: OpenSession, package: Subject, mac: dict[str, str]
) -> None:
    subject = with_options(package, "ane", compute_unit="ane")
    session = open_session(mac | {"STANDIN_ANE": "none"})
    events = run(session, Job("memory", (subject,)))
    assert set(only(events, "loaded")["settings"]["ops_by_unit"]) == {"cpu"}
    assert only(events, "warning")["kind"] == "fallback"
    assert only(events, "memory")["peak_bytes"] > 0


@pytest.mark.slow
def test_an_older_macos_has_no_plan_and_a_wheel_may_lack_core_ml(
    open_session: OpenSession, package: Subject, mac: dict[str, str]
) -> None:
    events = run(open_session(mac | {"STANDIN_PLAN": "old"}), Job("check", (package,)))
    assert only(events, "checked")["ok"]
    settings = only(events, "loaded")["settings"]
    assert settings["ops_by_unit"] is None
    assert "macOS >= 14.4" in settings["ops_by_unit_reason"]
    assert not named(events, "warning")
    events = run(open_session(mac | {"STANDIN_NO_CORE_ML": "1"}), Job("check", (package,)))
    error = only(events, "error")
    assert error["kind"] == "runtime-missing"
    assert "cannot reach Core ML" in error["message"]


def test_the_library_has_what_the_agent_calls() -> None:
    import coremltools
    from coremltools.models import CompiledMLModel, MLModel
    from coremltools.models.compute_plan import MLComputePlan
    from coremltools.models.utils import compile_model

    assert {unit.name for unit in coremltools.ComputeUnit} >= set(UNITS.values())
    for function, arguments in [
        (compile_model, {"model": "", "destination_path": ""}),
        (CompiledMLModel, {"path": "", "compute_units": None}),
        (MLModel, {"model": "", "skip_model_load": True, "compute_units": None}),
        (MLComputePlan.load_from_path, {"path": "", "compute_units": None}),
    ]:
        inspect.signature(function).bind(**arguments)
    assert hasattr(MLComputePlan, "get_compute_device_usage_for_mlprogram_operation")


def test_half_precision_inputs_are_widened_before_the_run() -> None:
    half, whole = np.ones((1, 2), dtype=np.float16), np.ones((1, 2), dtype=np.int32)
    fed = feed(["a", "b"], [half, whole])
    assert fed["a"].dtype == np.float32
    assert fed["b"] is whole


class Block:
    """Operators of a made-up program; a nested list is a block of the operator before it."""

    def __init__(self, operators: list[Any]) -> None:
        self.operations = []
        for entry in operators:
            if isinstance(entry, list):
                self.operations[-1].blocks.append(Block(entry))
            else:
                self.operations.append(Operator(entry))


class Operator:
    def __init__(self, name: str) -> None:
        self.operator_name = name
        self.blocks: list[Block] = []


class Plan:
    """A made-up compute plan: an operator's name says its unit."""

    def __init__(self, operators: list[Any], units: dict[str, Any]) -> None:
        function = type("Function", (), {"block": Block(operators)})
        program = type("Program", (), {"functions": {"main": function}})
        self.model_structure = type("Structure", (), {"program": program})
        self.units = units

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Operator) -> Any:
        unit = self.units.get(operation.operator_name.split(".")[-1])
        return None if unit is None else type("Usage", (), {"preferred_compute_device": unit})


def test_operators_of_nested_blocks_are_counted() -> None:
    import coremltools
    from coremltools.models import compute_device as devices

    cpu = devices.MLCPUComputeDevice.__new__(devices.MLCPUComputeDevice)
    ane = devices.MLNeuralEngineComputeDevice.__new__(devices.MLNeuralEngineComputeDevice)
    operators = ["const", "ios16.conv", "cond", ["const", "add", ["conv"]], "softmax", "novel"]
    units = {"conv": ane, "add": cpu, "softmax": cpu}
    told = placement(coremltools, Plan(operators, units))
    assert told.counts == {"ane": 2, "cpu": 2, "unknown": 2}
    assert told.kinds["cpu"] == {"add": 1, "softmax": 1}
    (warning,) = told.warnings("ane")
    assert warning == (
        "fallback",
        "asked for ane, 2 of 4 operators run elsewhere (2 on cpu: 1 add, 1 softmax)",
    )


@pytest.mark.parametrize("asked", ["cpu", "all"])
def test_who_leaves_the_choice_to_core_ml_is_not_warned(asked: str) -> None:
    assert Placement({"gpu": 2, "cpu": 1}, {}, None).warnings(asked) == []
