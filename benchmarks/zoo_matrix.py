"""The whole matrix: every model and block created, counted, exported to every format and verified.

python -m benchmarks.zoo_matrix [NAME ...] [--format onnx,coreml,tflite] [--jobs 2] [--again]

Names may hold wildcards. What it finds stands in ``docs/zoo.json``, one line a file, written the
moment a subject is done; a run that was cut short goes on where it was. A file is not made again
while nothing that decides it has changed: the graph after all passes (its hash covers the weights),
the exporter's source, the versions of its tools. Files that failed are tried again. Each subject
has a process of its own for a while, so that a converter that crashes, hangs or runs out of memory
costs that subject alone.

Exits with 1 if a file failed or a count is off.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from benchmarks.zoo_cell import Cell, Subject, examine, failed
from edgevit.errors import UnknownNameError
from edgevit.measure.results import write_atomically
from edgevit.versions import code_digest, tool_versions
from edgevit.zoo.registry import list_blocks, list_models

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "docs" / "zoo.json"
FORMATS = ("onnx", "coreml", "tflite")
#: Seconds that one subject may take, all formats together.
PATIENCE_S = 1800
#: Subjects after which a process makes room for a new one: converters keep what they allocate.
SUBJECTS_A_PROCESS = 8
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


def is_current(known: Mapping[str, Any] | None, formats: Sequence[str], code: str) -> bool:
    """Whether a subject need not even be built: our code and all tools are the same."""
    if known is None or (known["code"], known["tools"]) != (code, versions_hash()):
        return False
    cells = known["formats"]
    return all(name in cells and cells[name]["status"] != "failed" for name in formats)


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


def run(subjects: Sequence[Subject], formats: Sequence[str], jobs: int, again: bool) -> State:
    """Examine subjects in parallel processes; the state file grows as they are done."""
    import multiprocessing

    from pebble import ProcessExpired, ProcessPool

    state, code = read_state(STATE), code_digest()
    names = {subject.key for subject in (*chosen([]), *subjects)}
    state = {name: entry for name, entry in state.items() if name in names}
    left = [s for s in subjects if again or not is_current(state.get(s.key), formats, code)]
    say(f"{len(subjects)} subjects, {len(subjects) - len(left)} unchanged; {jobs} at a time")
    start = time.monotonic()
    pool = ProcessPool(
        max_workers=jobs,
        max_tasks=SUBJECTS_A_PROCESS,
        context=multiprocessing.get_context("spawn"),
    )
    with pool:
        futures = {}
        for subject in left:
            known = {} if again else state.get(subject.key, {})
            asked = [subject, formats, known]
            futures[pool.schedule(examine, args=asked, timeout=PATIENCE_S)] = subject.key
        try:
            for number, future in enumerate(as_completed(futures), 1):
                key = futures[future]
                old = {} if again else state.get(key, {})
                try:
                    entry = future.result()
                except FutureTimeout:
                    entry = broken(old, formats, f"not done after {PATIENCE_S} s")
                except ProcessExpired as error:
                    entry = broken(old, formats, f"its process died: exit code {error.exitcode}")
                except Exception as error:
                    entry = broken(old, formats, str(failed(error)["reason"]))
                entry["formats"] = {**old.get("formats", {}), **entry["formats"]}
                state[key] = entry | {"tools": versions_hash()}
                write_state(STATE, state)
                words = ", ".join(f"{f} {entry['formats'][f]['status']}" for f in formats)
                minutes = (time.monotonic() - start) / 60
                say(f"{number}/{len(left)} {key}: {words}   ({minutes:.0f} min)")
        except KeyboardInterrupt:
            pool.stop()
            say("interrupted: what is done stands in the state file, the same command goes on")
            raise
    return state


def broken(old: Mapping[str, Any], formats: Sequence[str], reason: str) -> dict[str, Any]:
    """The entry of a subject whose process did not come back."""
    cell = {"status": "failed", "reason": reason, "key": ""}
    counted = old.get("counts", {})
    return {"code": "", "counts": counted, "graph": "", "formats": dict.fromkeys(formats, cell)}


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="also what has not changed")
    asked = parser.parse_args()
    formats = asked.format.split(",")
    if unknown := [name for name in formats if name not in FORMATS]:
        parser.error(f"unknown format {unknown[0]}; there are {', '.join(FORMATS)}")
    try:
        subjects = chosen(asked.names)
    except UnknownNameError as error:
        parser.error(f"{error}; {error.hint}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        state = run(subjects, formats, asked.jobs, asked.again)
    except KeyboardInterrupt:
        return 130
    return 1 if print_matrix(state, subjects, formats) else 0


if __name__ == "__main__":
    sys.exit(main())
