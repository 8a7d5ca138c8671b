"""What the agent does for a profile, part by part."""

from types import SimpleNamespace
from typing import Any

import pytest

from devices.agent.backends.coreml_profile import CoreMLProfiler, costs
from devices.agent.backends.ort_profile import ops_of
from devices.agent.errors import AgentError
from devices.agent.profiling import TURN, profile
from devices.agent.timing import Schedule
from devices.base import Job
from edgevit.errors import OptionError


def entry(name: str, us: int, **more: Any) -> dict[str, Any]:
    args = {"op_name": "Add", "node_index": "0", "provider": "CPUExecutionProvider", **more}
    return {"cat": "Node", "name": name + "_kernel_time", "dur": us, "args": args}


def test_entries_of_the_profile_become_operators() -> None:
    shapes = {"input_type_shape": [{"float": [2, 3]}, {"int64": [1]}]}
    entries = [
        {"cat": "Session", "name": "model_run", "dur": 99},
        entry("/Add", 7, **shapes),
        entry("/Add", 5),
        entry("/Add", 6),
        entry("/Mul", 2, node_index="1", op_name="Mul"),
        {**entry("/Add", 1), "name": "/Add_fence_before"},
    ]
    nodes = {"/Add": {"op": "Add", "inputs": ["a"], "outputs": ["b"]}}
    add, mul = ops_of(entries, nodes, runs=2)
    assert add["ns"] == [5000, 6000]
    assert (add["takes"], add["inputs"], add["outputs"]) == ([[2, 3], [1]], ["a"], ["b"])
    assert (mul["op"], mul["outputs"]) == ("Mul", [])


class Fake:
    """A subject and its profiler: plain runs and profiled ones leave their letter."""

    method, resolution_ns = "fake", 1

    def __init__(self) -> None:
        self.letters = ""
        self.closed = False

    def timed(self) -> Any:
        return lambda: self._add("p")

    def profiler(self) -> "Fake":
        return self

    def run(self) -> int:
        self._add("P")
        return 5

    def ops(self, runs: int) -> list[Any]:
        return [runs]

    def close(self) -> None:
        self.closed = True

    def _add(self, letter: str) -> None:
        self.letters += letter


def test_plain_and_profiled_inferences_take_turns() -> None:
    fake = Fake()
    told = profile(fake, Schedule(runs=10, warmup_runs=2, warmup_seconds=0), lambda: None)  # type: ignore[arg-type]
    assert fake.letters[:3] == "ppP"
    plain, slow = "p" * TURN, "P" * TURN
    assert fake.letters[3:] == plain + slow + slow + plain + plain + slow + slow + plain
    assert len(told["plain_ns"]) == len(told["profiled_ns"]) == 12
    assert told["ops"] == [12]
    assert fake.closed


def test_a_profiler_is_closed_whatever_happens() -> None:
    fake = Fake()
    fake.ops = lambda runs: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(AgentError, match="ZeroDivisionError"):
        profile(fake, Schedule(runs=1, warmup_runs=0, warmup_seconds=0), lambda: None)  # type: ignore[arg-type]
    assert fake.closed


def operation(name: str, kind: str) -> Any:
    output = SimpleNamespace(name=name)
    return SimpleNamespace(operator_name=f"ios17.{kind}", outputs=[output], blocks=[])


class Plan:
    """As much of an MLComputePlan as is asked for."""

    def __init__(self, weights: dict[str, float | None]) -> None:
        operations = [operation(name, name) for name in weights]
        block = SimpleNamespace(operations=[operation("c", "const"), *operations])
        program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
        self.model_structure = SimpleNamespace(program=program)
        self.weights = weights

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        weight = self.weights[operation.outputs[0].name]
        return None if weight is None else SimpleNamespace(weight=weight)


def test_core_mls_operators_share_the_whole() -> None:
    profiler = CoreMLProfiler(lambda: Plan({"conv": 0.6, "softmax": 0.2, "none": None}), lambda: 0)
    whole = [profiler.run() for _ in range(3)][-2:]
    conv, softmax = profiler.ops(2)
    assert profiler.estimated
    assert [conv["op"], softmax["op"]] == ["conv", "softmax"]
    assert conv["ns"] == pytest.approx([0.75 * ns for ns in whole], abs=1)
    assert conv["layer"] is None


@pytest.mark.parametrize("weights", [{}, {"conv": None}, {"conv": 0.0}])
def test_a_plan_without_costs_is_no_profile(weights: dict[str, float | None]) -> None:
    with pytest.raises(AgentError, match="no operator's cost") as caught:
        costs(Plan(weights))
    assert caught.value.kind == "unsupported"


def test_coremltools_has_what_is_called() -> None:
    plans = pytest.importorskip("coremltools.models.compute_plan")
    assert hasattr(plans.MLComputePlan, "get_estimated_cost_for_mlprogram_operation")
    assert "weight" in plans.MLComputePlanCost.__dataclass_fields__


def test_jobs_of_these_modes() -> None:
    assert Job("peak", threads=2).to_json()["mode"] == "peak"
    with pytest.raises(OptionError, match="one, in a profile job"):
        Job("profile")
