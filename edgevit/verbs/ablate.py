"""A file on a device with and without each of its blocks, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeAlias

from devices.base import Job, Schedule, Session, Subject
from edgevit.errors import DeviceError, MissingExtraError, UnavailableError, UsageError
from edgevit.measure.profile import BlockTime
from edgevit.profiling.ablation import CannotLeaveOutError, OnnxBlocks
from edgevit.progress import Progress
from edgevit.verbs.subjects import Entry

__all__ = ["ABLATABLE", "ablate_blocks"]

#: Formats whose files can be written without a block.
ABLATABLE = ("onnx", "tflite")
#: So many shorter files share a job with the whole one: each of them is held in memory.
TOGETHER = 4
WHOLE = "whole"

#: Times in ns by round.
Rounds: TypeAlias = "dict[int, list[int]]"


class Blocks(Protocol):
    """The blocks of a file."""

    suffix: str

    @property
    def names(self) -> list[str]:
        """In the order of the file."""
        ...

    def write_whole(self, path: Path) -> None:
        """The file as the others are written."""
        ...

    def write_without(self, name: str, path: Path) -> None:
        """The file without that block; CannotLeaveOutError if that cannot be."""
        ...


def ablate_blocks(
    session: Session, entry: Entry, schedule: Schedule, progress: Progress
) -> list[BlockTime]:
    """Time the file without each block that can be left out, and the whole, in the same rounds.

    Args:
        session: with no job running.
        entry: the whole file; it was checked before.
        schedule: how long to measure each.
        progress: told which block it is at.

    Raises:
        UsageError: no block's name is known.
        UnavailableError: no file of that format can be written without a block.
        DeviceError: the agent failed.
    """
    blocks = _blocks(entry)
    names = blocks.names
    found: dict[str, BlockTime] = {}
    waiting = iter(names)
    while some := list(islice(waiting, TOGETHER)):
        progress.advance("blocks", len(found), len(names), some[0])
        found |= _timed(session, entry, schedule, blocks, some)
    progress.advance("blocks", len(names), len(names), "done")
    return [found[name] for name in names]


def _blocks(entry: Entry) -> Blocks:
    bundle, name = entry.bundle, entry.record.format
    if name not in ABLATABLE:
        raise UnavailableError(
            f"no {name} file can be written without a block",
            hint=f"ablate {' or '.join(ABLATABLE)}",
        )
    try:
        import onnx  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingExtraError("leaving out blocks", ["onnx"], "onnx") from error
    file = bundle.path / bundle.artifact(name)["file"]
    if name == "onnx":
        return OnnxBlocks(file)
    if "onnx" not in bundle.formats:
        raise UsageError(
            f"{bundle.path} has no onnx file, which tells the blocks of its tflite file",
            hint=f"edgevit export {bundle.name} --format onnx,tflite",
        )
    from edgevit.profiling.ablation_tflite import TFLiteBlocks, layers_of_weights

    layers = layers_of_weights(bundle.path / bundle.artifact("onnx")["file"])
    return TFLiteBlocks(file, layers)


def _timed(
    session: Session, entry: Entry, schedule: Schedule, blocks: Blocks, names: Sequence[str]
) -> dict[str, BlockTime]:
    """Blocks with their times, from one job."""
    found: dict[str, BlockTime] = {}
    with tempfile.TemporaryDirectory(prefix="edgevit-ablation-") as folder:
        for number, name in enumerate(names):
            reason = _refusal(blocks, name, Path(folder) / f"{number}{blocks.suffix}")
            if reason is not None:
                found[name] = BlockTime(name, reason=reason)
        left = [number for number, name in enumerate(names) if name not in found]
        if not left:
            return found
        blocks.write_whole(Path(folder) / f"{WHOLE}{blocks.suffix}")
        place = session.push(Path(folder))
        files = tuple(_subjects(entry, place, [WHOLE, *map(str, left)], blocks.suffix))
        samples, errors = _run(session, Job("time", files, entry.record.threads, schedule))
    for number in left:
        found[names[number]] = _block_time(names[number], str(number), samples, errors)
    return found


def _refusal(blocks: Blocks, name: str, path: Path) -> str | None:
    """Write the file without a block, or say why it cannot be left out."""
    try:
        blocks.write_without(name, path)
    except CannotLeaveOutError as error:
        return str(error)
    return None


def _block_time(
    block: str, name: str, samples: Mapping[str, Rounds], errors: Mapping[str, str]
) -> BlockTime:
    if (error := errors.get(name) or errors.get(WHOLE)) is not None:
        return BlockTime(block, reason=error)
    return BlockTime.of_rounds(block, samples.get(WHOLE, {}), samples.get(name, {}))


def _subjects(entry: Entry, place: str, names: Sequence[str], suffix: str) -> Iterator[Subject]:
    """The files as a job has them; what they compute is not checked, their input is noise."""
    whole = entry.on_device(place)
    for name in names:
        yield replace(whole, id=name, file=f"{place}/{name}{suffix}", sha256=None, golden=None)


def _run(session: Session, job: Job) -> tuple[dict[str, Rounds], dict[str, str]]:
    """Samples by round, and errors, by the subjects' ids."""
    samples: dict[str, Rounds] = {}
    errors: dict[str, str] = {}
    with closing(session.run(job)) as events:  # type: ignore[type-var]
        for event in events:
            if event["event"] == "samples":
                rounds = samples.setdefault(event["id"], {})
                rounds.setdefault(event["round"], []).extend(event["ns"])
            elif event["event"] == "error" and event.get("id") is None:
                raise DeviceError(f"blocks were not timed: {event['message']}")
            elif event["event"] == "error":
                errors[event["id"]] = str(event["message"])
    return samples, errors
