"""Attention drawn over a picture, as in the papers' figures.

    sima          ‖Q̂ₙ‖₂ and ‖K̂ₙ‖₂ of every token: the l2 norms, over the channels, of the
                  l1-normalised query and key (SimA, section 4.7 and Figure 3)
    elementwise   the map F that meets the value, mean over the channels (EleViT, Figure 3)
    softmax       what the class token pays to every patch, mean over the heads; without a class
                  token what every token is paid, mean over the queries too

The picture is cut as the model sees it. Each map is brought to its size, normalised to [0, 1] and
laid over it as a heat map.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import OptionError, OutputError, UsageError
from edgevit.preprocess import crop_image, load_image
from edgevit.source import Source, model_source

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["KINDS", "Attended", "AttentionMap", "attend"]

Size = tuple[int, int]
#: Kinds of attention that can be drawn, in the order of preference.
KINDS = ("sima", "elementwise", "softmax")
#: Tokens that may stand before the map's own: none, a class token, and one for distillation.
PREFIXES = (0, 1, 2)
#: Shorter side of a drawn picture in pixels, at least.
SIDE = 320
MARGIN, CAPTION = 8, 18
#: Share of the heat map where it lies over the picture.
OPACITY = 0.55


@dataclass(frozen=True)
class AttentionMap:
    """One map of one layer.

    Args:
        name: what it shows, ``"query"`` or ``"key"`` for SimA.
        layer: the attention's name in the model.
        values: height x width of the token map.
    """

    name: str
    layer: str
    values: NDArray[np.float64]

    @property
    def normalized(self) -> NDArray[np.float64]:
        """The values from 0 to 1."""
        low, high = self.values.min(), self.values.max()
        spread: NDArray[np.float64] = (self.values - low) / ((high - low) or 1.0)
        return spread

    def to_json(self) -> dict[str, Any]:
        """Its statistics."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return {
            "name": self.name,
            "layer": self.layer,
            "size": list(self.values.shape),
            "min": float(self.values.min()),
            "max": float(self.values.max()),
            "mean": float(self.values.mean()),
            "std": float(self.values.std()),
            "peak": [int(row), int(column)],
        }


