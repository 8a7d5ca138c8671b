"""What a count of MACs takes for granted."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.tensorspec import TensorSpec
from edgevit.zoo.counting import count_macs

SPEC = TensorSpec("x", (1, 3, 8, 8))


class Keeps(nn.Module):
    """Keeps a table that it computes at its first call, as rotary positions do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.table = None

    def forward(self, x):
        x = self.norm(self.conv(x))
        if self.table is None:
            self.table = torch.ones(1, device=x.device)
        return F.linear(x.mean((2, 3)), torch.ones(2, 4, device=x.device)) * self.table


class LooksAtValues(nn.Module):
    """Branches on numbers, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.conv(x) if x.sum() < 1 else x


def test_the_count_is_torchs_own_and_leaves_the_module_as_it_was():
    module = Keeps().eval()
    assert count_macs(module, [SPEC]) == 6 * 6 * 4 * 27 + 2 * 4
    assert module.table is None
    assert module.conv.weight.device.type == "cpu"
    assert module.conv.weight.requires_grad
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(SPEC.shape))
    assert count_macs(module, [SPEC]) == counter.get_total_flops() // 2


def test_a_module_that_looks_at_values_is_counted_on_a_copy():
    module = LooksAtValues().eval()
    assert count_macs(module, [SPEC]) == 6 * 6 * 4 * 27
    assert module.calls == 0
