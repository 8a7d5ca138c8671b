"""What is known of a device before it is reached: ``profiles/*.toml``, ours and the user's own.

name = "rpi4"
title = "Raspberry Pi 4 Model B"
arch = "arm64"                      # what the exporter and the wheels need to know
soc = "Broadcom BCM2711"            # the rest may be left out
cores = 4
clocks_mhz = [1500]                 # highest clock of each kind of core, fastest first
memory_gb = [1, 2, 4, 8]            # sizes that it is sold with
system = "Raspberry Pi OS 12"       # what the next two are of
python = "3.11"
glibc = "2.36"
default_format = "onnx"
default_threads = 1
throttle_point_c = 80               # it slows down from here
conditions = ["governor", ...]      # probes of the agent that it can answer
attached_to = "a Mac"               # for what runs no agent itself
tested_on_hardware = false
notes = ["..."]

[environment]                       # variables that its agent needs
OPENBLAS_CORETYPE = "ARMV8"

[packages]                          # what `edgevit devices setup` must heed
numpy = "<1.19.5"

[runtimes.onnxruntime]              # a backend of the agent
version = "1.10.0"                  # the newest that runs there
formats = ["onnx"]
max_opset = 15
max_ir = 8

A user's own profiles lie in ``profiles/`` of the configuration folder; one of the same name takes
the place of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from edgevit.errors import OptionError, UnknownNameError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DeviceProfile",
    "RuntimeProfile",
    "list_profiles",
    "load_profile",
    "own_profiles",
    "read_profile",
    "shadowed_profiles",
]

STRINGS, TABLE, STRING_TABLE = "a list of strings", "a table", "a table of strings"
NUMBERS, WHOLE = "a list of numbers above 0", "a whole number above 0"


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
        clocks_mhz: the highest clock of each kind of core, fastest first.
        memory_gb: the sizes that it is sold with.
        system: the operating system that ``python`` and ``glibc`` are of.
        python: the version that its system brings.
        glibc: the same of its C library; decides which wheels fit.
        runtimes: by the agent's name of the backend.
        default_format: the exporter for it unless told otherwise.
        default_threads: how many a runtime uses unless told otherwise.
        throttle_point_c: where it begins to slow down, in degrees Celsius; None if that is not
            known.
        conditions: the probes of the agent that it can answer.
        attached_to: what runs the agent for it, if it cannot itself.
        tested_on_hardware: whether edgevit was ever run on one.
        environment: variables that the agent needs there.
        packages: limits on versions of what is installed there, by distribution.
        notes: what a user of the board should know.
        path: the file, if it is the user's own.
    """

    name: str
    title: str
    arch: str
    soc: str | None = None
    cores: int | None = None
    clocks_mhz: tuple[float, ...] = ()
    memory_gb: tuple[float, ...] = ()
    system: str | None = None
    python: str | None = None
    glibc: str | None = None
    runtimes: Mapping[str, RuntimeProfile] = field(default_factory=dict)
    default_format: str | None = None
    default_threads: int = 1
    throttle_point_c: float | None = None
    conditions: tuple[str, ...] = ()
    attached_to: str | None = None
    tested_on_hardware: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        for name in ("name", "title", "arch"):
            value = getattr(self, name)
            _expect(isinstance(value, str) and bool(value), name, "a string", value)
        for name in ("soc", "system", "python", "glibc", "default_format", "attached_to"):
            _expect_optional(getattr(self, name), str, name)
        _expect_optional(self.cores, int, "cores", least=1)
        _expect(_is_int(self.default_threads, least=1), "default_threads", WHOLE,
                self.default_threads)  # fmt: skip
        for name in ("clocks_mhz", "memory_gb"):
            numbers = getattr(self, name)
            holds = isinstance(numbers, tuple) and all(map(_is_positive, numbers))
            _expect(holds, name, NUMBERS, numbers)
        point = self.throttle_point_c
        _expect(point is None or _is_positive(point), "throttle_point_c", "degrees Celsius", point)
        tested = self.tested_on_hardware
        _expect(isinstance(tested, bool), "tested_on_hardware", "true or false", tested)
        for name in ("notes", "conditions"):
            _expect(_is_strings(getattr(self, name)), name, STRINGS, getattr(self, name))
        for name in ("environment", "packages"):
            table = getattr(self, name)
            _expect(_is_strings(table.values()), name, STRING_TABLE, table)
        self._check_references()

    def _check_references(self) -> None:
        """What names something else has to name something that there is."""
        if self.default_format is not None and self.default_format not in self.formats:
            expected = f"a format of its runtimes ({', '.join(self.formats) or 'none'})"
            raise OptionError("default_format", expected=expected, got=self.default_format)
        if self.conditions:
            from devices.agent.conditions import PROBES

            known = [probe.name for probe in PROBES]
            for name in self.conditions:
                _expect(name in known, "conditions", f"some of {', '.join(known)}", name)

    @property
    def formats(self) -> tuple[str, ...]:
        """Exporters whose files run there."""
        return tuple(sorted({name for r in self.runtimes.values() for name in r.formats}))


