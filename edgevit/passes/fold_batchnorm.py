"""BatchNorm folded into the weights round it.

In eval mode a BatchNorm is affine per channel, with running mean m and running variance v:

    bn(x) = s ⊙ x + t           s = weight / sqrt(v + eps)      t = bias - m ⊙ s

Given                                         the result is

    conv, transposed conv, Linear -> bn       the layer with s W and s ⊙ b + t
    bn -> conv without padding, Linear        the layer with W s and b + W t
    bn -> padded or transposed conv           the layer with W s if t = 0, else refused

:mod:`edgevit.passes.absorb` has the algebra, and :mod:`edgevit.passes.affine` what may lie between.
The layer before is preferred. Nothing else may read its output, or the other readers would get s
and t too; of the layers behind, all readers have to absorb them. What follows a sum (a residual)
goes back through both terms or not at all:

    bn(a + b) = (s ⊙ a + t) + s ⊙ b

A weight that serves elsewhere as well is copied for the place that is folded into.

A padded convolution behind could take in t as well with a map of constants added to its result,
which has the border right. That is an operator for an operator: XCiT, whose BatchNorms lie between
two depthwise convolutions, gains nothing by it in any runtime (``python -m benchmarks.border``).
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
from edgevit.passes.graph import arguments, constant, operation, shape

__all__ = ["RULE", "FoldBatchNorm"]

aten = torch.ops.aten


class FoldBatchNorm:
    """Folds every BatchNorm into its neighbours where that is exact, and says why not elsewhere."""

    name: ClassVar[str] = "fold_batchnorm"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the folds by where they went."""
        return fold_all(self.name, module, lambda: _batch_norms(module))


RULE = FoldBatchNorm()


def _batch_norms(module: fx.GraphModule) -> Iterator[Found]:
    for node in module.graph.nodes:
        if operation(node) is aten.batch_norm:
            yield node, node.all_input_nodes[0], partial(_affine, module, node)


def _affine(module: fx.GraphModule, node: fx.Node) -> Affine:
    """Scale and shift of a BatchNorm in eval mode.

    Raises:
        CannotFoldError: it has no running statistics, or does not use them.
    """
    values = arguments(node)
    if values["running_mean"] is None or values["running_var"] is None:
        raise CannotFoldError("it has no running statistics, so what it does depends on the batch")
    if values["training"]:
        raise CannotFoldError("it is in training mode, so what it does depends on the batch")

    def read(name: str, default: float) -> Tensor:
        value = constant(module, values[name])
        if value is None and values[name] is not None:
            raise CannotFoldError(f"its {name} is computed in the graph")
        return torch.tensor(default).double() if value is None else value.double()

    scale = read("weight", 1) / (read("running_var", 1) + values["eps"]).sqrt()
    shift = read("bias", 0) - read("running_mean", 0) * scale
    if not bool((scale + shift).isfinite().all()):
        raise CannotFoldError("its scale or its shift is not finite")
    return Affine.per_channel(scale, shift, len(shape(node)))
