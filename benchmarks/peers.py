"""What edgevit exports against what others make of the same weights, one thread, fp32.

python -m benchmarks.peers [MODEL ...] [--kind batch-1] [--only onnx] [--rounds 31]
python -m benchmarks.peers --publish [--kind passes | --all] [--again]

Kinds of table: ``batch-1`` every way to make and run a file; ``batch-16`` onnxruntime alone;
``passes`` each rewrite's own part in onnxruntime; ``zoo-1`` and ``zoo-16`` all other models of the
zoo in onnxruntime.

All files of a model are loaded into one process and take turns in shuffled order, a block of runs
each, round after round; what is compared is the process's CPU time, and what is told is the median
over the rounds of (naive / file), so more than 1 is faster than the naive file. Naive is
``torch.onnx.export(dynamo=True)`` run by onnxruntime's defaults. A file whose outputs leave the
eager model's by more than 1e-4 of their scale is wrong, and its time is not told. Where each
rewrite's part is looked for, the file of all default rewrites is the base instead.

``--publish`` writes ``docs/performance.json``, row by row, and ends with 3 where the machine is
busy, before a row or during it. The same command goes on later: a row that was published with the
same graph, exporters and versions is not measured again unless ``--again`` says so. A row of
``zoo-1`` and ``zoo-16`` ends as soon as it is on one side of what no model may fall below.
``python -m benchmarks.performance_page`` makes ``docs/performance.md`` of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.ratios import compare
from benchmarks.ways import (
    CANDIDATES,
    CONTROL,
    FORMATS,
    NAIVE,
    OURS,
    Array,
    Candidate,
    NothingToDoError,
    Run,
    Workbench,
    eager,
    graph_hash,
    naive,
    pass_candidates,
)
from edgevit.errors import UnknownNameError
from edgevit.measure.results import write_atomically
from edgevit.versions import tool_versions
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.source import Source

RECORD = Path(__file__).parents[1] / "docs" / "performance.json"
EXPORTERS = Path(__file__).parents[1] / "exporters"
#: One of each family, and those whose rewrites were expected to pay.
MODELS = (
    "efficientvit_m0", "efficientvit_m2", "efficientvit_m4", "efficientvit_m5", "elevit",
    "deit_small", "deit_small+sima", "xcit_small_12_p16", "xcit_small_12_p16+sima",
    "levit_cifar10", "pvt_tiny", "swiftformer_l3", "efficientformerv2_l", "swin_tiny", "cvt_13",
    "soft_tiny", "lavit_t", "vit_cifar10", "cct_cifar10", "pit_cifar10", "mixer_cifar10",
    "fnet_cifar10", "ceit_tiny", "deepvit_tiny", "hvt_tiny",
)  # fmt: skip
#: Load of the machine, our own thread with it, above which nothing is published.
BUSY = 1.5
#: How long the load may take to fall again after files were made.
SETTLE_S = 180.0
WRONG = 1e-4
#: No model of the zoo may be below it in onnxruntime, as a multiple of the naive file's speed.
FLOOR = 0.98
BLOCK_S = 0.04
WARM_UP = 3
#: A median's 95 % interval needs six rounds; with nine it is none of the extremes.
LEAST_ROUNDS = 9
PATIENCE_S = 3600.0
PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxsim", "onnxslim", "openvino", "litert-torch",
    "ai-edge-litert", "executorch", "edgevit",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A table of the page.

    Args:
        name: on the command line, and in the record.
        batch: rows of the inputs.
    """

    name: str
    batch: int = 1

    def models(self) -> list[str]:
        """Its rows."""
        if not self.name.startswith("zoo"):
            return list(MODELS)
        from edgevit.zoo.registry import list_models

        return [name for name in list_models() if name not in MODELS]

    def candidates(self) -> list[Candidate]:
        """Its columns; the first is what the others are compared with."""
        if self.name == "passes":
            return pass_candidates()
        if self.name == "batch-1":
            base, *others = CANDIDATES
            return [base, Candidate(CONTROL, naive), *others]
        chosen = [c for c in CANDIDATES if c.name in (NAIVE, OURS)]
        return chosen if self.floor else [chosen[0], Candidate(CONTROL, naive), *chosen[1:]]

    @property
    def floor(self) -> float | None:
        """Where a row ends as soon as it is on one side of this ratio, that; or None."""
        return FLOOR if self.name.startswith("zoo") else None

    @property
    def formats(self) -> list[str]:
        """Those that its files of edgevit's have."""
        return list(FORMATS.values()) if self.name == "batch-1" else ["onnx"]


