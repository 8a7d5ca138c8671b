"""What edgevit exports against what others make of the same weights, one thread, fp32.

python -m benchmarks.peers [MODEL ...] [--kind batch-1] [--only onnx] [--openings 4]
python -m benchmarks.peers --publish [--kind passes | --all] [--again]

Kinds of table: ``batch-1`` every way to make and run a file; ``batch-16`` onnxruntime alone;
``passes`` each rewrite's own part in onnxruntime; ``zoo-1`` and ``zoo-16`` all other models of the
zoo in onnxruntime; ``choices`` the models that a gain was wanted of, with every choice that edgevit
has for onnxruntime, and nothing else in the process.

Files of several rows are made first, then each row is raced by itself: all its files take turns in
one process (:mod:`benchmarks.races`). What is compared is the process's CPU time, naive by file, so
more than 1 is faster than the naive file (:mod:`benchmarks.ratios`). Naive is
``torch.onnx.export(dynamo=True)`` run by onnxruntime's defaults. A file whose outputs leave the
eager model's by more than 1e-4 of their scale is wrong, and its time is not told. Where each
rewrite's part is looked for, the file of all rewrites is the base instead.

``--publish`` writes ``docs/performance.json``, row by row, and ends with 3 where the machine is
busy, before a row or during it. The same command goes on later: a row that was published with the
same graph, exporters and versions is not measured again unless ``--again`` says so. A row of
``zoo-1`` and ``zoo-16`` ends as soon as it is on one side of what no model may fall below.
``python -m benchmarks.performance_page`` makes ``docs/performance.md`` of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.races import Limits
from benchmarks.ratios import compare, pooled
from benchmarks.record import RECORD, read_record, write_record
from benchmarks.rows import Made, Row, circumstances, joined, make_row, race_row
from benchmarks.ways import (
    CANDIDATES,
    CONTROL,
    FORMATS,
    NAIVE,
    OURS,
    Candidate,
    pass_candidates,
)
from edgevit.errors import UnknownNameError

#: One of each family, and those whose rewrites were expected to pay.
MODELS = (
    "efficientvit_m0", "efficientvit_m2", "efficientvit_m4", "efficientvit_m5", "elevit",
    "deit_small", "deit_small+sima", "xcit_small_12_p16", "xcit_small_12_p16+sima",
    "levit_cifar10", "pvt_tiny", "swiftformer_l3", "efficientformerv2_l", "swin_tiny", "cvt_13",
    "soft_tiny", "lavit_t", "vit_cifar10", "cct_cifar10", "pit_cifar10", "mixer_cifar10",
    "fnet_cifar10", "ceit_tiny", "deepvit_tiny", "hvt_tiny",
)  # fmt: skip
#: What edgevit's file was to gain on the naive one, in onnxruntime at batch 1.
WANTED = {
    "xcit_small_12_p16": 1.10, "deit_small+sima": 1.08, "efficientvit_m0": 1.05,
    "efficientvit_m4": 1.04, "efficientvit_m5": 1.04, "levit_cifar10": 1.05, "pvt_tiny": 1.10,
    "deit_small": 1.03,
}  # fmt: skip
#: Load of the machine, our own thread with it, above which nothing is published.
BUSY = 1.5
#: How long the load may take to fall again after files were made.
SETTLE_S = 180.0
#: No model of the zoo may be below it in onnxruntime, as a multiple of the naive file's speed.
FLOOR = 0.98
PATIENCE_S = 3600.0


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
        if self.name == "choices":
            return list(WANTED)
        if not self.name.startswith("zoo"):
            return list(MODELS)
        from edgevit.zoo.registry import list_models

        return [name for name in list_models() if name not in MODELS]

    def candidates(self) -> list[Candidate]:
        """Its columns; the first is what the others are compared with."""
        if self.name == "passes":
            return pass_candidates()
        if self.name == "batch-1":
            return with_control(CANDIDATES)
        if self.name == "choices":
            ours = [c for c in pass_candidates() if c.name != CONTROL and "usual" not in c.name]
            return with_control([CANDIDATES[0], *ours])
        chosen = [c for c in CANDIDATES if c.name in (NAIVE, OURS)]
        return chosen if self.floor else with_control(chosen)

    @property
    def floor(self) -> float | None:
        """Where a row ends as soon as it is on one side of this ratio, that; or None."""
        return FLOOR if self.name.startswith("zoo") else None

    @property
    def processes(self) -> int:
        """How many race a row, one after the other, each a part of the openings.

        A process can be unlucky as a whole: of EfficientViT-M5's own file, opened 24 times in one,
        the same bytes again were faster by 2.0 +- 0.8 %, in four others by -0.1 to 0.5 %.
        """
        return 1 if self.floor else 3

    @property
    def ahead(self) -> int:
        """Rows whose files are made before the first of them is raced.

        The load of the machine has to fall each time; but some of all ways' files lie on 1 GiB.
        """
        return 6 if self.name == "batch-1" else 24

    @property
    def formats(self) -> list[str]:
        """Those that its files of edgevit's have."""
        return list(FORMATS.values()) if self.name == "batch-1" else ["onnx"]