@dataclass(frozen=True)
class Attended:
    """The maps of one model on one picture.

    Args:
        source: the model.
        image: the picture.
        kind: one of :data:`KINDS`.
        layer: which of the model's attentions of that kind, counted from 1.
        layers: how many there are.
        maps: what it pays attention to.
    """

    source: Source
    image: Path
    kind: str
    layer: int
    layers: int
    maps: tuple[AttentionMap, ...]

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that the maps show nothing learned."""
        return bool(self.source.identity["weights"]["kind"] == "random")

    def to_json(self) -> dict[str, Any]:
        """What was drawn, in numbers."""
        return {
            "model": dict(self.source.identity),
            "image": str(self.image),
            "kind": self.kind,
            "layer": self.layer,
            "layers": self.layers,
            "maps": [one.to_json() for one in self.maps],
        }

    def draw(self, output: Path) -> None:
        """Write a PNG: the picture, and each map over it.

        Raises:
            OutputError: the file cannot be written.
        """
        height, width = self.source.inputs[0].shape[2:]
        scale = max(1, -(-SIDE // min(height, width)))
        assert self.source.preprocessing is not None
        size = (height * scale, width * scale)
        picture = crop_image(self.image, size, self.source.preprocessing).convert("RGB")
        note = ", random weights" if self.random else ""
        captions = [f"{one.name}, {self.kind} {self.layer} of {self.layers}" for one in self.maps]
        panels = [_laid_over(picture, one.normalized) for one in self.maps]
        _write(_side_by_side([picture, *panels], [self.source.name + note, *captions]), output)


def attend(
    model: str,
    image: str | Path,
    *,
    kind: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    **source_options: Any,
) -> Attended:
    """What a model pays attention to in a picture.

    Args:
        model: a name of the zoo, or ``package.module:factory`` of a model with edgevit's blocks.
        image: a picture.
        kind: one of :data:`KINDS`; the first that the model has by default.
        layer: which attention of that kind, counted from 1, from the end if negative; the last one
            by default, as in the papers.
        head: one head, or channel of element-wise attention, counted from 1; all by default.
        **source_options: as :func:`edgevit.source.model_source` takes them.

    Raises:
        UsageError: the model is unknown or takes no picture, or has no attention of that kind.
        OptionError: there is no such layer or head, or the picture cannot be read.
    """
    import torch

    if kind is not None and kind not in KINDS:
        raise OptionError("kind", expected=" or ".join(KINDS), got=kind)
    source = model_source(model, **source_options)
    spec, preprocessing = source.inputs[0], source.preprocessing
    if preprocessing is None:
        raise UsageError(f"{source.name} takes no picture")
    chosen, name, block, number, count = _chosen(source, kind, layer)
    pixels = load_image(image, (spec.shape[2], spec.shape[3]), preprocessing)
    size = spec.shape[2], spec.shape[3]
    with _recorded(block) as seen, torch.inference_mode():
        source.module(torch.from_numpy(pixels))
        if not seen:
            raise UsageError(f"{name} of {source.name} did not run, so there is nothing to draw")
        values = READERS[chosen](block, *seen[0], head, size)
    maps = tuple(AttentionMap(k, name, v.double().numpy()) for k, v in values.items())
    return Attended(source, Path(image), chosen, number, count, maps)


def _chosen(source: Source, kind: str | None, layer: int | None) -> tuple[str, str, Any, int, int]:
    """Kind, name, block and number of the attention to draw, and how many there are."""
    blocks = _attentions(source.module)
    found = [k for k in KINDS if blocks[k]]
    if not found or (kind is not None and not blocks[kind]):
        have = f"it has {' and '.join(found)} attention" if found else "it has none of these"
        raise UsageError(
            f"{source.name} has no {kind or 'attention that can be drawn'}; {have}",
            hint=f"attention that can be drawn: {', '.join(KINDS)}, as blocks of edgevit, such as "
            "in deit_small+sima, elevit or deit_small",
        )
    chosen = kind or found[0]
    number, count = layer if layer is not None else -1, len(blocks[chosen])
    if not 1 <= abs(number) <= count:
        raise OptionError("layer", expected=f"1 to {count}, or -{count} to -1", got=layer)
    index = number - 1 if number > 0 else count + number
    name, block = blocks[chosen][index]
    return chosen, name, block, index + 1, count


def _attentions(module: nn.Module) -> dict[str, list[tuple[str, Any]]]:
    """The blocks of each kind by name, in order."""
    from edgevit.zoo.attention.elementwise import ElementwiseAttention
    from edgevit.zoo.attention.sima import SimAAttention
    from edgevit.zoo.attention.softmax import SoftmaxAttention

    classes = dict(zip(KINDS, (SimAAttention, ElementwiseAttention, SoftmaxAttention), strict=True))
    named = list(module.named_modules())
    return {k: [(n, m) for n, m in named if isinstance(m, cls)] for k, cls in classes.items()}


@contextmanager
def _recorded(block: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Query and key of every call of the block's core."""
    seen: list[tuple[Tensor, Tensor]] = []
    core = block.core

    def recording(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append((query, key))
        out: Tensor = core(query, key, value)
        return out

    block.core = recording
    try:
        yield seen
    finally:
        del block.core


# -- from query and key to one value a token -------------------------------------------------------


def _sima(
    block: Any, query: Tensor, key: Tensor, head: int | None, image: Size
) -> dict[str, Tensor]:
    """l2 norms of the l1-normalised query and key."""
    from edgevit.zoo.attention.sima import l1_normalize

    def norms(x: Tensor) -> Tensor:
        return _of_head(l1_normalize(x)[0], head).square().sum((0, 2)).sqrt()

    prefix, grid = _token_map(query.shape[2], image)
    return {
        "query": norms(query)[prefix:].reshape(grid),
        "key": norms(key)[prefix:].reshape(grid),
    }


def _elementwise(
    block: Any, query: Tensor, key: Tensor, head: int | None, image: Size
) -> dict[str, Tensor]:
    """The map F, mean over the channels."""
    return {"attention": _of_head(block.attention_map(query, key)[0], head).mean(0)}


def _softmax(
    block: Any, query: Tensor, key: Tensor, head: int | None, image: Size
) -> dict[str, Tensor]:
    """Weights of the keys for the class token, or for all queries."""
    prefix, grid = _token_map(query.shape[2], image)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = _of_head(scores.softmax(-1)[0], head).mean(0)
    if prefix:
        return {"class token": weights[0, prefix:].reshape(grid)}
    return {"received": weights.mean(0).reshape(grid)}


READERS: dict[str, Callable[..., dict[str, Tensor]]] = dict(
    zip(KINDS, (_sima, _elementwise, _softmax), strict=True)
)


def _of_head(x: Tensor, head: int | None) -> Tensor:
    """One head of (heads, ...), or all."""
    if head is None:
        return x
    if not 1 <= head <= len(x):
        raise OptionError("head", expected=f"1 to {len(x)}", got=head)
    return x[head - 1 : head]


def _token_map(count: int, image: Size) -> tuple[int, Size]:
    """How many tokens stand before the map's own, and the map, of the picture's proportions."""
    for prefix in PREFIXES:
        tokens = count - prefix
        height = math.isqrt(tokens * image[0] // image[1])
        if height and not tokens % height and tokens // height * image[0] == height * image[1]:
            return prefix, (height, tokens // height)
    raise UsageError(
        f"{count} tokens are no map of a picture of {image[0]} x {image[1]}",
        hint="pooled tokens, and those of windows, cannot be drawn",
    )


# -- drawing ---------------------------------------------------------------------------------------


def _laid_over(picture: Any, values: NDArray[np.float64]) -> Any:
    """The picture under a heat map of values from 0 to 1."""
    from PIL import Image

    small = Image.fromarray(values.astype(np.float32))
    large = np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    heat = Image.fromarray((_colors(large) * 255).round().astype(np.uint8))
    return Image.blend(picture, heat, OPACITY)


def _colors(values: NDArray[Any]) -> NDArray[Any]:
    """Values from 0 to 1 as colours from blue over green to red: (..., 3)."""
    centres = np.array([3.0, 2.0, 1.0])
    colors: NDArray[Any] = (1.5 - np.abs(4 * values[..., None] - centres)).clip(0, 1)
    return colors


def _side_by_side(panels: Sequence[Any], captions: Sequence[str]) -> Any:
    from PIL import Image, ImageDraw

    width, height = panels[0].size
    size = (len(panels) * (width + MARGIN) + MARGIN, height + CAPTION + 2 * MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = MARGIN + i * (width + MARGIN)
        sheet.paste(panel, (left, MARGIN))
        pen.text((left, height + MARGIN + 3), caption, fill="black")
    return sheet


def _write(sheet: Any, output: Path) -> None:
    """Write the PNG whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                sheet.save(stream, format="PNG")
            Path(name).chmod(0o644)
            Path(name).replace(output)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}", hint="choose another -o"
        ) from error
