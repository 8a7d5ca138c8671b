"""A device looked over: is it fit to be measured on, and if not, what to do.

Everything comes from the agent's facts and conditions and from one look at the machine; the rules
here say what is right, and nothing is changed there.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from devices.base import Session
from devices.profile import DeviceProfile, RuntimeProfile
from devices.remote import Board, RemoteShell, ThisMachine, look
from devices.wheels import BY_HAND, ON_DEMAND, Plan, plan_packages
from edgevit.errors import DeviceError

__all__ = ["Finding", "check", "findings"]

#: What the agent calls the modules of a backend; any of them does.
MODULES = {
    "onnxruntime": ("onnxruntime",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
    "coreml": ("coremltools",),
    "coreml-phone": ("coremltools",),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt",),
}
#: What `edgevit devices setup` brings for a backend, in one version.
DISTRIBUTIONS = {"onnxruntime": ("onnxruntime",), "tflite": ("ai-edge-litert",)}
#: The highest opset that versions of onnxruntime read; those between read at least the lower one's.
OPSETS = {"1.10": 15, "1.14": 18, "1.19": 21, "1.23": 23, "1.31": 26}
#: What files are exported at unless the profile says less.
DEFAULT_OPSET = 17

MIB = 2**20
DISK_LEAST, DISK_GOOD = 100 * MIB, 500 * MIB
MEMORY_GOOD = 300 * MIB
CLOCK_S = 30.0
#: Degrees below the throttle point from which a run is likely to reach it.
NEAR_C = 15.0
THROTTLE_POINT_C = 80.0
LOAD_GOOD = 0.5

POWER_WORDS = {
    "under-voltage": "the supply or its cable is too weak: take the board's own supply",
    "frequency-capped": "the clock is held down: supply or heat",
    "throttled": "it slows itself down: supply or heat",
    "soft-temperature-limit": "too warm: a heat sink or a fan",
}
PERFORMANCE = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
INSTALL = "`edgevit devices setup {name}`"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: its name, one word.
        level: ``"ok"``, ``"warning"`` (results may suffer) or ``"problem"`` (nothing will run, or
            no result will be good).
        text: what was found.
        hint: what to do.
    """

    what: str
    level: str
    text: str
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return asdict(self)


def check(
    session: Session, profile: DeviceProfile, name: str, *, emulated: bool = False
) -> list[Finding]:
    """Look a device over.

    Args:
        session: open; one without commands of its own is judged by what its agent tells, and a
            phone's by the Mac that it is attached to.
        profile: of the device.
        name: the device's, for hints.
        emulated: it is known to be a stand-in.
    """
    # Of a phone, all that can be looked over is what carries it.
    session = getattr(session, "carrier", session)
    try:
        facts = session.facts()
    except DeviceError as error:
        return [Finding("agent", "problem", error.message, error.hint)]
    shell = session if hasattr(session, "execute") else ThisMachine() if name == "local" else None
    board, offset = (None, None) if shell is None else _look(shell, facts)
    found = findings(facts, profile, name, board=board, clock_offset_s=offset, emulated=emulated)
    return list(found)


def _look(shell: Any, facts: Mapping[str, Any]) -> tuple[Board | None, float | None]:
    """The machine, and by how many seconds its clock is ahead of ours at least."""
    remote: RemoteShell = shell
    start = time.time()
    try:
        board = look(remote, facts["python"].get("executable") or sys.executable)
    except DeviceError:  # the agent ran there, so this is a shell that does without commands
        return None, None
    end = time.time()
    return board, max(board.time - end, 0.0) + min(board.time - start, 0.0)


def findings(
    facts: Mapping[str, Any],
    profile: DeviceProfile,
    name: str,
    *,
    board: Board | None = None,
    clock_offset_s: float | None = None,
    emulated: bool = False,
) -> Iterator[Finding]:
    """Judge what a device told.

    Args:
        facts: the agent's, with its conditions.
        profile: what it should be.
        name: the device's, for hints.
        board: the look at the machine, if there was one.
        clock_offset_s: how far its clock is ahead.
        emulated: it is known to be a stand-in.
    """
    conditions = facts.get("conditions") or {}
    yield _machine(facts, profile)
    yield from _emulation(facts, emulated)
    yield _python(facts)
    plan = None if board is None else _plan(board, profile)
    yield from _runtimes(facts["runtimes"], profile, plan, INSTALL.format(name=name))
    if board is not None:
        yield _disk(board)
    if clock_offset_s is not None:
        yield _clock(clock_offset_s)
    yield from _governor(conditions)
    yield from _temperature(conditions, profile)
    yield from _power(conditions)
    yield from _work(conditions, board)
    yield from _memory(conditions)
    yield from _silent(conditions, profile)


