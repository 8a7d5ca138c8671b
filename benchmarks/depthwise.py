"""Large depthwise convolutions in LiteRT and ExecuTorch: whole, as others write them, and in parts.

python -m benchmarks.depthwise

One convolution by itself, one thread, fp32, weights at random. Files of one convolution are raced
as models are; a ratio is naive CPU time by edgevit's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.races import Limits, Racer, race
from benchmarks.ratios import compare, pooled
from benchmarks.ways import CANDIDATES, Workbench
from exporters.quiet import quiet

#: Channels, map, kernel, and a network that has it.
CASES: Mapping[str, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "ConvNeXt-T, first stage": (96, (56, 56), (7, 7)),
    "ConvNeXt-T, third stage": (384, (14, 14), (7, 7)),
    "EfficientViT-M5, first stage, a query": (16, (14, 14), (7, 7)),
    "SOFT-T, first stage": (64, (56, 56), (9, 9)),
    "RepLKNet-31B, third stage": (512, (14, 14), (27, 27)),
    "Nyström attention, SOFT-T, third stage": (10, (196, 32), (33, 1)),
}
#: Naive and edgevit's, by runtime.
WAYS = {
    "LiteRT": ("LiteRT, naive", "edgevit, litert"),
    "ExecuTorch": ("ExecuTorch, naive", "edgevit, executorch"),
}
LIMITS = Limits(openings=6, seconds=8.0)

#: Seconds of every opening's rounds, by the name of the way.
Samples = dict[str, list[list[float]]]


def measure(case: str) -> Samples:
    """Make all files of a convolution and race them."""
    from torch import nn

    from edgevit.source import model_source

    channels, (height, width), kernel = CASES[case]
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels).eval()
    source = model_source(layer, input_shape=(channels, height, width))
    names = [name for pair in WAYS.values() for name in pair]
    x = np.random.default_rng(0).standard_normal((1, channels, height, width), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bench, racers = Workbench(source, Path(folder)), []
        for way in (candidate for candidate in CANDIDATES if candidate.name in names):
            assert way.make is not None  # all of these have files
            with quiet():
                file = way.make(bench)
            racers.append(Racer(way.name, partial(way.open, file)))
        race(racers, x, LIMITS, case)
    return {racer.name: racer.seconds for racer in racers}


def lines(found: Mapping[str, Samples]) -> list[str]:
    """The table."""
    heads = [f"{runtime}, naive, ms | edgevit, times as fast" for runtime in WAYS]
    out = [
        f"| convolution | channels, map, kernel | {' | '.join(heads)} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, samples in found.items():
        channels, shape, kernel = CASES[case]
        cells = [f"{channels}, {shape[0]} x {shape[1]}, {kernel[0]} x {kernel[1]}"]
        for naive, ours in WAYS.values():
            ratio = compare(samples[naive], samples[ours])
            cells += [
                f"{pooled(samples[naive]) * 1e3:.3f}",
                f"{ratio.value:.2f} ± {ratio.reach:.2f}",
            ]
        out.append(f"| {case} | {' | '.join(cells)} |")
    return out


def table(cases: Sequence[str] = tuple(CASES)) -> list[str]:
    """Measure them all."""
    return lines({case: measure(case) for case in cases})


if __name__ == "__main__":
    print("\n".join(table()))
