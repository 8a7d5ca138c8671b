"""What edgevit exports against what others make of the same weights, one thread, fp32.

python -m benchmarks.peers [MODEL ...] [--batch 1] [--rounds 31] [--publish]
python -m benchmarks.peers --passes [MODEL ...]     each rewrite's own part, in onnxruntime

All files of a model are loaded into one process and take turns in shuffled order, a block of runs
each, round after round; what is compared is the process's CPU time, and what is told is the median
over the rounds of (naive / file), so more than 1 is faster than the naive file. Naive is
``torch.onnx.export(dynamo=True)`` run by onnxruntime's defaults. A file whose outputs leave the
eager model's by more than 1e-4 of their scale is wrong, and its time is not told.

With ``--passes`` the file of all default rewrites is the base instead, and against it run files
without one of them, or with one more.

``--publish`` writes ``docs/performance.json`` and refuses where the machine is busy;
``python -m benchmarks.performance_page`` makes ``docs/performance.md`` of it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevit.measure.results import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgevit.source import Source

RECORD = Path(__file__).parents[1] / "docs" / "performance.json"
#: One of each family, and those whose rewrites were expected to pay.
MODELS = (
    "efficientvit_m0", "efficientvit_m4", "efficientvit_m5", "elevit", "deit_small",
    "deit_small+sima", "xcit_small_12_p16", "xcit_small_12_p16+sima", "levit_cifar10", "pvt_tiny",
    "swiftformer_l3", "efficientformerv2_l", "swin_tiny", "cvt_13", "soft_tiny", "lavit_t",
    "vit_cifar10", "cct_cifar10", "pit_cifar10", "mixer_cifar10", "fnet_cifar10",
)  # fmt: skip
NAIVE = "naive"
OURS = "edgevit, onnxruntime"
CONTROL = "the same again"
#: Load average of one minute above which nothing is published.
BUSY = 1.5
WRONG = 1e-4
BLOCK_S = 0.04
WARM_UP = 3
PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxsim", "onnxslim", "openvino", "litert-torch",
    "ai-edge-litert", "executorch", "edgevit",
)  # fmt: skip

Array = NDArray[np.float32]
Run = Callable[[Array], Array]


class NothingToDoError(Exception):
    """A pass has nothing to rewrite in a model."""


@dataclass(frozen=True)
class Candidate:
    """A way from a model to something that runs.

    Args:
        name: in the tables.
        make: from the model and an empty folder to what runs a batch.
        needs: the packages, as they are imported.
    """

    name: str
    make: Callable[[Source, Path], Run]
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [name for name in self.needs if find_spec(name) is None]


@dataclass
class Racer:
    """A loaded candidate and its CPU seconds a run, round by round."""

    name: str
    run: Run
    inner: int = 1
    seconds: list[float] = field(default_factory=list)


# -- ways to make a file ---------------------------------------------------------------------------


def onnx_session(file: str | Path | bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    content = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def naive_file(source: Source, folder: Path, *, dynamo: bool = True) -> Path:
    import torch

    path = folder / f"naive-{dynamo}.onnx"
    inputs = (torch.zeros(source.inputs[0].shape),)
    extra = {"external_data": False} if dynamo else {}
    torch.onnx.export(source.module, inputs, str(path), dynamo=dynamo, **extra)
    return path


def naive(source: Source, folder: Path, *, dynamo: bool = True) -> Run:
    return onnx_session(naive_file(source, folder, dynamo=dynamo))


def simplified(source: Source, folder: Path) -> Run:
    import onnx
    import onnxsim

    model, ok = onnxsim.simplify(onnx.load(naive_file(source, folder)))
    if not ok:
        raise RuntimeError("onnxsim's own check failed")
    return onnx_session(model.SerializeToString())


def slimmed(source: Source, folder: Path) -> Run:
    import onnx
    import onnxslim

    return onnx_session(onnxslim.slim(onnx.load(naive_file(source, folder))).SerializeToString())


def eager(source: Source, folder: Path) -> Run:
    return torch_run(source.module)


def compiled(source: Source, folder: Path) -> Run:
    import torch

    return torch_run(torch.compile(source.module))


def torch_run(module: nn.Module) -> Run:
    import torch

    def run(x: Array) -> Array:
        with torch.inference_mode():
            out: Array = module(torch.from_numpy(x)).numpy()
        return out

    return run


def litert(source: Source, folder: Path) -> Run:
    import litert_torch
    import torch

    made = litert_torch.convert(source.module, (torch.zeros(source.inputs[0].shape),))
    path = folder / "naive.tflite"
    made.export(str(path))
    return litert_run(path)


def litert_run(path: Path) -> Run:
    from exporters.tflite_checks import open_interpreter, run_interpreter

    interpreter = open_interpreter(path)
    return lambda x: np.asarray(run_interpreter(interpreter, [x])[0])


def openvino(source: Source, folder: Path) -> Run:
    return openvino_run(naive_file(source, folder))


def openvino_run(path: Path) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"PERFORMANCE_HINT": "LATENCY"}
    made = openvino.compile_model(str(path), "CPU", settings)
    request = made.create_infer_request()
    return lambda x: np.array(request.infer([x])[made.output(0)])


def ours(
    source: Source, folder: Path, *, runner: str, more: str | None = None, less: str | None = None
) -> Run:
    """edgevit's own file, run as the naive ones are.

    Raises:
        NothingToDoError: the pass that is to be more or less finds nothing here.
    """
    from edgevit.passes import DEFAULT
    from edgevit.verbs.export import Plan, export_source

    name = {"onnxruntime": "onnx", "litert": "tflite", "openvino": "onnx"}[runner]
    asked = [n for n in (*DEFAULT, *([more] if more else [])) if n != less]
    changed = more or less
    if changed and not finds(source, [*asked, changed], changed):
        raise NothingToDoError
    plan = Plan.make(name, {}, activation=None, dynamic_batch=False, passes=asked)
    bundle = export_source(source, plan, folder / "ours")
    path = bundle.path / bundle.manifest["artifacts"][name]["file"]
    opened = {"onnxruntime": onnx_session, "litert": litert_run, "openvino": openvino_run}
    return opened[runner](path)


def finds(source: Source, names: Sequence[str], name: str) -> bool:
    """Whether one of the passes rewrites anything where all of them run."""
    from edgevit.capture import capture
    from edgevit.passes import run_passes

    _, reports = run_passes(capture(source.module, source.inputs), names)
    return any(report.rewritten for report in reports if report.name == name)


def _ours(runner: str, needs: tuple[str, ...] = ()) -> Candidate:
    return Candidate(f"edgevit, {runner}", functools.partial(ours, runner=runner), needs)


def pass_candidates() -> list[Candidate]:
    """The default file, then files without one of its passes or with one more.

    The same file once more is the control: what it differs by says nothing.
    """
    from edgevit.passes import DEFAULT, EXACT, TIDYING

    make = functools.partial(ours, runner="onnxruntime")
    found = [Candidate(OURS, make), Candidate(CONTROL, make)]
    for name in [name for name in EXACT if name not in TIDYING]:
        word, option = ("without", "less") if name in DEFAULT else ("with", "more")
        found.append(Candidate(f"{word} {name}", functools.partial(make, **{option: name})))
    return found


LITERT = ("litert_torch", "ai_edge_litert")
CANDIDATES = (
    Candidate(NAIVE, naive),
    Candidate("naive, older exporter", functools.partial(naive, dynamo=False)),
    Candidate("onnxsim", simplified, ("onnxsim",)),
    Candidate("onnxslim", slimmed, ("onnxslim",)),
    _ours("onnxruntime"),
    Candidate("OpenVINO of the naive file", openvino, ("openvino",)),
    _ours("openvino", ("openvino",)),
    Candidate("LiteRT, naive", litert, LITERT),
    _ours("litert", LITERT),
    Candidate("torch, eager", eager),
    Candidate("torch, compiled", compiled),
)


# -- the race --------------------------------------------------------------------------------------


def examine(
    model: str, candidates: Sequence[Candidate], *, batch: int, rounds: int
) -> dict[str, Any]:
    """One model: each candidate's ratio to the first with its interval, or why it has none."""
    from edgevit.source import model_source

    source = model_source(model, batch=batch, seed=0)
    x = np.random.default_rng(0).standard_normal(source.inputs[0].shape, dtype=np.float32)
    want = eager(source, Path())(x)
    out: dict[str, Any] = {}
    racers = []
    with tempfile.TemporaryDirectory() as folder:
        for number, candidate in enumerate(candidates):
            own = Path(folder) / str(number)
            own.mkdir()
            racer, entry = load(candidate, source, own, x, want)
            out[candidate.name] = entry
            if racer is not None:
                racers.append(racer)
        race(racers, x, rounds)
    base = next((r for r in racers if r.name == candidates[0].name), None)
    for racer in racers:
        out[racer.name] |= {"ms": round(1e3 * statistics.median(racer.seconds), 3)}
        if base is not None and racer is not base:
            pairs = sorted(b / s for b, s in zip(base.seconds, racer.seconds, strict=True))
            out[racer.name] |= {"ratio": round(statistics.median(pairs), 4)}
            out[racer.name] |= {"interval": [round(end, 4) for end in interval(pairs)]}
    return out


