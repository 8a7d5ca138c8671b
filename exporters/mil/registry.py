"""The table of MIL ops: a function each, whose annotations say how it takes its parameters.

A parameter annotated ``Tensor`` gets a tensor; ``int``, ``float``, ``bool``, ``str``, ``list[int]``
and ``list[bool]`` get the Python value of a constant; ``Literal[...]`` only the texts it names;
``Tensors`` several tensors. A parameter named ``rounded`` gets the rounding of the arithmetic in
use, for ops that hold intermediate results of their own.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from exporters.base import CannotVerifyError

__all__ = ["OPS", "OpFunction", "Rounding", "Tensors", "implements"]

#: Rounds an intermediate result to the precision of the arithmetic in use.
Rounding = Callable[[Tensor], Tensor]
Tensors = tuple[Tensor, ...]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class OpFunction:
    """An op's function, with the conversion of each of its parameters."""

    run: Callable[..., Any]
    converters: Mapping[str, Callable[[Any], Any]]
    required: frozenset[str]
    rounds: bool

    def check(self, op: str, given: typing.Iterable[str]) -> None:
        """Raise CannotVerifyError for a parameter that is unknown here, or lacking."""
        names = set(given)
        if unknown := sorted(names - set(self.converters)):
            raise CannotVerifyError(f"op {op} has a parameter {unknown[0]} that is not known here")
        if lacking := sorted(self.required - names):
            raise CannotVerifyError(f"op {op} lacks its parameter {lacking[0]}")

    def convert(self, op: str, parameter: str, value: Any) -> Any:
        """A parameter's value as the function takes it.

        Raises:
            CannotVerifyError: the value has no meaning here.
        """
        try:
            return self.converters[parameter](value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CannotVerifyError(f"op {op}, parameter {parameter}: {error}") from error


#: All ops that are implemented.
OPS: dict[str, OpFunction] = {}


def implements(*names: str) -> Callable[[F], F]:
    """Register the function of one or more op types."""

    def register(function: F) -> F:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        entry = OpFunction(
            function,
            {name: _converter(hints[name]) for name in parameters if name != "rounded"},
            frozenset(n for n, p in parameters.items() if p.default is p.empty and n != "rounded"),
            "rounded" in parameters,
        )
        for name in names:
            OPS[name] = entry
        return function

    return register


def _converter(hint: Any) -> Callable[[Any], Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is Literal:
        return _one_of(typing.get_args(hint))
    return _CONVERTERS[hint]


def _one_of(allowed: tuple[Any, ...]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"{value!r} is not implemented here")
        return value

    return convert


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected numbers, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text, got numbers")
    return value


def _tensors(value: Any) -> Tensors:
    return tuple(_tensor(v) for v in value) if isinstance(value, tuple) else (_tensor(value),)


def _items(value: Any) -> list[Any]:
    """The elements of a tensor, or of a tuple of them."""
    return [item for tensor in _tensors(value) for item in tensor.reshape(-1).tolist()]


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    Tensor: _tensor,
    Tensors: _tensors,
    int: lambda v: int(_tensor(v).item()),
    float: lambda v: float(_tensor(v).item()),
    bool: lambda v: bool(_tensor(v).item()),
    str: _text,
    list[int]: lambda v: [int(i) for i in _items(v)],
    list[bool]: lambda v: [bool(i) for i in _items(v)],
}
