"""The parts of a result: the circumstances, the subject, the check, memory and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgevit.measure.decode import OPTIONAL
from edgevit.tensorspec import TensorSpec

__all__ = [
    "MEMORY_DEFINITION",
    "Conditions",
    "Context",
    "Device",
    "Instructions",
    "Memory",
    "Subject",
    "Verification",
    "Warmup",
]

MEMORY_DEFINITION = (
    "peak resident set size of the agent process less its level after imports, in a run of its own"
)


@dataclass(frozen=True)
class Device:
    """What was measured on.

    Args:
        name: how the user calls it (``"local"``, ``"rpi4"``).
        profile: the profile that it follows, if any.
        emulated: an emulator stands in for it, so its times are not the device's.
        facts: what its agent says of machine, system, Python, runtimes, CPU and clock.
    """

    name: str
    profile: str | None = None
    emulated: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """The circumstances of a run.

    Args:
        created: UTC time of the run's start, ISO 8601.
        edgevit: version of edgevit.
        command: the command line.
        host: facts of the machine that edgevit ran on.
        device: the device.
        seed: of the shuffling of subjects and of random inputs.
        suite: the suite that the subject was measured as a part of, if any.
    """

    created: str
    edgevit: str
    command: str
    host: Mapping[str, Any]
    device: Device
    seed: int | None = None
    suite: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Subject:
    """What was measured.

    Args:
        kind: ``"model"`` or ``"block"``.
        name: name of the model or block.
        format: of the file (``"onnx"``).
        backend: what ran it (``"onnxruntime"``).
        precision: how it computes (``"fp32"``).
        batch: images, or token sets, in one inference.
        threads: CPU threads that it may use.
        inputs: names and shapes of its inputs.
        file_sha256: hash of the file.
        file_bytes: its size.
        runtime_version: version of the backend.
        settings: how the backend was set up.
        region: what a timed region holds, in words.
        passes: rewrites that were applied, in order.
        params: trainable scalars of the model.
        macs: multiply-accumulates of one image.
        manifest_sha256: hash of the manifest of the bundle that the file comes from.
        options: of the backend, as asked for (compute unit, providers); ``settings`` has what came
            of them.
    """

    kind: Literal["model", "block"]
    name: str
    format: str
    backend: str
    precision: str
    batch: int
    threads: int
    inputs: tuple[TensorSpec, ...]
    file_sha256: str | None = None
    file_bytes: int | None = None
    runtime_version: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    region: str | None = None
    passes: tuple[str, ...] = ()
    params: int | None = None
    macs: int | None = None
    manifest_sha256: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONAL)


@dataclass(frozen=True)
class Verification:
    """Whether the file computes on the device what it should.

    Args:
        status: ``"verified"`` (ran on the device and agrees with its golden outputs),
            ``"reference"`` (agreed elsewhere, with the same graph and weights), ``"unverified"``
            or ``"mismatch"``.
        reason: why it is unverified or does not match.
        max_abs: largest absolute difference over all outputs.
        tolerance: share of an output's scale that was tolerated.
        outputs: one entry an output (name, max_abs, scale, cosine).
    """

    status: Literal["verified", "reference", "unverified", "mismatch"]
    reason: str | None = None
    max_abs: float | None = None
    tolerance: float | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Warmup:
    """Runs before the timed ones: how many, and how many milliseconds they took together."""

    runs: int
    ms: float


@dataclass(frozen=True)
class Memory:
    """Memory of the agent process while it runs the subject, in bytes.

    Args:
        baseline_bytes: resident set after imports, before the file is loaded; None on systems that
            do not tell it.
        peak_rss_bytes: largest resident set.
        definition: what the figure is, in words.
        method: how the device tells it.
    """

    baseline_bytes: int | None
    peak_rss_bytes: int
    definition: str = MEMORY_DEFINITION
    method: str | None = None

    @property
    def net_bytes(self) -> int | None:
        """What the subject adds: the peak less the baseline; None without a baseline."""
        if self.baseline_bytes is None:
            return None
        return max(0, self.peak_rss_bytes - self.baseline_bytes)


@dataclass(frozen=True)
class Instructions:
    """Instructions of one inference: a cost that does not depend on what else the machine does.

    Args:
        per_inference: how many, of one inference at the result's batch.
        tolerance: share by which repeats are known to differ; what lies within shows nothing.
        method: what counted them, with its version.
    """

    per_inference: int
    tolerance: float
    method: str


@dataclass(frozen=True)
class Conditions:
    """Governor, clocks, temperatures, throttling and load around the runs; null where not known."""

    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
