"""What depends on weights alone, computed once.

    bias_table[:, index]                    the table as attention adds it
    conv(sines(arange(height)), W) + b      a position map
    cat(class_token, zeros) + positions     what is added to the tokens

The operators themselves compute the value, in the weights' own type, so it is the same to the last
bit. A converter that rounds weights to half precision then rounds what the device really reads,
instead of the parts that it is made of.

A constant is not blown up: where a value is only repeated along an axis, what is repeated is
stored; and one that would add more than :data:`LARGEST` bytes to the file stays computed.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import (
    add_constant,
    constant,
    describe,
    layer_name,
    operation,
    written_after,
)

__all__ = ["LARGEST", "RULE", "FoldConstants"]

aten = torch.ops.aten

#: Bytes that one stored constant may take beyond what it is computed from.
LARGEST = 16 * 2**20


class FoldConstants:
    """Stores values that depend on no input."""

    name: ClassVar[str] = "fold_constants"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` tells the operators that are gone and the bytes stored."""
        before = len(module.graph.nodes)
        values = _values(module)
        stored = _Store(module, values)
        for node in list(_border(values)):
            stored.settle(node)
        module.graph.eliminate_dead_code()
        details = {"operators": max(0, before - len(module.graph.nodes)), "bytes": stored.bytes}
        return PassReport(self.name, stored.count, tuple(stored.refusals), details)


RULE = FoldConstants()


def _values(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """The value of every node that depends on no input: tensors, and lists of them."""
    writes = any(_mutates(node) for node in module.graph.nodes)
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        value = constant(module, node) if node.op == "get_attr" else _computed(node, values)
        # Memory that something writes into later has no one value.
        if value is not None and not (writes and written_after(node, node) is not None):
            values[node] = value
    return values


def _computed(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if not _is_pure(node) or any(source not in values for source in node.all_input_nodes):
        return None
    arguments, keywords = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    target: Any = node.target
    with torch.no_grad():
        return target(*arguments, **keywords)


def _is_pure(node: fx.Node) -> bool:
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _border(values: dict[fx.Node, Any]) -> Iterator[fx.Node]:
    """Computed constants that something reads which is none."""
    for node in values:
        if node.op != "get_attr" and any(
            user not in values and user.op != "output" for user in node.users
        ):
            yield node


class _Store:
    """Constants that take the place of nodes; equal ones are stored once."""

    def __init__(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
        self.module = module
        self.values = values
        self.count = 0
        self.bytes = 0
        self.refusals: list[Refusal] = []
        self._targets: dict[tuple[Any, ...], str] = {}
        self._settled: set[fx.Node] = set()

    def settle(self, node: fx.Node) -> None:
        """Store a node's value, or what it repeats, or say why it stays computed."""
        if node.op == "get_attr" or node in self._settled:
            return
        self._settled.add(node)
        value = self.values[node]
        if not isinstance(value, Tensor) or _only_repeats(node, value):
            for source in node.all_input_nodes:
                self.settle(source)
            return
        grown = value.nbytes - sum(source.nbytes for source in self._sources(node))
        if grown > LARGEST:
            reason = f"{describe(node)} would add {grown / 2**20:.0f} MiB to the file"
            self.refusals.append(Refusal(layer_name(node) or node.name, reason))
        else:
            self._replace(node)

    def _sources(self, node: fx.Node) -> list[Tensor]:
        """The weights that a value is computed from."""
        found, queue = set(), [node]
        while queue:
            current = queue.pop()
            if current not in found:
                found.add(current)
                queue += current.all_input_nodes
        return [self.values[n] for n in found if n.op == "get_attr"]

    def _replace(self, node: fx.Node) -> None:
        value = self.values[node].contiguous()
        content = hashlib.sha256(value.view(-1).view(torch.uint8).numpy()).hexdigest()
        key = (value.dtype, tuple(value.shape), content)
        known = key in self._targets
        made = add_constant(self.module, node, "constant", value, self._targets.get(key))
        self._targets[key] = str(made.target)
        self.values[made] = value
        node.replace_all_uses_with(made)
        self.count += 1
        self.bytes += 0 if known else value.nbytes


def _only_repeats(node: fx.Node, value: Tensor) -> bool:
    """Whether a value is a smaller one repeated."""
    if operation(node) not in {aten.expand, aten.expand_as, aten.broadcast_to, aten.repeat}:
        return False
    source = node.all_input_nodes[0].meta["val"]
    return bool(value.numel() > source.numel())
