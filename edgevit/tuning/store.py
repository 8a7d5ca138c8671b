"""What tuning found, kept in the user's data folder for ``export --tuned``.

    <data>/tuned/<device>/<key>.json      one a model, its input's shape and its options

A finding is kept under the device's name and under its profile's, so that what was found on one
Pi 4 serves for all; a device's own goes first. The newest takes the place of the one before.
Weights do not matter: how fast a file runs does not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from edgevit.errors import BundleError, OutputError, UnavailableError
from edgevit.measure.results import write_atomically
from edgevit.source import Source, slug

__all__ = ["SCHEMA_VERSION", "find_tuned", "keep_tuned"]

SCHEMA_VERSION = 1


def keep_tuned(source: Source, places: list[str], finding: Mapping[str, Any]) -> Path:
    """Keep what was found for a model, under each of these names of devices and profiles.

    Raises:
        OutputError: the data folder cannot be written.
    """
    text = json.dumps({"schema_version": SCHEMA_VERSION, **finding}, indent=1)
    for place in reversed(places):
        file = _file(source, place)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}") from error
    return file


def find_tuned(source: Source, places: list[str]) -> dict[str, Any]:
    """What tuning found for this model on the first of these devices and profiles that has it.

    Raises:
        UnavailableError: it was never tuned there.
        BundleError: what is kept cannot be read.
    """
    for place in places:
        file = _file(source, place)
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            whole = found["schema_version"] == SCHEMA_VERSION and "winner" in found
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise BundleError(
                f"{file} is damaged, or of another version", hint=_hint(source, place)
            )
        return dict(found)
    size = "x".join(map(str, source.inputs[0].shape))
    raise UnavailableError(
        f"{source.name} with input {size} was never tuned for {places[0]}",
        hint=_hint(source, places[0]),
    )


def _hint(source: Source, place: str) -> str:
    return f"edgevit tune {source.name} --device {place}, with the same model options"


def _file(source: Source, place: str) -> Path:
    import hashlib

    shapes = [list(spec.shape) for spec in source.inputs]
    options = source.identity.get("options")
    parts = [source.kind, source.name, shapes, options, source.identity.get("num_classes")]
    text = json.dumps(parts, sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f"{slug(source.name)}-{key}.json"
    return user_data_path("edgevit") / "tuned" / slug(place) / name
