"""ReLU in place of the smooth activations: cheaper on small processors, and another model.

    gelu(x)          x Φ(x)                                          -> relu(x)
    gelu_tanh(x)     x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2   -> relu(x)
    quick_gelu(x)    x σ(1.702 x)                                    -> relu(x)
    silu(x)          x σ(x)                                          -> relu(x)
    hard_swish(x)    x relu6(x + 3) / 6                              -> relu(x)

Each is found as an operator, and as a formula however it is written out: what depends on one tensor
alone, element by element, is run on a grid and compared with the curves above. So a gate, which
multiplies with a sigmoid or a softmax of *another* tensor (squeeze-excite), never matches.

The result computes something else, and its weights need fine-tuning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import (
    arguments,
    constant,
    describe,
    is_identity,
    layer_name,
    operation,
    written_after,
)

__all__ = ["RULE", "SubstituteReLU"]

aten = torch.ops.aten

#: The curves, also those that are recognised in order to be refused.
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "mish": F.mish,
}
REASONS = {
    "mish": "Mish is not among what ReLU replaces here: GELU, SiLU and hard-swish",
    "swish": "it multiplies x with a sigmoid of x, but is neither SiLU nor quick GELU",
    "elu": "ELU gives negative values, which ReLU would cut off",
    "selu": "SELU gives negative values, which ReLU would cut off, and rests on their scale",
    "celu": "CELU gives negative values, which ReLU would cut off",
    "softplus": "Softplus is positive everywhere; what divides by it could not take ReLU's zeros",
    "leaky_relu": "LeakyReLU has a slope below zero, which ReLU would cut off, and is as cheap",
    "prelu": "PReLU has a learned slope below zero, which ReLU would cut off, and is as cheap",
    "rrelu": "RReLU has a slope below zero, which ReLU would cut off, and is as cheap",
}
OPERATORS = {"gelu": "gelu", "silu": "silu", "hardswish": "hard_swish"} | {
    name: name for name in REASONS if name != "swish"
}
#: What a formula may be made of; a trailing underscore (in place) is taken off first.
ELEMENTWISE = {
    *("add", "sub", "rsub", "mul", "div", "neg", "reciprocal", "pow", "square", "exp"),
    *("sigmoid", "tanh", "erf", "relu", "relu6", "hardtanh", "hardsigmoid", "softplus"),
    *("clamp", "clamp_min", "clamp_max", "log1p", "expm1"),
}
GRID = torch.linspace(-8, 8, 321, dtype=torch.float64)
#: Between curves it is 5e-4 or more; constants cut to four digits make less than this.
TOLERANCE = 5e-5
#: How many nodes to look back for the tensor: in every formula it is also a factor near the end.
MOST_NODES = 16


@dataclass(frozen=True)
class Match:
    """An activation: its kind, the nodes that make it up (last first) and the tensor it acts on."""

    kind: str
    nodes: tuple[fx.Node, ...]
    source: fx.Node


class SubstituteReLU:
    """Replaces GELU, SiLU and hard-swish by ReLU."""

    name: ClassVar[str] = "substitute_relu"
    changes_model: ClassVar[bool] = True

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the activations by kind."""
        counts: Counter[str] = Counter()
        refusals: list[Refusal] = []
        used: set[fx.Node] = set()
        # From the end, so that a whole formula is met before its parts.
        for node in reversed(list(module.graph.nodes)):
            match = None if node in used else _match(module, node)
            if match is None:
                continue
            used.update(match.nodes)
            if (reason := _refuse(match)) is not None:
                refusals.append(Refusal(layer_name(node) or node.name, reason))
            else:
                _substitute(module, match)
                counts[match.kind] += 1
        details = dict(sorted(counts.items()))
        return PassReport(self.name, counts.total(), tuple(reversed(refusals)), details)


RULE = SubstituteReLU()


def _refuse(match: Match) -> str | None:
    root = match.nodes[0]
    writer = written_after(match.source, match.nodes[-1], until=root)
    if writer is not None:
        return f"{describe(writer)} overwrites its input in place"
    return REASONS.get(match.kind)


