"""Making a captured program fit for coremltools: a copy without what its converter gets wrong.

* ``gelu(x, approximate="tanh")`` would become the exact GELU, because the converter does not look
  at that keyword. Given instead

      0.5 x (1 + tanh(sqrt(2 / π) (x + 0.044715 x³)))

  it finds the pattern and writes its own op for it, ``gelu(mode="TANH_APPROXIMATION")``.
* ``add(x, y, alpha=a)`` and ``sub`` would lose their ``alpha`` likewise; they become x ± a y.
* ``reciprocal(x)``, and with it ``1 / x``, would become 1 / (x + 1e-4); it becomes a division.
* ``alias``, ``detach`` and ``lift_fresh_copy`` are unknown to it and change no value.
* Nodes are renamed after the module that they come from, and coremltools names its ops after the
  nodes, so a layer can be told from an op's name in the file and in Apple's own tools.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from exporters.failure import layer_of

__all__ = ["DECOMPOSITIONS", "operator_name", "prepared"]

aten = torch.ops.aten
PASSED_THROUGH = (
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
)


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    if approximate != "tanh":
        return NotImplemented
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))
    return x * 0.5 * (1 + torch.tanh(inner))


def _add(x: Tensor, y: Tensor, *, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else x + y * alpha


def _sub(x: Tensor, y: Tensor, *, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else x - y * alpha


def _reciprocal(x: Tensor) -> Tensor:
    return torch.full((), 1.0, dtype=x.dtype) / x


def _same(x: Tensor) -> Tensor:
    return x


#: Operators that the converter gets wrong or does not know, and what is put in their place.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.gelu.default: _gelu,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.reciprocal.default: _reciprocal,
    **dict.fromkeys(PASSED_THROUGH, _same),
}


def prepared(exported: ExportedProgram) -> ExportedProgram:
    """A copy of the program as coremltools should get it."""
    copy: ExportedProgram = exported.run_decompositions(dict(DECOMPOSITIONS))
    _remove_passed_through(copy.graph)
    _name_after_modules(copy.graph)
    return copy


def operator_name(node: fx.Node) -> str:
    """The operator of a node without its namespace and overload, such as ``conv2d``."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return "batch_norm" if "batch_norm" in name else name


def _remove_passed_through(graph: fx.Graph) -> None:
    # Making the copy functional leaves aliases of its own.
    for node in list(graph.nodes):
        if node.target in PASSED_THROUGH:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _name_after_modules(graph: fx.Graph) -> None:
    # The program's signature knows its outputs by name.
    outputs = set(graph.output_node().all_input_nodes)
    for node in graph.nodes:
        path = layer_of(node)
        if node.op == "call_function" and path and node not in outputs:
            node._rename(re.sub(r"\W", "_", f"{path}.{operator_name(node)}"))
