"""The way to a board over SSH, and what is said of each way in which it can be barred.

The user's ``~/.ssh/config`` counts as it does for ``ssh``: names, users, ports, keys, jump hosts,
proxy commands, other files of known hosts. Keys come from the ssh agent, from the configuration,
or from the usual places; nobody is asked for a password. A host key that is not known, or that is
another than the known one, always ends it, whatever ``StrictHostKeyChecking`` says.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shlex
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from devices.hosts import Host, parse_target
from edgevit.errors import DeviceError, EdgevitError

__all__ = ["Client", "Patience", "Way", "reach"]

#: Jump hosts on one way, at most: more are a circle.
MOST_HOPS = 8
SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
MARKERS = ("@cert-authority", "@revoked")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a board.

    Args:
        connect_s: for the whole of reaching one host, login included.
        keepalive_s: silence after which it is asked for a sign of life.
        keepalives: such questions without an answer after which it is given up.
    """

    connect_s: float = 20.0
    keepalive_s: float = 15.0
    keepalives: int = 4

    @property
    def silence_s(self) -> float:
        """Seconds after which a board that is cut off is noticed."""
        return self.keepalive_s * (self.keepalives + 1)


@dataclass(frozen=True)
class Way:
    """A host to log in to: the board, or a jump host before it.

    Args:
        name: for messages.
        address: name, address, or alias of the configuration.
        user: None leaves it to the configuration, as with the rest.
        port: of its SSH server.
        identity: path of a private key.
    """

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None

    @classmethod
    def to(cls, host: Host) -> Way:
        """To a configured host."""
        return cls(host.name, host.address, host.user, host.port, host.identity)

    @property
    def ssh_command(self) -> str:
        """What a user would type to get there."""
        words = ["ssh"]
        if self.port is not None:
            words += ["-p", str(self.port)]
        target = f"{self.user}@{self.address}" if self.user else self.address
        return shlex.join([*words, target])

    def keywords(self) -> dict[str, Any]:
        """What is set, as asyncssh calls it."""
        given = {"username": self.user, "port": self.port}
        return {name: value for name, value in given.items() if value is not None}


class Client(asyncssh.SSHClient):
    """Remembers what a connection's end was about."""

    def __init__(self) -> None:
        #: The host key that was shown and not trusted: host, address, port and key.
        self.shown: tuple[str, str, int, asyncssh.SSHKey] | None = None
        #: Why the connection was lost.
        self.loss: Exception | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It was lost, or closed in good order."""
        self.loss = exc

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Nothing is trusted but what is known."""
        self.shown = host, addr, port, key
        return False


async def reach(
    way: Way,
    patience: Patience,
    opened: list[asyncssh.SSHClientConnection],
    client: Client | None = None,
    hops: int = 0,
) -> asyncssh.SSHClientConnection:
    """Log in, through jump hosts where the configuration names some.

    Args:
        way: to the host.
        patience: how long to wait.
        opened: gets every connection that is made, in their order.
        client: remembers the end of the last one.
        hops: how many led here.

    Raises:
        DeviceError: it cannot be reached, or is not to be trusted, or refuses.
    """
    settings = await _settings(way)
    via: asyncssh.SSHClientConnection | None = None
    jumps = settings.tunnel if isinstance(settings.tunnel, str) else "none"
    for jump in [] if jumps == "none" else jumps.split(","):
        if hops >= MOST_HOPS:
            raise DeviceError(
                f"{way.name}: its jump hosts lead in a circle",
                hint="see ProxyJump in ~/.ssh/config",
            )
        via = await reach(_jump(way, jump), patience, opened, hops=hops + 1)
    connection = await _log_in(way, settings, patience, via, client or Client())
    opened.append(connection)
    return connection


async def _settings(way: Way) -> asyncssh.SSHClientConnectionOptions:
    """What the configuration says of that host; no key is loaded."""
    construct = asyncssh.SSHClientConnectionOptions.construct
    try:
        options = await construct(config=(), host=way.address, client_keys=None, **way.keywords())
    except (ValueError, OSError) as error:
        raise DeviceError(
            f"{way.name}: ~/.ssh/config cannot be used: {error}",
            hint=f"does `{way.ssh_command}` work?",
        ) from error
    assert isinstance(options, asyncssh.SSHClientConnectionOptions)
    return options


