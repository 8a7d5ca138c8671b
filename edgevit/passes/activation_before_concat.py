"""An activation behind a concatenation applied to each of its parts.

    f(cat(a, b, ...)) = cat(f(a), f(b), ...)

for any f of one element alone. A part is in the cache when it has just been computed, and a runtime
that fuses activations into the layer before them finds one there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import describe, layer_name, operation, readers

__all__ = ["RULE", "ActivationBeforeConcat"]

aten = torch.ops.aten

#: What becomes of one element does not depend on another.
ACTIVATIONS = {
    aten.relu,
    aten.relu6,
    aten.gelu,
    aten.silu,
    aten.hardswish,
    aten.hardsigmoid,
    aten.hardtanh,
    aten.sigmoid,
    aten.tanh,
    aten.elu,
    aten.leaky_relu,
}
#: The same, where nothing but the activation reads what they overwrite.
IN_PLACE = {
    aten.relu_: aten.relu.default,
    aten.silu_: aten.silu.default,
    aten.hardswish_: aten.hardswish.default,
    aten.hardtanh_: aten.hardtanh.default,
}


class ActivationBeforeConcat:
    """Applies activations to the parts of a concatenation."""

    name: ClassVar[str] = "activation_before_concat"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        rewritten, refusals = 0, []
        for node in list(module.graph.nodes):
            if operation(node) not in ACTIVATIONS | IN_PLACE.keys():
                continue
            joined = node.args[0]
            if not isinstance(joined, fx.Node) or operation(joined) is not aten.cat:
                continue
            if others := [reader for reader in readers(joined) if reader is not node]:
                reason = f"{describe(others[0])} reads the concatenation without the activation"
                refusals.append(Refusal(layer_name(node) or node.name, reason))
                continue
            _move(node, joined)
            rewritten += 1
        return PassReport(self.name, rewritten, tuple(refusals))


RULE = ActivationBeforeConcat()


def _move(node: fx.Node, joined: fx.Node) -> None:
    target = cast("Callable[..., Any]", IN_PLACE.get(operation(node), node.target))
    made = {}
    for part in dict.fromkeys(joined.args[0]):  # type: ignore[arg-type]
        with node.graph.inserting_before(joined):
            made[part] = node.graph.call_function(target, (part, *node.args[1:]), node.kwargs)
        made[part].meta = {**node.meta, "val": part.meta["val"]}
    joined.args = ([made[part] for part in joined.args[0]], *joined.args[1:])  # type: ignore[union-attr]
    node.replace_all_uses_with(joined)
    node.graph.erase_node(node)
