"""Whether two computations agree, how closely, and what that proves.

The rule, the same on the host and on a device: over all samples of an output,

    max |got - want| <= tolerance * max |want|        and everything is finite

so the tolerance is a share of the output's scale. It depends on what is compared and on the
precision.
Status words:

    verified     the file ran in its format's own runtime and agrees
    reference    its graph and weights were read back and executed elsewhere and agree
    unverified   it could not be checked here, with the reason
    mismatch     it does not agree
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOLERANCES", "Comparison", "Verification", "compare", "tolerance_for"]

#: Tolerated error as a share of the output's scale, by precision.
TOLERANCES: Mapping[str, float] = {
    "exact": 1e-6,  # the same operators in the same runtime
    "passes": 1e-5,  # a rewritten graph against the module it came from, both fp32 in torch
    "fp32": 5e-5,  # another runtime's fp32
    # A file with half-precision weights, run in fp32, against the program with its own weights
    # rounded alike: what rounding does to the model is on both sides, so this proves the graph.
    "fp16-weights": 2e-4,
    "fp16": 3e-2,  # every result rounded to half precision, against fp32: what the format costs
    "bf16": 2.4e-1,  # the same with three bits fewer, so eight times as coarse
}


def tolerance_for(precision: str) -> float:
    """The tolerance of a precision, as a share of the output's scale."""
    return TOLERANCES[precision]


@dataclass(frozen=True)
class Comparison:
    """One output compared over several samples.

    Args:
        output: its name.
        max_abs: largest absolute difference over all samples (infinite if not all finite).
        scale: largest absolute value expected.
        cosine: lowest cosine similarity of a sample.
        per_sample: largest absolute difference of each sample.
        spread: largest difference between the expected values of two samples; if this is not well
            above the tolerance, agreement proves little.
    """

    output: str
    max_abs: float
    scale: float
    cosine: float
    per_sample: tuple[float, ...]
    spread: float

    @property
    def relative(self) -> float:
        """``max_abs`` as a share of ``scale``."""
        return self.max_abs / self.scale if self.scale > 0 else float(self.max_abs > 0)

    def within(self, tolerance: float) -> bool:
        """Whether the difference is at most ``tolerance`` of the scale."""
        return bool(self.relative <= tolerance)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it; infinite becomes null."""
        finite = np.isfinite(self.max_abs)
        return {
            "output": self.output,
            "max_abs": self.max_abs if finite else None,
            "relative": self.relative if finite else None,
            "scale": self.scale,
            "cosine": self.cosine if np.isfinite(self.cosine) else None,
            "per_sample_max_abs": [v if np.isfinite(v) else None for v in self.per_sample],
        }


@dataclass(frozen=True)
class Verification:
    """The outcome of checking one stage.

    Args:
        status: ``"verified"``, ``"reference"``, ``"unverified"`` or ``"mismatch"``.
        label: what ran it (``"onnxruntime 1.31.1"``).
        tolerance: share of the output's scale that was tolerated.
        comparisons: one per output.
        reason: why it is unverified or does not match.
    """

    status: str
    label: str
    tolerance: float | None = None
    comparisons: tuple[Comparison, ...] = ()
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """False only for a mismatch."""
        return self.status != "mismatch"

    @property
    def worst(self) -> Comparison | None:
        """The comparison with the largest relative difference."""
        return max(self.comparisons, key=lambda c: c.relative, default=None)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "status": self.status,
            "label": self.label,
            "tolerance": self.tolerance,
            "reason": self.reason,
            "comparisons": [c.to_json() for c in self.comparisons],
        }


def compare(output: str, want: NDArray[Any], got: NDArray[Any]) -> Comparison:
    """Compare stacked samples of one output.

    Args:
        output: its name.
        want: expected values, samples along the first axis.
        got: the values to check; another shape counts as infinitely far off.
    """
    if want.shape != got.shape:
        return Comparison(output, float("inf"), _scale(want), float("nan"), (), _spread(want))
    expected, actual = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected - actual).reshape(len(want), -1).max(axis=1)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    cosines = [_cosine(a, b) for a, b in zip(expected, actual, strict=True)]
    return Comparison(
        output,
        float(difference.max()),
        _scale(want),
        float(np.min(cosines)),
        tuple(float(d) for d in difference),
        _spread(want),
    )


def verify_outputs(
    names: Sequence[str],
    want: Sequence[NDArray[Any]],
    got: Sequence[NDArray[Any]],
    *,
    label: str,
    proves: str,
    tolerance: float,
) -> Verification:
    """Check stacked outputs against the expected ones.

    Args:
        names: the outputs' names.
        want: expected values per output, samples along the first axis.
        got: values to check, likewise.
        label: what produced them.
        proves: the status that agreement earns.
        tolerance: share of each output's scale.
    """
    if len(got) != len(want):
        reason = f"{len(got)} outputs where {len(want)} were expected"
        return Verification("mismatch", label, tolerance, reason=reason)
    comparisons = tuple(compare(n, w, g) for n, w, g in zip(names, want, got, strict=True))
    mismatch = _mismatch(comparisons, want, got, tolerance)
    return Verification(
        "mismatch" if mismatch else proves, label, tolerance, comparisons, reason=mismatch
    )


def _mismatch(
    comparisons: Sequence[Comparison],
    want: Sequence[NDArray[Any]],
    got: Sequence[NDArray[Any]],
    tolerance: float,
) -> str | None:
    for comparison, expected, actual in zip(comparisons, want, got, strict=True):
        name = comparison.output
        if expected.shape != actual.shape:
            return f"{name} has shape {actual.shape[1:]}, expected {expected.shape[1:]}"
        if not np.isfinite(expected).all():
            return f"{name} of the model itself is not finite (NaN or infinite)"
        if not np.isfinite(actual).all():
            return f"{name} is not finite (NaN or infinite)"
        if not comparison.within(tolerance):
            return (
                f"{name} is off by {comparison.max_abs:.2e}, {comparison.relative:.1e} of its "
                f"scale; tolerated are {tolerance:.0e}"
            )
    return None


def _scale(values: NDArray[Any]) -> float:
    magnitude = float(np.abs(values.astype(np.float64)).max(initial=0.0))
    return magnitude if np.isfinite(magnitude) else float("inf")


def _spread(values: NDArray[Any]) -> float:
    if len(values) < 2:
        return float("inf")
    with np.errstate(invalid="ignore"):
        return float((values.max(axis=0) - values.min(axis=0)).max(initial=0.0))


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / norm if norm > 0 else float(np.array_equal(a, b))
