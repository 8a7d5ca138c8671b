"""``edgevit doctor``: what is installed, and what each format and device lacks."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from edgevit.cli.common import out_console, print_json


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show what is installed, and what each format and device lacks."""
    from edgevit.versions import TOOLS, tool_versions

    report = {
        "edgevit": tool_versions(["edgevit"])["edgevit"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": tool_versions((*TOOLS, "pandas", "rich", "typer")),
        "formats": _formats(),
        "devices": _devices(),
    }
    if as_json:
        print_json(report)
    else:
        _print(report)


def _formats() -> dict[str, Any]:
    from exporters.base import exporters

    report = {}
    for name in exporters.names():
        exporter = exporters.get(name)
        missing = exporter.missing()
        report[name] = {
            "ready": not missing,
            "missing": missing,
            "install": f'pip install "edgevit[{exporter.extra}]"' if missing else None,
            "checked_by": _checked_by(name),
        }
    return report


def _checked_by(name: str) -> str:
    if name != "coreml":
        return "its own runtime"
    return "Core ML" if platform.system() == "Darwin" else "reference interpreter (no macOS here)"


def _devices() -> dict[str, Any]:
    from devices.base import devices
    from devices.hosts import load_hosts
    from edgevit.errors import UsageError

    report: dict[str, Any] = {name: {"ready": True} for name in devices.names()}
    try:
        hosts = load_hosts()
    except UsageError as error:  # it is this command's business to say so, not to fail
        return {**report, "boards": {"ready": False, "reason": error.message}}
    missing = [] if find_spec("asyncssh") else ["asyncssh"]
    for host in hosts.values():
        report[host.name] = {
            "ready": not missing,
            "profile": host.profile,
            "target": host.target,
            "missing": missing,
            "install": 'pip install "edgevit[ssh]"' if missing else None,
        }
    return report


def _print(report: dict[str, Any]) -> None:
    console = out_console()

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    line(f"edgevit {report['edgevit']}, Python {report['python']}, {report['platform']}")
    line("packages")
    for name, found in report["packages"].items():
        line(f"  {name:<16} {found or '-'}")
    line("formats")
    for name, entry in report["formats"].items():
        if entry["ready"]:
            line(f"  {name:<16} ready; files are checked by {entry['checked_by']}")
        else:
            line(f"  {name:<16} lacks {', '.join(entry['missing'])}: {entry['install']}")
    line("devices")
    for name, entry in report["devices"].items():
        line(f"  {name:<16} {_device(name, entry)}")
    if report["devices"].keys() == {"local"}:
        line("  no boards are configured; `edgevit devices` tells how")


def _device(name: str, entry: dict[str, Any]) -> str:
    if entry.get("reason"):
        return str(entry["reason"])
    if entry.get("missing"):
        return f"lacks {', '.join(entry['missing'])}: {entry['install']}"
    if "target" in entry:
        return f"{entry['profile']} at {entry['target']}; `edgevit devices check {name}` asks it"
    return "ready"
