"""What a verified ONNX bundle costs against torch's bare exporters: CPU time and peak memory.

python -m benchmarks.export_cost [MODEL ...] [--rounds 5]

Every export has a process of its own, one thread, in shuffled order, round after round. Two figures
of CPU time: of the whole process (interpreter, imports, building the model, export), which is what
who types the command pays; and of the call that exports alone, with whatever it imports by itself.
Peak memory is that of the process. Verification is part of what edgevit's figure pays for. The
capture alone is ``torch.export.export``; the older exporter does without one. *The least* is what
no verified file of a captured graph can do without: the capture as edgevit makes it (which is
cheaper, without torch's records of lines and without the garbage collector), the older exporter,
and the samples of a verification through module and file, once each. What that already exceeds is
out of reach.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODELS = ("efficientvit_m5", "deit_small")
ROUNDS = 5
OURS, OLDER, DEFAULT = "edgevit", "older exporter", "default exporter"
CAPTURE = "torch.export's capture alone"
LEAST = "the least: capture, older exporter, samples"
WAYS = (OURS, OLDER, DEFAULT, CAPTURE, LEAST)
#: At most that many times the CPU time.
TARGETS = {OLDER: 1.5, DEFAULT: 0.5}
#: As many as edgevit verifies an image model on.
SAMPLES = 3
FIGURES = {"process_s": "CPU of the process, s", "export_s": "CPU of the export, s"}

Samples = dict[str, list[dict[str, float]]]


def measure(models: Sequence[str], rounds: int) -> dict[str, Samples]:
    """Samples by model and way."""
    order, shuffler = [(m, w) for m in models for w in WAYS], random.Random(0)
    found: dict[str, Samples] = {model: {way: [] for way in WAYS} for model in models}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for model, way in order:
            found[model][way].append(sample(model, way))
    return found


def sample(model: str, way: str) -> dict[str, float]:
    """One export in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.export_cost", "--one", way, model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} of {model} failed: {done.stderr.strip()[-400:]}")
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def one(model: str, way: str) -> dict[str, float]:
    """Export here and tell what this process has used."""
    if way == OURS:
        from edgevit.verbs.export import export_source, make_plan
    if way == LEAST:
        from edgevit.capture import capture
    import torch

    from edgevit.source import model_source

    torch.set_num_threads(1)
    source, start = model_source(model), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if way == OURS:
            bundle = export_source(source, make_plan("onnx"), folder)
            entry = bundle.manifest["artifacts"]["onnx"]
            assert entry["verification"]["status"] == "verified"
        else:
            path, image = Path(folder) / "model.onnx", torch.zeros(source.inputs[0].shape)
            if way == CAPTURE:
                with torch.no_grad():
                    torch.export.export(source.module, (image,))
            if way == LEAST:
                capture(source.module, source.inputs)
            if way in (OLDER, DEFAULT, LEAST):
                torch.onnx.export(source.module, (image,), str(path), dynamo=way == DEFAULT)
            if way == LEAST:
                run_samples(source.module, path, image)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "export_s": time.process_time() - start,
        "process_s": own.ru_utime + own.ru_stime,
        "peak_mib": own.ru_maxrss / (1024 if sys.platform != "darwin" else 2**20),
    }


def run_samples(module: Any, path: Path, image: Any) -> None:
    """Each through the module and through the file."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    with torch.inference_mode():
        for _ in range(SAMPLES):
            module(image)
            session.run(None, {given.name: image.numpy()})


def median(samples: Sequence[Mapping[str, float]], figure: str) -> float:
    return statistics.median(sample[figure] for sample in samples)


def lines(found: Mapping[str, Samples]) -> list[str]:
    """The table, then a line for each target."""
    out = [
        f"| model | way | {' | '.join(FIGURES.values())} | peak memory, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model, samples in found.items():
        for way, values in samples.items():
            cells = [f"{median(values, figure):.2f}" for figure in FIGURES]
            out.append(
                f"| {model} | {way} | {' | '.join(cells)} | {median(values, 'peak_mib'):.0f} |"
            )
    out.append("")
    for model, samples in found.items():
        for figure, title in FIGURES.items():
            spent = {way: median(samples[way], figure) for way in WAYS}
            for other, most in TARGETS.items():
                share = {way: spent[way] / spent[other] for way in WAYS}
                told = "out of reach" if share[LEAST] > most else "missed"
                told = "holds" if share[OURS] <= most else told
                parts = f"the least {share[LEAST]:.2f}, torch's capture alone {share[CAPTURE]:.2f}"
                out.append(
                    f"* **{told}**: {model}, {title.rpartition(',')[0]}: {share[OURS]:.2f} of the "
                    f"{other}'s, at most {most} wanted; {parts}"
                )
    return out


def table(models: Sequence[str] = MODELS, rounds: int = ROUNDS) -> list[str]:
    """Measure, each way so many times."""
    return [*lines(measure(models, rounds)), "", f"{rounds} rounds"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.models[0], asked.one)))
        return 0
    print("\n".join(table(asked.models, asked.rounds)))
    print(f"load average {os.getloadavg()[0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
