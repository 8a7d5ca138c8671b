"""What the Vision Xformers share (Jeevan and Sethi, "Vision Xformers: efficient attention for image
classification"): settings, embeddings, class token, positions, and the registration of rows.

All models of the paper have width 128 and four heads of width 32, and see 1024 tokens: every pixel
of a CIFAR-10 image, or patches of 2 x 2 (a first stride of 2) of a Tiny ImageNet image. What
differs is the body, one module each (``vix_vit``, ``vix_levit``, ``vix_cct``, ``vix_cvt``,
``vix_pit``), and the attention block in it, which any registered block can replace.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.layers import check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.registry import BlockInfo, block_info, check_heads, register_model
from edgevit.zoo.states import resize_positions

__all__ = [
    "CIFAR10",
    "KERNEL_NOTE",
    "TINY_IMAGENET",
    "Backbone",
    "ConvEmbedding",
    "ConvFeedForward",
    "Dataset",
    "FeedForward",
    "PatchEmbedding",
    "Positions",
    "Settings",
    "ToTokens",
    "register_row",
    "register_tables",
]

#: What the tables say of a model, in their order; GPU memory is that of training with 64 images.
COLUMNS = ("params", "size_mb", "top1_percent", "top5_percent", "gpu_gb")
COUNT_NOTE = (
    "the published count is torchsummary's, which leaves out bare parameters such as class token "
    "and positions; edgevit.zoo.counting.count_torchsummary gives it"
)
KERNEL_NOTE = (
    "the text says ReLU kernel and local windows, but the released code runs the exponential "
    'kernel without local heads, the default here; mixer_options={"kernel": "relu"} is the other'
)
#: Names that other papers' models have too, so they need the data set behind them.
NAMES_OF_MANY = ("vit", "mixer", "levit", "cct", "cvt", "pit")


@dataclass(frozen=True)
class Dataset:
    """One of the paper's data sets, with what a model for it looks like."""

    suffix: str
    title: str
    image_size: int
    num_classes: int
    patch: int


CIFAR10 = Dataset("cifar10", "CIFAR-10", 32, 10, 1)
TINY_IMAGENET = Dataset("tinyimagenet", "Tiny ImageNet", 64, 200, 2)


@dataclass(frozen=True)
class Settings:
    """What every backbone of the family is configured by (section 4 of the paper).

    Args:
        num_classes: size of the head.
        image_size: height and width in pixels, multiples of ``patch``.
        in_chans: channels of the image.
        patch: side of a patch, or the first stride of an embedding by convolutions.
        dim: width C.
        heads: number of heads.
        hidden: hidden width of the feed-forward part.
        mixer: registered name of the attention block; None for the backbone's own.
        mixer_options: the block's options.
    """

    num_classes: int = 10
    image_size: int | tuple[int, int] = 32
    in_chans: int = 3
    patch: int = 1
    dim: int = 128
    heads: int = 4
    hidden: int = 256
    mixer: str | None = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_heads(self.dim, self.heads)
        if not isinstance(self.patch, int) or self.patch < 1:
            raise OptionError("patch", expected="a whole number of at least 1", got=self.patch)
        check_multiple(self.image_size, self.patch, f"an embedding with stride {self.patch}")

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, self.patch, "the embedding")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token map."""
        height, width = self.image
        return height // self.patch, width // self.patch

    def make_mixer(
        self,
        *,
        options: Mapping[str, Any] | None = None,
        preferences: Mapping[str, Any] | None = None,
        **shape: Any,
    ) -> nn.Module:
        """The attention block of a layer.

        Args:
            options: options that the block must have, beside ``mixer_options``.
            preferences: options that are dropped for a block that has none of that name.
            **shape: what differs from the whole model's ``dim``, ``heads`` and ``tokens``; also
                ``prefix_tokens`` and ``layout``, as :func:`edgevit.zoo.mixers.make_mixer` takes
                them.

        Raises:
            OptionError: there is no block, or it has no option of that name.
            ShapeError: the block does not fit the backbone.
        """
        if self.mixer is None:
            raise OptionError("mixer", expected="the name of a block", got=None)
        info = block_info(self.mixer)
        known = _option_names(info)
        wanted = {**(options or {}), **self.mixer_options}
        for option, value in wanted.items():
            if option not in known:
                raise OptionError(
                    option,
                    expected=f"an option of block {info.name}",
                    got=value,
                    hint=f"its options are {', '.join(known) or 'none'}",
                )
        preferred = {k: v for k, v in (preferences or {}).items() if k in known}
        if info.name == "softmax":  # the paper's has no bias there, the block's own default has
            preferred["qkv_bias"] = False
        arguments = {"dim": self.dim, "heads": self.heads, "tokens": self.grid, **shape}
        return make_mixer(info.name, **arguments, **{**preferred, **wanted})


def _option_names(info: BlockInfo) -> list[str]:
    block = getattr(importlib.import_module(info.module), info.function)
    names = inspect.signature(block).parameters
    return [name for name in names if name not in ("dim", "heads", "tokens", "prefix_tokens")]


class Backbone(nn.Module):
    """Base of the family: images (B, in_chans, H, W) of one size to logits (B, num_classes)."""

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config

    def check_image(self, x: Tensor) -> None:
        """Raise ShapeError unless the images have the size that the model was made for."""
        if tuple(x.shape[-2:]) != self.config.image:
            raise ShapeError(
                f"this {type(self).__name__} was made for images of "
                f"{self.config.image[0]} x {self.config.image[1]}, got "
                f"{x.shape[-2]} x {x.shape[-1]}",
                hint="its tables are sized by the image: create it with image_size=...",
            )

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the same model at another image size, its positions resized to this one.

        Other tensors sized by the image (Linformer's sequence projection, the Mixer's perceptron)
        cannot be resized and stay as they are.

        Raises:
            WeightsError: the positions belong to no square map.
        """
        adapted = dict(state)
        for name, module in self.named_modules():
            key = f"{name}.table"
            if isinstance(module, Positions) and module.table is not None and key in adapted:
                adapted[key] = resize_positions(
                    adapted[key], module.grid, prefix_tokens=module.prefix_tokens
                )
        return adapted


