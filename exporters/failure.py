"""What to tell when a converter gives up: the operator, and the layers of the model that use it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from edgevit.errors import ConversionError

if TYPE_CHECKING:
    from torch import fx

    from edgevit.capture import Program

__all__ = ["conversion_error", "layer_of", "listed", "uses"]

_OPERATOR = re.compile(r"\baten(?:\.|::)([a-z_][a-z0-9_]*)")
_STYLE = re.compile(r"\x1b\[[0-9;]*m|[^\x00-\x7f]+")


def conversion_error(
    what: str, program: Program, error: BaseException, *, hint: str | None = None
) -> ConversionError:
    """A converter's exception in words that name the operator and the layers that use it.

    Args:
        what: who gave up on what (``"ONNX opset 17"``).
        program: what it was given; its nodes know the source model's module paths.
        error: what the converter raised.
        hint: what to do about it; by default, to replace the operator if one was named.
    """
    text = _STYLE.sub("", str(error))
    # torch's newer exporter tells how to report it first, and what happened after this heading.
    text = text.partition("## Exception summary")[2] or text
    found = _culprit(program, text)
    if found is None:
        return ConversionError(f"{what}: {type(error).__name__}: {_shortened(text)}", hint=hint)
    operator, layers = found
    return ConversionError(
        f"{what}: cannot convert aten::{operator}{listed(layers)}: {_shortened(text)}",
        hint=hint or f"write the layer without {operator}, or leave this format out",
    )


def layer_of(node: fx.Node) -> str:
    """Path in the source model of the module that a node comes from; empty at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1] if paths and not paths[-1].startswith("_empty") else ""


def uses(program: Program, operators: Collection[str]) -> dict[str, list[str]]:
    """The layers that use any of some ``aten`` operators, by operator, in the graph's order."""
    found: dict[str, list[str]] = {}
    for node in program.exported.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if node.op == "call_function" and packet is not None and packet.__name__ in operators:
            layers = found.setdefault(packet.__name__, [])
            if (layer := layer_of(node)) and layer not in layers:
                layers.append(layer)
    return found


def listed(layers: Sequence[str], most: int = 3) -> str:
    """``", used in a, b, c and 2 more"``, or nothing for none."""
    if not layers:
        return ""
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return f", used in {', '.join(layers[:most])}{more}"


def _culprit(program: Program, text: str) -> tuple[str, list[str]] | None:
    """The first operator named in the text that the program has, or else the first named."""
    named = _OPERATOR.findall(text)
    used = uses(program, set(named))
    for operator in named:
        if operator in used:
            return operator, used[operator]
    return (named[0], []) if named else None


def _shortened(text: str, lines: int = 3, characters: int = 300) -> str:
    # What stands after these words is our graph's own code, which says nothing to the user.
    told = re.split(r"While executing %|Original traceback", text)[0]
    joined = " ".join([line.strip() for line in told.splitlines() if line.strip()][:lines])
    return joined if len(joined) <= characters else joined[: characters - 1] + "…"
