"""Constant factors and terms folded into the weights round them.

    layer(x) * c + d, layer(x) / c      the layer with c W and c ⊙ b + d
    layer(x * c + d)                    the layer with W c and b + W d
    (a b) * c, for a single number c    a b with c in the layer that gives a, or else b

Attention scales, LayerScale, normalising constants and embeddings that are the same for every token
are such factors and terms. Each costs a pass over its tensor, and folded it costs nothing.
:mod:`edgevit.passes.carry` finds the layer and refuses where something else reads what would
change; what stays does no harm.

What varies within what a layer shares (per token behind a Linear, say) stays as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.affine import Affine, CannotFoldError
from edgevit.passes.base import PassReport
from edgevit.passes.carry import Found, fold_all
from edgevit.passes.graph import constant, operation, shape

__all__ = ["RULE", "FoldAffine"]

aten = torch.ops.aten

PRODUCTS = {aten.mul, aten.mul_}
QUOTIENTS = {aten.div, aten.div_}
SUMS = {aten.add, aten.add_}
DIFFERENCES = {aten.sub, aten.sub_}
#: Those that take their operands in any order.
COMMUTE = PRODUCTS | SUMS


class FoldAffine:
    """Folds products, quotients, sums and differences with constants into neighbouring layers."""

    name: ClassVar[str] = "fold_affine"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the folds by where they went."""
        return fold_all(self.name, module, lambda: _maps(module))


RULE = FoldAffine()


def _maps(module: fx.GraphModule) -> Iterator[Found]:
    for node in module.graph.nodes:
        op = operation(node)
        if op not in COMMUTE | QUOTIENTS | DIFFERENCES or len(node.args) != 2 or node.kwargs:
            continue
        first, second = (_number(module, argument) for argument in node.args)
        if first is None and second is not None:
            source, number = node.args[0], second
        elif op in COMMUTE and first is not None and second is None:
            source, number = node.args[1], first
        else:
            continue
        # A constant that widens its operand is no map of it.
        if isinstance(source, fx.Node) and shape(source) == shape(node):
            yield node, source, partial(_affine, node, number)


def _number(module: fx.GraphModule, argument: object) -> Tensor | None:
    """A constant operand in float64; None for anything that is computed."""
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return torch.tensor(float(argument)).double()
    value = constant(module, argument)
    return value.double() if value is not None and value.is_floating_point() else None


def _affine(node: fx.Node, number: Tensor) -> Affine:
    """The map that the node is.

    Raises:
        CannotFoldError: it is not finite.
    """
    op = operation(node)
    if op in QUOTIENTS:
        number = number.reciprocal()
    elif op in DIFFERENCES:
        number = -number
    if not bool(number.isfinite().all()):
        raise CannotFoldError("the constant is not finite")
    number = number.reshape([1] * (len(shape(node)) - number.dim()) + list(number.shape))
    if op in PRODUCTS | QUOTIENTS:
        return Affine(number, torch.zeros_like(number))
    return Affine(torch.ones_like(number), number)
