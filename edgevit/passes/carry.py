"""Where an affine map may go: back to the layers that feed it, or on to the layers that read it.

:mod:`edgevit.passes.affine` says how a map passes the operators on the way, and
:mod:`edgevit.passes.absorb` how a layer takes it in. Here is the walk between: on the way back
nothing else may read what is changed, on the way on every reader has to take the map in, and a sum
goes back through both terms or not at all.

    s ⊙ (a + b) + t = (s ⊙ a + t) + s ⊙ b
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx

from edgevit.passes.absorb import LAYERS, NORMS, Edit, scale_input, scale_norm, scale_output
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
    describe,
    layer_name,
    operation,
    readers,
    replace_node,
    shape,
    written_after,
)

__all__ = ["Found", "before", "behind", "fold_all"]

aten = torch.ops.aten

PRODUCTS = {aten.matmul, aten.bmm, aten.mul}

#: A node that computes scale * x + shift of another, and how to learn its map (or why it has none).
Found = tuple[fx.Node, fx.Node, Callable[[], Affine]]


def fold_all(name: str, module: fx.GraphModule, find: Callable[[], Iterable[Found]]) -> PassReport:
    """Fold every affine node that ``find`` gives into the layers before or behind it.

    Args:
        name: of the pass.
        module: is rewritten in place.
        find: the nodes as they stand now; called again after every change, since one fold can
            clear the way for another.
    """
    counts = {"into_layer_before": 0, "into_layers_behind": 0}
    refusals: tuple[Refusal, ...] = ()
    progress = True
    while progress:
        outcomes = [_fold(module, *found) for found in list(find())]
        refusals = tuple(o for o in outcomes if isinstance(o, Refusal))
        for place in counts:
            counts[place] += outcomes.count(place)
        progress = len(refusals) < len(outcomes)
    return PassReport(name, sum(counts.values()), refusals, counts)


def _fold(
    module: fx.GraphModule, node: fx.Node, source: fx.Node, learn: Callable[[], Affine]
) -> str | Refusal:
    """Fold one node; returns where it went, or why it stays."""
    try:
        place, edits = _plan(module, node, source, learn())
    except CannotFoldError as reason:
        return Refusal(layer_name(node) or node.name, str(reason))
    for edit in edits:
        edit()
    replace_node(node, source)
    return place


def _plan(
    module: fx.GraphModule, node: fx.Node, source: fx.Node, affine: Affine
) -> tuple[str, list[Edit]]:
    try:
        return "into_layer_before", before(module, source, affine)
    except CannotFoldError as reason:
        refused = reason
    try:
        edits = behind(module, node, affine)
        if (writer := written_after(source, node)) is not None:
            raise CannotFoldError(f"{describe(writer)} overwrites its input in place")
    except CannotFoldError as reason:
        raise CannotFoldError(f"before it: {refused}; behind it: {reason}") from None
    return "into_layers_behind", edits


# -- into the layer before -------------------------------------------------------------------------


def before(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
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
    if op in NORMS:
        return [scale_norm(module, node, affine)]
    if op is aten.cat:
        return _before_cat(module, node, affine)
    if op in {aten.add, aten.add_}:
        return _before_add(module, node, affine)
    if op in PRODUCTS:
        return _before_product(module, node, affine)
    source = data_source(node)
    if source is None:
        raise CannotFoldError(f"{describe(node)} has no weights to fold into")
    return before(module, source, backward(module, node, affine))


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
        edits += before(module, tensor, part(node, position, affine))
    return edits


def _before_add(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
    terms = [term for term in node.args[:2] if isinstance(term, fx.Node)]
    if len(set(terms)) != 2 or any(shape(term) != shape(node) for term in terms):
        raise CannotFoldError(f"{describe(node)} adds something without weights to fold into")
    only_scale = Affine(affine.scale, torch.zeros_like(affine.shift))
    try:
        return before(module, terms[0], affine) + before(module, terms[1], only_scale)
    except CannotFoldError as reason:
        raise CannotFoldError(f"it follows a residual add ({describe(node)}): {reason}") from None


def _before_product(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
    """s ⊙ (a ⊙ b) = (s ⊙ a) ⊙ b = a ⊙ (s ⊙ b); for a b the same with a single number s."""
    first, second = node.args[:2]
    if not affine.is_scaling() or not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        raise CannotFoldError(f"{describe(node)} does not commute with a scale and a shift")
    if first is second:
        raise CannotFoldError(f"{describe(node)} multiplies a tensor with itself")
    try:
        return before(module, first, _of_operand(node, first, affine))
    except CannotFoldError as reason:
        refused = reason
    try:
        return before(module, second, _of_operand(node, second, affine))
    except CannotFoldError as reason:
        raise CannotFoldError(f"{refused}; {reason}") from None


def _of_operand(node: fx.Node, operand: fx.Node, affine: Affine) -> Affine:
    """The scale of a product as one of its operands takes it."""
    if affine.scale.numel() == 1:
        number = affine.scale.reshape([1] * len(shape(operand)))
        return Affine(number, torch.zeros_like(number))
    if operation(node) is not aten.mul:
        raise CannotFoldError(f"{describe(node)} takes one scale for all, and no shift")
    if shape(operand) != shape(node):
        raise CannotFoldError(f"{describe(node)} widens {describe(operand)}")
    return affine


# -- into the layers behind ------------------------------------------------------------------------


def behind(module: fx.GraphModule, node: fx.Node, affine: Affine) -> list[Edit]:
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
        return behind(module, reader, join(reader, node, affine))
    if op in PRODUCTS:
        return _into_product(module, reader, node, affine)
    if op in SPLITS:
        edits = []
        for piece in readers(reader):
            edits += behind(module, piece, forward(module, piece, affine))
        return edits
    if data_source(reader) is not node:
        raise CannotFoldError(f"{describe(reader)} reads it and has no weights to fold into")
    return behind(module, reader, forward(module, reader, affine))


def _into_product(
    module: fx.GraphModule, product: fx.Node, node: fx.Node, affine: Affine
) -> list[Edit]:
    """(s ⊙ a) ⊙ b = a ⊙ (s ⊙ b): what scales one factor scales the layer that gives the other."""
    first, second = product.args[:2]
    other = second if first is node else first
    if not isinstance(other, fx.Node) or other is node or not affine.is_scaling():
        raise CannotFoldError(f"{describe(product)} does not commute with a scale and a shift")
    if operation(product) is aten.mul and shape(other) == shape(node):
        return before(module, other, affine)
    if affine.scale.numel() != 1:
        raise CannotFoldError(f"{describe(product)} takes one scale for all, and no shift")
    return before(module, other, _of_operand(product, other, affine))
