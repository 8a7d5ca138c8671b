"""Every error that edgevit raises on purpose.

    EdgevitError                  catch this one to catch them all
    ├── UsageError                what was asked cannot be right                     exit 2
    │   ├── UnknownNameError      no such model, block, format, device, ...
    │   ├── OptionError           an option has a value it cannot have
    │   ├── ShapeError            an image size or shape that the architecture cannot take
    │   ├── WeightsError          a weights file that is missing, unsafe or does not fit
    │   └── FactoryError          a user's model factory is not there, or failed
    ├── CheckError                a check ran and did not pass                       exit 1
    │   ├── VerificationError     two stages do not compute the same thing
    │   └── BundleError           a bundle or result is damaged, edited or foreign
    └── UnavailableError          could not be built or measured here                exit 3
        ├── MissingExtraError     an optional package is not installed
        ├── ConversionError       a converter gave up on the graph
        ├── OutputError           the output folder cannot be written
        └── DeviceError           a device is unreachable or its agent failed
            └── RefusedError      it answers, and cannot do it: no room, no Python

The message says what was wrong and what was expected; the hint says what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

__all__ = [
    "BundleError",
    "CheckError",
    "ConversionError",
    "DeviceError",
    "EdgevitError",
    "FactoryError",
    "MissingExtraError",
    "OptionError",
    "OutputError",
    "RefusedError",
    "ShapeError",
    "UnavailableError",
    "UnknownNameError",
    "UsageError",
    "VerificationError",
    "WeightsError",
]


class EdgevitError(Exception):
    """Base of every error that edgevit raises on purpose.

    Args:
        message: what was wrong and what was expected.
        hint: what to do about it; shown under the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross processes; the subclasses' own arguments are not what BaseException keeps.
        return _revive, (type(self), self.args, self.__dict__)

    def to_json(self) -> dict[str, Any]:
        """The error as ``--json`` prints it."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


def _revive(cls: type[EdgevitError], args: tuple[Any, ...], state: dict[str, Any]) -> EdgevitError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(EdgevitError):
    """What was asked cannot be right, whatever the machine."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that no registry knows; the nearest known ones are in the hint.

    Args:
        kind: what was looked for, in the singular (``"model"``).
        name: the name that was given.
        known: the names that exist.
        listing: the command that lists them.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, listing: str | None = None
    ) -> None:
        self.kind, self.name = kind, name
        names = sorted(known)
        longer = [n for n in names if name and n.startswith(name.lower())]
        self.nearest: Sequence[str] = longer[:4] or difflib.get_close_matches(
            name.lower(), names, n=4, cutoff=0.5
        )
        parts = []
        if self.nearest:
            parts.append(f"did you mean {' or '.join(self.nearest)}?")
        if listing:
            parts.append(f"`{listing}` lists what there is")
        super().__init__(f"unknown {kind} {name!r}", hint="; ".join(parts) or None)


class OptionError(UsageError):
    """An option has a value it cannot have.

    Args:
        option: the option's name as the user writes it.
        expected: what it takes.
        got: what came.
    """

    def __init__(self, option: str, *, expected: str, got: object, hint: str | None = None) -> None:
        self.option, self.expected, self.got = option, expected, got
        super().__init__(f"{option}: expected {expected}, got {got!r}", hint=hint)


class ShapeError(UsageError):
    """An image size or tensor shape that the architecture cannot take."""


class WeightsError(UsageError):
    """A weights file that is missing, unsafe, truncated or made for another model."""


class FactoryError(UsageError):
    """A user's model factory is not there, or raised, or returned no module."""


class CheckError(EdgevitError):
    """A check ran and did not pass."""

    exit_code = 1


class VerificationError(CheckError):
    """Two stages of the export do not compute the same thing."""


class BundleError(CheckError):
    """A bundle or a result on disk is damaged, edited, foreign or of an unknown schema."""


class UnavailableError(EdgevitError):
    """It could not be built or measured here."""

    exit_code = 3


class MissingExtraError(UnavailableError):
    """An optional dependency is not installed.

    Args:
        what: what was asked for (``"format coreml"``).
        packages: the importable packages that are missing.
        extra: the extra of edgevit that brings them.
    """

    def __init__(self, what: str, packages: Sequence[str], extra: str) -> None:
        self.packages, self.extra = tuple(packages), extra
        super().__init__(
            f"{what} needs {', '.join(packages)}, which {'is' if len(packages) == 1 else 'are'} "
            "not installed",
            hint=f'pip install "edgevit[{extra}]"',
        )


class ConversionError(UnavailableError):
    """A converter gave up on the graph, or wrote a file that its runtime refuses."""


class OutputError(UnavailableError):
    """The output folder cannot be written: a file, read-only, full, or in use."""


class DeviceError(UnavailableError):
    """A device cannot be reached, or its agent failed."""


class RefusedError(DeviceError):
    """A device answers, and cannot do what it is asked; trying again changes nothing there."""
