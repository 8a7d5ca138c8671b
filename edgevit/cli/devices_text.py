"""How ``edgevit devices`` shows what it found, for a reader and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgevit.cli.common import out_console

if TYPE_CHECKING:
    from devices.check import Finding
    from devices.hosts import Host
    from devices.profile import DeviceProfile
    from devices.states import State

__all__ = ["listing_json", "print_device", "print_findings", "print_listing", "profile_json"]

NEVER = "never run on such hardware"
MARKS = {"ok": "  ok     ", "warning": "  warning", "problem": "  PROBLEM"}
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def profile_json(profile: DeviceProfile) -> dict[str, Any]:
    """A profile with what is set, and where it comes from."""
    values = asdict(profile)
    values["path"] = str(profile.path) if profile.path else None
    kept = ("path", "tested_on_hardware", "default_threads")
    return {k: v for k, v in values.items() if k in kept or v not in (None, (), {}, [])}


def listing_json(hosts: Mapping[str, Host], states: Mapping[str, State]) -> dict[str, Any]:
    """Everything that ``edgevit devices`` shows."""
    from devices.base import devices
    from devices.profile import list_profiles, load_profile, shadowed_profiles

    shadowed = shadowed_profiles()
    profiles = [load_profile(name) for name in list_profiles()]
    return {
        "devices": devices.names(),
        "hosts": [
            {**host.to_json(), "target": host.target, "state": states[name].to_json()}
            for name, host in sorted(hosts.items())
        ],
        "profiles": [
            {**profile_json(profile), "shadows": profile.name in shadowed} for profile in profiles
        ],
    }


def print_listing(report: Mapping[str, Any]) -> None:
    """Boards first, since they can be used; then what could be added."""
    _line("devices")
    rows = [(name, "this machine" if name == "local" else "", "") for name in report["devices"]]
    rows += [
        (h["name"], f"{h['profile']}{' (emulated)' if h.get('emulated') else ''}", h["target"])
        for h in report["hosts"]
    ]
    states = [""] * len(report["devices"]) + [
        _state(h["state"], h["name"]) for h in report["hosts"]
    ]
    for (row, state), host in zip(
        zip(_aligned(rows), states, strict=True),
        [None] * len(report["devices"]) + report["hosts"],
        strict=True,
    ):
        _line(f"  {row}  {state}".rstrip())
        if host is not None and host["state"]["hint"]:
            _line(f"      {host['state']['hint']}", style="dim")
    _line("profiles")
    rows = [(p["name"], p["title"], _origin(p)) for p in report["profiles"]]
    for row in _aligned(rows):
        _line(f"  {row}".rstrip())
    if not report["hosts"]:
        _line("no boards are configured: edgevit devices add NAME --profile P --host USER@ADDRESS")


def print_findings(name: str, found: Sequence[Finding]) -> None:
    """One line each, with what to do below."""
    width = max(len(finding.what) for finding in found)
    _line(name)
    for finding in found:
        out_console().print(MARKS[finding.level], style=STYLES[finding.level], end="  ")
        _line(f"{finding.what:<{width}}  {finding.text}")
        if finding.hint:
            _line(f"{'':<{width + 13}}{finding.hint}", style="dim")


def print_device(report: Mapping[str, Any]) -> None:
    """Host, profile, facts and conditions, a field a line."""
    if report["host"]:
        _section("host", {k: v for k, v in report["host"].items() if k not in ("name", "profile")})
    profile = dict(report["profile"])
    runtimes, notes = profile.pop("runtimes", {}), profile.pop("notes", ())
    title, tested = profile.pop("title"), profile.pop("tested_on_hardware")
    _line(f"profile {profile.pop('name')}: {title}" + ("" if tested else f" ({NEVER})"))
    _fields(profile)
    for name, runtime in runtimes.items():
        _line(f"  {name}: {_runtime(runtime)}")
    for note in notes:
        _line(f"  note: {note}")
    if report["facts"]:
        facts = dict(report["facts"])
        conditions = facts.pop("conditions", None) or {}
        _section("facts", {k: v for k, v in facts.items() if k not in ("event", "pid", "agent")})
        _section("conditions now", conditions)
    if report["error"]:
        _line(f"it does not answer: {report['error']['message']}")
        if report["error"]["hint"]:
            _line(f"  {report['error']['hint']}")


def _state(state: Mapping[str, Any], name: str) -> str:
    if state["reachable"] is None:
        return "not asked"
    if state["reachable"]:
        return f"reachable, {state['seconds']:.1f} s"
    return "not reachable: " + str(state["reason"]).removeprefix(f"{name}: ")


def _origin(profile: Mapping[str, Any]) -> str:
    words = [] if profile["tested_on_hardware"] or profile["path"] else [NEVER]
    if profile["path"]:
        words.append(f"your own, {profile['path']}")
    if profile["shadows"]:
        words.append("takes the place of the one that comes with edgevit")
    return "; ".join(words)


def _runtime(runtime: Mapping[str, Any]) -> str:
    words = [runtime["version"] or "any version", f"reads {', '.join(runtime['formats'])}"]
    if runtime["max_opset"]:
        words.append(f"opset {runtime['max_opset']}")
    if runtime["max_ir"]:
        words.append(f"IR {runtime['max_ir']}")
    return ", ".join(words)


def _section(title: str, values: Mapping[str, Any]) -> None:
    _line(title)
    _fields(values)


def _fields(values: Mapping[str, Any]) -> None:
    kept = {key: value for key, value in values.items() if value not in (None, "", [], (), {})}
    width = max((len(key) for key in kept), default=0)
    for key, value in kept.items():
        _line(f"  {key:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items() if v not in (None, [], {}))
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    kept = list(rows)
    widths = [max(len(row[i]) for row in kept) for i in range(len(kept[0]))]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in kept]


def _line(text: str, style: str | None = None) -> None:
    out_console().print(text, highlight=False, markup=False, style=style)
