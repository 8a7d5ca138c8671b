"""The boards that a user has told edgevit of: ``hosts.toml`` in the user's configuration folder.

[pi]
profile = "rpi4"
address = "raspberrypi.local"       # a name of ~/.ssh/config does as well
user = "pi"                         # the rest may be left out
port = 22
identity = "~/.ssh/id_pi"           # the path of a key; keys and passwords never stand here
python = "/usr/bin/python3"         # runs the agent; else the one that `devices setup` installed
attached = "00008030-..."           # an iPhone on that Mac
emulated = false

[pi.environment]                    # variables that its agent needs
OPENBLAS_CORETYPE = "ARMV8"
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from devices.profile import list_profiles
from edgevit.errors import OptionError, OutputError, UnknownNameError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Host", "hosts_path", "load_hosts", "parse_target", "remove_host", "save_host"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.IGNORECASE)
#: No white space, no leading dash: neither can be part of a name, and both can mislead a program.
WORD = re.compile(r"[^\s\-][^\s]*")
PATH = re.compile(r"[^\s\-][^\n\0]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PRIVATE = 0o600


@dataclass(frozen=True)
class Host:
    """A board and the way to it.

    Args:
        name: the user's name for it.
        profile: name of a device profile.
        address: name, address, or alias of ``~/.ssh/config``.
        user: who to log in as; None leaves it to ``~/.ssh/config``, as with the next two.
        port: of its SSH server.
        identity: path of a private key.
        python: interpreter that runs the agent there; None takes the one that
            ``edgevit devices setup`` installed, else ``python3``.
        attached: identifier or name of an iPhone attached to that Mac, where models run then.
        emulated: a stand-in; its results carry the word, and no table shows its times.
        environment: variables for the agent.

    Raises:
        OptionError: a field cannot be what it is.
    """

    name: str
    profile: str
    address: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    python: str | None = None
    attached: str | None = None
    emulated: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect(_matches(NAME, self.name), "name",
                "letters, digits, dots, dashes and underscores, a letter or digit first",
                self.name)  # fmt: skip
        for name in ("profile", "address", "user"):
            value = getattr(self, name)
            holds = _matches(WORD, value) or (value is None and name == "user")
            _expect(holds, name, "a word without white space, not beginning with a dash", value)
        for name, what in (("identity", "a path"), ("python", "a path"), ("attached", "a name")):
            value = getattr(self, name)
            _expect(value is None or _matches(PATH, value), name, what, value)
        _expect(self.port is None or _is_port(self.port), "port", "1 to 65535", self.port)
        _expect(isinstance(self.emulated, bool), "emulated", "true or false", self.emulated)
        _expect(_is_environment(self.environment), "environment", "a table of strings",
                self.environment)  # fmt: skip

    @property
    def target(self) -> str:
        """``user@address:port``, as a reader knows it."""
        address = f"[{self.address}]" if ":" in self.address and self.port else self.address
        user = f"{self.user}@" if self.user else ""
        return f"{user}{address}" + (f":{self.port}" if self.port else "")

    def to_json(self) -> dict[str, Any]:
        """Everything that is set, as the file and ``--json`` hold it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["environment"] = dict(self.environment)
        return {name: value for name, value in values.items() if value not in (None, {}, False)}


def hosts_path() -> Path:
    """Where the hosts are kept."""
    return Path(user_config_path("edgevit")) / "hosts.toml"


def load_hosts() -> dict[str, Host]:
    """All configured hosts by name; none if there is no file.

    Raises:
        UsageError: the file cannot be read, or is no TOML.
        OptionError: an entry has a field that there is not, lacks one, or one is of the wrong kind.
        UnknownNameError: an entry names a profile that there is not.
    """
    path = hosts_path()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", hint="it has to be TOML; correct it there") from error
    profiles = list_profiles() if data else []
    return {name: _host(path, name, entry, profiles) for name, entry in data.items()}


def save_host(host: Host, replace: bool = False) -> None:
    """Keep a host; comments and other entries of the file stay as they are.

    Args:
        host: what to keep.
        replace: take the place of one of the same name.

    Raises:
        UsageError: there is one of that name, and ``replace`` is not set; the file is no TOML.
        UnknownNameError: its profile does not exist.
        OutputError: the file cannot be written.
    """
    _known_profile(host.profile, list_profiles(), "profile")
    _free_name(host)
    with _document() as document:
        if host.name in document and not replace:
            raise UsageError(
                f"there is a host {host.name!r} already",
                hint=f"--force replaces it; `edgevit devices remove {host.name}` forgets it",
            )
        entry = host.to_json()
        del entry["name"]
        document[host.name] = entry


