"""Which packages a board needs, and their wheels, fetched here for that board.

A wheel fits if its tags name the board's Python, processor and a C library no newer than the
board's. pip checks that, but takes the tags literally: ``manylinux_2_34`` does not imply
``manylinux_2_28``, so every one is named. It also judges the markers of dependencies
(``; python_version < "3.11"``) for the Python that it runs on; those are judged again here, for the
board's, and what is missing is fetched too.
"""

from __future__ import annotations

import email
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_cache_path

from devices.profile import DeviceProfile
from devices.remote import Board, last_line
from edgevit.errors import DeviceError, OptionError, UnavailableError

__all__ = [
    "BY_HAND",
    "ON_DEMAND",
    "Plan",
    "Wheel",
    "fetch_wheels",
    "plan_packages",
    "platform_tags",
    "satisfied",
]

#: Runtimes that set-up leaves to who wants them; ExecuTorch's needs torch.
BY_HAND = ("torch", "tensorrt", "executorch")
#: Those of them that many will look for.
MISSED = ("torch", "tensorrt")
#: Runtimes that set-up brings if they are asked for by name.
ON_DEMAND = ("openvino",)

#: The newest onnxruntime with wheels for a Python, by its minor version; later ones as the last.
ONNXRUNTIME = {6: "1.10.0", 7: "1.14.1", 8: "1.19.2", 9: "1.19.2", 10: "1.23.2", 11: "1.31.1"}
#: The same of LiteRT; before 3.9 there is none.
LITERT = {9: "2.1.0", 10: "2.3.0"}
#: What LiteRT's libraries need, whatever their tags say.
LITERT_GLIBC = (2, 34)
#: Its predecessor, which ended with Python 3.11 and knows no numpy 2.
TFLITE_RUNTIME_MINORS = range(7, 12)
#: The newest OpenVINO with wheels for a Python, by its minor version; before 3.8 there is none.
OPENVINO = {8: "2024.4.0", 9: "2025.3.0", 10: "2026.4.1"}
#: The C library that their wheels need; with an older one it is the newest that fits.
OPENVINO_GLIBC = {"aarch64": (2, 35), "x86_64": (2, 28)}
#: Builds of onnxruntime that may stand where the plain one was meant, such as NVIDIA's.
STAND_FOR = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-silicon")}

DOWNLOAD_S = 1800
ROUNDS = 5


@dataclass(frozen=True)
class Plan:
    """What is to be installed on a board.

    Args:
        requirements: as pip takes them, by distribution.
        modules: what to import to see that it works.
        notes: what is left out, and why.
    """

    requirements: Mapping[str, str]
    modules: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wheel:
    """A file to be brought to the board."""

    path: Path
    sha256: str
    unpacked_bytes: int = field(compare=False)


def plan_packages(board: Board, profile: DeviceProfile, wanted: Sequence[str] = ()) -> Plan:
    """The runtimes of the profile, as far as this board can have them.

    Args:
        board: what it told.
        profile: of the device.
        wanted: those of :data:`ON_DEMAND` to be brought, too.

    Raises:
        DeviceError: it can have none: 32 bits, another C library, another Python; or not one that
            is wanted.
        OptionError: one that is wanted is not on demand, or the profile does not have it.
    """
    _check_wanted(wanted, profile)
    _check_wheels_exist(board)
    specs: dict[str, str] = {"numpy": ""}
    modules, notes = ["numpy"], []
    if "onnxruntime" in profile.runtimes:
        specs["onnxruntime"] = f"=={_for_python(ONNXRUNTIME, board)}"
        modules.append("onnxruntime")
    if "tflite" in profile.runtimes:
        name = _tflite(board)
        if name is None:
            notes.append(f"no TFLite runtime: none has wheels for {_kind(board)}")
        elif name == "ai-edge-litert":
            specs[name] = f"=={_for_python(LITERT, board)}"
            modules.append("ai_edge_litert.interpreter")
        else:
            specs |= {name: "", "numpy": "<2"}
            modules.append("tflite_runtime.interpreter")
    if {"coreml", "coreml-phone"} & profile.runtimes.keys():
        if board.system == "Darwin":
            specs["coremltools"] = ""
            modules.append("coremltools")
        else:
            notes.append("no Core ML: that needs macOS")
    if "openvino" in wanted:
        specs["openvino"] = _openvino(board)
        modules.append("openvino")
    notes += [f"{name} is not installed by this" for name in MISSED if name in profile.runtimes]
    specs |= {name: spec for name, spec in profile.packages.items() if name in specs}
    return Plan({name: name + spec for name, spec in specs.items()}, tuple(modules), tuple(notes))


