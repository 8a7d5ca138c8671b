"""A row of a table of races: files made first, by as many processes as there are cores, and raced
when nothing else runs any more."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.races import Array, Limits, Racer, Run, race
from benchmarks.sources import format_digest
from benchmarks.ways import Candidate, NothingToDoError, Workbench, eager, graph_hash
from edgevit.versions import tool_versions
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.source import Source

__all__ = ["Made", "circumstances", "is_current", "joined", "make_row", "race_row"]

Row = dict[str, Any]
#: Above this share of the output's scale, a file is wrong.
WRONG = 1e-4
PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxsim", "onnxslim", "openvino", "litert-torch",
    "ai-edge-litert", "executorch", "edgevit",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A model's files, ready to be raced.

    Args:
        model: its name.
        head: what the row begins with.
        entries: what is known of each candidate, in the order of the table.
        files: of those that may race; None for the model itself.
    """

    model: str
    head: Row
    entries: Mapping[str, Row]
    files: Mapping[str, Path | None]


# -- before the race -------------------------------------------------------------------------------


def make_row(
    model: str,
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    batch: int = 1,
    known: Mapping[str, Any] | None = None,
    formats: Sequence[str] = ("onnx",),
) -> Made | None:
    """Make and check the files of all candidates; None if the known row still holds."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    source = source_of(model, batch)
    code = format_digest(formats)[:16]
    identity = {"graph": graph_hash(source), "code": code, "versions": tool_versions(PACKAGES)}
    names = [candidate.name for candidate in candidates]
    if known is not None and is_current(known, identity, names):
        return None
    bench, x = Workbench(source, folder), sample(source)
    want = eager(source)(x)
    entries: dict[str, Row] = {}
    files: dict[str, Path | None] = {}
    for candidate in candidates:
        entries[candidate.name], file = examine(candidate, bench, x, want)
        if entries[candidate.name]["status"] == "ok":
            files[candidate.name] = file
    macs, seconds = count(source), round(time.perf_counter() - start)
    head = {**identity, "batch": batch, "macs": macs, "seconds": {"make": seconds}}
    return Made(model, head, entries, files)


def is_current(known: Mapping[str, Any], identity: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a published row is of the same graph, code, versions and candidates."""
    same = all(known.get(key) == value for key, value in identity.items())
    return same and list(known["candidates"]) == list(names)


def examine(
    candidate: Candidate, bench: Workbench, x: Array, want: Array
) -> tuple[Row, Path | None]:
    """What is known of a candidate before it runs for time, and its file."""
    entry: Row = {"ours": candidate.ours}
    if missing := candidate.missing():
        reason = f"{', '.join(missing)} not installed"
        return {**entry, "status": "absent", "reason": reason}, None
    try:
        with quiet():
            file = candidate.make(bench) if candidate.make else None
            got = candidate.open(file or bench.source)(x)
    except NothingToDoError:
        return {**entry, "status": "none", "reason": "nothing to rewrite"}, None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.replace(str(bench.folder), "DIR")[:160]
        return {**entry, "status": "failed", "reason": reason}, None
    entry["of_scale"] = off = float(f"{np.abs(got - want).max() / np.abs(want).max():.1e}")
    return {**entry, "status": "ok" if off <= WRONG else "wrong"}, file


def source_of(model: str, batch: int) -> Source:
    """The model, the same in every process."""
    from edgevit.source import model_source

    return model_source(model, batch=batch, seed=0)


def sample(source: Source) -> Array:
    """What all files are run on."""
    return np.random.default_rng(0).standard_normal(source.inputs[0].shape, dtype=np.float32)


def count(source: Source) -> int:
    """Multiply-accumulates of one run, all rows of the batch."""
    from edgevit.zoo.counting import count_macs

    return count_macs(source.module, source.inputs)


# -- the race --------------------------------------------------------------------------------------


def race_row(made: Made, candidates: Sequence[Candidate], limits: Limits, part: int = 0) -> Row:
    """Each candidate's times, or why it has none; other parts have other orders."""
    import torch

    torch.set_num_threads(1)
    start, source = time.perf_counter(), source_of(made.model, made.head["batch"])
    entrants = [(c, made.files[c.name]) for c in candidates if c.name in made.files]
    racers = [Racer(c.name, opener(c, file, source)) for c, file in entrants]
    others = race(racers, sample(source), limits, f"{made.model} {part}")
    times = {r.name: [[round(1e6 * s, 2) for s in o] for o in r.seconds] for r in racers}
    entries = {
        name: {**entry, "us": times[name]} if name in times else entry
        for name, entry in made.entries.items()
    }
    seconds = {**made.head["seconds"], "race": round(time.perf_counter() - start)}
    return {**made.head, "seconds": seconds, "others": others, "candidates": entries}


def joined(parts: Sequence[Row]) -> Row:
    """What parts of a race are together."""
    *_, last = parts
    entries = {
        name: {**entry, "us": [o for part in parts for o in part["candidates"][name]["us"]]}
        if "us" in entry
        else entry
        for name, entry in last["candidates"].items()
    }
    race_s = sum(part["seconds"]["race"] for part in parts)
    others = [part["others"] for part in parts if part["others"] is not None]
    return {
        **last,
        "seconds": {**last["seconds"], "race": race_s},
        "others": max(others, default=None),
        "candidates": entries,
    }


def opener(candidate: Candidate, file: Path | None, source: Source) -> Callable[[], Run]:
    """Opens a file anew each time; a model, which is only put in memory once, is the same again."""
    if file is not None:
        return functools.partial(candidate.open, file)
    run = candidate.open(source)
    return lambda: run


def circumstances() -> Row:
    """Where, when and at what load of the machine; what it reaches at best."""
    from devices.agent.facts import cpu
    from edgevit.verbs.peak import peak

    load = round(os.getloadavg()[0], 2)
    roof = peak("local", threads=1, fresh=True)
    return {
        "cpu": cpu(),
        "peak": {"flops_per_s": roof.flops_per_s, "method": roof.methods["flops"]},
        "load": load,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
