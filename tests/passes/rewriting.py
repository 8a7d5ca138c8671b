"""Running passes on small modules, and comparing the result with the module itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgevit.capture import Program, capture
from edgevit.passes import PassReport, run_passes
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.randomize import randomize_

#: Of the largest output, for a rewrite that only changes the order of fp32 sums.
EXACT = 1e-5


class Forward(nn.Module):
    """Named layers and a function of (layers, input)."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@dataclass(frozen=True)
class Rewritten:
    """A module, its program after the passes, and their reports."""

    model: nn.Module
    before: Program
    after: Program
    reports: tuple[PassReport, ...]
    images: Tensor

    @property
    def report(self) -> PassReport:
        (report,) = self.reports
        return report

    @property
    def error(self) -> float:
        """Largest difference to the eager module, over its largest output."""
        return relative_error(self.model, self.after, self.images)

    def count(self, operator: str) -> int:
        return count(self.after.graph_module(), operator)


def rewrite(
    model: nn.Module,
    shape: Sequence[int],
    names: Sequence[str] = ("fold_batchnorm",),
    *,
    dynamic: bool = False,
    randomize: bool = True,
) -> Rewritten:
    """Capture a module at a shape, run passes, and check that the comparison can fail."""
    model = (randomize_(model) if randomize else model).eval()
    spec = TensorSpec("x", (1, *shape[1:]) if dynamic else tuple(shape))
    program = capture(model, [spec], dynamic_batch=dynamic)
    after, reports = run_passes(program, names)
    batch = 3 if dynamic else shape[0]
    images = torch.randn((batch, *shape[1:]), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        first, second = model(images.clone()), model(-images)
    assert (first - second).abs().max() > 1e-2 * first.abs().max(), "the output ignores the input"
    return Rewritten(model, program, after, reports, images)


def relative_error(model: nn.Module, program: Program, images: Tensor) -> float:
    with torch.inference_mode():
        wanted = model(images.clone())
    (got,) = program(images.clone())
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def count(module: fx.GraphModule, operator: str) -> int:
    """Number of calls of an ``aten`` operator, any overload."""
    return sum(
        node.op == "call_function" and str(node.target).split(".")[1:2] == [operator]
        for node in module.graph.nodes
    )