def load(
    candidate: Candidate, source: Source, folder: Path, x: Array, want: Array
) -> tuple[Racer | None, dict[str, Any]]:
    """A candidate ready to run, and its error; or nothing, and why."""
    if missing := candidate.missing():
        return None, {"status": "absent", "reason": f"{', '.join(missing)} not installed"}
    try:
        with silent():
            run = candidate.make(source, folder)
            got = run(x)
    except NothingToDoError:
        return None, {"status": "none", "reason": "nothing to rewrite"}
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return None, {"status": "failed", "reason": reason.replace(str(folder), "DIR")}
    off = float(np.abs(got - want).max() / np.abs(want).max())
    if not off <= WRONG:
        return None, {"status": "wrong", "of_scale": float(f"{off:.1e}")}
    return Racer(candidate.name, run), {"status": "ok", "of_scale": float(f"{off:.1e}")}


def race(racers: Sequence[Racer], x: Array, rounds: int) -> None:
    """Fill in CPU seconds a run: a block each, in shuffled order, round after round."""
    for racer in racers:
        start = time.perf_counter()
        for _ in range(WARM_UP):
            racer.run(x)
        racer.inner = max(1, round(BLOCK_S / ((time.perf_counter() - start) / WARM_UP)))
    order, shuffler = list(racers), random.Random(0)
    gc.disable()
    for _ in range(rounds):
        shuffler.shuffle(order)
        for racer in order:
            racer.run(x)  # its own weights back into the caches, whoever ran before
            start_ns = time.process_time_ns()
            for _ in range(racer.inner):
                racer.run(x)
            racer.seconds.append((time.process_time_ns() - start_ns) / racer.inner / 1e9)
    gc.enable()


