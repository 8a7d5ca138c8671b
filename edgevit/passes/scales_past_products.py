"""Normalisations moved from the factors of a product onto the smallest tensor at hand.

A scale that is one number a row or a column (a norm over tokens, say) passes a product:

    (diag(a) A) B = diag(a) (A B)       a: one number a row of A
    A (B diag(b)) = (A B) diag(b)       b: one number a column of B
    (A diag(c)) B = A (diag(c) B)       c: one number for each that is summed over

Softmax-free attention normalises queries and keys of N tokens before it multiplies them; the
product of keys and values, d x d for heads of width d, is smaller, and takes both norms as rows:

    (Q / n) ((K / m)^T V) = Q ((K^T V) / (m^T n^T))

Cross-covariance attention takes them as rows and columns of its d x d map. A scale moves only where
that makes the tensor it is applied to smaller, and only if nothing else reads the scaled factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from edgevit.passes.base import PassReport
from edgevit.passes.graph import operation, readers, replace_node, shape

__all__ = ["RULE", "ScalesPastProducts"]

aten = torch.ops.aten

TRANSPOSES = {aten.transpose, aten.mT, aten.swapaxes}


class ScalesPastProducts:
    """Applies row and column scales of a product's factors where fewer elements are scaled."""

    name: ClassVar[str] = "scales_past_products"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts scales by where they went."""
        counts = {"behind_the_product": 0, "onto_the_other_factor": 0}
        progress = True
        while progress:
            products = [n for n in module.graph.nodes if operation(n) is aten.matmul]
            places = [place for product in products if (place := _move_one(product)) is not None]
            for place in places:
                counts[place] += 1
            progress = bool(places)
        return PassReport(self.name, sum(counts.values()), details=counts)


RULE = ScalesPastProducts()


@dataclass(frozen=True)
class _Scaled:
    """A factor ``source * scale`` or ``source / scale``, perhaps transposed before the product.

    Args:
        node: the multiplication or division.
        source: what it scales.
        scale: one number a row or a column of ``source``.
        flip: the transpose between it and the product; None if there is none.
    """

    node: fx.Node
    source: fx.Node
    scale: fx.Node
    flip: fx.Node | None

    @property
    def along_rows(self) -> bool:
        """Whether the product's factor has one number a row."""
        one_a_row = shape(self.scale)[-1] == 1
        return one_a_row != (self.flip is not None)


def _move_one(product: fx.Node) -> str | None:
    """Move one scale of a product's factors; returns where it went."""
    for position in (0, 1):
        scaled = _scaled(product, position)
        if scaled is None:
            continue
        outer = scaled.along_rows == (position == 0)
        if outer and _size(product) < _size(scaled.node):
            _behind(product, position, scaled)
            return "behind_the_product"
        other = product.args[1 - position]
        assert isinstance(other, fx.Node)
        if not outer and _size(other) < _size(scaled.node):
            _onto_other(product, position, scaled, other)
            return "onto_the_other_factor"
    return None


def _scaled(product: fx.Node, position: int) -> _Scaled | None:
    factor = product.args[position]
    if not isinstance(factor, fx.Node) or factor is product.args[1 - position]:
        return None
    flip = factor if _is_flip(factor) else None
    node = factor.args[0] if flip is not None else factor
    if not isinstance(node, fx.Node) or operation(node) not in {aten.mul, aten.div}:
        return None
    if readers(node) != [flip or product] or readers(factor) != [product]:
        return None
    parts = _parts(node)
    return _Scaled(node, *parts, flip) if parts is not None else None


def _is_flip(node: fx.Node) -> bool:
    """Whether a node exchanges rows and columns."""
    op, rank = operation(node), len(shape(node)) if "val" in node.meta else 0
    if op is aten.mT:
        return True
    if op in TRANSPOSES:
        return {int(str(axis)) % rank for axis in node.args[1:3]} == {rank - 2, rank - 1}
    return False


def _parts(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What is scaled, and by what; None if the scale is not one number a row or a column."""
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    pairs = [(first, second)] + ([(second, first)] if operation(node) is aten.mul else [])
    for source, scale in pairs:
        if isinstance(source, fx.Node) and isinstance(scale, fx.Node):
            size, whole = shape(scale), shape(node)
            fits = shape(source) == whole and len(size) == len(whole) >= 2
            if fits and (size[-1] == 1) != (size[-2] == 1) and size[:-2] == whole[:-2]:
                return source, scale
    return None


def _behind(product: fx.Node, position: int, scaled: _Scaled) -> None:
    """op(A, a) B becomes op(A B, a)."""
    with product.graph.inserting_before(product):
        factor, scale = _unscaled(scaled)
        factors = [*product.args]
        factors[position] = factor
        bare = _insert(product, product.target, *factors)
        moved = _insert(scaled.node, scaled.node.target, bare, scale)
    _finish(product, scaled, moved)


def _onto_other(product: fx.Node, position: int, scaled: _Scaled, other: fx.Node) -> None:
    """op(A, c) B becomes A op(B, c^T)."""
    with product.graph.inserting_before(product):
        factor, scale = _unscaled(scaled)
        turned = _insert(scaled.node, aten.transpose.int, scale, -2, -1)
        factors: list[Any] = [factor, factor]
        factors[1 - position] = _insert(scaled.node, scaled.node.target, other, turned)
        moved = _insert(product, product.target, *factors)
    _finish(product, scaled, moved)


def _unscaled(scaled: _Scaled) -> tuple[fx.Node, fx.Node]:
    """The factor without its scale, and the scale, both as the product sees them."""
    if scaled.flip is None:
        return scaled.source, scaled.scale
    flip = scaled.flip
    return (
        _insert(flip, flip.target, scaled.source, *flip.args[1:]),
        _insert(flip, flip.target, scaled.scale, *flip.args[1:]),
    )


def _insert(like: fx.Node, target: Callable[..., Any] | str, *args: Any) -> fx.Node:
    """A call that counts as part of the layer of ``like``."""
    assert callable(target)
    node = like.graph.call_function(target, args)
    node.meta = {**like.meta}
    node.meta["val"] = target(*fx.map_arg(args, lambda argument: argument.meta["val"]))
    return node


def _finish(product: fx.Node, scaled: _Scaled, by: fx.Node) -> None:
    replace_node(product, by)
    for node in (scaled.flip, scaled.node):
        if node is not None:
            node.graph.erase_node(node)


def _size(node: fx.Node) -> int:
    return math.prod(shape(node))
