"""What device a name means: a registered one, a configured host, or the one of a profile."""

from __future__ import annotations

from collections.abc import Mapping

from devices.base import Device, devices
from devices.hosts import Host, load_hosts
from devices.profile import DeviceProfile, list_profiles, load_profile
from edgevit.errors import UnknownNameError, UsageError
from edgevit.registry import load_object

__all__ = ["device_of", "find_device", "find_profile"]


def find_device(name: str) -> Device:
    """The device of that name.

    Args:
        name: of a registered device (``local``), of a configured host, or of a profile that exactly
            one configured host has.

    Raises:
        UsageError: a profile that no host has, or several have.
        UnknownNameError: none of these.
    """
    if name in devices:
        return devices.get(name)
    hosts = load_hosts()
    if name in hosts:
        return device_of(hosts[name])
    if name not in list_profiles():
        raise _unknown(name, hosts)
    having = [host for host in hosts.values() if host.profile == name]
    if not having:
        raise UsageError(
            f"no {name} is configured",
            hint=f"`edgevit devices add NAME --profile {name} --host USER@ADDRESS` tells where it "
            "is; then `edgevit devices setup NAME`",
        )
    if len(having) > 1:
        names = ", ".join(host.name for host in having)
        raise UsageError(f"several hosts are a {name}: {names}", hint="name one or more of them")
    return device_of(having[0])


def find_profile(name: str) -> DeviceProfile:
    """The profile of a device, a configured host, or of that very name.

    Raises:
        UnknownNameError: none of these.
    """
    if name in devices:
        return devices.get(name).profile
    hosts = load_hosts()
    if name in hosts:
        return load_profile(hosts[name].profile)
    if name not in list_profiles():
        raise _unknown(name, hosts)
    return load_profile(name)


def device_of(host: Host) -> Device:
    """A configured host as a device: over SSH, or the iPhone that is attached to it."""
    kind = "devices.apple:PhoneDevice" if host.attached else "devices.ssh:SshDevice"
    device: Device = load_object(kind)(host)
    return device


def _unknown(name: str, hosts: Mapping[str, Host]) -> UnknownNameError:
    known = {*devices.names(), *hosts, *list_profiles()}
    return UnknownNameError("device", name, known, listing="edgevit devices")
