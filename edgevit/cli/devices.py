"""``edgevit devices``: what there is, and boards added, set up, looked over and forgotten."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.common import CliProgress, out_console, print_json, split_list
from edgevit.cli.devices_peak import peak
from edgevit.errors import DeviceError, OptionError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from devices.base import Session
    from devices.check import Finding
    from devices.hosts import Host

__all__ = ["devices"]

devices = typer.Typer(
    help="List profiles, configured boards and whether they answer.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(help="Of a configured board.", metavar="NAME")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@devices.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not ask boards whether they are there.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for all boards together.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """List device profiles, configured boards and whether they answer.

    Three commands from a bare board to a table: `edgevit devices add`, `edgevit devices setup`,
    `edgevit bench --device`.
    """
    if context.invoked_subcommand is not None:
        return
    from devices.hosts import load_hosts
    from devices.states import State, probe
    from edgevit.cli.devices_text import listing_json, print_listing

    if timeout <= 0:
        raise OptionError("--timeout", expected="seconds above 0", got=timeout)
    hosts = load_hosts()
    asked = {} if no_probe else probe(hosts.values(), timeout_s=timeout)
    report = listing_json(hosts, {name: asked.get(name, State()) for name in hosts})
    if as_json:
        print_json(report)
    else:
        print_listing(report)


@devices.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What to call it.", metavar="NAME")],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="What it is: a name of `edgevit devices`.")
    ],
    host: Annotated[str, typer.Option("--host", help="user@address, or a name of ~/.ssh/config.")],
    port: Annotated[int | None, typer.Option(help="Of its SSH server.")] = None,
    identity: Annotated[str | None, typer.Option(help="Path of the private key.")] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter there, until `devices setup` makes its own.")
    ] = None,
    attached: Annotated[
        str | None, typer.Option(help="Identifier or name of the iPhone on that Mac.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=VALUE for the agent there.")
    ] = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="A stand-in: no table shows its times.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace one of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a board under a name.

    Nothing is asked of it yet, and no key or password is kept.
    """
    from devices.hosts import Host, hosts_path, parse_target, save_host
    from devices.profile import load_profile

    user, address, given_port = parse_target(host)
    if port is not None and given_port not in (None, port):
        raise OptionError("--port", expected=f"{given_port}, as --host says, or none", got=port)
    if identity is not None and not Path(identity).expanduser().is_file():
        raise OptionError("--identity", expected="the path of a private key", got=identity)
    _check_attached(load_profile(profile).attached_to, attached, profile)
    entry = Host(
        name=name,
        profile=profile,
        address=address,
        user=user,
        port=port if port is not None else given_port,
        identity=identity,
        python=python,
        attached=attached,
        emulated=emulated,
        environment=_environment(env),
    )
    save_host(entry, replace=force)
    if as_json:
        print_json({**entry.to_json(), "file": str(hosts_path())})
        return
    _line(f"{name} ({profile}) is {entry.target}; kept in {hosts_path()}")
    _line(f"next: edgevit devices setup {name}")


@devices.command("remove")
def remove(name: Name, as_json: AsJson = False) -> None:
    """Forget a board.

    What setup brought there stays, in ~/.cache/edgevit: `edgevit devices clean --all` goes before.
    """
    from devices.hosts import hosts_path, remove_host

    remove_host(name)
    if as_json:
        print_json({"removed": name, "file": str(hosts_path())})
    else:
        _line(f"{name} is forgotten; what setup brought there stays in ~/.cache/edgevit")


