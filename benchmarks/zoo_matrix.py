"""The whole matrix: every model and block created, counted, exported to every format and verified.

python -m benchmarks.zoo_matrix [NAME ...] [--format onnx,coreml,tflite] [--jobs 2] [--again]

Names may hold wildcards. What it finds stands in ``docs/zoo.json``, one line a file, written the
moment it is done; a run that was cut short goes on where it was. A file is not made again
while nothing that decides it has changed: the graph after all passes (its hash covers the weights),
the exporter's source, the versions of its tools. Files that failed are tried again. Each has a
process of its own for a while, so that a converter that crashes, hangs or runs out of memory costs
that file alone.

Exits with 1 if a file failed or a count is off.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from benchmarks.zoo_cell import Cell, Subject, cell_key, examine, failed, is_made, matrix_digest
from edgevit.cli.common import CliProgress
from edgevit.errors import UnknownNameError
from edgevit.measure.results import write_atomically
from edgevit.progress import Progress
from edgevit.versions import tool_versions
from edgevit.zoo.registry import list_blocks, list_models

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "docs" / "zoo.json"
FORMATS = ("onnx", "coreml", "tflite")
#: Seconds that one task may take.
PATIENCE_S = 1800
#: Tasks after which a process makes room for a new one: converters keep what they allocate.
TASKS_A_PROCESS = 8
Task = tuple[Subject, str]
State = dict[str, dict[str, Any]]


def chosen(patterns: Sequence[str]) -> list[Subject]:
    """Models and blocks whose names match; all without a pattern.

    Raises:
        UnknownNameError: a pattern that matches nothing.
    """
    everything = [Subject("block", name) for name in list_blocks()]
    everything += [Subject("model", name) for name in list_models()]
    if not patterns:
        return everything
    names = [subject.name for subject in everything]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError("model or block", pattern, names, listing="edgevit models")
    return [s for s in everything if any(fnmatch.fnmatch(s.name, p) for p in patterns)]


def is_current(known: Mapping[str, Any] | None, name: str, code: str) -> bool:
    """Whether a file need not even be looked at: our code and all tools are the same."""
    if known is None or (known["code"], known["tools"]) != (code, versions_hash()):
        return False
    cell = known["formats"].get(name)
    return cell is not None and is_made(cell) and cell["key"] == cell_key(known["graph"], name)


def tasks(subjects: Sequence[Subject], formats: Sequence[str]) -> list[Task]:
    """Files in the order that shows most soonest.

    The first format of every model, then blocks in all formats, then models in the other formats.
    """
    models = [subject for subject in subjects if subject.kind == "model"]
    blocks = [(s, name) for s in subjects if s.kind == "block" for name in formats]
    first, *others = ([(model, name) for model in models] for name in formats)
    return [*first, *blocks, *(task for some in others for task in some)]


def versions_hash() -> str:
    """One word for the versions of all tools."""
    text = json.dumps(tool_versions(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_state(file: Path) -> State:
    """What is known; empty if there is no such file."""
    if not file.is_file():
        return {}
    found: State = json.loads(file.read_text(encoding="utf-8"))
    return found


def write_state(file: Path, state: State) -> None:
    """One line a file, sorted, so that a change shows as such."""
    lines = []
    for name in sorted(state):
        entry = {k: v for k, v in state[name].items() if k != "formats"}
        head = json.dumps(entry, sort_keys=True, ensure_ascii=False)[:-1]
        cells = ",\n".join(
            f"  {json.dumps(f)}: {json.dumps(c, sort_keys=True, ensure_ascii=False)}"
            for f, c in sorted(state[name]["formats"].items())
        )
        lines.append(f'{json.dumps(name)}: {head}, "formats": {{\n{cells}\n }}}}')
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, "{\n" + ",\n".join(lines) + "\n}\n")


def run(
    subjects: Sequence[Subject],
    formats: Sequence[str],
    *,
    file: Path,
    jobs: int = 2,
    again: bool = False,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> State:
    """Examine subjects in parallel processes; the state file grows with every file that is done.

    Args:
        subjects: models and blocks.
        formats: that each is exported to.
        file: the state, read first and written after every result.
        jobs: processes.
        again: also what has not changed.
        patience_s: seconds that one file may take.
        progress: told of every result.

    Returns:
        What is known of every subject, of those too that were not asked for.
    """
    progress = progress or Progress()
    state, code = read_state(file), matrix_digest()
    names = {subject.key for subject in (*chosen([]), *subjects)}
    state = {name: entry for name, entry in state.items() if name in names}
    asked = tasks(subjects, formats)
    left = [(s, n) for s, n in asked if again or not is_current(state.get(s.key), n, code)]
    progress.note(f"{len(asked)} files, {len(asked) - len(left)} unchanged; {jobs} at a time")
    known = {} if again else state
    for done, (task, entry) in enumerate(results(left, known, jobs, patience_s), 1):
        (subject, name), cell = task, entry["formats"][task[1]]
        merge(state, subject.key, entry)
        write_state(file, state)
        words = f"{subject.key}, {name}: {brief(cell)}"
        progress.advance("zoo", done, len(left), f"{done}/{len(left)} {words}")
        if not is_made(cell):
            progress.note(f"{subject.key}, {name}: {cell['reason']}")
    return state


def results(
    left: Sequence[Task], known: State, jobs: int, patience_s: float
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Entries as processes come up with them; no process is left behind when this is left."""
    import multiprocessing

    from pebble import ProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=jobs, max_tasks=TASKS_A_PROCESS, context=context) as pool:
        futures: dict[Any, Task] = {}
        for subject, name in left:
            cell = known.get(subject.key, {}).get("formats", {}).get(name)
            future: Future[Any] = pool.schedule(
                examine, args=[subject, name, cell], timeout=patience_s
            )
            futures[future] = (subject, name)
        try:
            for future in as_completed(futures):
                yield futures[future], outcome(future, futures[future][1], patience_s)
        except BaseException:  # Ctrl-C too, and whoever stops listening
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def outcome(future: Future[dict[str, Any]], name: str, patience_s: float) -> dict[str, Any]:
    """What a process found, or why it found nothing."""
    from pebble import ProcessExpired

    try:
        return future.result()
    except FutureTimeout:
        cell = failed(RuntimeError(f"not done after {patience_s:g} s"))
    except ProcessExpired as error:
        cell = failed(RuntimeError(f"its process died: exit code {error.exitcode}"))
    except Exception as error:
        cell = failed(error)
    return {"formats": {name: {**cell, "key": "", "inputs": []}}}


