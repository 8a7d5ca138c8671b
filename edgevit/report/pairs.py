"""Which result of one set belongs to which of another, and what differs around them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevit.errors import UnavailableError
from edgevit.measure.results import Result
from edgevit.report.rows import runtime_of

__all__ = ["Pairs", "called", "pair_up"]

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Pairs:
    """Results of two sides by subject.

    Args:
        both: base's and head's result of each subject that both have.
        base_only: the others of base.
        head_only: the others of head.
        notes: what was left out, and what differs within pairs.
    """

    both: tuple[tuple[Result, Result], ...]
    base_only: tuple[Result, ...]
    head_only: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    def refuse_differences(self, *, devices: bool, versions: bool) -> None:
        """Raise if pairs come from different machines, or from different runtimes.

        Raises:
            UnavailableError: they do; the message says which differ.
        """
        if devices and (found := self._differences(_machine)):
            raise UnavailableError(
                f"base and head were not measured on the same device: {found}",
                hint="measure both on one device, or say --across-devices",
            )
        if versions and (found := self._differences(_versions)):
            raise UnavailableError(
                f"base and head were not measured with the same versions: {found}",
                hint="measure both with the same, or say --across-versions",
            )

    def _differences(self, facts: Callable[[Result], Mapping[str, Any]]) -> str:
        """What differs within pairs, each difference once; facts that a side lacks do not count."""
        found: dict[str, None] = {}
        for base, head in self.both:
            before, after = facts(base), facts(head)
            for name in before:
                if None not in (before[name], after[name]) and before[name] != after[name]:
                    found[f"{name} {before[name]} in base, {after[name]} in head"] = None
        return "; ".join(found)


def pair_up(base: Iterable[Result], head: Iterable[Result], *, across_devices: bool) -> Pairs:
    """Find each subject on both sides: same name, format, backend, options, threads, batch, input.

    Subjects that differ in nothing but the passes that were applied belong together where that is
    unambiguous, since the passes may be what changed.

    Args:
        base: of several results of one subject the newest counts.
        head: likewise.
        across_devices: subjects of differently named devices belong together, if each side has one.

    Raises:
        UnavailableError: the sides have no device in common and that was not asked for, or they
            have several.
    """
    sides = [list(base), list(head)]
    named = _named(sides, across_devices)
    (first, older_base), (second, older_head) = (_newest(side, named) for side in sides)
    both = {key: (first.pop(key), second.pop(key)) for key in list(first) if key in second}
    rewritten = _by_subject(first, second)
    for before, after in rewritten:
        both[before] = (first.pop(before), second.pop(after))
    pairs = tuple(both.values())
    notes = [
        *_older("base", older_base),
        *_older("head", older_head),
        *([f"other passes in head than in base: {len(rewritten)} rows"] if rewritten else []),
        *_settings(pairs),
    ]
    return Pairs(pairs, tuple(first.values()), tuple(second.values()), tuple(notes))


def called(result: Result) -> dict[str, Any]:
    """What tells a subject from the others, in words and numbers."""
    subject = result.subject
    return {
        "kind": subject.kind,
        "model": subject.name,
        "input": " ".join("x".join(map(str, spec.shape[1:])) for spec in subject.inputs),
        "format": subject.format,
        "precision": subject.precision,
        "backend": subject.backend,
        "options": dict(subject.options),
        "device": result.context.device.name,
        "threads": subject.threads,
        "batch": subject.batch,
    }


def _named(sides: Sequence[Sequence[Result]], across_devices: bool) -> bool:
    """Whether the device's name tells subjects apart."""
    names = [sorted({r.context.device.name for r in side}) for side in sides]
    if not all(names) or set(names[0]) & set(names[1]):
        return True
    words = " and ".join(
        f"{', '.join(found)} in {side}" for found, side in zip(names, ("base", "head"), strict=True)
    )
    if not across_devices:
        raise UnavailableError(
            f"base and head were not measured on the same device: {words}",
            hint="measure both on one device, or say --across-devices",
        )
    if max(map(len, names)) > 1:
        raise UnavailableError(
            f"which device belongs to which cannot be told: {words}",
            hint="give the results of one device a side",
        )
    return False


def _newest(results: Iterable[Result], named: bool) -> tuple[dict[Key, Result], int]:
    newest: dict[Key, Result] = {}
    count = 0
    for result in results:
        key, count = _key(result, named), count + 1
        if key not in newest or result.context.created >= newest[key].context.created:
            newest[key] = result
    return newest, count - len(newest)


def _key(result: Result, named: bool) -> Key:
    """What makes it the same subject; the passes come last."""
    s = result.subject
    shapes = tuple(spec.shape for spec in s.inputs)
    device = result.context.device.name if named else None
    words = (device, s.kind, s.name, s.format, s.precision, s.backend)
    options = json.dumps(dict(s.options), sort_keys=True)
    return (*words, options, s.threads, s.batch, shapes, s.passes)


def _by_subject(first: Iterable[Key], second: Iterable[Key]) -> list[tuple[Key, Key]]:
    """Keys that are the same but for the passes, and have one candidate a side."""
    lists = [list(first), list(second)]
    counts = [Counter(key[:-1] for key in keys) for keys in lists]
    once = {key for key, n in counts[0].items() if n == 1 and counts[1][key] == 1}
    found = {key[:-1]: key for key in lists[1] if key[:-1] in once}
    return [(key, found[key[:-1]]) for key in lists[0] if key[:-1] in once]


def _older(side: str, count: int) -> Iterator[str]:
    if count:
        yield f"{side}: {count} older result{'s' * (count > 1)} of the same subjects left out"


def _settings(pairs: Iterable[tuple[Result, Result]]) -> Iterator[str]:
    names: set[str] = set()
    for base, head in pairs:
        before, after = base.subject.settings, head.subject.settings
        names |= {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    if names:
        yield f"the runtime was set up differently: {', '.join(sorted(names))}"


def _machine(result: Result) -> dict[str, Any]:
    device = result.context.device
    cpu, machine = (_facts(result, key) for key in ("cpu", "machine"))
    return {
        "device": device.name,
        "emulated": "yes" if device.emulated else "no",
        "CPU": cpu.get("model"),
        "CPU count": cpu.get("count"),
        "architecture": machine.get("arch"),
        "board": machine.get("model"),
    }


def _versions(result: Result) -> dict[str, Any]:
    return {
        "runtime": runtime_of(result),
        "system": _facts(result, "os").get("name"),
    }


def _facts(result: Result, key: str) -> Mapping[str, Any]:
    facts = result.context.device.facts.get(key)
    return facts if isinstance(facts, Mapping) else {}