@devices.command("clean")
def clean(
    name: Name,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the runtimes that setup brought there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove bundles and agents from a board; runtimes stay.

    What a bench needs is brought there again.
    """
    from devices.remote import look
    from devices.resolve import device_of

    # What carries a phone is what is cleaned.
    board: Any = device_of(replace(_host(name), attached=None))
    with board.open() as session:
        if busy := look(session, session.python).busy:
            raise DeviceError(f"{board.name}: {busy}", hint="wait for its end")
        freed, home = session.clean(everything=everything), session.home
    if as_json:
        print_json({"name": board.name, "freed_bytes": freed, "home": home, "all": everything})
        return
    kept = "" if everything else "; the runtimes stay, --all removes them, too"
    _line(f"{board.name}: {freed / 2**20:.1f} MiB freed in {home}{kept}")
    if everything:
        _line(f"next: edgevit devices setup {board.name}")


@devices.command("setup")
def setup(
    name: Name,
    online: Annotated[
        bool, typer.Option("--online", help="The board fetches packages itself, with its network.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="One to bring besides the usual ones: openvino."),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="The board's interpreter to build on; python3 without.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the runtimes to a board.

    They are fetched here, pushed, installed into an environment of their own in ~/.cache/edgevit
    there, and tried. A second call finds nothing to do; one that was cut short goes on.
    """
    from devices.hosts import save_host
    from devices.profile import load_profile
    from devices.resolve import device_of
    from devices.setup import setup as run

    host = _host(name)
    # What carries a phone is what is set up.
    board = device_of(replace(host, attached=None))
    with CliProgress(quiet=as_json) as progress:
        with progress.stage(f"reach {host.target}"):
            opened: Any = board.open()
        with opened as session:
            report = run(
                session,
                load_profile(host.profile),
                python=python or host.python,
                online=online,
                fresh=fresh,
                runtimes=split_list(runtime),
                progress=progress,
            )
    if host.python is not None:  # else the agent would go on without what was installed
        save_host(replace(host, python=None), replace=True)
    if as_json:
        print_json({"name": name, **report.to_json()})
        return
    versions = ", ".join(f"{key} {version}" for key, version in report.versions.items())
    _line(f"{name}: Python {report.python_version}, {versions}; {', '.join(report.proved)} proved")
    for text in report.done or ("everything was right already",):
        _line(f"  {text}")
    for text in report.notes:
        _line(f"  note: {text}")
    _line(f"next: edgevit devices check {name}")


@devices.command("check")
def check(
    name: Annotated[str, typer.Argument(help="Of a board, or local.", metavar="NAME")],
    as_json: AsJson = False,
) -> None:
    """Look a board over, and say what to do.

    Whether it is there, what it lacks, what would bend a measurement.

    Exit code 3 if there is a problem; warnings leave it at 0.
    """
    from devices.check import check as run
    from devices.resolve import find_device

    device = find_device(name)
    found: list[Finding] = []
    try:
        session = _open(device, found)
        with session:
            found += run(session, device.profile, device.name, emulated=device.emulated)
    except DeviceError as error:
        found.append(_unreachable(error, device.name))
    problems = [finding for finding in found if finding.level == "problem"]
    if as_json:
        findings = [finding.to_json() for finding in found]
        print_json({"name": device.name, "ok": not problems, "findings": findings})
    else:
        from edgevit.cli.devices_text import print_findings

        print_findings(device.name, found)
    sys.exit(DeviceError.exit_code if problems else 0)


devices.command("peak")(peak)


@devices.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Of a board or a profile, or local.", metavar="NAME")],
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Only what is known without asking it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a device.

    Its profile, where it is, and what it tells of itself.
    """
    from devices.base import devices as registered
    from devices.hosts import load_hosts
    from devices.resolve import find_device, find_profile
    from edgevit.cli.devices_text import print_device, profile_json

    hosts = load_hosts()
    report: dict[str, Any] = {
        "name": name,
        "profile": profile_json(find_profile(name)),
        "host": hosts[name].to_json() if name in hosts else None,
        "facts": None,
        "error": None,
    }
    there = name in hosts or name in registered
    if there and not no_probe:
        try:
            with find_device(name).open() as session:
                report["facts"] = session.facts()
        except DeviceError as error:
            report["error"] = error.to_json()
    if as_json:
        print_json(report)
    else:
        print_device(report)
    sys.exit(DeviceError.exit_code if report["error"] else 0)


def _open(device: Any, found: list[Finding]) -> Session:
    """A session, and the finding that it could be opened."""
    import time

    from devices.check import Finding

    start = time.monotonic()
    session: Session = device.open()
    if device.name != "local":
        seconds = time.monotonic() - start
        found.append(Finding("reachable", "ok", f"in {seconds:.1f} s"))
    return session


def _unreachable(error: DeviceError, name: str) -> Finding:
    from devices.check import Finding

    return Finding("reachable", "problem", error.message.removeprefix(f"{name}: "), error.hint)


def _host(name: str) -> Host:
    """The configured host of that name, or the one of that profile."""
    from devices.base import devices as registered
    from devices.hosts import load_hosts
    from devices.profile import list_profiles
    from devices.resolve import find_device

    hosts = load_hosts()
    if name in hosts:
        return hosts[name]
    if name in registered:
        raise UsageError(
            f"{name} is no board to set up", hint="`edgevit doctor` shows what this machine lacks"
        )
    if name in list_profiles():
        return hosts[find_device(name).name]
    raise UnknownNameError("host", name, hosts, listing="edgevit devices")


def _check_attached(attached_to: str | None, attached: str | None, profile: str) -> None:
    if attached_to is not None and attached is None:
        raise OptionError(
            "--attached",
            expected=f"what is attached: {profile} is reached through {attached_to}",
            got=None,
            hint="`xcrun devicectl list devices` there lists identifiers",
        )
    if attached_to is None and attached is not None:
        raise OptionError("--attached", expected=f"nothing: {profile} is no phone", got=attached)


def _environment(items: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in items or []]
    for name, equals, value in pairs:
        if not name or not equals:
            raise OptionError("--env", expected="NAME=VALUE", got=f"{name}{equals}{value}")
    return {name: value for name, _, value in pairs}


def _line(text: str) -> None:
    out_console().print(text, highlight=False, markup=False)
