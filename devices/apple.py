"""Apple's devices: compute units of Core ML, and an iPhone that is attached to a Mac.

A Mac is a device like others, here or over SSH. An iPhone has no shell: the agent runs on the Mac
that it is attached to, and has coremltools load and time the model on the phone. So the phone's
session is the Mac's, in which Core ML packages go to the backend ``coreml-phone``; whatever only
the Mac could tell, such as its heat, does not pass for the phone's.

Xcode signs the runner app with EDGEVIT_DEVELOPMENT_TEAM (or EDGEVIT_PROVISIONING_PROFILE and
EDGEVIT_BUNDLE_IDENTIFIER), which belong into the host's ``environment``.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.agent.backends.coreml import UNITS
from devices.base import SILENCE_S, Device, Event, Job, Session, Subject
from devices.local import LocalDevice
from devices.profile import DeviceProfile, load_profile
from edgevit.errors import OptionError, UsageError
from edgevit.registry import load_object

if TYPE_CHECKING:
    from devices.hosts import Host

__all__ = ["COMPUTE_UNITS", "PHONE_BACKEND", "PhoneDevice", "PhoneSession", "coreml_options"]

#: What ``--compute`` takes: the CPU alone, or with the GPU, the Neural Engine, or both.
COMPUTE_UNITS = tuple(UNITS)

#: The backend of the agent that has a package run on the attached phone.
PHONE_BACKEND = "coreml-phone"

#: Addresses of this machine: then the phone is attached here.
HERE = ("local", "localhost", "127.0.0.1", "::1")


def coreml_options(compute: str | None) -> dict[str, str]:
    """Options of a Core ML subject that is to run on that compute unit.

    Args:
        compute: one of :data:`COMPUTE_UNITS`; None leaves the choice to Core ML.

    Raises:
        OptionError: there is no such unit.
    """
    if compute is None:
        return {}
    if compute not in COMPUTE_UNITS:
        raise OptionError("compute", expected=" or ".join(COMPUTE_UNITS), got=compute)
    return {"compute_unit": compute}


class PhoneDevice:
    """An iPhone attached to a Mac.

    Never run on a phone: it was built against the interface of coremltools 9.

    Args:
        host: the Mac, with ``attached``, the phone's identifier, UDID or name.
        carrier: the Mac as a device; by default this machine, or the host over SSH.

    Raises:
        UsageError: the host has nothing attached, or is this machine, which is no Mac.
    """

    def __init__(self, host: Host, carrier: Device | None = None) -> None:
        if not host.attached:
            raise UsageError(
                f"{host.name} has no phone attached",
                hint="`edgevit devices add` takes --attached with what `xcrun devicectl list "
                "devices` calls it",
            )
        self.name = host.name
        self.emulated = host.emulated
        self._host = host
        self._attached = host.attached
        self._carrier = _carrier(host) if carrier is None else carrier

    @property
    def profile(self) -> DeviceProfile:
        """Of the phone."""
        return load_profile(self._host.profile)

    def open(self) -> PhoneSession:
        """Reach the Mac; whether the phone is there shows in the first job.

        Raises:
            DeviceError: the Mac does not answer.
        """
        return PhoneSession(self._carrier.open(), self.profile, self._attached)


class PhoneSession:
    """The Mac's session, in which Core ML packages run on the phone.

    Args:
        carrier: the Mac's session, which this one closes.
        profile: of the phone.
        attached: the phone's identifier, UDID or name.
    """

    def __init__(self, carrier: Session, profile: DeviceProfile, attached: str) -> None:
        self._carrier = carrier
        self._profile = profile
        self._attached = attached

    def __enter__(self) -> PhoneSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def carrier(self) -> Session:
        """The Mac's own session, to set it up and to check it."""
        return self._carrier

    def facts(self) -> dict[str, Any]:
        """Of the phone what its profile says; all that the Mac says of itself is its ``carrier``.

        Raises:
            DeviceError: the agent cannot run on the Mac.
        """
        return self._of_phone(self._carrier.facts())

    def push(self, folder: Path, parts: Iterable[str] | None = None) -> str:
        """Bring a bundle to the Mac; see :meth:`devices.base.Session.push`."""
        return self._carrier.push(folder, parts)

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Iterator[Event]:
        """See :meth:`devices.base.Session.run`.

        Raises:
            UsageError: the phone does not run a subject's format.
        """
        subjects = tuple(self._on_phone(subject) for subject in job.subjects)
        events = self._carrier.run(dataclasses.replace(job, subjects=subjects), silence_s=silence_s)
        for event in events:
            yield self._of_phone(event) if event["event"] == "facts" else event

    def stop(self) -> None:
        """See :meth:`devices.base.Session.stop`."""
        self._carrier.stop()

    def close(self) -> None:
        """See :meth:`devices.base.Session.close`."""
        self._carrier.close()

    def _on_phone(self, subject: Subject) -> Subject:
        if subject.backend not in ("coreml", PHONE_BACKEND):
            raise UsageError(
                f"{self._profile.name} runs Core ML packages, not {subject.backend}",
                hint="--format coreml",
            )
        options = {**subject.options, "device": self._attached}
        return dataclasses.replace(subject, backend=PHONE_BACKEND, options=options)

    def _of_phone(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        # The conditions are the Mac's, and so are its CPUs and its system.
        own = {k: v for k, v in facts.items() if k != "conditions"}
        carrier = {key: own.get(key) for key in ("machine", "os", "cpu")}
        machine = {"arch": self._profile.arch, "model": self._profile.title, "hostname": None}
        return {**own, "machine": machine, "os": {}, "cpu": {}, "carrier": carrier}


def _carrier(host: Host) -> Device:
    """The Mac that the phone is attached to."""
    if host.address not in HERE:
        device: Device = load_object("devices.ssh:SshDevice")(host)
        return device
    if platform.system() != "Darwin":
        raise UsageError(
            f"{host.name} is attached to this machine, which is no Mac",
            hint="add it with the address of the Mac: --host USER@MAC",
        )
    return LocalDevice(python=host.python, environment=host.environment)
