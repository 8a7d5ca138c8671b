"""Blocks and stages, read from the path of a layer in its source model.

    stem.0.2                            block stem                  stage stem
    blocks.3.attn.qkv                   block blocks.3              stage blocks
    stages.0.blocks.1.mixer.inner       block stages.0.blocks.1     stage stages.0
    stages.1.4.0 (EleViT)               block stages.1.4            stage stages.1
    stages.1.downsample.0               block stages.1.downsample   stage stages.1

A container of blocks has a plural's name and numbers as children; everything else is a block of its
own at the top of the model, or at the top of its stage.
"""

from __future__ import annotations

__all__ = ["TOP", "block_of", "group_of", "stage_of"]

#: What belongs to no module but the model itself.
TOP = "(model)"
STAGES = ("stages", "stage")


def block_of(layer: str | None) -> str:
    """The block that a layer belongs to."""
    parts = (layer or "").split(".")
    end = _containers(parts)
    if end == 0:
        return parts[0] or TOP
    if end == 2 and parts[0] in STAGES and len(parts) > 2:
        end = 3
    return ".".join(parts[:end])


def stage_of(layer: str | None) -> str:
    """The stage that a layer belongs to; a model without stages has its list of blocks for one."""
    parts = (layer or "").split(".")
    end = _containers(parts)
    if end == 0:
        return parts[0] or TOP
    nested = end == 4 or parts[0] in STAGES
    return ".".join(parts[: 2 if nested else 1])


def group_of(layer: str | None, by: str) -> str:
    """The block, stage or module of a layer.

    Args:
        layer: its path; None if nobody knows.
        by: ``"block"``, ``"stage"`` or ``"module"``.
    """
    if layer is None:
        return "(unknown)"
    if by == "module":
        return layer or TOP
    return block_of(layer) if by == "block" else stage_of(layer)


def _containers(parts: list[str]) -> int:
    """How many parts at the front are containers with their numbers: 0, 2 or 4."""
    end = 0
    while end < 4 and len(parts) > end + 1 and parts[end].endswith("s") and _number(parts[end + 1]):
        end += 2
    return end


def _number(part: str) -> bool:
    return part.isdigit()
