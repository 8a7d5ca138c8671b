"""Which files a bench needs, and making them: once for all devices that can load the same one.

A subject that cannot be exported has failed, like one that cannot be run; the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from devices.base import Device
from devices.wheels import BY_HAND, ON_DEMAND
from edgevit.bundle import Bundle
from edgevit.errors import CheckError, EdgevitError, UnavailableError
from edgevit.measure.record import Device as DeviceRecord
from edgevit.measure.record import Subject as SubjectRecord
from edgevit.measure.record import Verification
from edgevit.measure.results import Result, Status, current_context
from edgevit.progress import Progress
from edgevit.source import BlockSpec
from edgevit.verbs.journal import digest
from edgevit.verbs.runs import Settings
from edgevit.verbs.subjects import BenchSubject, is_bundle, make_bundle, makeable_formats
from edgevit.verbs.targets import default_format, fit_options

__all__ = ["Files", "Needs", "Unmade", "unmade_subject"]

#: Options of an export that blocks have as well as models.
BLOCK_OPTIONS = frozenset(
    {"activation", "fold_batchnorm", "passes", "dynamic_batch", "verify", "image", "options"}
)


@dataclass(frozen=True)
class Unmade:
    """A file that could not be made for a device."""

    device: Device
    subject: BenchSubject
    format: str
    error: EdgevitError

    def result(self, settings: Settings, threads: int, batch: int) -> Result:
        """As a result: nothing was measured, and why."""
        device = self.device
        record = DeviceRecord(device.name, device.profile.name, getattr(device, "emulated", False))
        status: Status = "mismatch" if isinstance(self.error, CheckError) else "failed"
        reason = f"could not be exported: {self.error}"
        return Result(
            context=current_context(
                record, command=settings.command, seed=settings.seed, suite=settings.suite
            ),
            subject=unmade_subject(
                "block" if _is_block(self.subject) else "model",
                _label(self.subject),
                self.format,
                threads=threads,
                batch=batch,
            ),
            protocol=settings.schedule.to_json(),
            verification=Verification("unverified", reason),
            status=status,
            reason=reason,
        )


def unmade_subject(
    kind: Literal["model", "block"], name: str, format_name: str, *, threads: int, batch: int
) -> SubjectRecord:
    """What a result says of a file that there is not."""
    return SubjectRecord(kind, name, format_name, "none", "none", batch, threads, ())


@dataclass
class Files:
    """What could be made, and what not.

    Args:
        made: by device, bundles in the order of the subjects, with the formats of each to run; none
            named means all.
        failed: what could not be made.
    """

    made: dict[str, list[tuple[Bundle, list[str]]]] = field(default_factory=dict)
    failed: list[Unmade] = field(default_factory=list)


@dataclass
class _Tried:
    """A subject's own bundle; or what was exported, and why the rest was not, by format."""

    bundle: Bundle | None = None
    made: dict[str, Bundle] = field(default_factory=dict)
    errors: dict[str, EdgevitError] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """The bundles that devices need of the subjects.

    Args:
        subjects: what is benched.
        wanted: formats that were asked for.
        batch: images in one inference.
        seed: of random weights and inputs.
        progress: told how exports go on.
        options: of exports.
        of_suite: whether the subjects are a suite's.
    """

    subjects: Sequence[BenchSubject]
    wanted: Sequence[str]
    batch: int
    seed: int
    progress: Progress
    options: Mapping[str, Any]
    of_suite: bool

    def files(self, found: Sequence[Device]) -> Files:
        """Make everything.

        Raises:
            UsageError: a subject or an option cannot be right.
        """
        self._check_names()
        chosen = {device.name: self._chosen(device) for device in found}
        options = {
            (device.name, index): self._options(subject, device, chosen[device.name])
            for device in found
            for index, subject in enumerate(self.subjects)
        }
        formats: dict[tuple[int, str], set[str]] = {}
        for (name, index), own in options.items():
            formats.setdefault((index, digest(own)), set()).update(chosen[name])
        tried: dict[tuple[int, str], _Tried] = {}
        files = Files({device.name: [] for device in found})
        devices = {device.name: device for device in found}
        for (name, index), own in options.items():
            key, subject = (index, digest(own)), self.subjects[index]
            if key not in tried:
                tried[key] = self._make(subject, sorted(formats[key]), own)
            if (own_bundle := tried[key].bundle) is not None:
                files.made[name].append((own_bundle, list(self.wanted)))
                continue
            for format_name in chosen[name]:
                if (error := tried[key].errors.get(format_name)) is not None:
                    files.failed.append(Unmade(devices[name], subject, format_name, error))
                else:
                    files.made[name].append((tried[key].made[format_name], [format_name]))
        return files

    def _check_names(self) -> None:
        """Names that do not exist are found out before the first export."""
        from edgevit.zoo.registry import block_info, model_info

        for subject in self.subjects:
            if isinstance(subject, BlockSpec):
                block_info(subject.name)
            elif isinstance(subject, str) and not is_bundle(subject) and not {*"/:"} & {*subject}:
                model_info(subject)

    def _chosen(self, device: Device) -> list[str]:
        """The formats that a device gets of what is exported."""
        profile = device.profile
        if self.wanted or all(map(is_bundle, self.subjects)):
            return list(self.wanted)
        if self.of_suite:
            return [default_format(profile)]
        # A board has what set-up brings, and this machine torch besides; the rest runs there if it
        # is asked for.
        left_out = {*BY_HAND, *ON_DEMAND} - ({"torch"} if device.name == "local" else set())
        usual = [r.formats for name, r in profile.runtimes.items() if name not in left_out]
        return makeable_formats({*chain(*usual)} or profile.formats)

    def _options(
        self, subject: BenchSubject, device: Device, formats: Sequence[str]
    ) -> dict[str, Any]:
        """Options of an export that makes what the device can load."""
        options = dict(self.options)
        if _is_block(subject) and not all(map(_is_block, self.subjects)):
            # With models beside them the options of sources are those models'.
            options = {k: v for k, v in options.items() if k in BLOCK_OPTIONS}
        if is_bundle(subject):
            return options
        fitted = fit_options(device.profile, formats, options.get("options") or {})
        return {**options, "options": fitted} if fitted else options

    def _make(
        self, subject: BenchSubject, formats: Sequence[str], options: Mapping[str, Any]
    ) -> _Tried:
        if is_bundle(subject):
            return _Tried(bundle=self._make_all(subject, formats, options))
        try:
            bundle = self._make_all(subject, formats, options)
            return _Tried(made=dict.fromkeys(formats, bundle))
        except (CheckError, UnavailableError) as error:
            if len(formats) == 1:
                self.progress.note(f"{_label(subject)} ({formats[0]}) has failed: {error}")
                return _Tried(errors={formats[0]: error})
        tried = _Tried()
        for name in formats:
            given = options.get("options") or {}
            own = {**options, "options": {k: v for k, v in given.items() if k == name}}
            alone = self._make(subject, [name], own)
            tried.made.update(alone.made)
            tried.errors.update(alone.errors)
        return tried

    def _make_all(
        self, subject: BenchSubject, formats: Sequence[str], options: Mapping[str, Any]
    ) -> Bundle:
        return make_bundle(
            subject,
            formats,
            batch=self.batch,
            seed=self.seed,
            progress=self.progress,
            options=options,
        )


def _is_block(subject: BenchSubject) -> bool:
    return isinstance(subject, BlockSpec)


def _label(subject: BenchSubject) -> str:
    """What messages and tables call a subject."""
    if isinstance(subject, BlockSpec):
        return subject.label
    if isinstance(subject, str | Path):
        return str(subject)
    return subject.name if isinstance(subject, Bundle) else type(subject).__name__.lower()
