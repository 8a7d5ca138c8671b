"""What the tests of OpenVINO and ExecuTorch share: a module of two inputs and two outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgevit.capture import Program, capture
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.randomize import randomize_

#: In alphabetical order they would be the other way round; nothing reads the second.
SPECS = (
    TensorSpec("zoom", (1, 3, 8, 8), "image"),
    TensorSpec("spare", (1, 2)),
    TensorSpec("offset", (1, 5)),
)


class Tiny(nn.Module):
    """An image and two vectors in: (1, 3, 8, 8), (1, 2) and (1, 5) to (1, 5) and (1, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 5)

    def forward(self, zoom: Tensor, spare: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.conv(zoom).mean((-2, -1))
        return self.head(pooled) + offset, pooled.relu()


def tiny(specs: Sequence[TensorSpec] = SPECS, *, dynamic: bool = False) -> Program:
    torch.manual_seed(0)
    return capture(randomize_(Tiny()), specs, dynamic_batch=dynamic)
