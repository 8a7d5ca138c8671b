"""The machine's own peak: best rates of products and of copying, measured once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from devices.base import Device, Job, Session
from devices.resolve import find_device
from edgevit.errors import BundleError, DeviceError
from edgevit.measure.decode import decode
from edgevit.measure.profile import Roof
from edgevit.measure.results import write_atomically

__all__ = ["peak", "peak_of"]


def peak(
    device: str | Device = "local", *, threads: int | None = None, fresh: bool = False
) -> Roof:
    """What a device reaches at best: GFLOP/s of numpy's fp32 product, GB/s of copying.

    Args:
        device: a name, or a device.
        threads: of the products; the device's own default without.
        fresh: measure even if it is known.

    Raises:
        UnknownNameError: there is no such device.
        DeviceError: it cannot be reached, or its agent failed.
    """
    found = find_device(device) if isinstance(device, str) else device
    with found.open() as session:
        facts = session.facts()
        return peak_of(found, session, facts, threads or found.profile.default_threads, fresh=fresh)


def peak_of(
    device: Device, session: Session, facts: Mapping[str, Any], threads: int, *, fresh: bool = False
) -> Roof:
    """The same over a session that is open.

    Args:
        device: that the session is of.
        session: with no job running.
        facts: that it told.
        threads: of the products.
        fresh: measure even if it is known.
    """
    place = _place(device, facts, threads)
    known = None if fresh else _kept(place)
    if known is not None:
        return known
    roof = _measure(session, threads, device.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(asdict(roof), indent=1))
    return roof


def _measure(session: Session, threads: int, name: str) -> Roof:
    with closing(session.run(Job("peak", threads=threads))) as events:  # type: ignore[type-var]
        for event in events:
            if event["event"] == "error":
                raise DeviceError(f"{name}: its peak was not measured: {event['message']}")
            if event["event"] == "peak":
                return Roof(
                    max(event["flops"]["per_second"]),
                    max(event["bytes"]["per_second"]),
                    threads,
                    {key: event[key]["method"] for key in ("flops", "bytes")},
                    datetime.now(timezone.utc).isoformat(timespec="seconds"),
                )
    raise DeviceError(f"{name}: its agent ended without a word on the peak")


def _place(device: Device, facts: Mapping[str, Any], threads: int) -> Path:
    """Another machine or processor under the same name has another peak."""
    from platformdirs import user_cache_path

    cpu = facts.get("cpu") or {}
    machine = [device.name, facts.get("machine"), cpu.get("model"), cpu.get("count"), threads]
    word = hashlib.sha256(json.dumps(machine, default=str).encode()).hexdigest()[:16]
    return user_cache_path("edgevit") / "peaks" / f"{word}.json"


def _kept(place: Path) -> Roof | None:
    try:
        return decode(Roof, json.loads(place.read_text(encoding="utf-8")), str(place))
    except (OSError, ValueError, BundleError):
        return None
