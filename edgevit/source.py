"""What is to be exported or benched: a model of the zoo, a block, a factory's module, a module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import OptionError, ShapeError, UsageError
from edgevit.preprocess import Preprocessing
from edgevit.tensorspec import TensorSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BlockSpec", "Source", "block_source", "model_source", "slug"]


def slug(text: str) -> str:
    """Text as part of a file's name: letters, digits, dots, plus and minus, else underscores."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_")


@dataclass(frozen=True)
class BlockSpec:
    """An attention block at a shape, as a subject of its own.

    Args:
        name: the block's registered name.
        tokens: number of tokens N.
        head_dim: width D of one head.
        heads: number of heads.
        projections: with the projections to query, key, value and output, or the core alone.
        options: the block's own options.
    """

    name: str
    tokens: int
    head_dim: int
    heads: int = 8
    projections: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and shape in one word, ``softmax-n256-d64-h8``."""
        label = f"{self.name}-n{self.tokens}-d{self.head_dim}-h{self.heads}"
        extra = "".join(f"-{slug(f'{k}_{v}')}" for k, v in sorted(self.options.items()))
        return label + ("-proj" if self.projections else "") + extra


@dataclass(frozen=True)
class Source:
    """A module with what the export has to know of it.

    Args:
        name: what the bundle and the tables call it.
        kind: ``"model"``, ``"block"`` or ``"custom"``.
        module: in eval mode.
        inputs: its positional inputs.
        identity: what it was made from (name, options, seed or weights), for the manifest.
        preprocessing: how a picture becomes its input; None if it takes none.
    """

    name: str
    kind: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    identity: Mapping[str, Any]
    preprocessing: Preprocessing | None = None


def model_source(
    model: str | nn.Module,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    weights: str | Path | None = None,
    seed: int = 0,
    batch: int = 1,
    input_shape: Sequence[int] | None = None,
    preprocessing: Preprocessing | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """A source from a name of the zoo, ``package.module:factory``, or a module.

    Args:
        model: what to take.
        num_classes: for a name of the zoo.
        image_size: for a name of the zoo; else the input is (batch, in_chans, H, W).
        in_chans: channels of the image.
        weights: file with the weights, or repository on the Hugging Face hub; without it a model of
            the zoo gets random ones.
        seed: of random weights.
        batch: first axis of the input.
        input_shape: shape without batch of an input that is no image (for factories and modules).
        preprocessing: how a picture becomes the input; ImageNet's by default.
        options: options of the family, for a name of the zoo.

    Raises:
        UsageError: the model is unknown, an option impossible, the weights do not fit.
    """
    if batch < 1:
        raise OptionError("batch", expected="a whole number of at least 1", got=batch)
    chosen = preprocessing or Preprocessing.for_channels(in_chans)
    if isinstance(model, str) and ":" not in model:
        if "/" in model:
            raise UsageError(
                f"{model!r} is no model of the zoo but looks like weights",
                hint="name the model they belong to, and give them as its weights: "
                f"`edgevit export MODEL --weights {model}`",
            )
        if input_shape is not None:
            raise UsageError("input_shape is for factories; a model of the zoo has image_size")
        return _zoo_source(
            model, num_classes, image_size, in_chans, weights, seed, batch, chosen, options or {}
        )
    if options or num_classes is not None:
        raise UsageError(
            "num_classes and model options are for models of the zoo; "
            "a factory decides about its module itself"
        )
    return _custom_source(model, image_size, in_chans, weights, batch, input_shape, chosen)


def _zoo_source(
    name: str,
    num_classes: int | None,
    image_size: int | tuple[int, int] | None,
    in_chans: int,
    weights: str | Path | None,
    seed: int,
    batch: int,
    preprocessing: Preprocessing,
    options: Mapping[str, Any],
) -> Source:
    from edgevit.zoo.factory import create_model
    from edgevit.zoo.hub import locate_weights
    from edgevit.zoo.layers import as_pair
    from edgevit.zoo.randomize import randomize_, settle_
    from edgevit.zoo.registry import model_info
    from edgevit.zoo.weights import hash_state

    info = model_info(name)
    size = as_pair(info.image_size if image_size is None else image_size)
    classes = info.num_classes if num_classes is None else num_classes
    file = locate_weights(weights) if weights is not None else None
    module = create_model(
        name,
        num_classes=classes,
        image_size=size,
        in_chans=in_chans,
        weights=file.path if file is not None else None,
        seed=seed,
        **options,
    )
    image = TensorSpec("image", (batch, in_chans, *size), "image")
    if weights is None:
        # A fresh network hides its branches behind zeros and identities: no check would mean much.
        settle_(randomize_(module, seed), [image], seed)
    identity = {
        "name": info.name,
        "num_classes": classes,
        "image_size": list(size),
        "in_chans": in_chans,
        "options": dict(options),
        "weights": file.to_json() if file is not None else {"kind": "random", "seed": seed},
        "weights_sha256": hash_state(module),
    }
    return Source(info.name, "model", module, (image,), identity, preprocessing)


def _custom_source(
    model: str | nn.Module,
    image_size: int | tuple[int, int] | None,
    in_chans: int,
    weights: str | Path | None,
    batch: int,
    input_shape: Sequence[int] | None,
    preprocessing: Preprocessing,
) -> Source:
    from edgevit.zoo.factory import from_factory
    from edgevit.zoo.hub import locate_weights
    from edgevit.zoo.layers import as_pair
    from edgevit.zoo.weights import hash_state, load_weights, read_state

    path = model if isinstance(model, str) else None
    module = from_factory(model) if isinstance(model, str) else model.eval()
    file = locate_weights(weights) if weights is not None else None
    if file is not None:
        load_weights(module, read_state(file.path), source=file.label)
    if input_shape is not None:
        if image_size is not None:
            raise UsageError("give image_size for an image or input_shape for anything else")
        if not input_shape or any(size < 1 for size in input_shape):
            raise ShapeError(f"input_shape takes positive sizes without batch, got {input_shape}")
        spec = TensorSpec("input", (batch, *input_shape))
    else:
        size = as_pair(224 if image_size is None else image_size)
        spec = TensorSpec("image", (batch, in_chans, *size), "image")
    name = path.rpartition(":")[2].rpartition(".")[2] if path else type(module).__name__.lower()
    identity = {
        "name": name,
        "factory": path,
        "weights": file.to_json() if file is not None else {"kind": "own"},
        "weights_sha256": hash_state(module),
    }
    return Source(
        name,
        "custom",
        module,
        (spec,),
        identity,
        preprocessing if spec.kind == "image" else None,
    )


def block_source(spec: BlockSpec, *, batch: int = 1, seed: int = 0) -> Source:
    """A source from an attention block.

    Raises:
        UnknownNameError: no block has that name.
        ShapeError: the shape does not fit the block.
    """
    from edgevit.zoo.factory import block_inputs, create_block
    from edgevit.zoo.randomize import randomize_
    from edgevit.zoo.weights import hash_state

    inputs = block_inputs(
        spec.name,
        tokens=spec.tokens,
        head_dim=spec.head_dim,
        heads=spec.heads,
        projections=spec.projections,
        batch=batch,
    )
    module = create_block(
        spec.name,
        tokens=spec.tokens,
        head_dim=spec.head_dim,
        heads=spec.heads,
        projections=spec.projections,
        seed=seed,
        **spec.options,
    )
    randomize_(module, seed)
    identity = {
        "name": spec.label,
        "block": spec.name,
        "tokens": spec.tokens,
        "head_dim": spec.head_dim,
        "heads": spec.heads,
        "projections": spec.projections,
        "options": dict(spec.options),
        "weights": {"kind": "random", "seed": seed},
        "weights_sha256": hash_state(module),
    }
    return Source(spec.label, "block", module, inputs, identity)
