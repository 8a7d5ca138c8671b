"""What is known of a device before it is reached: ``profiles/*.toml``.

name = "rpi4"
title = "Raspberry Pi 4 Model B"
arch = "arm64"                      # what the exporter and the wheels need to know
soc = "Broadcom BCM2711"            # the rest may be left out
cores = 4
python = "3.11"                     # the version that the board's system brings
default_threads = 1
notes = ["..."]

[environment]                       # variables that its agent needs
OPENBLAS_CORETYPE = "ARMV8"

[runtimes.onnxruntime]              # a backend of the agent
version = "1.10.0"                  # the newest that runs there
formats = ["onnx"]
max_opset = 15
max_ir = 8
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgevit.errors import OptionError, UnknownNameError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DeviceProfile", "RuntimeProfile", "list_profiles", "load_profile", "read_profile"]

STRINGS, TABLE = "a list of strings", "a table"


@dataclass(frozen=True)
class RuntimeProfile:
    """One runtime on a device.

    Args:
        formats: exporters whose files it runs.
        version: the newest that runs there; None if any does.
        max_opset: highest ONNX opset that it reads; None if there is no limit to mind.
        max_ir: highest ONNX IR version that it reads.
    """

    formats: tuple[str, ...]
    version: str | None = None
    max_opset: int | None = None
    max_ir: int | None = None

    def __post_init__(self) -> None:
        _expect(_is_strings(self.formats) and bool(self.formats), "formats", STRINGS, self.formats)
        _expect_optional(self.version, str, "version")
        for name in ("max_opset", "max_ir"):
            _expect_optional(getattr(self, name), int, name, least=1)


@dataclass(frozen=True)
class DeviceProfile:
    """A device; see the module for the file that fills it.

    Args:
        name: the file's name.
        title: its name in tables.
        arch: ``"x86-64"``, ``"arm64"``, ...
        soc: the chip.
        cores: how many CPUs it has.
        python: the version that its system brings.
        runtimes: by the agent's name of the backend.
        default_threads: how many a runtime uses unless told otherwise.
        environment: variables that the agent needs there.
        notes: what a user of the board should know.
    """

    name: str
    title: str
    arch: str
    soc: str | None = None
    cores: int | None = None
    python: str | None = None
    runtimes: Mapping[str, RuntimeProfile] = field(default_factory=dict)
    default_threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("name", "title", "arch"):
            value = getattr(self, name)
            _expect(isinstance(value, str) and bool(value), name, "a string", value)
        for name in ("soc", "python"):
            _expect_optional(getattr(self, name), str, name)
        _expect_optional(self.cores, int, "cores", least=1)
        _expect(_is_int(self.default_threads, least=1), "default_threads", "a whole number above 0",
                self.default_threads)  # fmt: skip
        _expect(_is_strings(self.notes), "notes", STRINGS, self.notes)
        _expect(_is_strings(self.environment.values()), "environment", "a table of strings",
                self.environment)  # fmt: skip

    @property
    def formats(self) -> tuple[str, ...]:
        """Exporters whose files run there."""
        return tuple(sorted({name for r in self.runtimes.values() for name in r.formats}))


def list_profiles() -> list[str]:
    """Sorted names of the profiles that come with edgevit."""
    names = (entry.name for entry in files("profiles").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_profile(name: str) -> DeviceProfile:
    """The profile of that name.

    Raises:
        UnknownNameError: there is none; the nearest ones are in the hint.
    """
    known = list_profiles()
    if name not in known:
        raise UnknownNameError("device profile", name, known, listing="edgevit devices")
    return parse_profile((files("profiles") / f"{name}.toml").read_text(encoding="utf-8"), name)


def read_profile(path: Path) -> DeviceProfile:
    """A profile of the user's own.

    Raises:
        UsageError: it cannot be read, or is no TOML.
        OptionError: it has a field that there is not, lacks one, or one is of the wrong kind.
    """
    try:
        return parse_profile(path.read_text(encoding="utf-8"), path.stem)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read the device profile {path}: {reason}") from error


def parse_profile(text: str, name: str) -> DeviceProfile:
    """A profile from the text of its file; ``name`` is the file's name without ``.toml``."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"device profile {name}: {error}", hint="it has to be TOML") from error
    if data.setdefault("name", name) != name:
        raise OptionError("name", expected=f"{name!r}, the file's name", got=data["name"])
    runtimes = _tables(data.pop("runtimes", {}))
    data["environment"] = _table(data.get("environment", {}), "environment")
    data["notes"] = _tuple(data.get("notes", ()))
    profiles = {key: _runtime(key, entry) for key, entry in runtimes.items()}
    return DeviceProfile(**_checked(DeviceProfile, data, name), runtimes=profiles)


def _runtime(name: str, data: dict[str, Any]) -> RuntimeProfile:
    checked = _checked(RuntimeProfile, data, f"runtimes.{name}")
    return RuntimeProfile(**{**checked, "formats": _tuple(checked["formats"])})


def _checked(cls: type[Any], data: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields themselves, if they are all known and none is missing."""
    known = [f.name for f in fields(cls)]
    for key, value in data.items():
        if key not in known:
            near = UnknownNameError("field", key, known)
            hint = near.hint or f"the fields are {', '.join(known)}"
            raise OptionError(f"{where}.{key}", expected="a known field", got=value, hint=hint)
    needed = {"formats"} if cls is RuntimeProfile else {"name", "title", "arch"}
    if missing := sorted(needed - data.keys()):
        raise OptionError(where, expected=f"a field {missing[0]!r}", got=sorted(data))
    return data


def _tables(value: Any) -> dict[str, dict[str, Any]]:
    table = _table(value, "runtimes")
    return {key: _table(entry, f"runtimes.{key}") for key, entry in table.items()}


def _table(value: Any, name: str) -> dict[str, Any]:
    _expect(isinstance(value, dict), name, TABLE, value)
    return dict(value)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_strings(values: Any) -> bool:
    return not isinstance(values, str) and all(isinstance(value, str) for value in values)


def _is_int(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise OptionError(name, expected=expected, got=got)


def _expect_optional(value: object, kind: type, name: str, *, least: int = 0) -> None:
    if kind is int:
        expected = "a whole number above 0"
        _expect(value is None or _is_int(value, least=least), name, expected, value)
    else:
        _expect(value is None or isinstance(value, kind), name, "a string", value)