def interval(ordered: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the median by order statistics."""
    n = len(ordered)
    k, below = 0, 1 / 2**n
    while 2 * (k + 1) < n and 1 - 2 * (below + comb(n, k + 1) / 2**n) >= level:
        k += 1
        below += comb(n, k) / 2**n
    return ordered[k], ordered[n - 1 - k]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Converters talk on every channel there is."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(logging.NOTSET)


def circumstances(rounds: int) -> dict[str, Any]:
    """Where and with what it was measured."""
    from devices.agent.facts import cpu

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "cpu": cpu(),
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 2),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--only", help="candidates whose names hold one of these words, commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--passes", action="store_true", help="each rewrite's own part")
    parser.add_argument("--publish", action="store_true", help=f"write {RECORD.name}")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    first, *others = pass_candidates() if asked.passes else CANDIDATES
    chosen = [first, *(c for c in others if wanted(c.name, asked.only))]
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for model in asked.models:
        busy = os.getloadavg()[0] > BUSY
        if busy and asked.publish:
            print(f"load {os.getloadavg()[0]:.2f} is above {BUSY}: nothing is published")
            return 3
        entry = examine(model, chosen, batch=asked.batch, rounds=asked.rounds)
        print_entry(model, entry)
        if asked.publish:
            kind = "passes" if asked.passes else f"batch {asked.batch}"
            record.setdefault(kind, {})[model] = {
                "candidates": entry,
                **circumstances(asked.rounds),
            }
            write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    return 0


def wanted(name: str, only: str | None) -> bool:
    return only is None or any(word in name for word in only.split(","))


def print_entry(model: str, entry: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{model}, load {os.getloadavg()[0]:.2f}")
    for name, found in entry.items():
        if found["status"] != "ok":
            print(f"  {name:<52} {found['status']}: {found.get('reason', found.get('of_scale'))}")
            continue
        low, high = found.get("interval", (1.0, 1.0))
        print(
            f"  {name:<52} {found['ms']:9.3f} ms  {found.get('ratio', 1.0):.3f} "
            f"({low:.3f} to {high:.3f})  off by {found['of_scale']:.0e}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
