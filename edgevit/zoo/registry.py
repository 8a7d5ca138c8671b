"""What models and attention blocks there are, and how to make one.

A family's module registers its variants with :func:`register_model`, a block's module its class
with :func:`register_block`. Modules are found through the entry-point groups ``edgevit.models`` and
``edgevit.blocks``. Because such a module imports torch, the names, aliases and counts of ours are
also kept in ``index.json`` (``python -m edgevit.zoo.index`` writes it, a test holds it true), so
that listing needs no torch. Modules of third parties are not in that index and are imported to be
listed.

Names read ``family_size``. ``backbone+block`` swaps the attention block: unless such a name is
registered itself, the backbone's function is called with ``mixer="block"``.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgevit.errors import OptionError, ShapeError, UnknownNameError
from edgevit.registry import entry_points, match_names

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "INDEX",
    "BlockInfo",
    "ModelInfo",
    "block_info",
    "build_block",
    "build_model",
    "check_heads",
    "list_blocks",
    "list_models",
    "make_config",
    "model_info",
    "register_block",
    "register_model",
]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C")
INDEX = Path(__file__).with_name("index.json")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without building it.

    ``params`` (trainable scalars) and ``macs`` (multiply-accumulates of one image at
    ``image_size``, convolutions and matrix products only) come from the index; they are None for a
    model that is not in it. ``published`` holds the paper's own figures under the paper's own
    words; ``params_torchsummary`` is the count by the narrower rule of a paper that prints whole
    numbers (see :func:`edgevit.zoo.counting.count_torchsummary`).
    """

    name: str
    module: str
    function: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    paper: str | None = None
    table: str | None = None
    image_size: int = 224
    num_classes: int = 1000
    published: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None
    params: int | None = None
    macs: int | None = None
    params_torchsummary: int | None = None

    @property
    def family(self) -> str:
        """The module that the model lives in, without its package."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True)
class BlockInfo:
    """What is known of an attention block without building it.

    ``layout`` is ``"tokens"`` for blocks on (B, N, C) and ``"map"`` for blocks on (B, C, H, W).
    """

    name: str
    module: str
    function: str
    layout: str
    summary: str = ""
    paper: str | None = None


_models: dict[str, tuple[ModelInfo, Callable[..., Any]]] = {}
_blocks: dict[str, tuple[BlockInfo, Callable[..., Any]]] = {}


def _summary(obj: object) -> str:
    return (inspect.getdoc(obj) or "").partition("\n")[0].rstrip(".")


def register_model(
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    paper: str | None = None,
    table: str | None = None,
    image_size: int = 224,
    num_classes: int = 1000,
    published: Mapping[str, Any] | None = None,
    note: str | None = None,
) -> Callable[[F], F]:
    """Register a function that builds a model.

    The function takes ``num_classes``, ``image_size``, ``in_chans`` and the options of its family
    as keywords and returns an ``nn.Module``. The first line of its docstring is the model's
    summary.

    Args:
        name: the model's name; the function's own by default (needed for ``backbone+block``).
        aliases: further names, such as the paper's own.
        paper: short name of the paper (``"elevit"``).
        table: where in the paper the model stands (``"Table 1"``).
        image_size: default height and width in pixels.
        num_classes: default number of classes.
        published: the paper's own figures, for tables (``{"params_m": 23.4}``).
        note: what could not be reproduced, or is a choice of ours.
    """

    def register(function: F) -> F:
        info = ModelInfo(
            name=name or function.__name__,
            module=function.__module__,
            function=function.__name__,
            summary=_summary(function),
            aliases=tuple(aliases),
            paper=paper,
            table=table,
            image_size=image_size,
            num_classes=num_classes,
            published=dict(published or {}),
            note=note,
        )
        _models[info.name] = (info, function)
        return function

    return register


def register_block(name: str, *, layout: str, paper: str | None = None) -> Callable[[C], C]:
    """Register an attention block's class under a name.

    The class takes ``(dim, heads, *, tokens, prefix_tokens=0, **options)``: total width, number of
    heads, the token map's ``(height, width)``, and how many tokens (class token) stand before the
    map's own; most blocks ignore the last two. It has ``forward(x)``, with projections, and
    ``core(query, key, value)``, without.
    """

    def register(cls: C) -> C:
        kind: Any = cls
        info = BlockInfo(name, kind.__module__, kind.__name__, layout, _summary(cls), paper)
        _blocks[name] = (info, kind)
        return cls

    return register


def make_config(cls: Callable[..., C], options: Mapping[str, Any]) -> C:
    """A config dataclass filled from options; an option that it does not have is an OptionError."""
    known = [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]
    for name, value in options.items():
        if name not in known:
            near = UnknownNameError("option", name, known)
            hint = near.hint or "the options are " + ", ".join(known)
            raise OptionError(name, expected="an option of this model", got=value, hint=hint)
    return cls(**options)


@lru_cache(maxsize=1)
def _index() -> dict[str, Any]:
    if not INDEX.is_file():
        return {"models": {}, "blocks": {}}
    data: dict[str, Any] = json.loads(INDEX.read_text(encoding="utf-8"))
    return data


@lru_cache(maxsize=2)
def _import_unindexed(group: str, indexed: frozenset[str]) -> None:
    """Import the modules of a group that the index does not cover, so that they register."""
    for module in entry_points(group).values():
        if module not in indexed:
            importlib.import_module(module)


@lru_cache(maxsize=1)
def _indexed_models() -> dict[str, ModelInfo]:
    return {
        name: ModelInfo(name=name, **{**entry, "aliases": tuple(entry.get("aliases", ()))})
        for name, entry in _index()["models"].items()
    }


@lru_cache(maxsize=1)
def _indexed_blocks() -> dict[str, BlockInfo]:
    return {name: BlockInfo(name=name, **entry) for name, entry in _index()["blocks"].items()}


def _all_models() -> dict[str, ModelInfo]:
    indexed = _indexed_models()
    _import_unindexed("edgevit.models", frozenset(i.module for i in indexed.values()))
    return indexed | {n: info for n, (info, _) in _models.items() if n not in indexed}


def _all_blocks() -> dict[str, BlockInfo]:
    indexed = _indexed_blocks()
    _import_unindexed("edgevit.blocks", frozenset(i.module for i in indexed.values()))
    return indexed | {n: info for n, (info, _) in _blocks.items() if n not in indexed}


def list_models(pattern: str | Iterable[str] | None = None) -> list[str]:
    """Sorted names of the models; shell-style wildcards narrow the list.

    >>> list_models("elevit_*noff")  # doctest: +SKIP
    """
    return match_names(_all_models(), pattern)


def list_blocks(pattern: str | Iterable[str] | None = None) -> list[str]:
    """Sorted names of the attention blocks; shell-style wildcards narrow the list."""
    return match_names(_all_blocks(), pattern)


def model_info(name: str) -> ModelInfo:
    """What is known of the model of that name, or alias, or ``backbone+block``.

    Raises:
        UnknownNameError: no model has that name; the nearest ones are in the hint.
    """
    wanted = name.lower()
    models = _all_models()
    if wanted in models:
        return models[wanted]
    aliases = {alias: info for info in models.values() for alias in info.aliases}
    if wanted in aliases:
        return aliases[wanted]
    backbone, plus, block = wanted.partition("+")
    if plus and (backbone in models or backbone in aliases):
        info = models.get(backbone) or aliases[backbone]
        known = block_info(block)
        return replace(
            info,
            name=f"{info.name}+{known.name}",
            summary=f"{info.summary}; attention block: {known.name}",
            aliases=(),
            published={},
            params=None,
            macs=None,
            params_torchsummary=None,
        )
    raise UnknownNameError("model", name, [*models, *aliases], listing="edgevit models")


def block_info(name: str) -> BlockInfo:
    """What is known of the attention block of that name.

    Raises:
        UnknownNameError: no block has that name; the nearest ones are in the hint.
    """
    blocks = _all_blocks()
    if name.lower() not in blocks:
        raise UnknownNameError("block", name, blocks, listing="edgevit models --blocks")
    return blocks[name.lower()]


def build_model(name: str, **options: Any) -> nn.Module:
    """Build the model of that name; see :func:`edgevit.create_model` for the public way.

    Raises:
        UnknownNameError: no model has that name.
        OptionError: the family has no such option, or not that value.
    """
    info = model_info(name)
    importlib.import_module(info.module)
    backbone, _, block = info.name.partition("+")
    if info.name in _models:
        built = _models[info.name][1](**options)
    else:
        built = _models[backbone][1](mixer=block, **options)
    module: nn.Module = built
    return module


def build_block(
    name: str,
    *,
    dim: int,
    heads: int,
    tokens: tuple[int, int],
    prefix_tokens: int = 0,
    **options: Any,
) -> nn.Module:
    """Build an attention block; in a backbone use :func:`edgevit.zoo.mixers.make_mixer`.

    Args:
        name: the block's name.
        dim: total width C.
        heads: number of heads; must divide ``dim``.
        tokens: height and width of the token map.
        prefix_tokens: tokens (class token) that stand before the map's own.
        **options: the block's own options.

    Raises:
        UnknownNameError: no block has that name.
        ShapeError: the heads do not divide the width, or the shape does not fit the block.
    """
    info = block_info(name)
    importlib.import_module(info.module)
    check_heads(dim, heads)
    module: nn.Module = _blocks[info.name][1](
        dim, heads, tokens=tokens, prefix_tokens=prefix_tokens, **options
    )
    return module


def check_heads(dim: int, heads: int) -> None:
    """Raise ShapeError unless ``heads`` is at least 1 and divides ``dim``."""
    if heads < 1 or dim < 1 or dim % heads:
        raise ShapeError(
            f"{heads} heads do not divide a width of {dim}",
            hint="choose a width that is a multiple of the number of heads",
        )
