"""Constant factors folded into the weights round them.

    layer(x) * c, layer(x) / c          the layer with c W and c ⊙ b
    layer(x * c)                        the layer with W c
    (a b) * c, for a single number c    a b with c in the layer that gives a, or else b

Attention scales, LayerScale and normalising constants are such factors. Each costs a pass over its
tensor, and folded it costs nothing. :mod:`edgevit.passes.carry` finds the layer and refuses where
something else reads what would change; a factor that stays does no harm.

A factor that varies within what a layer shares (per token behind a Linear, say) stays as well.
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

__all__ = ["RULE", "FoldScales"]

aten = torch.ops.aten

PRODUCTS = {aten.mul, aten.mul_}
QUOTIENTS = {aten.div, aten.div_}


class FoldScales:
    """Folds multiplications and divisions by constants into neighbouring layers."""

    name: ClassVar[str] = "fold_scales"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the folds by where they went."""
        return fold_all(self.name, module, lambda: _scales(module))


RULE = FoldScales()


def _scales(module: fx.GraphModule) -> Iterator[Found]:
    for node in module.graph.nodes:
        op = operation(node)
        if op not in PRODUCTS | QUOTIENTS or len(node.args) != 2 or node.kwargs:
            continue
        first, second = (_factor(module, argument) for argument in node.args)
        if first is None and second is not None:
            source, factor = node.args[0], second
        elif op in PRODUCTS and first is not None and second is None:
            source, factor = node.args[1], first
        else:
            continue
        # A constant that widens its operand is no scale of it.
        if isinstance(source, fx.Node) and shape(source) == shape(node):
            yield node, source, partial(_affine, node, factor, inverse=op in QUOTIENTS)


def _factor(module: fx.GraphModule, argument: object) -> Tensor | None:
    """A constant operand in float64; None for anything that is computed."""
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return torch.tensor(float(argument)).double()
    value = constant(module, argument)
    return value.double() if value is not None and value.is_floating_point() else None


def _affine(node: fx.Node, factor: Tensor, *, inverse: bool) -> Affine:
    """The map that the node is.

    Raises:
        CannotFoldError: it is not finite.
    """
    if inverse:
        factor = factor.reciprocal()
    if not bool(factor.isfinite().all()):
        raise CannotFoldError("the factor is not finite")
    scale = factor.reshape([1] * (len(shape(node)) - factor.dim()) + list(factor.shape))
    return Affine(scale, torch.zeros_like(scale))
