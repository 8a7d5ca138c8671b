"""Results made up of seeded samples, for the tests of statistics, results and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgevit.measure import (
    Conditions,
    Context,
    Device,
    Memory,
    Result,
    Samples,
    Subject,
    Verification,
    Warmup,
)
from edgevit.tensorspec import TensorSpec

FACTS = {
    "cpu": {"model": "Cortex-A72", "count": 4},
    "os": {"system": "Linux", "name": "Debian 12"},
    "runtimes": {"onnxruntime": "1.31.1"},
}
SUBJECT = Subject(
    kind="model",
    name="elevit",
    format="onnx",
    backend="onnxruntime",
    precision="fp32",
    batch=1,
    threads=1,
    inputs=(TensorSpec("image", (1, 3, 224, 224), "image"),),
    file_sha256="ab" * 32,
    file_bytes=94_371_840,
    runtime_version="1.31.1",
    settings={"providers": ["CPUExecutionProvider"]},
    region="one inference with bound buffers",
    passes=("fold_batchnorm",),
    params=23_425_310,
    macs=2_333_000_000,
    manifest_sha256="cd" * 32,
)
CONTEXT = Context(
    created="2026-01-02T03:04:05+00:00",
    edgevit="0.1.0",
    command="edgevit bench elevit --device rpi4",
    host={"system": "Linux"},
    device=Device("rpi4", "rpi4", False, FACTS),
    seed=7,
)


def blocks(
    ms: float = 40.0, *, rounds: int = 10, runs: int = 12, seed: int = 0
) -> tuple[Samples, ...]:
    """Steady samples around a median."""
    random = np.random.default_rng(seed)
    values = ms * 1e6 * random.lognormal(0, 0.004, (rounds, runs))
    return tuple(Samples(i, 1, tuple(int(v) for v in row)) for i, row in enumerate(values))


def make_result(
    *,
    ms: float = 40.0,
    samples: Sequence[Samples] | None = None,
    status: Any = "ok",
    reason: str | None = None,
    verification: Any = "verified",
    device: str = "rpi4",
    emulated: bool = False,
    created: str = CONTEXT.created,
    command: str = CONTEXT.command,
    **subject: Any,
) -> Result:
    """A whole result; keywords that it does not know change the subject."""
    context = replace(
        CONTEXT,
        created=created,
        command=command,
        device=replace(CONTEXT.device, name=device, emulated=emulated),
    )
    return Result(
        context=context,
        subject=replace(SUBJECT, **subject),
        protocol={"warmup_runs": 10, "min_runs": 50, "seed": 7},
        verification=Verification(
            verification,
            None if verification == "verified" else "a reason",
            1e-6,
            5e-5,
            ({"name": "logits", "ok": True, "max_abs": 1e-6, "scale": 3.5, "cosine": 1.0},),
        ),
        status=status,
        reason=reason,
        samples_ns=blocks(ms) if samples is None else tuple(samples),
        load_ms=120.5,
        first_ms=80.25,
        warmup=Warmup(12, 500.0),
        memory=Memory(60_000_000, 190_000_000, method="VmHWM"),
        conditions=Conditions({"load_average": [0.1, 0.1, 0.1]}, {"load_average": [0.9, 0.3, 0.1]}),
        warnings=("a warning",),
    )
