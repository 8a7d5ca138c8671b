"""Rewrites of the captured graph, each a rule in a module of its own.

>>> program, reports = run_passes(program, ["fold_batchnorm"])
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgevit.errors import UnknownNameError
from edgevit.passes.base import Pass, PassReport, Refusal

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = [
    "EXACT",
    "PIPELINE",
    "TIDYING",
    "Pass",
    "PassReport",
    "Refusal",
    "passes",
    "run_passes",
]

#: Every pass. They run in this order, whatever order they are asked for in. A name is that of the
#: module here that holds the pass as ``RULE``.
PIPELINE: tuple[str, ...] = (
    # Before all others: their patterns need not look through dropout and copies that do nothing.
    "drop_identities",
    # Before every exact rewrite: it changes what the model computes, and what follows is then
    # checked against the changed model. It also looks for formulas, which a rewrite could break up.
    "substitute_relu",
    # Before all that looks for products and factors.
    "spell_out_attention",
    # Before all that reads constants: then it finds them, whatever they are computed from.
    "fold_constants",
    # Only then is a mask that is computed from constants one itself.
    "lower_masks",
    # Behind it: of a sum it could not tell what forbids.
    "join_masks",
    # Before constant factors are folded, which would have to pass the norms otherwise.
    "scales_past_products",
    # Before BatchNorms are folded: what is behind one becomes part of it, and goes where it goes.
    "fold_affine",
    # It goes by what lies between a layer and a BatchNorm, so that must be in its final form.
    "fold_batchnorm",
    # Only then is the residual's other term the convolution itself.
    "residual_into_depthwise",
    # Last of all that look for layers: those before find one where this leaves several.
    "split_layers",
    # Behind it: a cut that is gone needs no form.
    "move_reshapes",
)

#: Those that change no result. An export makes them all unless it is told which.
EXACT: tuple[str, ...] = tuple(name for name in PIPELINE if name != "substitute_relu")
#: Those that every export makes, since converters differ in what they do by themselves here.
TIDYING: tuple[str, ...] = ("drop_identities", "fold_constants")


def passes(names: Sequence[str]) -> tuple[Pass, ...]:
    """The passes of those names, in the order of :data:`PIPELINE`.

    Raises:
        UnknownNameError: no pass has that name.
    """
    for name in names:
        if name not in PIPELINE:
            raise UnknownNameError("pass", name, PIPELINE)
    modules = [importlib.import_module(f"{__name__}.{n}") for n in PIPELINE if n in names]
    return tuple(module.RULE for module in modules)


def run_passes(program: Program, names: Sequence[str]) -> tuple[Program, tuple[PassReport, ...]]:
    """Rewrite a program.

    Args:
        program: is left as it is.
        names: of the passes; they run in the order of :data:`PIPELINE`.

    Returns:
        The rewritten program, with weights that nothing uses any more gone; the very same program
        if no pass found anything. And a report for each pass.

    Raises:
        UnknownNameError: no pass has that name.
    """
    from torch import fx

    chosen = passes(names)
    module = program.graph_module(lazy=True)
    reports = []
    module.graph.eliminate_dead_code()
    for rule in chosen:
        reports.append(rule(module))
        if reports[-1].rewritten:
            module.graph.eliminate_dead_code()
    if not any(report.rewritten for report in reports):
        return program, tuple(reports)
    module.graph.lint()
    # A GraphModule takes over the constants that its graph uses, and no others.
    return program.rewritten(fx.GraphModule(module, module.graph)), tuple(reports)
