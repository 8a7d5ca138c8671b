"""The torch profiler: every operator of the graph within a range that bears its node's name."""

import copy
from typing import Any, Dict, List, Sequence

from ..clock import clock_ns

PREFIX = "edgevit::"


class TorchProfiler:
    """The program's graph with a range around each operator, run under torch's profiler."""

    method = "the torch profiler"
    resolution_ns = 1

    def __init__(self, torch: Any, module: Any, tensors: Sequence[Any]) -> None:
        self._torch = torch
        self._tensors = tensors
        self._told = tell_operators(torch, module, tensors)
        self._module = with_ranges(torch, module)
        self._ns: Dict[str, List[int]] = {op["name"]: op["ns"] for op in self._told}

    def run(self) -> int:
        """One profiled inference; the ns it took, without reading the profile."""
        cpu = [self._torch.profiler.ProfilerActivity.CPU]
        with self._torch.profiler.profile(activities=cpu) as profile:
            start = clock_ns()
            self._module(*self._tensors)
            spent = clock_ns() - start
        for event in profile.events():
            if event.name.startswith(PREFIX):
                elapsed_us = event.time_range.elapsed_us()
                self._ns[event.name[len(PREFIX) :]].append(round(elapsed_us * 1000))
        return spent

    def ops(self, runs: int) -> List[Dict[str, Any]]:
        """What ran, in order, with the times of the last ``runs`` inferences."""
        for op in self._told:
            op["ns"] = op["ns"][-runs:]
        return [op for op in self._told if op["ns"]]

    def close(self) -> None:
        """There is nothing to let go of."""


def is_operator(node: Any) -> bool:
    """Whether a node computes; taking an element of a list does not."""
    return node.op == "call_function" and hasattr(node.target, "_schema")


def with_ranges(torch: Any, module: Any) -> Any:
    """A graph module of the same weights whose operators run within ranges."""
    enter = torch.ops.profiler._record_function_enter_new.default
    leave = torch.ops.profiler._record_function_exit._RecordFunction
    graph = copy.deepcopy(module.graph)
    for node in list(graph.nodes):
        if is_operator(node):
            with graph.inserting_before(node):
                opened = graph.call_function(enter, (PREFIX + node.name, None))
            with graph.inserting_after(node):
                graph.call_function(leave, (opened,))
    return torch.fx.GraphModule(module, graph)


def tell_operators(torch: Any, module: Any, tensors: Sequence[Any]) -> List[Dict[str, Any]]:
    """The graph's operators with the shapes they take and give, from one plain run."""
    told: List[Dict[str, Any]] = []

    class Teller(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            if is_operator(node):
                taken = [self.env[given] for given in node.all_input_nodes]
                told.append(_tell(torch, node, taken, result))
            return result

    Teller(module, garbage_collect_values=False).run(*tensors)
    return told


def _tell(torch: Any, node: Any, taken: Sequence[Any], result: Any) -> Dict[str, Any]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    results = result if isinstance(result, (tuple, list)) else [result]
    return {
        "name": node.name,
        "op": node.target._schema.name.split("::")[-1],
        "takes": [list(t.shape) for t in taken if isinstance(t, torch.Tensor)],
        "gives": [list(t.shape) for t in results if isinstance(t, torch.Tensor)],
        "inputs": [given.name for given in node.all_input_nodes],
        "outputs": [node.name],
        "provider": None,
        "layer": stack[-1][0] if stack else "",
        "ns": [],
    }
