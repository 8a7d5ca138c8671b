"""What is benched: names, modules and blocks become bundles, bundles become files to measure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from devices.base import Subject as DeviceSubject
from devices.base import SubjectInput as DeviceInput
from devices.profile import DeviceProfile
from edgevit.bundle import GOLDEN, MANIFEST, Bundle, hash_file
from edgevit.errors import BundleError, UsageError
from edgevit.measure.record import Subject as SubjectRecord
from edgevit.progress import Progress
from edgevit.source import BlockSpec
from edgevit.tensorspec import TensorSpec
from edgevit.verbs.targets import check_loadable
from edgevit.verify import tolerance_for

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BenchSubject", "Entry", "entries_of", "make_bundle", "makeable_formats"]

BenchSubject: TypeAlias = "str | Path | Bundle | BlockSpec | nn.Module"


@dataclass(frozen=True)
class Entry:
    """One file to be measured with one thread count.

    Args:
        id: names it in events; unique in its job.
        bundle: that it is in.
        record: what its result will say of it.
        tolerance: share of each output's scale by which it may be off.
        compared: what it is compared with has the same word here.
    """

    id: str
    bundle: Bundle
    record: SubjectRecord
    tolerance: float
    compared: str = ""

    def on_device(self, place: str) -> DeviceSubject:
        """As a job has it, for a bundle that was pushed to that place."""
        artifact = self.bundle.artifact(self.record.format)
        names = [entry["name"] for entry in artifact["inputs"]]
        return DeviceSubject(
            id=self.id,
            backend=self.record.backend,
            file=f"{place}/{artifact['file']}",
            inputs=tuple(
                DeviceInput(name, spec.shape, artifact["layouts"].get(spec.name), spec.dtype)
                for name, spec in zip(names, self.record.inputs, strict=True)
            ),
            outputs=tuple(entry["name"] for entry in artifact["outputs"]),
            tolerance=self.tolerance,
            sha256=self.record.file_sha256,
            golden=f"{place}/{GOLDEN}",
            batch=self.record.batch,
            options=self.record.options,
        )

    @property
    def files(self) -> tuple[str, ...]:
        """What of the bundle the device needs."""
        return str(self.bundle.artifact(self.record.format)["file"]), GOLDEN

    def with_threads(self, threads: int) -> Entry:
        """The same file with another thread count."""
        return replace(self, record=replace(self.record, threads=threads))

    @property
    def identity(self) -> list[Any]:
        """Everything of it that decides a measurement, as JSON."""
        r, files = self.record, self.bundle.manifest["files"]
        shapes = [spec.to_json() for spec in r.inputs]
        golden = files[GOLDEN]["sha256"]
        return [
            r.name, r.format, r.backend, r.file_sha256, golden, shapes, r.batch, r.threads,
            self.tolerance, dict(r.options),
        ]  # fmt: skip


def entries_of(
    bundle: Bundle,
    profile: DeviceProfile,
    wanted: Sequence[str],
    *,
    device: str,
    batch: int,
    options: Mapping[str, Mapping[str, Any]],
    runtime: str | None,
    progress: Progress,
) -> list[Entry]:
    """The files of a bundle that were asked for, or else all that the device runs.

    Args:
        bundle: exported before.
        profile: of the device.
        wanted: formats; empty for all that there are.
        device: its name, for messages.
        batch: images in one inference.
        options: of backends, by backend.
        runtime: that runs the formats that it takes; None leaves it to the device.
        progress: told what is left out.

    Raises:
        UsageError: the device runs none of them, or cannot read one.
    """
    formats = list(wanted) or [name for name in bundle.formats if name in profile.formats]
    if left := [name for name in bundle.formats if name not in formats and not wanted]:
        progress.note(f"{device} does not run {', '.join(left)}: left out")
    if not formats:
        raise UsageError(
            f"{device} runs none of the formats in {bundle.path}",
            hint=f"it runs {', '.join(profile.formats)}",
        )
    for name in formats:
        check_loadable(profile, bundle, name)
    return [
        _entry(bundle, name, batch, _backend(bundle, name, profile, runtime), options)
        for name in formats
    ]


def _backend(bundle: Bundle, format_name: str, profile: DeviceProfile, runtime: str | None) -> str:
    """What runs the file there: as asked for, else the file's own, else what the device has."""
    able = [name for name, have in profile.runtimes.items() if format_name in have.formats]
    own: str = bundle.artifact(format_name)["backend"]
    if runtime in able:
        return str(runtime)
    return own if own in able or not able else able[0]


def _entry(
    bundle: Bundle,
    format_name: str,
    batch: int,
    backend: str,
    options: Mapping[str, Mapping[str, Any]],
) -> Entry:
    artifact, size = bundle.artifact(format_name), bundle.manifest["batch"]["size"]
    if not artifact["facts"].get("dynamic_batch") and size != batch:
        raise UsageError(
            f"{bundle.path} has a fixed batch of {size}, not {batch}",
            hint=f"edgevit export {bundle.name} --batch {batch}",
        )
    own = options.get(backend, {})
    return Entry(
        id=f"{bundle.path.name}.{format_name}",
        bundle=bundle,
        record=_record(bundle, format_name, batch, backend, own),
        tolerance=tolerance_for(_precision(artifact["precision"], backend, own)),
        compared=_compared(bundle),
    )


def _precision(file: str, backend: str, options: Mapping[str, Any]) -> str:
    """How it computes: some runtimes make less of a file in fp32, if they may.

    OpenVINO that is left the choice takes bf16 where the processor has it.
    """
    if backend == "tensorrt" and options.get("fp16"):
        return "fp16"
    if backend == "openvino" and "precision" in options:
        return {"f32": file, "f16": "fp16"}.get(options["precision"], "bf16")
    return file


