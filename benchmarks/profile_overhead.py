"""What profiles cost and how well they add up: overhead, sums of operators and blocks, exp.

    python -m benchmarks.profile_overhead                  five models, three runtimes (minutes)
    python -m benchmarks.profile_overhead elevit --seconds 0.5

Of each model and runtime: how much longer the profiled inference is than the plain one, and the sum
of operators over the plain one, all in turns; the share of softmax and GELU. Of ONNX files also the
sum of what the blocks take, each left out in the same rounds as the whole, and beside it the sum of
their operators, each over its whole. Below 100 % is no fault: stem and head are no blocks.
LiteRT lets no profiler in, and TFLite files take minutes to write, so it is asked for by --format.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from devices.base import Schedule
from edgevit.errors import EdgevitError
from edgevit.measure.profile import Profile

MODELS = ("efficientvit_m0", "deit_tiny", "deit_tiny+sima", "elevit", "xcit_tiny_20_p16")
HEADS = (
    "model", "format", "plain ms", "profiled", "operators", "blocks", "blocks by operators",
    "softmax", "GELU", "memory-bound", "status",
)  # fmt: skip


def main() -> None:
    """Profile and print a Markdown table."""
    options = _options()
    load = os.getloadavg()[0]
    busy = "; the machine is busy, figures are coarse" if load > 0.5 else ""
    print(f"load average {load:.2f}{busy}", flush=True)
    for line in (HEADS, ["---"] * 2 + ["---:"] * 8 + ["---"]):
        print(f"| {' | '.join(line)} |")
    start = time.monotonic()
    for name in options.models:
        for form in options.formats.split(","):
            try:
                cells = _cells(_profile(name, form, options))
            except EdgevitError as error:
                cells = [""] * 8 + [error.message]
            print(f"| {' | '.join([name, form, *cells])} |", flush=True)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--format", dest="formats", default="onnx,torch")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each file, at least")
    parser.add_argument("--no-ablation", action="store_true", help="leave no blocks out")
    return parser.parse_args()


def _profile(name: str, form: str, options: argparse.Namespace) -> Profile:
    from edgevit.verbs.profile import profile

    # Twelve rounds at least: the interval of a block needs six.
    plan = Schedule(
        min_runs=12, min_seconds=options.seconds, max_seconds=20.0, warmup_seconds=0.2,
        block_seconds=0.02,
    )  # fmt: skip
    ablate = "block" if form == "onnx" and not options.no_ablation else None
    return profile(name, format=form, schedule=plan, ablate=ablate, peak=False, output=None)


def _cells(profile: Profile) -> list[str]:
    from edgevit.profiling.summary import bounds, exp_shares, overhead, shares

    plain, cost = profile.plain_ms, overhead(profile)
    left = [block for block in profile.blocks if block.takes_ms is not None]
    charged = {share.name: share.share for share in shares(profile, "block")}
    taken = _over(
        sum(block.takes_ms or 0.0 for block in left),
        sum(block.whole_ms or 0.0 for block in left) / len(left) if left else None,
    )
    # Of all operators, not of the plain inference: medians of small ones hide what interrupts them.
    own = _over(sum(charged.get(block.block, 0.0) for block in left), 1.0 if left else None)
    exp, parts = exp_shares(profile), bounds(profile)
    return [
        "" if plain is None else f"{plain:.4g}",
        "" if cost is None else f"{cost:+.1%}",
        _over(profile.ops_ms, plain),
        taken,
        own,
        *(f"{exp[part]:.1%}" if profile.ops else "" for part in ("softmax", "GELU")),
        f"{parts['memory_bound']:.1%}" if profile.ops else "",
        f"{profile.verification.status}; {profile.method}"
        + (f"; {len(left)} of {len(profile.blocks)} blocks" if profile.blocks else ""),
    ]


def _over(part: float, whole: float | None) -> str:
    """A share of the whole, empty where that is not known."""
    return f"{part / whole:.1%}" if whole else ""


if __name__ == "__main__":
    main()