async def _log_in(
    way: Way,
    settings: asyncssh.SSHClientConnectionOptions,
    patience: Patience,
    via: asyncssh.SSHClientConnection | None,
    client: Client,
) -> asyncssh.SSHClientConnection:
    known = await asyncio.get_running_loop().run_in_executor(None, _known_hosts, settings)
    limit = settings.connect_timeout or patience.connect_s
    options: dict[str, Any] = {
        **way.keywords(),
        "known_hosts": known,
        "client_factory": lambda: client,
        "tunnel": via,
        "connect_timeout": limit,
        "login_timeout": limit,
        "keepalive_interval": settings.keepalive_interval or patience.keepalive_s,
        "keepalive_count_max": patience.keepalives,
        "agent_forwarding": False,
        **_keys(way, settings),
    }
    try:
        return await _connect(way, settings, known, options)
    except EdgevitError:
        raise
    except asyncio.CancelledError:
        raise
    except Exception as error:
        raise _explain(error, way, settings, client, known, limit) from error


async def _connect(
    way: Way,
    settings: asyncssh.SSHClientConnectionOptions,
    known: bytes,
    options: dict[str, Any],
) -> asyncssh.SSHClientConnection:
    try:
        return await asyncssh.connect(way.address, **options)
    except (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError):
        if not _trusted(known, settings.host_key_alias or settings.host, "", settings.port):
            raise
    # Perhaps it has no key of the known kind: have it show the one it has, to be refused by name.
    return await asyncssh.connect(way.address, **options, server_host_key_algs="default")


def _keys(way: Way, settings: asyncssh.SSHClientConnectionOptions) -> dict[str, Any]:
    """Which private keys to offer; like ssh, without those that are not there.

    Raises:
        DeviceError: the one that was named is not there.
    """
    if way.identity is not None:
        path = Path(way.identity).expanduser()
        if not path.is_file():
            raise DeviceError(
                f"{way.name}: there is no key {path}",
                hint="`edgevit devices add` with --force and --identity names another",
            )
        return {"client_keys": [str(path)], "ignore_encrypted": True}
    named = settings.config.get("IdentityFile", ())
    paths = [Path(str(name)).expanduser() for name in _strings(named)]
    there = [str(path) for path in paths if path.is_file()]
    return {"client_keys": there, "ignore_encrypted": True} if there else {}


def _jump(way: Way, text: str) -> Way:
    try:
        user, address, port = parse_target(text.strip())
    except EdgevitError as error:
        hint = "see ProxyJump in ~/.ssh/config"
        raise DeviceError(f"{way.name}: no jump host is {text!r}", hint=hint) from error
    return Way(f"{way.name}, jump host {address}", address, user, port)


# -- known hosts -----------------------------------------------------------------------------------


def _known_hosts(settings: asyncssh.SSHClientConnectionOptions) -> bytes:
    """All lines of the files of known hosts that are there and can be understood."""
    user = settings.config.get("UserKnownHostsFile", USER_KNOWN_HOSTS)
    system = settings.config.get("GlobalKnownHostsFile", SYSTEM_KNOWN_HOSTS)
    lines = ["# never empty: that would mean the default files"]
    for name in (*_strings(user), *_strings(system)):
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines += [line for line in text.splitlines() if _is_entry(line)]
    return "\n".join(lines).encode()


def _is_entry(line: str) -> bool:
    fields = line.split()
    marked = bool(fields) and fields[0].startswith("@")
    return len(fields) >= 3 + marked and (not marked or fields[0] in MARKERS)


def _trusted(known: bytes, host: str, addr: str, port: int) -> Sequence[asyncssh.SSHKey]:
    """The keys that are known of a host."""
    of_port = None if port == asyncssh.DEFAULT_PORT else port
    return asyncssh.match_known_hosts(known, host, addr, of_port)[0]


def _distrust(way: Way, client: Client, known: bytes) -> DeviceError:
    """Why a host key was refused, with fingerprints, and how to accept it."""
    assert client.shown is not None
    host, addr, port, key = client.shown
    shown = _fingerprint(key)
    kind = key.algorithm.decode().removeprefix("ssh-").partition("-")[0]
    compare = f"`ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` there tells its true one"
    trusted = _trusted(known, host, addr, port)
    if not trusted:
        return DeviceError(
            f"{way.name}: the host key of {host} is not known: {shown}",
            hint=f"{compare}; if they are the same, `{way.ssh_command}` and yes accepts it",
        )
    before = dict.fromkeys(map(_fingerprint, trusted))
    entry = host if port == asyncssh.DEFAULT_PORT else f"[{host}]:{port}"
    return DeviceError(
        f"{way.name}: WARNING: the host key of {host} has changed; known is "
        f"{' or '.join(before)}, it shows {shown}: either the board was set up "
        "anew, or somebody is in between",
        hint=f"{compare}; only if they are the same: `ssh-keygen -R {shlex.quote(entry)}`, then "
        f"`{way.ssh_command}` and yes",
    )


