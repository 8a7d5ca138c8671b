"""How long a bench needs to tell two files apart of which one costs two percent more.

python -m benchmarks.two_percent [--benches 6] [--seconds 8]

The files are stacks of 50 and of 51 equal convolutions, so that one has 1.02 times the work of the
other, and a second one of 50 with other weights, which has the same work. Every bench times the
three in turns, as any bench does. Then each is judged as if it had ended after so many rounds: how
often the two percent are seen, and how often the same work is said to differ. By two rules:

    compare     of `edgevit compare --threshold 0.01`, whose sides come from different benches: the
                rank test over both sides' round medians
    paired      of both files' medians in one round the quotient, and the sign test over those; what
                the machine did in a round falls on both. `edgevit tune` pairs them so, too, but
                asks for 99 % and allows for the luck of an opening
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from devices.base import Schedule
from edgevit.bundle import Bundle
from edgevit.measure.ranks import rank_test
from edgevit.report.compare import ALPHA
from edgevit.verbs.bench import bench
from edgevit.verbs.export import export

if TYPE_CHECKING:
    from torch import nn

#: Share below which nothing is called a difference: half of what is to be seen.
THRESHOLD = 0.01
ROUNDS = (5, 6, 8, 10, 15, 20, 30, 40, 60, 80, 120)
WIDTH, PIXELS, LAYERS = 32, 28, 50
BENCHES, SECONDS = 6, 8.0

Medians = NDArray[np.float64]


def stack(layers: int, seed: int) -> nn.Module:
    """Equal convolutions one after the other, none of which a runtime can leave out."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
        nn.init.kaiming_normal_(parts[-2].weight)  # type: ignore[arg-type]
    return nn.Sequential(*parts).eval()


def made(folder: Path) -> list[Bundle]:
    """A file, another with the same work, and one with more."""
    stacks = {"less": stack(LAYERS, 0), "again": stack(LAYERS, 1), "more": stack(LAYERS + 1, 2)}
    shape = (WIDTH, PIXELS, PIXELS)
    return [
        export(module, name=name, input_shape=shape, output=folder)
        for name, module in stacks.items()
    ]


def measured(bundles: Sequence[Bundle], seconds: float, seed: int) -> list[Medians]:
    """Round medians of each in one bench, ms."""
    schedule = Schedule(min_seconds=seconds, max_seconds=4 * seconds, seed=seed)
    results = bench(bundles, schedule=schedule, memory=False, output=None, fresh=True)
    found = [result.statistics for result in results]
    if len(found) != len(bundles) or any(statistics is None for statistics in found):
        raise RuntimeError(f"not measured: {[(r.status, r.reason) for r in results]}")
    return [statistics.round_medians_ms for statistics in found if statistics is not None]


def differs(first: Medians, second: Medians) -> bool:
    """What a comparison would call slower or faster."""
    share = abs(float(np.median(second) / np.median(first)) - 1)
    return share >= THRESHOLD and rank_test(first, second) < ALPHA


def differs_paired(first: Medians, second: Medians) -> bool:
    """The same of two files of one bench, round by round."""
    from scipy.stats import binomtest

    quotients = second / first
    greater = int((quotients > 1).sum())
    share = abs(float(np.median(quotients)) - 1)
    return share >= THRESHOLD and float(binomtest(greater, len(quotients)).pvalue) < ALPHA


def rates(
    benches: Sequence[Sequence[Medians]],
    rounds: int,
    differs: Callable[[Medians, Medians], bool] = differs,
) -> tuple[float, float] | None:
    """Shares of the benches, so long, in which the two percent are seen, and a false alarm raised.

    A bench is as many of that length as fit into it. None if none fits.
    """
    seen, false = [], []
    for less, again, more in benches:
        for start in range(0, min(map(len, (less, again, more))) - rounds + 1, rounds):
            part = slice(start, start + rounds)
            seen.append(differs(less[part], more[part]))
            false.append(differs(less[part], again[part]))
    return (float(np.mean(seen)), float(np.mean(false))) if seen else None


def lines(benches: Sequence[Sequence[Medians]]) -> list[str]:
    """The files' times, then a table by the length of a bench."""
    less, again, more = (np.concatenate([b[i] for b in benches]) for i in range(3))
    block = Schedule().block_seconds
    rows = []
    for rounds in ROUNDS:
        compared, paired = (rates(benches, rounds, rule) for rule in (differs, differs_paired))
        if compared and paired:
            rows.append((rounds, (*compared, *paired)))
    return [
        f"{np.median(less):.3f} ms; the same work again {np.median(again) / np.median(less):.4f}, "
        f"with {LAYERS + 1} layers for {LAYERS} {np.median(more) / np.median(less):.4f}; "
        f"{len(benches)} benches",
        "",
        "| rounds | seconds of each file | 2 % seen, compare | false alarms | 2 % seen, paired "
        "| false alarms |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {n} | {n * block:.1f} | {' | '.join(f'{share:.0%}' for share in shares)} |"
            for n, shares in rows
        ),
    ]


def table(benches: int = BENCHES, seconds: float = SECONDS) -> list[str]:
    """Measure, each file so long in each bench."""
    with tempfile.TemporaryDirectory() as folder:
        bundles = made(Path(folder))
        return lines([measured(bundles, seconds, seed) for seed in range(benches)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--benches", type=int, default=BENCHES)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="timed of each file in a bench"
    )
    asked = parser.parse_args()
    print("\n".join(table(asked.benches, asked.seconds)))
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
