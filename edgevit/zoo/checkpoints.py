"""Released checkpoints under our names.

A family holds one small table of rules, pattern and replacement, that turns the names of the
released checkpoints into its own; every rule is applied to every name, in order. Names that are
ours already pass through unchanged, so weights saved here load by the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from edgevit.errors import WeightsError

__all__ = ["STAGED", "Rule", "fit_shapes", "rename"]

#: A pattern, and what to put in its place.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The state with every name rewritten by the rules; a name that becomes empty is left out.

    Raises:
        WeightsError: two tensors would have the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise WeightsError(f"{name} and another tensor of the file both stand for {new}")
        if new:
            renamed[new] = tensor
    return renamed


def fit_shapes(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with axes of length one as the model has them: a scale (C,) as (C, 1, 1)."""
    own = model.state_dict()
    return {
        name: tensor.reshape(own[name].shape)
        if name in own and _squeezed(tensor) == _squeezed(own[name])
        else tensor
        for name, tensor in state.items()
    }


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _stem(match: re.Match[str]) -> str:
    layer, part = divmod(int(match[1]), 3)
    return f"stem.{layer}.{part}.{match[2]}"


def _stage(match: re.Match[str]) -> str:
    number = int(match[1])
    if number % 2:
        return f"stages.{number // 2 + 1}.downsample."
    return f"stages.{number // 2}.blocks."


#: Stems as one list of convolution, BatchNorm, activation; stages and what lies between them as one
#: ``network``; the distillation head as the papers' own code calls it.
STAGED: tuple[Rule, ...] = (
    (r"^(?:patch_embed|stem)\.(\d)\.(\w+)$", _stem),
    (r"^network\.(\d+)\.", _stage),
    (r"^(?:dist_head|head_dist)\.", "head.distilled."),
    (r"^head\.(weight|bias)$", r"head.linear.\1"),
    (r"^norm\.", "head.norm."),
)
