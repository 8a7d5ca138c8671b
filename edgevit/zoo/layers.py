"""The few layers and checks that several families share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError

__all__ = ["ConvNorm", "as_pair", "check_classes", "check_multiple", "check_square"]


class ConvNorm(nn.Sequential):
    """Convolution with "same" padding (``kernel // 2``), then BatchNorm, on (B, C, H, W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias
            ),
            nn.BatchNorm2d(out_channels),
        ]
        super().__init__(*layers, *([activation] if activation is not None else []))


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        out: Tensor = x + self.inner(x)
        return out


def as_pair(image_size: int | tuple[int, int] | Any) -> tuple[int, int]:
    """An image size as (height, width) in pixels; a single number means a square.

    Raises:
        ShapeError: not one or two positive whole numbers.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ShapeError(f"image size must be one or two positive whole numbers, got {image_size}")
    return (pair[0], pair[1])


def check_multiple(image_size: int | tuple[int, int], of: int, who: str) -> tuple[int, int]:
    """The image size as (height, width), if both are multiples of ``of``.

    Raises:
        ShapeError: one is not; the nearest sizes that would do are in the hint.
    """
    pair = as_pair(image_size)
    for side in pair:
        if side % of:
            below, above = side // of * of, -(-side // of) * of
            near = " or ".join(str(s) for s in (below, above) if s)
            raise ShapeError(
                f"{who} takes image sizes that are multiples of {of}, got {side}",
                hint=f"the nearest are {near}",
            )
    return pair


def check_square(image_size: int | tuple[int, int], who: str) -> int:
    """The side of a square image size.

    Raises:
        ShapeError: height and width differ.
    """
    height, width = as_pair(image_size)
    if height != width:
        raise ShapeError(f"{who} needs square images, got {height} x {width}")
    return height


def check_classes(num_classes: int) -> None:
    """Raise OptionError unless there is at least one class."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise OptionError("num_classes", expected="a whole number of at least 1", got=num_classes)
