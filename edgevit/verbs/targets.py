"""What a device can load, from its profile, and how an export obeys it.

A runtime that reads ONNX up to opset 15 gets a file that was *written* at opset 15: converting a
newer file down fails on most operators. Nothing is lowered that was asked for; a flag that the
device contradicts is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from devices.profile import DeviceProfile, RuntimeProfile
from devices.resolve import find_profile
from edgevit.bundle import Bundle
from edgevit.errors import OptionError, UsageError

__all__ = [
    "check_loadable",
    "default_format",
    "find_profile",
    "fit_formats",
    "fit_options",
    "target_json",
]

Options = Mapping[str, Mapping[str, Any]]
#: Facts of a file that a runtime limits: what they are called, and the runtime's limit.
LIMITS = {"opset": ("opset", "max_opset"), "ir_version": ("IR version", "max_ir")}


def default_format(profile: DeviceProfile) -> str:
    """The format to export for a device if none is asked for."""
    preferred = profile.default_format or "onnx"
    if preferred in profile.formats or not profile.formats:
        return preferred
    return profile.formats[0]


def fit_formats(profile: DeviceProfile, formats: Sequence[str]) -> list[str]:
    """The formats, all of which the device runs; its default one if none is named.

    Raises:
        OptionError: the device does not run one of them.
    """
    for name in formats:
        if name not in profile.formats:
            raise OptionError(
                "format",
                expected=f"{' or '.join(profile.formats)} for {profile.name}",
                got=name,
                hint=f"{profile.name} has no runtime for {name}",
            )
    return list(formats) or [default_format(profile)]


def fit_options(
    profile: DeviceProfile, formats: Sequence[str], options: Options
) -> dict[str, dict[str, Any]]:
    """Export options that make files which the device can load.

    Args:
        profile: of the device.
        formats: to be exported.
        options: by format, as asked for; these stand, or are refused.

    Returns:
        The options, with an opset where the device does not read all that a file might get.

    Raises:
        OptionError: an option that was asked for makes a file that the device cannot load.
    """
    fitted = {name: dict(values) for name, values in options.items()}
    for name in formats:
        if added := _fit(profile, name, fitted.get(name, {})):
            fitted[name] = {**fitted.get(name, {}), **added}
    return fitted


def _fit(profile: DeviceProfile, format_name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of one format that have to be added."""
    from exporters.base import exporters, make_options

    exporter, runtime = exporters.get(format_name), _runtime(profile, format_name)
    known = {f.name for f in dataclasses.fields(exporter.options)}  # type: ignore[arg-type]
    if runtime is None or "opset" not in known:
        return {}
    where = _called(profile, format_name)
    for option, (word, limit) in LIMITS.items():
        most, got = getattr(runtime, limit), given.get(option)
        if most is not None and isinstance(got, int) and got > most:
            raise OptionError(
                option,
                expected=f"at most {word} {most}, which is the newest that {where} reads",
                got=got,
                hint=f"leave {option} out: --for {profile.name} chooses it",
            )
    options: Any = make_options(exporter, dict(given))
    if given.get("opset") is not None:
        if not _reads(runtime, options, options.opset):
            raise OptionError(
                "opset",
                expected=f"one whose IR version is at most {runtime.max_ir}, as {where} needs",
                got=options.opset,
            )
        return {}
    if all(_reads(runtime, options, opset) for opset in options.opsets):
        return {}
    # An opset that there is not is refused as any other is.
    opset: int = options.opsets[0]
    while not _reads(runtime, make_options(exporter, {**given, "opset": opset}), opset):
        opset -= 1
    return {"opset": opset}


def _reads(runtime: RuntimeProfile, options: Any, opset: int) -> bool:
    """Whether a file of that opset can be loaded."""
    newest = runtime.max_opset is None or opset <= runtime.max_opset
    return newest and (runtime.max_ir is None or options.ir_of(opset) <= runtime.max_ir)


def check_loadable(profile: DeviceProfile, bundle: Bundle, format_name: str) -> None:
    """Refuse a file that the device's runtime cannot read, before it is sent there.

    Raises:
        UsageError: so it is; the hint has the export that would do.
    """
    artifact, runtime = bundle.artifact(format_name), _runtime(profile, format_name)
    for fact, (word, limit) in LIMITS.items():
        most, got = getattr(runtime, limit, None), artifact["facts"].get(fact)
        if most is not None and got is not None and got > most:
            raise UsageError(
                f"{bundle.path / artifact['file']} has {word} {got}; "
                f"{_called(profile, format_name)} reads at most {most}",
                hint=f"edgevit export {_source_name(bundle)} --for {profile.name}",
            )


def target_json(profile: DeviceProfile) -> dict[str, Any]:
    """Which device a bundle was made for, and what that device reads, as the manifest holds it."""
    runtimes = {name: _runtime(profile, name) for name in profile.formats}
    return {
        "device": profile.name,
        "limits": {
            name: {
                "runtime_version": runtime.version,
                "max_opset": runtime.max_opset,
                "max_ir": runtime.max_ir,
            }
            for name, runtime in runtimes.items()
            if runtime is not None
        },
    }


def _runtime(profile: DeviceProfile, format_name: str) -> RuntimeProfile | None:
    """The runtime that reads the format; of several the one that reads least."""
    runtimes = [r for r in profile.runtimes.values() if format_name in r.formats]
    return min(runtimes, key=lambda r: (r.max_opset or 10**6, r.max_ir or 10**6), default=None)


def _called(profile: DeviceProfile, format_name: str) -> str:
    runtime = _runtime(profile, format_name)
    name = next((n for n, r in profile.runtimes.items() if r is runtime), "runtime")
    version = f" {runtime.version}" if runtime is not None and runtime.version else ""
    return f"the {name}{version} of {profile.name}"


def _source_name(bundle: Bundle) -> str:
    return str(bundle.manifest["model"].get("factory") or bundle.name)
