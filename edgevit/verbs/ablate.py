"""A file on a device with and without each of its blocks, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from devices.base import Job, Schedule, Session, Subject
from edgevit.errors import DeviceError, MissingExtraError, UnavailableError
from edgevit.measure.profile import BlockTime
from edgevit.profiling.ablation import CannotLeaveOutError, blocks_in, prepared, without_block
from edgevit.progress import Progress
from edgevit.verbs.subjects import Entry

__all__ = ["ABLATABLE", "ablate_blocks"]

#: Formats whose files can be written without a block.
ABLATABLE = ("onnx",)
#: So many shorter files share a job with the whole one: each of them is held in memory.
TOGETHER = 4
WHOLE = "whole"

#: Times in ns by round.
Rounds: TypeAlias = "dict[int, list[int]]"


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
        UnavailableError: no file of that format can be written without a block.
        DeviceError: the agent failed.
    """
    if entry.record.format not in ABLATABLE:
        raise UnavailableError(
            f"no {entry.record.format} file can be written without a block",
            hint=f"ablate {' or '.join(ABLATABLE)}",
        )
    model = _read(entry)
    blocks = blocks_in(model)
    found: dict[str, BlockTime] = {}
    waiting: list[tuple[str, Any]] = []
    for place, block in enumerate(blocks):
        progress.advance("blocks", place, len(blocks), block)
        try:
            waiting.append((block, without_block(model, block)))
        except CannotLeaveOutError as error:
            found[block] = BlockTime(block, reason=str(error))
        if len(waiting) == TOGETHER:
            found |= _timed(session, entry, schedule, model, waiting)
            waiting = []
    if waiting:
        found |= _timed(session, entry, schedule, model, waiting)
    progress.advance("blocks", len(blocks), len(blocks), "done")
    return [found[block] for block in blocks]


def _read(entry: Entry) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("leaving out blocks", ["onnx"], "onnx") from error
    file = entry.bundle.path / entry.bundle.artifact("onnx")["file"]
    return prepared(onnx.load_model(file))


def _timed(
    session: Session,
    entry: Entry,
    schedule: Schedule,
    model: Any,
    shorter: Sequence[tuple[str, Any]],
) -> dict[str, BlockTime]:
    """Blocks with their times, from one job."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgevit-ablation-") as folder:
        onnx.save_model(model, Path(folder) / f"{WHOLE}.onnx")
        for number, (_, left) in enumerate(shorter):
            onnx.save_model(left, Path(folder) / f"{number}.onnx")
        place = session.push(Path(folder))
        subjects = tuple(_subjects(entry, place, len(shorter)))
        samples, errors = _run(session, Job("time", subjects, entry.record.threads, schedule))
    return {
        block: _block_time(block, str(number), samples, errors)
        for number, (block, _) in enumerate(shorter)
    }


def _block_time(
    block: str, name: str, samples: Mapping[str, Rounds], errors: Mapping[str, str]
) -> BlockTime:
    if (error := errors.get(name) or errors.get(WHOLE)) is not None:
        return BlockTime(block, reason=error)
    return BlockTime.of_rounds(block, samples.get(WHOLE, {}), samples.get(name, {}))


def _subjects(entry: Entry, place: str, count: int) -> Iterator[Subject]:
    """The files as a job has them; what they compute is not checked, their input is noise."""
    for name in [WHOLE, *map(str, range(count))]:
        whole = entry.on_device(place)
        yield replace(whole, id=name, file=f"{place}/{name}.onnx", sha256=None, golden=None)


def _run(session: Session, job: Job) -> tuple[dict[str, Rounds], dict[str, str]]:
    """Samples by round, and errors, by the subjects' ids."""
    samples: dict[str, Rounds] = {}
    errors: dict[str, str] = {}
    with closing(session.run(job)) as events:  # type: ignore[type-var]
        for event in events:
            if event["event"] == "samples":
                samples.setdefault(event["id"], {}).setdefault(event["round"], []).extend(
                    event["ns"]
                )
            elif event["event"] == "error" and event.get("id") is None:
                raise DeviceError(f"blocks were not timed: {event['message']}")
            elif event["event"] == "error":
                errors[event["id"]] = str(event["message"])
    return samples, errors