def satisfied(plan: Plan, versions: Mapping[str, str]) -> dict[str, str]:
    """The versions of all that is planned, if they all are as planned; else nothing.

    Args:
        plan: what is wanted.
        versions: what is there, by distribution.
    """
    from packaging.requirements import Requirement

    found = {}
    for name, text in plan.requirements.items():
        for other in STAND_FOR.get(name, ()):
            if other in versions:
                found[other] = versions[other]
                break
        else:
            wanted = Requirement(text).specifier
            if name not in versions or not wanted.contains(versions[name], prereleases=True):
                return {}
            found[name] = versions[name]
    return found


def platform_tags(board: Board) -> list[str]:
    """Every platform tag of wheels that this board can use, best first."""
    if board.system == "Darwin":
        major = int(board.release.partition(".")[0])
        kinds = ("arm64", "universal2") if board.machine == "arm64" else ("x86_64", "universal2")
        return [f"macosx_{v}_0_{kind}" for v in range(major, 10, -1) for kind in kinds]
    machine = board.machine
    oldest, named = 17, ["manylinux2014"]
    if machine == "x86_64":
        oldest, named = 5, ["manylinux2014", "manylinux2010", "manylinux1"]
    newest = _glibc(board)[1]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, oldest - 1, -1)]
    return [*tags, *(f"{name}_{machine}" for name in named), f"linux_{machine}"]


def fetch_wheels(plan: Plan, board: Board) -> list[Wheel]:
    """The wheels of what is planned, of what that needs, and of pip; kept in the user's cache.

    Raises:
        UnavailableError: they cannot be had here.
    """
    from filelock import FileLock

    wanted = [*plan.requirements.values(), "pip"]
    key = json.dumps([wanted, board.python[:2], board.machine, platform_tags(board)])
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = user_cache_path("edgevit") / "wheels" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        listing = folder / "complete.json"
        if listing.exists():
            kept: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))
            if all(_digest(folder / name) == sha256 for name, sha256 in kept.items()):
                return [_wheel(folder / name) for name in kept]
        wheels = [_wheel(path) for path in _download(wanted, board, folder)]
        content = {wheel.path.name: wheel.sha256 for wheel in wheels}
        listing.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return wheels


def _download(wanted: Sequence[str], board: Board, folder: Path) -> list[Path]:
    """Download until nothing that is needed there is missing."""
    requirements = list(wanted)
    for _ in range(ROUNDS):
        _pip_download(requirements, board, folder)
        wheels = sorted(folder.glob("*.whl"))
        missing = _missing(wheels, board)
        if not missing:
            return wheels
        requirements += missing
    raise UnavailableError(f"the packages of {_kind(board)} need ever more: {', '.join(missing)}")