def _substitute(module: fx.GraphModule, match: Match) -> None:
    root = match.nodes[0]
    overwrites = _in_place(root) and root.args[0] is match.source
    relu = aten.relu_.default if overwrites else aten.relu.default
    with module.graph.inserting_before(root):
        made = module.graph.call_function(relu, (match.source,))
    made.meta = dict(root.meta)
    root.replace_all_uses_with(made)
    for node in match.nodes:
        if not node.users:
            module.graph.erase_node(node)


# -- recognising -----------------------------------------------------------------------------------


def _match(module: fx.GraphModule, node: fx.Node) -> Match | None:
    name = _name(node)
    if name in OPERATORS:
        kind = OPERATORS[name]
        if name == "gelu" and arguments(node)["approximate"] == "tanh":
            kind = "gelu_tanh"
        return Match(kind, (node,), node.all_input_nodes[0])
    return _match_formula(module, node) if name in {"mul", "div"} else None


def _match_formula(module: fx.GraphModule, root: fx.Node) -> Match | None:
    for source in _candidates(root):
        nodes = _nodes_between(module, root, source)
        if nodes and (kind := _kind(module, nodes, source)) is not None:
            return Match(kind, tuple(nodes), source)
    return None


def _candidates(root: fx.Node) -> list[fx.Node]:
    """Nodes that a formula ending in ``root`` could act on, the nearest first."""
    found: list[fx.Node] = [root]
    for node in found:
        if _is_elementwise(node) and len(found) < MOST_NODES:
            found += [n for n in node.all_input_nodes if n not in found]
    return found[1:]


def _nodes_between(module: fx.GraphModule, root: fx.Node, source: fx.Node) -> list[fx.Node] | None:
    """All nodes from ``root`` back to ``source``, last first; None if they need another tensor."""
    found = {root}
    todo = [root]
    while todo:
        node = todo.pop()
        # What an operator in place overwrites must not be read by anything else.
        shared = node is not root and _in_place(node) and len(node.all_input_nodes[0].users) > 1
        if shared or not _is_elementwise(node):
            return None
        for value in node.all_input_nodes:
            known = constant(module, value)
            scalar = known is not None and known.numel() == 1
            if value is not source and value not in found and not scalar:
                found.add(value)
                todo.append(value)
    return sorted(found, reverse=True)


def _kind(module: fx.GraphModule, nodes: list[fx.Node], source: fx.Node) -> str | None:
    got = _run(module, nodes, source)
    for kind, curve in CURVES.items():
        if torch.allclose(got, curve(GRID), rtol=0, atol=TOLERANCE):
            return kind
    root = nodes[0]
    gated = [n for n in root.all_input_nodes if n is not source and _name(n) == "sigmoid"]
    return "swish" if gated and source in root.all_input_nodes else None


def _run(module: fx.GraphModule, nodes: list[fx.Node], source: fx.Node) -> Tensor:
    """The formula's values on the grid."""
    values: dict[fx.Node, Any] = {source: GRID}

    def value(node: fx.Node) -> Any:
        known = values.get(node)
        if known is None:
            scalar = constant(module, node)
            assert scalar is not None
            return scalar.double().reshape(())
        # A copy, because an operator in place would change what others read.
        return known.clone()

    for node in reversed(nodes):
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        target: Any = node.target
        values[node] = args[0] if is_identity(node) else target(*args, **kwargs)
    result: Tensor = values[nodes[0]]
    return result


def _name(node: fx.Node) -> str | None:
    op = operation(node)
    return None if op is None else str(op.__name__).rstrip("_")


def _in_place(node: fx.Node) -> bool:
    op = operation(node)
    return op is not None and str(op.__name__).endswith("_")


def _is_elementwise(node: fx.Node) -> bool:
    return _name(node) in ELEMENTWISE or (node.op == "call_function" and is_identity(node))
