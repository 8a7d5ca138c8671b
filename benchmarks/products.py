"""What no rewrite leaves out: the products of DeiT-S alone, in every runtime.

python -m benchmarks.products

Layers and attention of the same sizes, without norms, softmax, activation and positions, and with
heads that need no permutation: data of the right size, read as heads. Residuals stay, as nothing
of a network would without them. How many times as fast as the naive file that runs bounds what
other ways to write the model can bring in a runtime that multiplies as it does. One thread, fp32,
random weights; a ratio is naive CPU time by the other file's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.races import Limits, Racer, race
from benchmarks.ratios import compare, pooled
from benchmarks.rows import sample, source_of
from benchmarks.ways import CANDIDATES, CONTROL, EXECUTORCH, NAIVE, RUNNERS, Workbench, ours
from edgevit.source import model_source
from edgevit.zoo.models.deit import DeiT
from exporters.quiet import quiet

MODEL = "deit_small"
#: Naive files, by runtime.
WAYS: Mapping[str, str] = {
    "onnxruntime": NAIVE,
    "openvino": "OpenVINO of the naive file",
    "litert": "LiteRT, naive",
    "executorch": EXECUTORCH,
}
TARGETS: Mapping[str, float] = {"executorch": 1.35}
ALONE = "products alone"
LIMITS = Limits(openings=12, seconds=60.0)
#: Deviation of the weights times fan_in^1/2: without norms, a layer should add little.
SMALL = 0.05


class BlockProducts(nn.Module):
    """The products of a block, and its residuals; (B, N, C) to (B, N, C)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        batch, tokens, dim = x.shape
        heads = (batch, self.heads, tokens, dim // self.heads)
        query, value = self.query(x).reshape(heads), self.value(x).reshape(heads)
        key = self.key(x).reshape(batch, self.heads, dim // self.heads, tokens)
        x = x + self.proj((query @ key @ value).reshape(x.shape))
        out: Tensor = x + self.fc2(self.fc1(x))
        return out


class Products(nn.Module):
    """The products of a DeiT or ViT with softmax attention: images to logits, as it has them."""

    def __init__(self, whole: DeiT) -> None:
        super().__init__()
        config, dim = whole.config, whole.config.width
        self.patch_embed, self.cls_token = whole.patch_embed, whole.cls_token
        hidden = config.expansion * dim
        blocks = (BlockProducts(dim, config.heads, hidden) for _ in range(config.depth))
        self.blocks, self.head = nn.Sequential(*blocks), whole.head
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=SMALL * layer.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to (B, num_classes)."""
        x = self.patch_embed(x)
        x = self.blocks(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1))
        logits: Tensor = self.head(x[:, 0])
        return logits


#: Seconds of every opening's rounds, of the naive file, of it again, edgevit's and products alone.
Samples = Sequence[list[list[float]]]


def measure() -> dict[str, Samples]:
    """Make all files and race those of each runtime."""
    whole = source_of(MODEL, 1)
    assert isinstance(whole.module, DeiT)
    alone = model_source(Products(whole.module).eval(), input_shape=whole.inputs[0].shape[1:])
    make = {way.name: way.make for way in CANDIDATES}
    found: dict[str, Samples] = {}
    with tempfile.TemporaryDirectory() as folder:
        benches = [Workbench(s, Path(folder) / n) for n, s in (("whole", whole), (ALONE, alone))]
        for bench in benches:
            bench.folder.mkdir()
        for runner, name in WAYS.items():
            naive = make[name]
            assert naive is not None  # it has a file
            with quiet():
                file = naive(benches[0])
                files = [file, file, *(ours(bench, runner=runner) for bench in benches)]
            racers = [
                Racer(f"{runner}, {number}", partial(RUNNERS[runner], file))
                for number, file in enumerate(files)
            ]
            race(racers, sample(whole), LIMITS, runner)
            found[runner] = [racer.seconds for racer in racers]
    return found


def lines(found: Mapping[str, Samples]) -> list[str]:
    """The table, then a line for each target."""
    out = [
        f"| runtime | {MODEL}, naive, ms | {CONTROL} | edgevit | {ALONE} |",
        "| --- | --- | --- | --- | --- |",
    ]
    told = [""]
    for runner, (base, *others) in found.items():
        ratios = [compare(base, seconds) for seconds in others]
        cells = [f"{r.value:.3f} ± {1000 * r.reach:.0f}" for r in ratios]
        out.append(f"| {runner} | {pooled(base) * 1e3:.2f} | {' | '.join(cells)} |")
        if wanted := TARGETS.get(runner):
            _, own, bound = ratios
            word = "out of reach" if bound.high < wanted else "missed"
            word = "holds" if own.value >= wanted else word
            told.append(
                f"* **{word}**: {MODEL} in {runner}: {cells[1]} of its own naive; {wanted:.2f} "
                f"wanted; {ALONE} {cells[2]}"
            )
    return out + told


def table() -> list[str]:
    """Measure and tell."""
    return lines(measure())


if __name__ == "__main__":
    print("\n".join(table()))
