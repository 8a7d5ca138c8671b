"""Small programs, and how closely a written file follows them, for the exporters' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.capture import Program, capture
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.factory import block_inputs, create_block, create_model
from edgevit.zoo.randomize import randomize_
from exporters.base import Artifact, Exporter, Runner, make_options

#: Of the output's scale: what fp32 sums in another order may differ by.
ROUNDING = 3e-6
SMALL = {"stem": (4, 8), "widths": (16, 24, 32), "depths": (1, 1, 1)}


class Forward(nn.Module):
    """Named layers and a function of (layers, x)."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Held(nn.Module):
    """A constant of random numbers, given when called."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(shape))

    def forward(self) -> Tensor:
        return self.values


def program_of(
    function: Callable[..., Any],
    shape: Sequence[int],
    *,
    dynamic: bool = False,
    **layers: nn.Module,
) -> Program:
    """A function of (layers, x) captured at one shape."""
    torch.manual_seed(0)
    module = randomize_(Forward(function, **layers)).eval()
    return capture(module, [TensorSpec("x", tuple(shape))], dynamic_batch=dynamic)


def elevit(size: int = 32, *, batch: int = 1, dynamic: bool = False, **options: Any) -> Program:
    """A small EleViT with random statistics, or the real one with ``depths`` of its own."""
    model = randomize_(create_model("elevit", image_size=size, **(SMALL | options)))
    spec = TensorSpec("image", (batch, 3, size, size), "image")
    return capture(model, [spec], dynamic_batch=dynamic)


def block(name: str, *, projections: bool, dynamic: bool = False) -> Program:
    """An attention block of 16 tokens and two heads of width 8."""
    shape: dict[str, Any] = {"tokens": 16, "head_dim": 8, "heads": 2, "projections": projections}
    module = randomize_(create_block(name, **shape))
    return capture(module, block_inputs(name, **shape), dynamic_batch=dynamic)


def write(exporter: Exporter, program: Program, folder: Path, /, **options: Any) -> Artifact:
    return exporter.export(program, folder, make_options(exporter, options))


def error_of(runner: Runner, program: Program, *, batch: int | None = None) -> float:
    """Largest difference to the program over three inputs, as a share of the output's scale.

    The outputs of the three inputs have to differ far more than the error, or nothing is proved.
    """
    wants, gots = [], []
    for seed in range(3):
        arrays = _noise(program, batch or program.inputs[0].shape[0], seed)
        wants.append([o.numpy() for o in program(*map(torch.from_numpy, arrays))])
        gots.append(runner.run(arrays))
    errors = []
    for want, got in zip(zip(*wants, strict=True), zip(*gots, strict=True), strict=True):
        expected, actual = np.stack(want), np.stack(got)
        assert actual.shape == expected.shape
        scale = np.abs(expected).max()
        assert np.abs(expected[0] - expected[1]).max() > 1e-2 * scale, "the input does not matter"
        errors.append(float(np.abs(actual - expected).max() / scale))
    return max(errors)


def _noise(program: Program, batch: int, seed: int) -> list[Any]:
    generator = np.random.default_rng(seed)
    shapes = [spec.with_batch(batch).shape for spec in program.inputs]
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
