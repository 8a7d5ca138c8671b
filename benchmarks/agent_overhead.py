"""The agent's own overhead: its timed blocks against a bare loop over the same session.

A tiny ONNX model, one process, one session. In every round the agent's stopwatch and a loop of
nothing but clock, inference, clock take turns in shuffled order; medians of the rounds' medians.
Twice: over the call that the agent times (bound buffers), and against ``session.run``, the call
that people use, which shows what binding the buffers saves.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from devices.agent.subjects import Subject
from devices.agent.timing import Schedule, Stopwatch
from edgevit.source import BlockSpec
from edgevit.verbs.export import export

ROUNDS = 60
BLOCK_NS = 50_000_000


def bare_loop(infer: Callable[[], Any], inner: int) -> float:
    """Median ns of one inference, timed the way anybody would."""
    samples = []
    start = time.perf_counter_ns()
    while time.perf_counter_ns() - start < BLOCK_NS:
        before = time.perf_counter_ns()
        for _ in range(inner):
            infer()
        samples.append((time.perf_counter_ns() - before) / inner)
    return statistics.median(samples)


def measure(folder: Path, spec: BlockSpec) -> dict[str, Any]:
    bundle = export(spec, output=folder)
    subject = Subject(
        {
            "id": "tiny",
            "backend": "onnxruntime",
            "file": str(bundle.path / "model.onnx"),
            "golden": str(bundle.path / "golden.npz"),
            "inputs": [dict(i, layout=None) for i in bundle.manifest["inputs"]],
            "outputs": bundle.manifest["outputs"],
            "tolerance": {"relative": 1e-4},
            "batch": 1,
            "options": {},
        },
        threads=1,
        seed=0,
    )
    subject.prepare(lambda: None)
    subject.load()
    subject.first()
    watch = Stopwatch("tiny", subject.timed())
    watch.warm_up(Schedule(warmup_seconds=1.0), lambda: None)
    session = subject._backend._session  # type: ignore[attr-defined]
    feed = {name: np.ascontiguousarray(a[0]) for name, a in bundle.golden()[0].items()}
    ways: dict[str, Callable[[], float]] = {
        "agent": lambda: statistics.median(watch.block(None, BLOCK_NS)),
        "bare loop, same call": lambda: bare_loop(watch.infer, watch.inner),
        "bare loop, session.run": lambda: bare_loop(lambda: session.run(None, feed), watch.inner),
    }
    order = random.Random(0)
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name in order.sample(list(ways), len(ways)):
            rounds[name].append(ways[name]())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    paired = [a / b for a, b in zip(rounds["agent"], rounds["bare loop, same call"], strict=True)]
    return {
        "model": spec.label,
        "inner": watch.inner,
        "median_us": {name: round(ns / 1e3, 3) for name, ns in medians.items()},
        "agent_over_bare": round(statistics.median(paired), 4),
        "agent_over_session_run": round(medians["agent"] / medians["bare loop, session.run"], 4),
    }


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what was measured."""
    ways = list(found[0]["median_us"])
    head = ["model", *(f"{way}, us" for way in ways), "agent by same call", "by session.run"]
    body = [
        [
            one["model"],
            *(f"{one['median_us'][way]:.2f}" for way in ways),
            f"{one['agent_over_bare']:.4f}",
            f"{one['agent_over_session_run']:.4f}",
        ]
        for one in found
    ]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def table() -> list[str]:
    """Measure a tiny block and a larger one."""
    specs = [BlockSpec("softmax", 16, 8, heads=2), BlockSpec("softmax", 256, 64, heads=8)]
    with tempfile.TemporaryDirectory() as folder:
        return lines([measure(Path(folder), spec) for spec in specs])


def main() -> None:
    print("\n".join(table()))


if __name__ == "__main__":
    main()