def _plan(board: Board, profile: DeviceProfile) -> Plan:
    try:
        return plan_packages(board, profile)
    except DeviceError:
        return Plan({}, ())


def _machine(facts: Mapping[str, Any], profile: DeviceProfile) -> Finding:
    machine, cpus = facts["machine"], facts["cpu"].get("count")
    arch = {"aarch64": "arm64", "x86_64": "x86-64", "amd64": "x86-64"}.get(
        machine["arch"].lower(), machine["arch"]
    )
    shown = ", ".join(
        str(part)
        for part in (machine.get("model") or arch, f"{cpus} CPUs", facts["os"].get("name"))
        if part
    )
    if profile.attached_to is not None:
        return Finding("machine", "ok", f"{shown}, which {profile.title} is attached to")
    if arch != profile.arch:
        text = f"{shown}: its processor is {arch}, the profile {profile.name} is for {profile.arch}"
        return Finding("machine", "problem", text, "another profile: `edgevit devices` lists them")
    if profile.cores is not None and cpus != profile.cores:
        text = f"{shown}; {profile.title} has {profile.cores}"
        return Finding("machine", "warning", text, "is it the board that the profile is of?")
    return Finding("machine", "ok", shown)


def _emulation(facts: Mapping[str, Any], known: bool) -> Iterator[Finding]:
    if known:
        yield Finding("emulated", "ok", "a stand-in, as configured: no table shows its times")
    elif facts.get("emulated"):
        text = f"this is no real {facts['machine']['arch']} machine: {facts['emulated']}"
        yield Finding("emulated", "warning", text, "add it with --emulated, and --force")


def _python(facts: Mapping[str, Any]) -> Finding:
    python = facts["python"]
    return Finding("python", "ok", f"{python['version']}, {python.get('executable')}")


def _runtimes(
    runtimes: Mapping[str, str | None], profile: DeviceProfile, plan: Plan | None, install: str
) -> Iterator[Finding]:
    if "numpy" not in runtimes:
        yield Finding("numpy", "problem", "is not installed, and the agent needs it", install)
    for backend, wanted in profile.runtimes.items():
        found = next((m for m in MODULES.get(backend, ()) if m in runtimes), None)
        if found is None:
            yield _absent(backend, wanted, profile, plan, install)
            continue
        version = runtimes[found]
        shown = f"{version or 'of unknown version'}" + (f" ({found})" if found != backend else "")
        level, text, hint = "ok", shown, None
        newest = _newest(backend, wanted, plan)
        if version and newest and _older(version, newest):
            level, hint = "warning", install
            text = f"{shown}, older than {newest}, the newest that this board runs"
        most = _opset(backend, version)
        if most is not None and most < min(wanted.max_opset or DEFAULT_OPSET, DEFAULT_OPSET):
            level, text = "warning", f"{text}; it reads opset {most} at most"
            hint = f"--opset {most} --ir-version 8, or a profile that says so, such as jetson-nano"
        yield Finding(backend, level, text, hint)


def _absent(
    backend: str, wanted: RuntimeProfile, profile: DeviceProfile, plan: Plan | None, install: str
) -> Finding:
    formats = " or ".join(wanted.formats)
    text = f"is not installed: no {formats} files run there"
    if backend in ON_DEMAND:
        brings = f"{install[:-1]} --runtime {backend}` brings it"
        return Finding(backend, "ok", f"is not installed; {brings}, if you want {formats} files")
    if backend in BY_HAND and backend != "tensorrt":
        return Finding(backend, "ok", f"is not installed; setup leaves {formats} files out")
    if plan is not None and not set(MODULES[backend]) & _roots(plan):
        level = "problem" if wanted.formats == profile.formats else "warning"
        hint = None if backend == "tensorrt" else "nothing has packages for it there"
        return Finding(backend, level, text, hint)
    needed = profile.default_format in wanted.formats and backend != "tensorrt"
    return Finding(backend, "problem" if needed else "warning", text, install)


def _newest(backend: str, wanted: RuntimeProfile, plan: Plan | None) -> str | None:
    """What setup would install there; without a look at the board, what the profile knows."""
    if plan is None:
        return wanted.version
    pinned = (plan.requirements.get(name, "") for name in DISTRIBUTIONS.get(backend, ()))
    return next((text.partition("==")[2] for text in pinned if "==" in text), None)


def _roots(plan: Plan) -> set[str]:
    return {module.partition(".")[0] for module in plan.modules}


def _opset(backend: str, version: str | None) -> int | None:
    """The highest ONNX opset that a version reads at least; None if that is of no concern."""
    if backend != "onnxruntime" or not version:
        return None
    return max((o for v, o in OPSETS.items() if not _older(version, v)), default=None)


