"""Operators that do nothing in eval mode, removed.

    dropout(x, train=False), alias(x), detach(x), x.to(its own type)    are x
    lift_fresh_copy(c)                                is c, if nobody writes into the copy
    _assert_tensor_metadata(x)                        was checked when the model was captured

``torch.export`` leaves the first for every Dropout, the others for tensors made inside a forward;
Core ML does not know alias and detach. Copies that change the layout (``clone``, ``contiguous``)
stay, since a ``view`` behind them may need it.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import torch
from torch import fx

from edgevit.passes.base import PassReport
from edgevit.passes.graph import arguments, is_identity, operation, written_after

__all__ = ["RULE", "DropIdentities"]

aten = torch.ops.aten


class DropIdentities:
    """Removes operators that do nothing."""

    name: ClassVar[str] = "drop_identities"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts what was removed by operator."""
        removed: Counter[str] = Counter()
        for node in list(module.graph.nodes):
            op = operation(node)
            if op is aten._assert_tensor_metadata:
                module.graph.erase_node(node)
            elif _removable(node):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
            else:
                continue
            removed[op.__name__] += 1
        return PassReport(self.name, removed.total(), details=dict(sorted(removed.items())))


RULE = DropIdentities()


def _removable(node: fx.Node) -> bool:
    op = operation(node)
    if op in {aten.clone, aten.contiguous, aten._to_copy} or not is_identity(node):
        return False
    if op is aten.to and _copies(node):
        return False
    return op is not aten.lift_fresh_copy or written_after(node, node) is None


def _copies(node: fx.Node) -> bool:
    values = arguments(node)
    return bool(values.get("copy")) or values.get("memory_format") is not None