def _pip_download(requirements: Sequence[str], board: Board, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--disable-pip-version-check"]
    command += ["--python-version", ".".join(map(str, board.python[:2]))]
    for tag in platform_tags(board):
        command += ["--platform", tag]
    for stale in folder.glob("*.whl"):
        stale.unlink()  # of a download that broke off; pip has a cache of its own
    done = subprocess.run(
        [*command, *requirements], capture_output=True, timeout=DOWNLOAD_S, check=False
    )
    if done.returncode:
        said = last_line(done.stderr)
        raise UnavailableError(
            f"cannot fetch the packages of {_kind(board)} here: {said}",
            hint="`python -m ensurepip` brings pip"
            if "No module named pip" in said
            else "is this machine online? With --online the board fetches them itself",
        )


def _missing(wheels: Sequence[Path], board: Board) -> list[str]:
    """Requirements of the wheels that hold on the board, and that no wheel is there for."""
    from packaging.utils import parse_wheel_filename

    have = {parse_wheel_filename(path.name)[0] for path in wheels}
    return sorted(
        {text for path in wheels for name, text in _needs(path, board) if name not in have}
    )


def _needs(wheel: Path, board: Board) -> Iterator[tuple[str, str]]:
    """Names and requirements that a wheel has on the board."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    environment = _marker_environment(board)
    for line in _requires(wheel):
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate(environment):
            yield canonicalize_name(need.name), f"{need.name}{need.specifier}"


def _requires(wheel: Path) -> Iterable[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(names[0]).decode("utf-8", "replace")
    return email.message_from_string(text).get_all("Requires-Dist") or []


def _marker_environment(board: Board) -> dict[str, str]:
    return {
        "python_version": ".".join(map(str, board.python[:2])),
        "python_full_version": board.python_version,
        "implementation_name": "cpython",
        "implementation_version": board.python_version,
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": board.system.lower(),
        "platform_system": board.system,
        "platform_machine": board.machine,
        "platform_release": board.release,
        "platform_version": "",
        "extra": "",
    }


def _wheel(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    return Wheel(path, _digest(path), unpacked)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _tflite(board: Board) -> str | None:
    """The distribution that runs TFLite files there."""
    minor = board.python[1]
    new_enough = board.system == "Darwin" or _glibc(board) >= LITERT_GLIBC
    if minor >= min(LITERT) and new_enough:
        return "ai-edge-litert"
    if minor in TFLITE_RUNTIME_MINORS and board.system == "Linux":
        return "tflite-runtime"
    return None


def _openvino(board: Board) -> str:
    """Which version of OpenVINO; empty if that is for pip to find."""
    if board.python[1] < min(OPENVINO):
        raise DeviceError(f"OpenVINO has no wheels for {_kind(board)}")
    needed = OPENVINO_GLIBC.get(board.machine, (2, 0))
    if board.system == "Linux" and _glibc(board) < needed:
        return ""
    return f"=={_for_python(OPENVINO, board)}"


def _check_wanted(wanted: Sequence[str], profile: DeviceProfile) -> None:
    able = [name for name in ON_DEMAND if name in profile.runtimes]
    for name in wanted:
        if name not in able:
            expected = f"{' or '.join(able) or 'nothing'} for {profile.name}"
            hint = "it is for you to install there" if name in BY_HAND else None
            raise OptionError("--runtime", expected=expected, got=name, hint=hint)


def _check_wheels_exist(board: Board) -> None:
    if board.bits != 64:
        raise DeviceError(
            f"the board's Python has {board.bits} bits, and no runtime has wheels for that",
            hint="install a 64-bit system there",
        )
    if board.implementation != "cpython":
        raise DeviceError(f"the runtimes need CPython, the board has {board.implementation}")
    if board.system == "Linux" and board.libc != "glibc":
        raise DeviceError("the runtimes' wheels need glibc, which this board does not have")
    if board.system not in ("Linux", "Darwin"):
        raise DeviceError(f"setup knows Linux and macOS, the board has {board.system}")


def _glibc(board: Board) -> tuple[int, int]:
    major, minor = [*board.libc_version.split("."), "0", "0"][:2]
    return int(major), int(minor)


def _for_python(table: Mapping[int, str], board: Board) -> str:
    """The entry of the newest Python that is not newer than the board's."""
    return table[max(minor for minor in table if minor <= board.python[1])]


def _kind(board: Board) -> str:
    libc = f", {board.libc} {board.libc_version}" if board.libc else ""
    return f"Python {board.python[0]}.{board.python[1]} on {board.machine}{libc}"
