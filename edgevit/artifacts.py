"""Exported files: as the manifest holds them, and run again to be checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle import Bundle
from edgevit.errors import BundleError, MissingExtraError
from edgevit.tensorspec import TensorSpec
from edgevit.verify import Verification, tolerance_for, verify_outputs
from exporters.base import Artifact, CannotVerifyError, Exporter, exporters

__all__ = [
    "Expected",
    "artifact_from_json",
    "artifact_json",
    "summarize",
    "verify_artifact",
    "verify_bundle",
]

Arrays = list[NDArray[Any]]


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """An artifact as the manifest holds it."""
    return {
        "file": artifact.file,
        "backend": artifact.backend,
        "precision": artifact.precision,
        "inputs": [spec.to_json() for spec in artifact.inputs],
        "outputs": [spec.to_json() for spec in artifact.outputs],
        "layouts": artifact.layouts,
        "facts": artifact.facts,
        "versions": artifact.versions,
        "warnings": list(artifact.warnings),
    }


def artifact_from_json(format_name: str, entry: Mapping[str, Any]) -> Artifact:
    """The reverse of :func:`artifact_json`."""
    return Artifact(
        format=format_name,
        file=entry["file"],
        backend=entry["backend"],
        precision=entry["precision"],
        inputs=tuple(TensorSpec.from_json(s) for s in entry["inputs"]),
        outputs=tuple(TensorSpec.from_json(s) for s in entry["outputs"]),
        layouts=dict(entry["layouts"]),
        facts=dict(entry["facts"]),
        versions=dict(entry["versions"]),
        warnings=tuple(entry["warnings"]),
    )


@dataclass(frozen=True)
class Expected:
    """What a file should give: per output an array, runs along its first axis.

    Args:
        exact: the program's outputs.
        half_weights: those of :func:`edgevit.capture.half_weights`, with that rounded what the
            file rounds; None for a file of full precision.
    """

    exact: Arrays
    half_weights: Arrays | None = None

    def of(self, precision: str) -> Arrays:
        """What to compare with at a precision of :data:`edgevit.verify.TOLERANCES`."""
        if precision != "fp16-weights":
            return self.exact
        if self.half_weights is None:
            raise BundleError(
                "there are no outputs with half-precision weights to compare with",
                hint="export the bundle again",
            )
        return self.half_weights


def verify_artifact(
    exporter: Exporter,
    artifact: Artifact,
    folder: Path,
    samples: Sequence[Arrays],
    want: Expected,
) -> list[Verification]:
    """Run a written file in every way there is here, and compare with the expected outputs.

    Args:
        exporter: of the file's format.
        artifact: the file.
        folder: the bundle's folder.
        samples: inputs of each run, in the program's order and layout.
        want: what it should give.
    """
    try:
        runners = exporter.load(artifact, folder)
    except CannotVerifyError as error:
        return [Verification("unverified", "none", reason=str(error))]
    names = [spec.name for spec in artifact.outputs]
    return [
        verify_outputs(
            names,
            want.of(runner.precision),
            stack_runs([runner.run(arrays) for arrays in samples]),
            label=runner.label,
            proves=runner.proves,
            tolerance=tolerance_for(runner.precision),
        )
        for runner in runners
    ]


def summarize(results: Sequence[Verification]) -> dict[str, Any]:
    """Several checks of one file as one: mismatch if any is, else the most that any proves."""
    order = ("mismatch", "verified", "reference", "unverified")
    status = min((r.status for r in results), key=order.index)
    reasons = [r.reason for r in results if r.status == status and r.reason]
    return {
        "status": status,
        "reason": reasons[0] if reasons else None,
        "checks": [r.to_json() for r in results],
    }


def stack_runs(runs: Sequence[Arrays]) -> Arrays:
    """Per-run lists of arrays to one array per position, runs along the first axis."""
    return [np.stack(arrays) for arrays in zip(*runs, strict=True)]


def verify_bundle(
    bundle: Bundle, formats: Sequence[str] | None = None
) -> dict[str, list[Verification]]:
    """Check a bundle's files on this machine against its golden outputs.

    This is how a Core ML file that was only checked by reference elsewhere is verified on a Mac.

    Args:
        bundle: an opened bundle.
        formats: which of its formats; all by default.

    Returns:
        The outcome of every way to run it, by format. A format whose packages are missing here is
        ``unverified`` with that reason.

    Raises:
        UsageError: the bundle does not have a format that was asked for.
    """
    return {name: _verify_format(bundle, name) for name in formats or bundle.formats}


def _verify_format(bundle: Bundle, name: str) -> list[Verification]:
    artifact = artifact_from_json(name, bundle.artifact(name))
    exporter = exporters.get(name)
    if missing := exporter.missing():
        error = MissingExtraError(f"format {name}", missing, exporter.extra)
        return [Verification("unverified", "none", reason=f"{error}: {error.hint}")]
    inputs = bundle.golden_arrays("input")
    batch = bundle.manifest["batch"]["size"]
    order = [entry["name"] for entry in bundle.manifest["inputs"]]
    count = len(inputs[order[0]])
    samples = [[np.repeat(inputs[n][i], batch, axis=0) for n in order] for i in range(count)]
    names = [entry["name"] for entry in bundle.manifest["outputs"]]

    def expected(kind: str) -> Arrays | None:
        arrays = bundle.golden_arrays(kind)
        return [np.repeat(arrays[n], batch, axis=1) for n in names] if arrays else None

    want = Expected(expected("output") or [], expected(f"half_weights_{name}"))
    return verify_artifact(exporter, artifact, bundle.path, samples, want)
