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
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.absorb import LAYERS, Edit, scale_input, scale_output
from edgevit.passes.affine import (
    SPLITS,
    Affine,
    CannotFoldError,
    backward,
    data_source,
    forward,
    join,
    part,
)
from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import (
    arguments,
    constant,
    describe,
    layer_name,
    operation,
    readers,
    replace_node,
    shape,
    written_after,
)

__all__ = ["RULE", "FoldBatchNorm"]

aten = torch.ops.aten


class FoldBatchNorm:
    """Folds every BatchNorm into its neighbours where that is exact, and says why not elsewhere."""

    name: ClassVar[str] = "fold_batchnorm"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the folds by where they went."""
        counts = {"into_layer_before": 0, "into_layers_behind": 0}
        refusals: tuple[Refusal, ...] = ()
        progress = True
        while progress:
            # One fold can clear the way for another: of two BatchNorms in a row, say.
            outcomes = [_fold(module, node) for node in _batch_norms(module)]
            refusals = tuple(o for o in outcomes if isinstance(o, Refusal))
            for place in counts:
                counts[place] += outcomes.count(place)
            progress = len(refusals) < len(outcomes)
        return PassReport(self.name, sum(counts.values()), refusals, counts)


RULE = FoldBatchNorm()


def _batch_norms(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if operation(n) is aten.batch_norm]


def _fold(module: fx.GraphModule, node: fx.Node) -> str | Refusal:
    """Fold one BatchNorm; returns where it went, or why it stays."""
    try:
        place, edits = _plan(module, node)
    except CannotFoldError as reason:
        return Refusal(layer_name(node) or node.name, str(reason))
    for edit in edits:
        edit()
    replace_node(node, node.all_input_nodes[0])
    return place


def _plan(module: fx.GraphModule, node: fx.Node) -> tuple[str, list[Edit]]:
    affine = _affine(module, node)
    source = node.all_input_nodes[0]
    try:
        return "into_layer_before", _before(module, source, affine)
    except CannotFoldError as reason:
        before = reason
    try:
        edits = _behind(module, node, affine)
        if (writer := written_after(source, node)) is not None:
            raise CannotFoldError(f"{describe(writer)} overwrites its input in place")
    except CannotFoldError as behind:
        raise CannotFoldError(f"before it: {before}; behind it: {behind}") from None
    return "into_layers_behind", edits


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


# -- into the layer before -------------------------------------------------------------------------


def _before(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
    """Edits that make ``node`` give scale * value + shift.

    Raises:
        CannotFoldError: something before cannot be changed so.
    """
    op = operation(node)
    if op is None:
        raise CannotFoldError(f"{describe(node)} has no weights to fold into")
    _check_only_reader(node)
    if op in LAYERS:
        return [scale_output(module, node, affine)]
    if op is aten.cat:
        return _before_cat(module, node, affine)
    if op in {aten.add, aten.add_}:
        return _before_add(module, node, affine)
    source = data_source(node)
    if source is None:
        raise CannotFoldError(f"{describe(node)} has no weights to fold into")
    return _before(module, source, backward(module, node, affine))


def _check_only_reader(node: fx.Node) -> None:
    found = readers(node)
    if len(found) != 1:
        others = ", ".join(describe(reader) for reader in found)
        raise CannotFoldError(f"{describe(node)} has several readers ({others})")


def _before_cat(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
    tensors = arguments(node)["tensors"]
    if len(set(tensors)) != len(tensors):
        raise CannotFoldError(f"{describe(node)} joins a tensor with itself")
    edits = []
    for position, tensor in enumerate(tensors):
        edits += _before(module, tensor, part(node, position, affine))
    return edits


def _before_add(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
    terms = [term for term in node.args[:2] if isinstance(term, fx.Node)]
    if len(set(terms)) != 2 or any(shape(term) != shape(node) for term in terms):
        raise CannotFoldError(f"{describe(node)} adds something without weights to fold into")
    only_scale = Affine(affine.scale, torch.zeros_like(affine.shift))
    try:
        return _before(module, terms[0], affine) + _before(module, terms[1], only_scale)
    except CannotFoldError as reason:
        raise CannotFoldError(f"it follows a residual add ({describe(node)}): {reason}") from None


# -- into the layers behind ------------------------------------------------------------------------


def _behind(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
    """Edits that let all readers take x where they took ``node``, which is scale * x + shift.

    Raises:
        CannotFoldError: a reader cannot be changed so.
    """
    edits = []
    for reader in readers(node):
        edits += _into_reader(module, reader, node, affine)
    return edits


def _into_reader(
    module: fx.GraphModule, reader: fx.Node, node: fx.Node, affine: Affine
) -> list[Edit]:
    op = operation(reader)
    if op in LAYERS and reader.args[0] is node:
        return [scale_input(module, reader, affine)]
    if op is aten.cat:
        return _behind(module, reader, join(reader, node, affine))
    if op in SPLITS:
        edits = []
        for piece in readers(reader):
            edits += _behind(module, piece, forward(module, piece, affine))
        return edits
    if data_source(reader) is not node:
        raise CannotFoldError(f"{describe(reader)} reads it and has no weights to fold into")
    return _behind(module, reader, forward(module, reader, affine))
