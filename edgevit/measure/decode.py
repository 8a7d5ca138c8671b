"""Frozen dataclasses to JSON and back, checked field by field against their annotations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgevit.errors import BundleError

__all__ = ["OPTIONAL", "decode", "encode"]

T = TypeVar("T")
#: Metadata of a field that documents may lack, because it came later; its default stands then.
OPTIONAL = {"optional": True}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def encode(value: Any) -> Any:
    """A value as JSON has it: dataclasses and mappings to objects, sequences to arrays."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from its JSON.

    Args:
        cls: the dataclass; its fields may be text, numbers, booleans, literals, mappings, other
            dataclasses, tuples of these, or None.
        data: the JSON.
        where: what the data is part of, for messages.

    Raises:
        BundleError: a field is missing, unknown or of another type; the message names it.
    """
    value: T = _decode(cls, data, where)
    return value


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    origin, arguments, dataclass = _parts(kind)
    if origin in (Union, UnionType):
        chosen = [a for a in arguments if a is not NoneType]
        return None if data is None else _decode(chosen[0], data, where)
    if origin is Literal:
        return _require(data, data in arguments, where, " or ".join(map(repr, arguments)))
    if origin is tuple:
        _require(data, isinstance(data, list), where, "a list")
        if arguments[0] is int and all(type(item) is int for item in data):
            return tuple(data)  # samples by the hundred: as strict as one by one, and much quicker
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if dataclass:
        return _decode_fields(kind, data, where)
    if kind is float:
        number = isinstance(data, int | float) and not isinstance(data, bool)
        return float(_require(data, number and math.isfinite(data), where, _NAMES[float]))
    if kind is int:
        whole = isinstance(data, int) and not isinstance(data, bool)
        return _require(data, whole, where, _NAMES[int])
    if origin is not None:
        return _require(data, isinstance(data, dict), where, "an object")
    return _require(data, isinstance(data, kind), where, _NAMES[kind])


def _decode_fields(cls: Any, data: Any, where: str) -> Any:
    _require(data, isinstance(data, dict), where, "an object")
    hints = _hints(cls)
    if missing := sorted(hints.keys() - data.keys() - _optional(cls)):
        raise BundleError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(data.keys() - hints.keys()):
        raise BundleError(f"{where} has {', '.join(unknown)}, which this schema does not know")
    return cls(
        **{n: _decode(kind, data[n], f"{where}.{n}") for n, kind in hints.items() if n in data}
    )


@lru_cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...], bool]:
    return get_origin(kind), get_args(kind), is_dataclass(kind)


@lru_cache
def _optional(cls: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls) if f.metadata.get("optional"))


@lru_cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _require(data: Any, holds: bool, where: str, expected: str) -> Any:
    if not holds:
        raise BundleError(f"{where}: expected {expected}, got {_shorten(data)}")
    return data


def _shorten(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