def with_control(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of them twice."""
    return [candidates[0], dataclasses.replace(candidates[0], name=CONTROL), *candidates[1:]]


KINDS = (
    Kind("batch-1"), Kind("passes"), Kind("batch-16", 16), Kind("zoo-1"), Kind("zoo-16", 16),
    Kind("choices"),
)  # fmt: skip


# -- the command -----------------------------------------------------------------------------------


class BusyError(Exception):
    """Others work on the machine."""


def settle(patience_s: float) -> None:
    """Wait until the load is what may be published; files made just now have raised it.

    Raises:
        BusyError: it does not fall.
    """
    end = time.monotonic() + patience_s
    while (load := os.getloadavg()[0]) > BUSY:
        if time.monotonic() > end:
            raise BusyError(f"load {load:.2f} is above {BUSY}")
        time.sleep(min(5.0, patience_s))


def busy(row: Mapping[str, Any]) -> bool:
    """Whether others worked while a row was measured."""
    return row["others"] is not None and 1 + row["others"] > BUSY


def apart(task: Callable[..., Any], calls: Sequence[Sequence[Any]], jobs: int = 1) -> list[Any]:
    """What each call returns or raises, in a process of its own: a crash costs its row alone."""
    import multiprocessing

    from pebble import ProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=jobs, max_tasks=1, context=context) as pool:
        futures = [pool.schedule(task, args=list(call), timeout=PATIENCE_S) for call in calls]
        try:
            return [future.exception() or future.result() for future in futures]
        except BaseException:  # Ctrl-C
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def make(kind: Kind, model: str, only: str | None, folder: Path, known: Row | None) -> Made | None:
    """The files of a row, with those candidates whose names are wanted."""
    folder.mkdir()
    return make_row(
        model, chosen(kind, only), folder, batch=kind.batch, known=known, formats=kind.formats
    )


def race(kind: Kind, made: Made, limits: Limits, part: int) -> Row:
    """A part of the row's openings."""
    limits = limits.part(kind.processes, floor=kind.floor)
    return race_row(made, kind.candidates(), limits, part)


def chosen(kind: Kind, only: str | None) -> list[Candidate]:
    first, *others = kind.candidates()
    words = only.split(",") if only else [""]
    return [first, *(c for c in others if any(word in c.name for word in words))]


def run(
    tasks: Sequence[tuple[Kind, str]],
    *,
    only: str | None = None,
    limits: Limits | None = None,
    publish: Path | None = None,
    again: bool = False,
    settle_s: float = SETTLE_S,
    jobs: int = 1,
) -> int:
    """Measure rows; the exit code.

    Args:
        tasks: tables and models.
        only: words in the names of candidates, with commas.
        limits: of each race.
        publish: the record to write.
        again: also rows that hold.
        settle_s: how long to wait for the load to fall.
        jobs: processes that make files, while nothing is timed.
    """
    record, failed = read_record(publish) if publish else {}, 0
    known = {} if again else record
    wait = functools.partial(settle, settle_s) if publish else lambda: None
    rows = measure(tasks, known, only=only, limits=limits or Limits(), jobs=jobs, wait=wait)
    try:
        for number, ((kind, model), row) in enumerate(zip(tasks, rows, strict=True), 1):
            label = f"[{number}/{len(tasks)}] {kind.name} {model}"
            if row is None:
                print(f"{label}: published already", flush=True)
            elif isinstance(row, Exception):  # the other rows can do without this one
                print(f"{label} failed: {type(row).__name__}: {row}", flush=True)
                failed += 1
            else:
                print_row(label, row)
                if publish and busy(row):
                    raise BusyError(f"others kept {row['others']:.2f} cores busy")
                if publish:
                    record.setdefault(kind.name, {})[model] = row
                    write_record(publish, record)
    except BusyError as error:
        print(f"{error}: nothing more is published")
        return 3
    return 1 if failed else 0


def measure(
    tasks: Sequence[tuple[Kind, str]],
    known: Mapping[str, Mapping[str, Row]],
    *,
    only: str | None,
    limits: Limits,
    jobs: int,
    wait: Callable[[], None],
) -> Iterator[Row | Exception | None]:
    """For each task its row, why there is none, or None where the known row holds."""
    ahead = min((kind.ahead for kind, _ in tasks), default=1)
    for start in range(0, len(tasks), ahead):
        group = tasks[start : start + ahead]
        wait()
        with tempfile.TemporaryDirectory(prefix="edgevit-peers-") as folder:
            # What is compiled for a check need not be compiled again for the race.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
            calls = [
                (kind, model, only, Path(folder) / str(n), known.get(kind.name, {}).get(model))
                for n, (kind, model) in enumerate(group)
            ]
            for (kind, _), made in zip(group, apart(make, calls, jobs), strict=True):
                if not isinstance(made, Made):
                    yield made
                    continue
                wait()
                parts = apart(race, [(kind, made, limits, n) for n in range(kind.processes)])
                died = next((part for part in parts if isinstance(part, Exception)), None)
                yield died or {**joined(parts), **circumstances()}


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
        ms, off = pooled(found["us"]) / 1e3, f"off by {found['of_scale']:.0e}"
        share = 2 * row["macs"] / (ms / 1e3) / row["peak"]["flops_per_s"]
        ratio = compare(base, found["us"]) if base else None
        said = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        print(f"  {name:<40} {ms:9.3f} ms {share:5.0%} of peak  {said}  {off}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="rows; all of the table without")
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kind", action="append", choices=names, help="table; several times")
    parser.add_argument("--all", action="store_true", help="every table")
    parser.add_argument("--only", help="candidates whose names hold one of these words, commas")
    parser.add_argument("--openings", type=int, default=Limits.openings)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="of a row's race")
    parser.add_argument("--publish", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="to make files with")
    parser.add_argument("--again", action="store_true", help="also rows published before")
    asked = parser.parse_args()
    if asked.publish and asked.only:
        parser.error("--publish takes whole rows, so no --only")
    wanted = names if asked.all else asked.kind or ["batch-1"]
    tasks = [(k, m) for k in KINDS if k.name in wanted for m in asked.models or k.models()]
    if unknown := sorted(set(asked.models) - set(known_models())):
        error = UnknownNameError("model", unknown[0], known_models(), listing="edgevit models")
        parser.error(f"{error}; {error.hint}" if error.hint else str(error))
    # Compiled here and not by a pool of processes that stays; and one thread for everybody.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    limits = Limits(openings=asked.openings, seconds=asked.seconds)
    publish = RECORD if asked.publish else None
    try:
        return run(
            tasks,
            only=asked.only,
            limits=limits,
            publish=publish,
            again=asked.again,
            jobs=asked.jobs,
        )
    except KeyboardInterrupt:
        print("interrupted; what is published is kept, and the same command goes on")
        return 130


def known_models() -> list[str]:
    from edgevit.zoo.registry import list_models

    return list_models()


if __name__ == "__main__":
    sys.exit(main())
