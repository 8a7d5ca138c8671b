"""ONNX Runtime's own profile: a second session that times its nodes, and the graph it made."""

import functools
import json
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from ..clock import clock_ns
from ..onnx_nodes import read_nodes

if TYPE_CHECKING:
    from .ort import OnnxRuntime

KERNEL = "_kernel_time"


class OrtProfiler:
    """A session with profiling on, beside the plain one.

    Times of nodes are whole microseconds, which is all that this profiler tells. Names alone do not
    say where a fused node comes from, so the graph after optimization is read as well.
    """

    method = "onnxruntime's profiler"
    resolution_ns = 1000

    def __init__(self, backend: "OnnxRuntime", options: Any) -> None:
        self._folder = tempfile.mkdtemp(prefix="edgevit-profile-")
        self._graph = os.path.join(self._folder, "optimized.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(self._folder, "profile")
        options.optimized_model_filepath = self._graph
        options.log_severity_level = 3  # it warns that such a file is for this machine alone
        self._session = backend.new_session(options)
        binding = backend.bound(self._session)
        self._infer = functools.partial(self._session.run_with_iobinding, binding)

    def run(self) -> int:
        """One profiled inference; the ns it took."""
        start = clock_ns()
        self._infer()
        return clock_ns() - start

    def ops(self, runs: int) -> List[Dict[str, Any]]:
        """What ran, in order, with the times of the last ``runs`` inferences; ends the session."""
        with open(self._session.end_profiling()) as stream:
            entries = json.load(stream)
        nodes = {node["name"]: node for node in read_nodes(self._graph)}
        return ops_of(entries, nodes, runs)

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def ops_of(
    entries: List[Dict[str, Any]], nodes: Dict[str, Dict[str, Any]], runs: int
) -> List[Dict[str, Any]]:
    """Entries of the profile as operators, in the order of their first execution.

    Args:
        entries: of the profile.
        nodes: of the graph after optimization, by name.
        runs: so many of the last times are kept.
    """
    found: Dict[Tuple[str, str], Dict[str, Any]] = {}
    for entry in entries:
        told = entry.get("args") or {}
        if entry.get("cat") != "Node" or not entry["name"].endswith(KERNEL):
            continue
        name = entry["name"][: -len(KERNEL)]
        key = (str(told.get("node_index")), name)
        if key not in found:
            node = nodes.get(name, {})
            found[key] = {
                "name": name,
                "op": told.get("op_name") or node.get("op") or "?",
                "takes": _shapes(told.get("input_type_shape")),
                "gives": _shapes(told.get("output_type_shape")),
                "inputs": node.get("inputs", []),
                "outputs": node.get("outputs", []),
                "provider": told.get("provider"),
                "layer": None,
                "ns": [],
            }
        found[key]["ns"].append(int(entry["dur"]) * 1000)
    for op in found.values():
        op["ns"] = op["ns"][-runs:]
    return list(found.values())


def _shapes(told: Any) -> List[List[int]]:
    return [list(shape) for entry in told or [] for shape in entry.values()]