def remove_host(name: str) -> None:
    """Forget a host. Other entries may be wrong; they stay.

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: the file is no TOML.
        OutputError: the file cannot be written.
    """
    with _document() as document:
        if name not in document:
            raise UnknownNameError("host", name, list(document), listing="edgevit devices")
        del document[name]


def parse_target(text: str) -> tuple[str | None, str, int | None]:
    """``user@address`` to user, address and port; user and port may be absent.

    IPv6 addresses stand as they are or, if a port follows, in brackets: ``pi@[fe80::1%eth0]:2222``.

    Raises:
        OptionError: it is no such thing.
    """
    match = re.fullmatch(
        r"(?:(?P<user>[^@\s]+)@)?"
        r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[^\]\s]+)?)\]|(?P<v6>[^@\s\[\]/]*:[^@\s\[\]/]*:[^@\s\[\]/]*)"
        r"|(?P<plain>[^@\s\[\]:/]+))"
        r"(?::(?P<port>\d{1,5}))?",
        text.removeprefix("ssh://"),
    )
    parts = match.groupdict() if match else {}
    address = parts.get("bracketed") or parts.get("v6") or parts.get("plain") or ""
    user, port = parts.get("user"), int(parts["port"]) if parts.get("port") else None
    right = all(_matches(WORD, word) for word in (address, user or "x")) and _is_address(address)
    if not right or not (port is None or _is_port(port)):
        raise OptionError(
            "--host",
            expected="user@address, with a name or an address and perhaps :port",
            got=text,
            hint="for example pi@raspberrypi.local, pi@192.168.0.7:2222 or pi@[fe80::1%eth0]:2222",
        )
    return user, address, port


def _host(path: Path, name: str, entry: Any, profiles: list[str]) -> Host:
    """One entry of the file; errors say where in the file it stands."""
    if not isinstance(entry, dict):
        raise OptionError(f"{path}: {name}", expected="a table, [name] and its fields", got=entry)
    known = [f.name for f in fields(Host) if f.name != "name"]
    for key in entry:
        if key not in known:
            near = None if "pass" in key else UnknownNameError("field", key, known).hint
            hint = near or f"the fields are {', '.join(known)}; keys and passwords stay out"
            where = f"{path}: {name}"
            raise OptionError(where, expected="known fields", got=key, hint=hint)
    for needed in ("profile", "address"):
        if needed not in entry:
            where = f"{path}: {name}"
            raise OptionError(where, expected=f"a field {needed!r}", got=sorted(entry))
    try:
        host = Host(name=name, **entry)
    except OptionError as error:
        where = f"{path}: {name}.{error.option}"
        raise OptionError(where, expected=error.expected, got=error.got) from None
    _known_profile(host.profile, profiles, f"{path}: {name}.profile")
    return host


def _known_profile(name: str, profiles: list[str], where: str) -> None:
    if name not in profiles:
        error = UnknownNameError("device profile", name, profiles, listing="edgevit devices")
        if where != "profile":
            error.message = f"{where}: {error.message}"
        raise error


def _free_name(host: Host) -> None:
    """Refuse a name that `--device` takes for something else."""
    from devices.base import devices

    if host.name in devices or (host.name in list_profiles() and host.name != host.profile):
        what = "device" if host.name in devices else "profile"
        expected = f"another name: {host.name} is a {what} of its own"
        raise OptionError("name", expected=expected, got=host.name)


@contextlib.contextmanager
def _document() -> Iterator[Any]:
    """The file's document, to be changed and then written; one writer at a time."""
    import tomlkit
    from filelock import FileLock
    from tomlkit.exceptions import TOMLKitError

    path = hosts_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".hosts.lock")):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            try:
                document = tomlkit.parse(text)
            except TOMLKitError as error:
                hint = "it has to be TOML; correct it there"
                raise UsageError(f"{path}: {error}", hint=hint) from error
            yield document
            _write(path, tomlkit.dumps(document))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write {path}: {reason}") from error


def _write(path: Path, text: str) -> None:
    """Beside the place, readable by the user alone, then renamed."""
    handle, partial = tempfile.mkstemp(prefix=".hosts-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(partial).chmod(PRIVATE)
        Path(partial).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise


def _is_address(text: str) -> bool:
    """Whether something with colons is an IPv6 address; names and IPv4 are for DNS to judge."""
    import ipaddress

    if ":" not in text:
        return True
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _is_environment(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _matches(VARIABLE, key) and isinstance(text, str) for key, text in value.items()
    )


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise OptionError(name, expected=expected, got=got)
