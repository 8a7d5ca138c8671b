"""Where an executed operator of an ONNX file comes from in the source model.

Exported nodes bear their layer's path (``/blocks.0.attn/MatMul``). ONNX Runtime fuses them, and
names what comes of it after a node, after a tensor (``/stem.0.2./Relu_output_0_nchwc``), or after
nothing at all (``Gelu_token_7``). But it keeps the names of tensors. So an operator stands for the
nodes of the file that lie between the tensors that it gives and those that other operators give:

    file:      x -> Div -> Erf -> Add -> Mul -> Mul -> y
    executed:  x -> Gelu_token_7 -> y         sources: all five, layer that of the last

What runtimes add (changes of layout) comes from no node; it counts to the operator it serves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevit.profiling.operators import kind_of

__all__ = ["Place", "layer_in_name", "place_operators"]

#: Operators that serve what comes before them, or what comes after.
BEHIND, BEFORE = ("ReorderOutput", "gemm_output_reshape"), ("ReorderInput", "gemm_input_reshape")
#: Nodes of which nothing is left when the model runs.
GONE = frozenset(("Constant", "ConstantOfShape", "Shape", "Identity"))


@dataclass(frozen=True)
class Place:
    """Where an executed operator comes from.

    Args:
        layer: path of the module in the source model, empty for the model itself; None if nobody
            knows.
        placed: how that is known: ``"name"`` (the runtime kept it), ``"tensor"`` (by the tensors
            between which it stands), ``"neighbour"`` (it serves that layer's operator) or
            ``"unknown"``.
        sources: the file's nodes that it stands for.
    """

    layer: str | None
    placed: str
    sources: tuple[str, ...] = ()


def layer_in_name(name: str) -> str | None:
    """The layer's path in the name of an exported node, ``/layer/Operator``; None if it has none.

    A node of the model itself (``/Add_3``) has an empty one.
    """
    if re.fullmatch(r"/[^/]+", name):
        return ""
    found = re.fullmatch(r"/([^/]+)/[^/]+", name)
    return found.group(1).rstrip(".") if found else None


def place_operators(
    ops: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]
) -> list[Place]:
    """The places of executed operators.

    Args:
        ops: as the agent told them, in the order of execution.
        nodes: of the exported file (name, op, inputs, outputs).
    """
    return _Placing(ops, nodes).places()


class _Placing:
    def __init__(
        self, ops: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]
    ) -> None:
        self.ops = ops
        self.by_name = {node["name"]: node for node in nodes}
        self.producer = {tensor: node for node in nodes for tensor in node["outputs"]}
        self.gives: list[list[str]] = [self._own_tensors(op) for op in ops]
        self._hand_back()
        self.known = {tensor for own in self.gives for tensor in own}

    def places(self) -> list[Place]:
        """In the order of the operators."""
        found = [self._place(i) for i in range(len(self.ops))]
        maker = {tensor: i for i, op in enumerate(self.ops) for tensor in op["outputs"]}
        taker: dict[str, int] = {}
        for i, op in enumerate(self.ops):
            for tensor in op["inputs"]:
                taker.setdefault(tensor, i)
        for i, op in enumerate(self.ops):
            if found[i].layer is None:
                after = [taker[t] for t in op["outputs"] if t in taker]
                before = [maker[t] for t in op["inputs"] if t in maker]
                order = before + after if _serves(op, BEHIND) else after + before
                found[i] = _neighbour(found[j] for j in order)
        return found

    def _place(self, index: int) -> Place:
        op = self.ops[index]
        if _serves(op, BEHIND) or _serves(op, BEFORE):
            return Place(None, "unknown")
        sources = self._sources(self.gives[index])
        if not sources:
            layer = layer_in_name(op["name"])
            return Place(layer, "unknown" if layer is None else "name")
        main = next((n for n in sources if kind_of(n["op"]) == "product"), sources[0])
        named = op["name"] in self.by_name
        names = tuple(node["name"] for node in sources)
        return Place(layer_in_name(main["name"]), "name" if named else "tensor", names)

    def _sources(self, tensors: Iterable[str]) -> list[Mapping[str, Any]]:
        """Nodes from these tensors back to those that other operators give."""
        found: dict[str, Mapping[str, Any]] = {}
        waiting = list(tensors)
        while waiting:
            node = self.producer.get(waiting.pop(0))
            if node is None or node["name"] in found or node["op"] in GONE:
                continue
            found[node["name"]] = node
            waiting += [tensor for tensor in node["inputs"] if tensor not in self.known]
        return list(found.values())

    def _own_tensors(self, op: Mapping[str, Any]) -> list[str]:
        """The file's tensors that an operator gives, by its outputs or else by its name."""
        own = [tensor for tensor in op["outputs"] if tensor in self.producer]
        if own:
            return own
        name = op["name"].removesuffix("_nchwc")
        if name in self.producer:
            return [name]
        while name and name not in self.by_name:
            name = name.rpartition("/")[0]
        return list(self.by_name[name]["outputs"]) if name else []

    def _hand_back(self) -> None:
        """What a change of layout gives was computed by the operator before it."""
        maker = {tensor: i for i, op in enumerate(self.ops) for tensor in op["outputs"]}
        for i, op in enumerate(self.ops):
            before = [maker[t] for t in op["inputs"] if t in maker]
            if _serves(op, BEHIND) and before:
                self.gives[before[0]] = [*self.gives[i], *self.gives[before[0]]]
                self.gives[i] = []


def _serves(op: Mapping[str, Any], names: Sequence[str]) -> bool:
    return op["op"] in names or str(op["name"]).startswith(tuple(names))


def _neighbour(places: Iterable[Place]) -> Place:
    layer = next((place.layer for place in places if place.layer is not None), None)
    return Place(layer, "unknown" if layer is None else "neighbour")