KINDS = (
    Kind("batch-1"), Kind("passes"), Kind("batch-16", 16), Kind("zoo-1"), Kind("zoo-16", 16),
)  # fmt: skip


@dataclass
class Racer:
    """A loaded candidate and its CPU seconds a run, round by round."""

    name: str
    run: Run
    inner: int = 1
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """How long a race lasts: so many rounds, but fewer where that many seconds are over.

    With a floor, fewer also where the last candidate is shown to be on one side of it.
    """

    rounds: int = 151
    seconds: float = 75.0
    floor: float | None = None


# -- the race --------------------------------------------------------------------------------------


def examine(
    model: str,
    candidates: Sequence[Candidate],
    *,
    batch: int = 1,
    limits: Limits | None = None,
    known: Mapping[str, Any] | None = None,
    formats: Sequence[str] = ("onnx",),
) -> dict[str, Any] | None:
    """A row: each candidate's times, or why it has none; None if the known row still holds."""
    import torch

    from edgevit.source import model_source

    torch.set_num_threads(1)
    limits, start = limits or Limits(), time.perf_counter()
    source = model_source(model, batch=batch, seed=0)
    identity = {"graph": graph_hash(source), "code": code(formats), "versions": versions()}
    names = [candidate.name for candidate in candidates]
    if known is not None and is_current(known, identity, names):
        return None
    x = np.random.default_rng(0).standard_normal(source.inputs[0].shape, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(source, Path(folder))
        want = eager(bench)(x)
        loaded = {candidate.name: load(candidate, bench, x, want) for candidate in candidates}
        racers = [racer for racer, _ in loaded.values() if racer is not None]
        made, others = time.perf_counter(), race(racers, x, limits)
    entries = {name: entry for name, (_, entry) in loaded.items()}
    for racer in racers:
        entries[racer.name] |= {"us": [round(1e6 * s, 2) for s in racer.seconds]}
    seconds = {"make": round(made - start), "race": round(time.perf_counter() - made)}
    return {
        **identity,
        "batch": batch,
        "macs": count(source),
        "seconds": seconds,
        **circumstances(others),
        "candidates": entries,
    }


def is_current(known: Mapping[str, Any], identity: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a published row is of the same graph, versions and candidates."""
    same = all(known.get(key) == value for key, value in identity.items())
    return same and list(known["candidates"]) == list(names)


def load(
    candidate: Candidate, bench: Workbench, x: Array, want: Array
) -> tuple[Racer | None, dict[str, Any]]:
    """A candidate ready to run, and its error; or nothing, and why."""
    entry: dict[str, Any] = {"ours": candidate.ours}
    if missing := candidate.missing():
        reason = f"{', '.join(missing)} not installed"
        return None, {**entry, "status": "absent", "reason": reason}
    try:
        with quiet():
            run = candidate.make(bench)
            got = run(x)
    except NothingToDoError:
        return None, {**entry, "status": "none", "reason": "nothing to rewrite"}
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        reason = reason.replace(str(bench.folder), "DIR")
        return None, {**entry, "status": "failed", "reason": reason}
    entry["of_scale"] = off = float(f"{np.abs(got - want).max() / np.abs(want).max():.1e}")
    if not off <= WRONG:
        return None, {**entry, "status": "wrong"}
    return Racer(candidate.name, run), {**entry, "status": "ok"}


def race(racers: Sequence[Racer], x: Array, limits: Limits) -> float | None:
    """Fill in CPU seconds a run: a block each, in shuffled order, round after round.

    Returns:
        How many cores others kept busy meanwhile; None where that cannot be told.
    """
    for racer in racers:
        start = time.perf_counter()
        for _ in range(WARM_UP):
            racer.run(x)
        racer.inner = max(1, round(BLOCK_S / ((time.perf_counter() - start) / WARM_UP)))
    order, shuffler = list(racers), random.Random(0)
    gc.collect()
    gc.disable()
    watch = OthersWatch()
    for number in range(limits.rounds):
        if number >= LEAST_ROUNDS and watch.wall() > limits.seconds:
            break
        shuffler.shuffle(order)
        for racer in order:
            block(racer, x)
        if number >= LEAST_ROUNDS and limits.floor and is_told(racers, limits.floor):
            break
    gc.enable()
    return watch.cores()


def is_told(racers: Sequence[Racer], floor: float) -> bool:
    """Whether the last one's speed is above or below a share of the first one's."""
    found = compare(racers[0].seconds, racers[-1].seconds)
    return len(racers) > 1 and not found.low <= floor <= found.high


def block(racer: Racer, x: Array) -> None:
    """One round of one candidate."""
    racer.run(x)  # its own weights back into the caches, whoever ran before
    start_ns = time.process_time_ns()
    for _ in range(racer.inner):
        racer.run(x)
    racer.seconds.append((time.process_time_ns() - start_ns) / racer.inner / 1e9)


class OthersWatch:
    """How many cores processes other than this one keep busy, from its making on."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float | None]:
        return time.perf_counter(), time.process_time(), _busy_seconds()

    def wall(self) -> float:
        """Seconds since."""
        return time.perf_counter() - self._start[0]

    def cores(self) -> float | None:
        """Mean number of cores; None where the system does not tell."""
        (wall, own, busy), (wall0, own0, busy0) = self._now(), self._start
        if busy is None or busy0 is None:
            return None
        return round(max(0.0, (busy - busy0 - (own - own0)) / (wall - wall0)), 3)


def _busy_seconds() -> float | None:
    """Seconds that all cores together were busy, of Linux's own count."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *rest = map(int, line[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


# -- what goes with a row --------------------------------------------------------------------------


def circumstances(others: float | None) -> dict[str, Any]:
    """Where, when and on how busy a machine; what it reaches at best."""
    from devices.agent.facts import cpu
    from edgevit.verbs.peak import peak

    load = round(os.getloadavg()[0], 2)
    roof = peak("local", threads=1, fresh=True)
    return {
        "cpu": cpu(),
        "peak": {"flops_per_s": roof.flops_per_s, "method": roof.methods["flops"]},
        "load": load,
        "others": others,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str | None]:
    """Of everything that takes part; None for what is not installed."""
    return tool_versions(PACKAGES)


def code(formats: Sequence[str]) -> str:
    """Hash of what writes the formats."""
    digest = hashlib.sha256()
    for pattern in ("base.py", "traceable.py", *(f"{name}*.py" for name in formats)):
        for file in sorted(EXPORTERS.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def count(source: Source) -> int:
    """Multiply-accumulates of one run, all rows of the batch."""
    from edgevit.zoo.counting import count_macs

    return count_macs(source.module, source.inputs)


# -- the record ------------------------------------------------------------------------------------


def read_record(file: Path) -> dict[str, dict[str, Any]]:
    """What was published; empty if nothing was."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def write_record(file: Path, record: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a candidate, so that a change shows as such."""
    tables = []
    for kind, rows in record.items():
        lines = [f"  {json.dumps(model)}: {_row_text(row)}" for model, row in sorted(rows.items())]
        tables.append(f" {json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n }")
    write_atomically(file, "{\n" + ",\n".join(tables) + "\n}\n")


def _row_text(row: Mapping[str, Any]) -> str:
    head = json.dumps({k: v for k, v in row.items() if k != "candidates"})[:-1]
    cells = [f"   {json.dumps(n)}: {json.dumps(entry)}" for n, entry in row["candidates"].items()]
    return f'{head}, "candidates": {{\n' + ",\n".join(cells) + "\n  }}"


# -- the command -----------------------------------------------------------------------------------


def settled(patience_s: float) -> bool:
    """Whether the load falls to what may be published; files made just now have raised it."""
    end = time.monotonic() + patience_s
    while os.getloadavg()[0] > BUSY:
        if time.monotonic() > end:
            return False
        time.sleep(min(5.0, patience_s))
    return True


def busy(row: Mapping[str, Any]) -> bool:
    """Whether others worked while a row was measured."""
    return row["others"] is not None and 1 + row["others"] > BUSY


def apart(kind: Kind, model: str, only: str | None, limits: Limits, known: Any) -> Any:
    """A row, in a process of its own: a converter that crashes costs its row alone."""
    import multiprocessing

    from pebble import ProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=1, max_tasks=1, context=context) as pool:
        future = pool.schedule(row_of, args=[kind, model, only, limits, known], timeout=PATIENCE_S)
        try:
            return future.result()
        except BaseException:  # Ctrl-C too
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def row_of(
    kind: Kind, model: str, only: str | None, limits: Limits, known: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """One row of a kind, with those candidates whose names are wanted."""
    first, *others = kind.candidates()
    chosen = [first, *(c for c in others if wanted(c.name, only))]
    limits = dataclasses.replace(limits, floor=kind.floor)
    return examine(
        model, chosen, batch=kind.batch, limits=limits, known=known, formats=kind.formats
    )


def wanted(name: str, only: str | None) -> bool:
    return only is None or any(word in name for word in only.split(","))


def run(
    tasks: Sequence[tuple[Kind, str]],
    *,
    only: str | None = None,
    limits: Limits | None = None,
    publish: Path | None = None,
    again: bool = False,
    settle_s: float = SETTLE_S,
) -> int:
    """Measure rows one after the other; the exit code.

    Args:
        tasks: tables and models.
        only: words in the names of candidates, with commas.
        limits: of each race.
        publish: the record to write.
        again: also rows that hold.
        settle_s: how long to wait for the load to fall.
    """
    record, failed = read_record(publish) if publish else {}, 0
    for number, (kind, model) in enumerate(tasks, 1):
        label = f"[{number}/{len(tasks)}] {kind.name} {model}"
        if publish and not settled(settle_s):
            print(f"load {os.getloadavg()[0]:.2f} is above {BUSY}: nothing more is published")
            return 3
        known = None if again else record.get(kind.name, {}).get(model)
        try:
            row = apart(kind, model, only, limits or Limits(), known)
        except Exception as error:  # the other rows can do without this one
            print(f"{label} failed: {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        if row is None:
            print(f"{label}: published already", flush=True)
            continue
        print_row(label, row)
        if publish and busy(row):
            print(f"others kept {row['others']:.2f} cores busy: nothing more is published")
            return 3
        if publish:
            record.setdefault(kind.name, {})[model] = row
            write_record(publish, record)
    return 1 if failed else 0


def print_row(label: str, row: Mapping[str, Any]) -> None:
    others = "" if row["others"] is None else f", others {row['others']:.2f} cores"
    took = row["seconds"]
    print(f"{label}, load {row['load']}{others}, {took['make']} + {took['race']} s")
    entries = row["candidates"]
    base = next(iter(entries.values())).get("us")
    for name, found in entries.items():
        if found["status"] != "ok":
            print(f"  {name:<40} {found['status']}: {found.get('reason', found.get('of_scale'))}")
            continue
        ms, off = statistics.median(found["us"]) / 1e3, f"off by {found['of_scale']:.0e}"
        share = 2 * row["macs"] / (ms / 1e3) / row["peak"]["flops_per_s"]
        ratio = compare(base, found["us"]) if base else None
        said = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        print(f"  {name:<40} {ms:9.3f} ms {share:5.0%} of peak  {said}  {off}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="rows; all of the table without")
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kind", action="append", choices=names, help="table; several times")
    parser.add_argument("--all", action="store_true", help="every table")
    parser.add_argument("--only", help="candidates whose names hold one of these words, commas")
    parser.add_argument("--rounds", type=int, default=Limits.rounds)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="of a row's race")
    parser.add_argument("--publish", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--again", action="store_true", help="also rows published before")
    asked = parser.parse_args()
    if asked.publish and asked.only:
        parser.error("--publish takes whole rows, so no --only")
    chosen = names if asked.all else asked.kind or ["batch-1"]
    tasks = [(k, m) for k in KINDS if k.name in chosen for m in asked.models or k.models()]
    if unknown := sorted(set(asked.models) - set(known_models())):
        error = UnknownNameError("model", unknown[0], known_models(), listing="edgevit models")
        parser.error(f"{error}; {error.hint}" if error.hint else str(error))
    # Compiled here and not by a pool of processes that stays; and one thread for everybody.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    limits = Limits(asked.rounds, asked.seconds)
    publish = RECORD if asked.publish else None
    try:
        return run(tasks, only=asked.only, limits=limits, publish=publish, again=asked.again)
    except KeyboardInterrupt:
        print("interrupted; what is published is kept, and the same command goes on")
        return 130


def known_models() -> list[str]:
    from edgevit.zoo.registry import list_models

    return list_models()


if __name__ == "__main__":
    sys.exit(main())