def merge(state: State, key: str, entry: dict[str, Any]) -> None:
    """Take in what a process found; other formats stay, and so does what it could not tell."""
    old = state.get(key, {"code": "", "counts": {}, "graph": "", "formats": {}})
    cells = {**old["formats"], **entry["formats"]}
    state[key] = {**old, **entry, "formats": cells, "tools": versions_hash()}


def print_matrix(state: State, subjects: Sequence[Subject], formats: Sequence[str]) -> int:
    """Subjects by formats; returns how many files failed or counts are off."""
    bad = 0
    print(f"{'':<34}" + "".join(f"{name:<26}" for name in formats))
    for subject in subjects:
        entry = state[subject.key]
        row = [f"{subject.key:<34}"]
        for name in formats:
            cell = entry["formats"][name]
            bad += cell["status"] == "failed"
            row.append(f"{brief(cell):<26}")
        print("".join(row).rstrip())
        if off := entry["counts"].get("off"):
            bad += 1
            print(f"    counts are off: {off}")
        for name in formats:
            if reason := entry["formats"][name].get("reason"):
                print(f"    {name}: {reason}")
    return bad


def brief(cell: Cell) -> str:
    """A cell in a few words: status, share of scale that it is off, seconds, size."""
    if "checks" not in cell:
        return str(cell["status"])
    off = f" {cell['checks'][0]['of_scale']:.0e}" if cell["checks"] else ""
    return f"{cell['status']}{off} {cell['bytes'] / 2**20:.1f} MiB"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="every model and block in every format")
    parser.add_argument("names", nargs="*", help="models and blocks, with wildcards; all without")
    parser.add_argument("--format", default=",".join(FORMATS), help="formats, with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--again", action="store_true", help="also what has not changed")
    parser.add_argument("--state", type=Path, default=STATE, help="what is known; docs/zoo.json")
    asked = parser.parse_args()
    formats = asked.format.split(",")
    try:
        if unknown := [name for name in formats if name not in FORMATS]:
            raise UnknownNameError("format", unknown[0], FORMATS)
        subjects = chosen(asked.names)
    except UnknownNameError as error:
        parser.error(f"{error}; {error.hint}" if error.hint else str(error))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = {"file": asked.state, "jobs": asked.jobs, "again": asked.again}
    try:
        with CliProgress() as progress:
            state = run(subjects, formats, progress=progress, **options)
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, and the same command goes on", file=sys.stderr)
        return 130
    return 1 if print_matrix(state, subjects, formats) else 0


if __name__ == "__main__":
    sys.exit(main())