def list_profiles() -> list[str]:
    """Sorted names of all profiles, ours and the user's own."""
    return sorted({*_ours(), *own_profiles()})


def own_profiles() -> dict[str, Path]:
    """The user's own profiles: files by name."""
    folder = Path(user_config_path("edgevit")) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def shadowed_profiles() -> list[str]:
    """Names of ours whose place the user's own take."""
    return sorted(set(_ours()) & own_profiles().keys())


def load_profile(name: str) -> DeviceProfile:
    """The profile of that name; the user's own before ours.

    Raises:
        UnknownNameError: there is none; the nearest ones are in the hint.
        UsageError: the user's own cannot be read, or is no TOML.
        OptionError: a field of it is wrong.
    """
    if own := own_profiles().get(name):
        return read_profile(own)
    if name not in _ours():
        raise UnknownNameError("device profile", name, list_profiles(), listing="edgevit devices")
    return parse_profile((files("profiles") / f"{name}.toml").read_text(encoding="utf-8"), name)


def _ours() -> list[str]:
    names = (entry.name for entry in files("profiles").iterdir())
    return [name.removesuffix(".toml") for name in names if name.endswith(".toml")]


def read_profile(path: Path) -> DeviceProfile:
    """A profile of the user's own.

    Raises:
        UsageError: it cannot be read, or is no TOML.
        OptionError: it has a field that there is not, lacks one, or one is of the wrong kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"cannot read the device profile {path}: {reason}") from error
    try:
        return replace(parse_profile(text, path.stem), path=path)
    except UsageError as error:
        error.message = f"{path}: {error.message}"
        raise


def parse_profile(text: str, name: str) -> DeviceProfile:
    """A profile from the text of its file; ``name`` is the file's name without ``.toml``."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"device profile {name}: {error}", hint="it has to be TOML") from error
    if data.setdefault("name", name) != name:
        raise OptionError("name", expected=f"{name!r}, the file's name", got=data["name"])
    runtimes = _tables(data.pop("runtimes", {}))
    for key in ("environment", "packages"):
        data[key] = _table(data.get(key, {}), key)
    for key in ("notes", "conditions", "clocks_mhz", "memory_gb"):
        data[key] = _tuple(data.get(key, ()))
    profiles = {key: _runtime(key, entry) for key, entry in runtimes.items()}
    return DeviceProfile(**_checked(DeviceProfile, data, name), runtimes=profiles)


def _runtime(name: str, data: dict[str, Any]) -> RuntimeProfile:
    checked = _checked(RuntimeProfile, data, f"runtimes.{name}")
    return RuntimeProfile(**{**checked, "formats": _tuple(checked["formats"])})


def _checked(cls: type[Any], data: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields themselves, if they are all known and none is missing."""
    known = [f.name for f in fields(cls) if f.name != "path"]
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


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise OptionError(name, expected=expected, got=got)


def _expect_optional(value: object, kind: type, name: str, *, least: int = 0) -> None:
    if kind is int:
        _expect(value is None or _is_int(value, least=least), name, WHOLE, value)
    else:
        _expect(value is None or isinstance(value, kind), name, "a string", value)
