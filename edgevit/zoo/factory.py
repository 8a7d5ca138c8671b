"""Making models and blocks: from a name of the zoo, or from a factory of the user's own."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import EdgevitError, FactoryError, OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.hub import locate_weights
from edgevit.zoo.layers import as_pair, check_classes
from edgevit.zoo.registry import block_info, build_block, build_model, check_heads, model_info
from edgevit.zoo.weights import load_weights, read_state

__all__ = ["BlockCore", "block_inputs", "create_block", "create_model", "from_factory"]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    weights: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """A model of the zoo, in eval mode.

    Args:
        name: a name, alias, or ``backbone+block``; :func:`edgevit.list_models` tells the names.
        num_classes: size of the head; the model's own default without it.
        image_size: height and width in pixels; the model's own default without it.
        in_chans: channels of the image.
        weights: a ``.safetensors``, ``.pth`` or ``.pt`` file, or a repository on the Hugging Face
            hub, ``timm/efficientvit_m5.r224_in1k`` or ``hf-hub:owner/name``; fresh weights without
            it.
        seed: of the fresh weights; the same seed gives the same weights.
        **options: options of the family, such as ``softmax_axis`` of EleViT.

    Returns:
        The module; images (B, in_chans, H, W) to logits (B, num_classes).

    Raises:
        UnknownNameError: no model has that name.
        OptionError: an option does not exist or has an impossible value.
        ShapeError: the architecture cannot take that image size.
        WeightsError: the weights do not fit; nothing is loaded half.
        UnavailableError: the hub cannot be reached, and the cache has nothing of it.
    """
    info = model_info(name)
    classes = info.num_classes if num_classes is None else num_classes
    check_classes(classes)
    size = info.image_size if image_size is None else image_size
    as_pair(size)
    if not isinstance(in_chans, int) or in_chans < 1:
        raise OptionError("in_chans", expected="a whole number of at least 1", got=in_chans)
    file = locate_weights(weights) if weights is not None else None
    state = read_state(file.path) if file is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(
            name, num_classes=classes, image_size=size, in_chans=in_chans, **options
        )
    if state is not None and file is not None:
        adapt = getattr(model, "adapt_state", None)  # released names, tables of another image size
        load_weights(model, adapt(state) if adapt else state, source=file.label)
    return model.eval()


class BlockCore(nn.Module):
    """An attention block without its projections: ``core(query, key, value)`` as a module."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Shapes as the block's ``core`` takes them."""
        core: Any = self.block.core
        out: Tensor = core(query, key, value)
        return out


def create_block(
    name: str,
    *,
    tokens: int,
    head_dim: int,
    heads: int = 8,
    projections: bool = False,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """An attention block as a subject of its own, in eval mode.

    Args:
        name: the block's name; :func:`edgevit.list_blocks` tells them.
        tokens: number of tokens N; a square number for blocks that work on maps.
        head_dim: width D of one head; the whole width is ``heads * head_dim``.
        heads: number of heads.
        projections: with the projections to query, key, value and output, or the core alone.
        seed: of the fresh weights.
        **options: the block's own options.

    Raises:
        UnknownNameError: no block has that name.
        ShapeError: the shape does not fit the block.
    """
    block_inputs(name, tokens=tokens, head_dim=head_dim, heads=heads, projections=projections)
    side = math.isqrt(tokens)
    grid = (side, side) if side * side == tokens else (tokens, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = build_block(name, dim=heads * head_dim, heads=heads, tokens=grid, **options)
    if projections:
        return block.eval()
    core = BlockCore(block).eval()
    inputs = block_inputs(name, tokens=tokens, head_dim=head_dim, heads=heads)
    _drop_unused(core, [torch.ones(spec.shape) for spec in inputs])
    return core


def _drop_unused(core: BlockCore, inputs: Sequence[Tensor]) -> None:
    """Take away parameters that the core does not use: its block's projections."""
    try:
        with torch.enable_grad():
            core(*(tensor.requires_grad_() for tensor in inputs)).sum().backward()
    except OptionError:  # a block that is nothing without its projections says so when it is run
        return
    _prune(core.block)
    core.zero_grad(set_to_none=True)


def _prune(module: nn.Module) -> None:
    """Take away layers and parameters that no gradient reached."""
    for name, child in list(module.named_children()):
        parameters = list(child.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            setattr(module, name, nn.Identity())
        else:
            _prune(child)
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.grad is None:
            module.register_parameter(name, None)


def block_inputs(
    name: str,
    *,
    tokens: int,
    head_dim: int,
    heads: int = 8,
    projections: bool = False,
    batch: int = 1,
) -> tuple[TensorSpec, ...]:
    """The inputs of :func:`create_block`'s module.

    With projections one ``x``: (B, N, C) for tokens, (B, C, H, W) for maps. Without, ``query``,
    ``key`` and ``value``: (B, heads, N, D) for tokens, (B, C, H, W) for maps.

    Raises:
        ShapeError: a map is asked for and the number of tokens is not a square.
    """
    info = block_info(name)
    if tokens < 1 or head_dim < 1:
        raise ShapeError(f"a block needs at least one token and channel, got {tokens},{head_dim}")
    check_heads(heads * head_dim, heads)
    dim, side = heads * head_dim, math.isqrt(tokens)
    if info.layout == "map" and side * side != tokens:
        raise ShapeError(
            f"block {info.name} works on a square map, so N must be a square number; got {tokens}",
            hint=f"the nearest are {side * side} and {(side + 1) ** 2}",
        )
    shape: tuple[int, ...]
    if info.layout == "map":
        shape = (batch, dim, side, side)
    else:
        shape = (batch, tokens, dim) if projections else (batch, heads, tokens, head_dim)
    names = ("x",) if projections else ("query", "key", "value")
    return tuple(TensorSpec(n, shape) for n in names)


def from_factory(path: str, arguments: Sequence[Any] = ()) -> nn.Module:
    """The module that a user's factory makes, in eval mode.

    Args:
        path: ``package.module:factory``, a callable without arguments that returns an nn.Module, or
            an nn.Module itself. The working directory is on the import path.
        arguments: passed to the factory.

    Raises:
        FactoryError: it cannot be imported, raises, or returns no module.
    """
    module_name, _, attribute = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
        made = target if isinstance(target, nn.Module) else target(*arguments)
    except EdgevitError:
        raise
    except Exception as error:
        raise FactoryError(
            f"{path}: {type(error).__name__}: {error}",
            hint="expected package.module:factory, a callable that returns an nn.Module",
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(made, nn.Module):
        raise FactoryError(f"{path} returned {type(made).__name__}, expected an nn.Module")
    return made.eval()
