"""XCiT's BatchNorms between padded convolutions: as edgevit leaves them, and folded all the same.

python -m benchmarks.border

A BatchNorm s ⊙ x + t before a convolution that pads with zeros can go into it with a map of
constants M behind it, which has the border right:

    conv(pad(s ⊙ x + t)) = conv'(pad(x)) + M        M = conv(pad(t)) without bias

:mod:`edgevit.passes.fold_batchnorm` refuses that: an operator goes and another comes. What it would
bring is measured here, in files of a model that was folded by hand. One thread, fp32, random
weights; a ratio is CPU time of the file with BatchNorms by that of the other.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.races import Limits, Racer, race
from benchmarks.ratios import compare, pooled
from benchmarks.rows import sample, source_of
from benchmarks.ways import RUNNERS, Workbench, ours
from edgevit.source import Source
from edgevit.zoo.models.xcit import LocalPatchInteraction, XCiTBlock
from exporters.quiet import quiet

MODEL = "xcit_small_12_p16"
LIMITS = Limits(openings=12, seconds=60.0)
#: More than this share of the output's scale is another function.
SAME = 1e-5


class FoldedInteraction(nn.Module):
    """DW3, GELU, BatchNorm, DW3 and the LayerScale behind them, BatchNorm and scale folded."""

    def __init__(self, whole: LocalPatchInteraction, layer_scale: Tensor) -> None:
        super().__init__()
        self.grid, self.conv1, self.act = whole.grid, whole.conv1, whole.act
        conv, layer_scale = copy.deepcopy(whole.conv2), layer_scale.flatten()
        zeros = torch.zeros(1, conv.in_channels, *self.grid)
        shift = whole.bn(zeros)
        scale = (whole.bn(zeros + 1) - shift)[0, :, :1, :1, None]
        weight = conv.weight * layer_scale[:, None, None, None]
        border = nn.functional.conv2d(shift, weight, padding=1, groups=conv.groups)
        conv.weight = nn.Parameter(weight * scale)
        conv.bias = nn.Parameter(whole.conv2(zeros)[0, :, 1, 1] * layer_scale)
        self.conv2, self.border = conv, nn.Parameter(border.flatten(2).transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        image = x.transpose(1, 2).reshape(-1, x.shape[2], *self.grid)
        out: Tensor = self.conv2(self.act(self.conv1(image)))
        return out.flatten(2).transpose(1, 2) + self.border


class FoldedBlock(XCiTBlock):
    """A block whose third LayerScale is in its interaction."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = x + self.local_mp(self.norm3(x))
        out: Tensor = x + self.gamma2 * self.mlp(self.norm2(x))
        return out


def folded(source: Source) -> Source:
    """The same function without BatchNorms.

    Raises:
        AssertionError: it is not the same.
    """
    module = copy.deepcopy(source.module)
    x = torch.from_numpy(sample(source))
    with torch.no_grad():
        for block in (b for b in module.modules() if isinstance(b, XCiTBlock)):
            block.add_module("local_mp", FoldedInteraction(block.local_mp, block.gamma3))
            block.__class__ = FoldedBlock
        want, got = source.module(x), module.eval()(x)
    assert (got - want).abs().max() <= SAME * want.abs().max()
    identity = {**source.identity, "folded": "border"}
    return dataclasses.replace(source, kind="custom", module=module, identity=identity)


def table() -> list[str]:
    """Make all files and race those of each runtime."""
    source = source_of(MODEL, 1)
    out = [
        "| runtime | with BatchNorms, ms | the same again | folded |",
        "| --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        benches = {name: Workbench(s, Path(folder) / name) for name, s in ways(source).items()}
        for bench in benches.values():
            bench.folder.mkdir()
        for runner, run in RUNNERS.items():
            with quiet():
                files = {name: ours(b, runner=runner) for name, b in benches.items()}
            files = {"kept": files["kept"], "again": files["kept"], "folded": files["folded"]}
            racers = [Racer(name, partial(run, file)) for name, file in files.items()]
            race(racers, sample(source), LIMITS, runner)
            kept, *others = (racer.seconds for racer in racers)
            ratios = [compare(kept, seconds) for seconds in others]
            cells = [f"{r.value:.3f} ± {1000 * r.reach:.0f}" for r in ratios]
            out.append(f"| {runner} | {pooled(kept) * 1e3:.2f} | {' | '.join(cells)} |")
    return out


def ways(source: Source) -> dict[str, Source]:
    """Both models."""
    return {"kept": source, "folded": folded(source)}


if __name__ == "__main__":
    print("\n".join(table()))