def _disk(board: Board) -> Finding:
    text = f"{board.free_bytes / 2**30:.1f} GiB free"
    if board.free_bytes < DISK_LEAST:
        return Finding("disk", "problem", text, "make room: models and packages need it")
    if board.free_bytes < DISK_GOOD:
        return Finding("disk", "warning", text, "large models may not fit")
    return Finding("disk", "ok", text)


def _clock(offset_s: float) -> Finding:
    if abs(offset_s) > CLOCK_S:
        word = "ahead of" if offset_s > 0 else "behind"
        text = f"{_duration(abs(offset_s))} {word} this machine's"
        return Finding("clock", "warning", text, "`sudo timedatectl set-ntp true` there sets it")
    return Finding("clock", "ok", "as this machine's")


def _governor(conditions: Mapping[str, Any]) -> Iterator[Finding]:
    names = sorted(set((conditions.get("governor") or {}).values()))
    clocks = (conditions.get("frequency_khz") or {}).values()
    most = max((c["max"] for c in clocks if c.get("max")), default=None)
    if not names:
        return
    text = "/".join(names) + (f", up to {most / 1000:.0f} MHz" if most else "")
    if names == ["performance"]:
        yield Finding("governor", "ok", text)
    else:
        hint = f"steadier results with: {PERFORMANCE}"
        yield Finding("governor", "warning", text, hint)


def _temperature(conditions: Mapping[str, Any], profile: DeviceProfile) -> Iterator[Finding]:
    zones = conditions.get("temperature_c") or {}
    if not zones:
        return
    zone = max(zones, key=lambda key: float(zones[key]))
    point = profile.throttle_point_c or THROTTLE_POINT_C
    text = f"{zones[zone]:.0f} °C ({zone}), it slows down at {point:.0f} °C"
    if zones[zone] >= point:
        yield Finding("temperature", "problem", text, "let it cool down; a heat sink or a fan")
    elif zones[zone] >= point - NEAR_C:
        yield Finding("temperature", "warning", text, "let it cool down; a heat sink or a fan")
    else:
        yield Finding("temperature", "ok", text)


def _power(conditions: Mapping[str, Any]) -> Iterator[Finding]:
    throttled = conditions.get("throttled")
    if throttled is not None:
        now, since = throttled.get("now") or [], throttled.get("since_boot") or []
        if now:
            yield Finding("power", "problem", f"now: {', '.join(now)}", _advice(now))
        elif since:
            yield Finding("power", "warning", f"since it booted: {', '.join(since)}",
                          _advice(since))  # fmt: skip
        else:
            yield Finding("power", "ok", "supply and heat were never too bad since it booted")
    limit = conditions.get("cpu_speed_limit_percent")
    if limit is not None and limit < 100:
        text = f"the system holds the CPU at {limit} %"
        yield Finding("power", "problem", text, "let it cool down")
    source = conditions.get("power_source")
    if source is not None:
        battery = "battery" in source.lower()
        level, hint = ("warning", "plug it in") if battery else ("ok", None)
        yield Finding("power", level, source, hint)
    if conditions.get("power_mode") is not None:
        yield Finding("power", "ok", f"power mode {conditions['power_mode']}")


def _work(conditions: Mapping[str, Any], board: Board | None) -> Iterator[Finding]:
    if board is not None and board.busy:
        yield Finding("others", "warning", board.busy, "yours would wait for its end")
    load = conditions.get("load_average")
    if load:
        text = f"load average {load[0]:.2f}"
        if load[0] > LOAD_GOOD:
            hint = "`top` there shows what runs; a fresh boot settles within minutes"
            yield Finding("load", "warning", text, hint)
        else:
            yield Finding("load", "ok", text)


def _memory(conditions: Mapping[str, Any]) -> Iterator[Finding]:
    memory = conditions.get("memory_bytes") or {}
    total, available = memory.get("total"), memory.get("available")
    if not total or available is None:
        return
    text = f"{available / MIB:.0f} of {total / MIB:.0f} MiB available"
    if available < MEMORY_GOOD:
        yield Finding("memory", "warning", text, "large models may be ended for want of memory")
    else:
        yield Finding("memory", "ok", text)


def _silent(conditions: Mapping[str, Any], profile: DeviceProfile) -> Iterator[Finding]:
    """What the profile's devices can tell and this one does not."""
    missing = [name for name in profile.conditions if name not in conditions]
    if missing:
        text = f"it does not tell {', '.join(missing)}, as other {profile.name} do"
        hint = (
            "vcgencmd tells it (package raspi-utils or libraspberrypi-bin), to the group `video`"
            if "throttled" in missing
            else "what is not told cannot spoil a verdict, or excuse one"
        )
        yield Finding("conditions", "warning", text, hint)


def _advice(words: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(POWER_WORDS.get(word, word) for word in words))


def _older(version: str, than: str) -> bool:
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