def _compared(bundle: Bundle) -> str:
    """Blocks are compared with others of their shape, models in all their formats."""
    model = bundle.manifest["model"]
    if model["kind"] != "block":
        return bundle.name
    return f"blocks-n{model['tokens']}-d{model['head_dim']}-h{model['heads']}"


def _record(
    bundle: Bundle, format_name: str, batch: int, backend: str, options: Mapping[str, Any]
) -> SubjectRecord:
    artifact, manifest = bundle.artifact(format_name), bundle.manifest
    model, file = manifest["model"], manifest["files"][artifact["file"]]
    kind: Literal["model", "block"] = "block" if model["kind"] == "block" else "model"
    return SubjectRecord(
        kind=kind,
        name=model["name"],
        format=format_name,
        backend=backend,
        precision=_precision(artifact["precision"], backend, options),
        batch=batch,
        threads=1,
        inputs=tuple(TensorSpec.from_json(i).with_batch(batch) for i in manifest["inputs"]),
        file_sha256=file["sha256"],
        file_bytes=file["bytes"],
        passes=tuple(p["name"] for p in manifest["passes"] if p["rewritten"]),
        params=model["params"],
        macs=model["macs"],
        manifest_sha256=bundle.digest,
        options=dict(options),
    )


# -- subjects to bundles ---------------------------------------------------------------------------


def makeable_formats(device_formats: Iterable[str]) -> list[str]:
    """Formats that the device runs and that can be made here.

    Raises:
        UsageError: there is none.
    """
    from exporters.base import exporters

    names = [n for n in exporters.names() if n in device_formats and not exporters.get(n).missing()]
    if not names:
        raise UsageError(
            f"none of the device's formats ({', '.join(sorted(device_formats))}) can be made here",
            hint="edgevit doctor",
        )
    return names


def is_bundle(subject: BenchSubject) -> bool:
    """Whether it is exported already."""
    if isinstance(subject, Bundle):
        return True
    return isinstance(subject, str | Path) and (Path(subject) / MANIFEST).is_file()


def make_bundle(
    subject: BenchSubject,
    formats: Sequence[str],
    *,
    batch: int,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any],
) -> Bundle:
    """A subject's bundle, exported into the cache if it is none and is not there yet.

    Args:
        subject: see :func:`edgevit.bench`.
        formats: that an export has to have.
        batch: images in one inference.
        seed: of random weights and inputs.
        progress: told how an export goes on.
        options: of the export.

    Raises:
        UsageError: it is neither a bundle nor anything that can be exported.
    """
    if isinstance(subject, Bundle):
        return subject
    if isinstance(subject, str | Path) and is_bundle(subject):
        if given := {k: v for k, v in options.items() if v not in (None, True)}:
            raise UsageError(
                f"{subject} is exported already; {', '.join(given)} cannot be changed any more"
            )
        return Bundle.open(subject)
    if isinstance(subject, Path) or (isinstance(subject, str) and "/" in subject):
        raise UsageError(
            f"{subject} is no bundle: it has no {MANIFEST}",
            hint="give the folder that `edgevit export` wrote, or a model's name",
        )
    return _exported(subject, formats, batch, seed, progress, options)


def _exported(
    subject: str | BlockSpec | nn.Module,
    formats: Sequence[str],
    batch: int,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any],
) -> Bundle:
    """The cached bundle of exactly this subject, exported first where it lacks a format."""
    from platformdirs import user_cache_path

    from edgevit.verbs.export import Plan, export_source, make_plan, make_source

    source, rest = make_source(subject, batch=batch, seed=seed, **options)
    plan: Plan = make_plan(formats, **rest)
    folder = user_cache_path("edgevit") / "bundles" / _cache_key(source.identity, batch, seed, rest)
    cached = _cached(folder)
    missing = [name for name in formats if cached is None or name not in cached.formats]
    if cached is not None and not missing:
        return cached
    # The other formats are carried over, since the graph is the same.
    plan = replace(plan, formats={name: plan.formats[name] for name in missing})
    with progress.stage(f"export {source.name} ({', '.join(missing)})"):
        quiet = _NotesOnly(progress, source.name)
        bundle = export_source(source, plan, folder, seed=seed, progress=quiet)
        quiet.summarize()
        return bundle


class _NotesOnly(Progress):
    """Passes notes on, one of a kind, under the name of what they are about.

    A bench has many exports; what a pass left alone, and why, is in the manifest.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self._told: Counter[str] = Counter()

    def note(self, message: str) -> None:
        kind = " ".join(message.split()[:2])
        self._told[kind] += 1
        if self._told[kind] == 1:
            self._progress.note(f"{self._name}: {message}")

    def summarize(self) -> None:
        """Say how many more there were."""
        for kind, count in self._told.items():
            if count > 1:
                self._progress.note(f"{self._name}: {kind} ... {count - 1} more like that")


def _cached(folder: Path) -> Bundle | None:
    try:
        return next((Bundle.open(m.parent) for m in folder.glob(f"*/{MANIFEST}")), None)
    except BundleError:
        return None


def _cache_key(
    identity: Mapping[str, Any], batch: int, seed: int, options: Mapping[str, Any]
) -> str:
    from edgevit.versions import code_digest, tool_versions

    said = {key: value for key, value in options.items() if value is not None and value != {}}
    if "image" in said:
        said["image"] = hash_file(Path(said["image"]))
    parts = [identity, batch, seed, said, tool_versions(), code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