class PatchEmbedding(nn.Sequential):
    """Patches mapped to tokens: (B, in_chans, H, W) to (B, N, C).

    The paper's Linear on flattened patches, written as the convolution with kernel = stride that it
    is: the weight (C, p * p * in_chans) of a Linear on (row, column, channel) becomes
    ``weight.view(C, p, p, in_chans).permute(0, 3, 1, 2)``.
    """

    def __init__(self, config: Settings) -> None:
        super().__init__(
            nn.Conv2d(config.in_chans, config.dim, config.patch, config.patch), ToTokens()
        )


class ConvEmbedding(nn.Sequential):
    """The hybrid models' embedding, a map: (B, in_chans, H, W) to (B, C, H/p, W/p).

    Three 3x3 convolutions with bias and nothing between them, through C/4 and C/2 channels; the
    first has the stride p.
    """

    def __init__(self, config: Settings) -> None:
        channels = (config.in_chans, config.dim // 4, config.dim // 2, config.dim)
        super().__init__(
            nn.Conv2d(channels[0], channels[1], 3, config.patch, 1),
            nn.Conv2d(channels[1], channels[2], 3, 1, 1),
            nn.Conv2d(channels[2], channels[3], 3, 1, 1),
        )


class ToTokens(nn.Module):
    """A map as a raster of tokens: (B, C, H, W) to (B, H * W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H * W, C)."""
        return x.reshape(-1, x.shape[1], x.shape[2] * x.shape[3]).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Linear, exact GELU, Linear: (B, N, C) to (B, N, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class ConvFeedForward(nn.Sequential):
    """The same on a map, with pointwise convolutions: (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__(nn.Conv2d(dim, hidden, 1), activation, nn.Conv2d(hidden, dim, 1))


class Positions(nn.Module):
    """Class token and learned positions, either or both: (B, N, C) to (B, N or N + 1, C).

    Args:
        dim: width C.
        grid: height and width of the token map.
        class_token: whether there is one.
        learned: whether there is a table of positions, class token included.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], *, class_token: bool, learned: bool
    ) -> None:
        super().__init__()
        self.grid, self.prefix_tokens = grid, int(class_token)
        count = grid[0] * grid[1]
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.table = (
            nn.Parameter(torch.empty(1, count + self.prefix_tokens, dim)) if learned else None
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N or N + 1, C)."""
        # Padding and adding puts the class token in place without asking for the batch size.
        if self.class_token is not None:
            token = F.pad(self.class_token, (0, 0, 0, self.grid[0] * self.grid[1]))
            x = F.pad(x, (0, 0, 1, 0))
            return x + (token if self.table is None else token + self.table)
        return x if self.table is None else x + self.table


def register_row(
    build: Callable[[dict[str, Any]], nn.Module],
    name: str,
    summary: str,
    *,
    dataset: Dataset,
    table: str,
    figures: Sequence[float],
    note: str | None = None,
    **variant: Any,
) -> None:
    """Register one row of one of the paper's tables as ``name_dataset``.

    Args:
        build: makes the model from its options.
        name: of the model, without the data set; on CIFAR-10 it is an alias.
        summary: what it is.
        dataset: what the row is for.
        table: where the row stands (``"Table 1"``).
        figures: what the row says: the last of :data:`COLUMNS`, or all.
        note: what could not be reproduced, or is a choice of ours.
        **variant: the options that make the model this one.
    """
    given = {
        "num_classes": dataset.num_classes,
        "image_size": dataset.image_size,
        "patch": dataset.patch,
        **variant,
    }

    def function(**options: Any) -> nn.Module:
        return build({**given, **options})

    function.__name__ = function.__qualname__ = f"{name}_{dataset.suffix}"
    function.__module__ = build.__module__
    function.__doc__ = f"{summary}, for {dataset.title}."
    counted = (COUNT_NOTE,) if len(figures) == len(COLUMNS) else ()
    register_model(
        aliases=(name,) if dataset is CIFAR10 and name not in NAMES_OF_MANY else (),
        paper="vision-xformers",
        table=table,
        image_size=dataset.image_size,
        num_classes=dataset.num_classes,
        published=dict(zip(COLUMNS[-len(figures) :], figures, strict=True)),
        note="; ".join((*counted, *([note] if note else []))) or None,
    )(function)


def register_tables(
    build: Callable[[dict[str, Any]], nn.Module],
    variants: Mapping[str, tuple[str, str | None, str | None]],
    tables: Mapping[str, tuple[Dataset, Mapping[str, Sequence[float]]]],
    *,
    notes: Mapping[tuple[str, Dataset], str] | None = None,
) -> None:
    """Register every row of some of the paper's tables.

    Args:
        build: makes a model from its options.
        variants: by name, what it is, its attention block (None for the body's own), and a note.
        tables: by the paper's word, what the table's rows are for, and the rows by name.
        notes: what stands before the note of a single row.
    """
    for table, (dataset, rows) in tables.items():
        for name, figures in rows.items():
            summary, mixer, note = variants[name]
            said = [n for n in ((notes or {}).get((name, dataset)), note) if n]
            register_row(
                build,
                name,
                summary,
                dataset=dataset,
                table=table,
                figures=figures,
                note="; ".join(said) or None,
                mixer=mixer,
            )
