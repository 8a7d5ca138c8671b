"""MIL ops on single elements: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.base import CannotVerifyError
from exporters.mil.registry import implements

__all__: list[str] = []

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,  # ties to even, in MIL as in torch
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,  # the sign is the divisor's
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        return function(x)

    return run


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return run


for _name, _of_one in UNARY.items():
    implements(_name)(_unary(_of_one))
for _name, _of_two in BINARY.items():
    implements(_name)(_binary(_of_two))


@implements("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; what it means for two integers is not documented."""
    if not (x.is_floating_point() or y.is_floating_point()):
        raise CannotVerifyError("op real_div of two integers is not documented")
    return x / y


@implements("inverse")
def inverse(x: Tensor, epsilon: float) -> Tensor:
    """1 / (x + epsilon)."""
    return (x + epsilon).reciprocal()


@implements("log")
def log(x: Tensor, epsilon: float) -> Tensor:
    """log(x + epsilon)."""
    return (x + epsilon).log()


@implements("rsqrt")
def rsqrt(x: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return (x + epsilon).rsqrt()


@implements("clip")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """x held between alpha and beta."""
    return x.clamp(alpha, beta)


@implements("threshold")
def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha)."""
    return x.clamp(min=alpha)


@implements("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    return torch.where(cond, a, b)


@implements("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """To another element type; floats to integers towards zero.

    Rounding to fp16 is the business of the interpreter, which knows the declared type.
    """
    if dtype in ("fp16", "fp32"):
        return x.float()
    return x != 0 if dtype == "bool" else x.long()


@implements("gelu")
def gelu(
    x: Tensor, mode: Literal["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"] = "EXACT"
) -> Tensor:
    """x Φ(x), or one of its two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


@implements("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Over one axis."""
    return x.softmax(axis)


@implements("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """x above zero, alpha (exp(x) - 1) below."""
    return F.elu(x, alpha)


@implements("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x above zero, alpha x below."""
    return F.leaky_relu(x, alpha)


@implements("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x above zero, alpha x below, with an alpha per channel (axis 1)."""
    return F.prelu(x, alpha)


@implements("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(beta, x) above zero, min(beta, alpha x) below."""
    return F.leaky_relu(x, alpha).clamp(max=beta)


@implements("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x from alpha on, 0 below."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@implements("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha x + beta."""
    return alpha * x + beta


@implements("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha tanh(beta x)."""
    return alpha * torch.tanh(beta * x)


@implements("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha x + beta, held between 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)