def _fingerprint(key: asyncssh.SSHKey) -> str:
    return f"{key.get_fingerprint()} ({key.algorithm.decode()})"


# -- what went wrong -------------------------------------------------------------------------------


def _explain(
    error: Exception,
    way: Way,
    settings: asyncssh.SSHClientConnectionOptions,
    client: Client,
    known: bytes,
    limit: float,
) -> DeviceError:
    """An error of the library or the system, in words of the user's."""
    place = f"{settings.host}, port {settings.port}"
    if isinstance(error, asyncssh.HostKeyNotVerifiable) and client.shown is not None:
        return _distrust(way, client, known)
    if isinstance(error, asyncssh.PermissionDenied):
        return DeviceError(
            f"{way.name}: {settings.username}@{settings.host} refuses the login: it accepts none "
            "of the keys that were offered",
            hint=_login_hint(way, settings),
        )
    if isinstance(error, socket.gaierror):
        return DeviceError(
            f"{way.name}: the name {settings.host} cannot be resolved ({_reason(error)})",
            hint="is it spelled right, and is the board on this network? Its IP address does, too",
        )
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return DeviceError(
            f"{way.name}: no answer from {place} within {limit:g} s",
            hint="is the board on, up, and on this network?",
        )
    if isinstance(error, asyncssh.ChannelOpenError):
        return DeviceError(
            f"{way.name}: the jump host cannot reach {place}: {error.reason}",
            hint=f"does `{way.ssh_command}` work?",
        )
    early = asyncssh.ConnectionLost | asyncssh.ProtocolError | ConnectionResetError
    if isinstance(error, early):
        reason = getattr(error, "reason", "connection reset")
        return DeviceError(
            f"{way.name}: {place} broke off before the login ({reason.lower()})",
            hint=f"is that an SSH server, and does it have room? does `{way.ssh_command}` work?",
        )
    if isinstance(error, OSError):
        return _explain_network(error, way, place)
    text = getattr(error, "reason", None) or str(error) or type(error).__name__
    hint = f"does `{way.ssh_command}` work?"
    return DeviceError(f"{way.name}: cannot log in to {place}: {text}", hint=hint)


def _explain_network(error: OSError, way: Way, place: str) -> DeviceError:
    if _number(error) == errno.ECONNREFUSED:
        return DeviceError(
            f"{way.name}: nothing listens at {place} (connection refused)",
            hint="does its SSH server run? `sudo systemctl enable --now ssh` there; is the port "
            "right?",
        )
    return DeviceError(
        f"{way.name}: {place} cannot be reached: {_reason(error)}",
        hint="is the board on, up, and on this network?",
    )


def _login_hint(way: Way, settings: asyncssh.SSHClientConnectionOptions) -> str:
    target = f"{settings.username}@{way.address}"
    if way.identity is None:
        return f"`{shlex.join(['ssh-copy-id', target])}` brings your key there"
    path = Path(way.identity).expanduser()
    try:
        asyncssh.read_private_key(path)
    except asyncssh.KeyImportError as error:
        if "assphrase" in str(error):
            return f"{path} has a passphrase: `{shlex.join(['ssh-add', str(path)])}` unlocks it"
        return f"{path} is no private key: {error}"
    except OSError as error:
        return f"{path} cannot be read: {_reason(error)}"
    return f"`{shlex.join(['ssh-copy-id', '-i', str(path), target])}` brings that key there"


def _number(error: OSError) -> int | None:
    """The number of an error, which asyncio hides where it tried several addresses."""
    if error.errno is not None:
        return error.errno
    numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))}
    return numbers.pop() if len(numbers) == 1 else None


def _reason(error: OSError) -> str:
    number = _number(error)
    if isinstance(error, socket.gaierror) or number is None:
        return (error.strerror or str(error)).lower()
    return os.strerror(number).lower()


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, Iterable) else []
