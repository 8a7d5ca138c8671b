"""One subject of the zoo's matrix: built, counted, exported, verified; runs in a worker process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.sources import format_digest
from edgevit.errors import OptionError
from edgevit.source import BlockSpec, Source, block_source, model_source
from edgevit.versions import code_digest, tool_versions
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.registry import model_info

__all__ = ["TOOLS", "Cell", "Subject", "cell_key", "examine", "failed", "is_made", "matrix_digest"]

ROOT = Path(__file__).resolve().parent.parent
#: Shape of the blocks, the first of SimA's Table 3: tokens, width of a head, heads.
BLOCK_SHAPE = (256, 64, 8)
#: Distributions that decide what a format's files are.
TOOLS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("torch", "onnx", "onnxruntime"),
    "coreml": ("torch", "coremltools"),
    "tflite": ("torch", "litert-torch", "ai-edge-litert"),
}
#: MACs may be off by this share.
MACS_TOLERANCE = 0.005

Cell = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model or a block of the zoo."""

    kind: str
    name: str

    @property
    def key(self) -> str:
        """Its name in the state file."""
        return self.name if self.kind == "model" else f"block {self.name}"

    def source(self) -> Source:
        """The module and its inputs."""
        if self.kind == "model":
            return model_source(self.name)
        tokens, head_dim, heads = BLOCK_SHAPE
        core = block_source(BlockSpec(self.name, tokens, head_dim, heads))
        try:
            count_macs(core.module, core.inputs)
        except OptionError:  # this block is nothing without its projections
            return block_source(BlockSpec(self.name, tokens, head_dim, heads, projections=True))
        return core


def examine(subject: Subject, name: str, known: Cell | None) -> dict[str, Any]:
    """A subject and its file of one format; known and unchanged, it is not made again."""
    import torch

    torch.set_num_threads(1)
    source = subject.source()
    inputs = [list(spec.shape) for spec in source.inputs]
    entry = {"code": matrix_digest(), "counts": counts(subject, source)}
    # A graph without constants of its size is the same graph at another one.
    if known is not None and is_made(known) and known.get("inputs") == inputs:
        graph = graph_hash(source)
        if known["key"] == cell_key(graph, name):
            return {**entry, "graph": graph, "formats": {name: known}}
    ((_, cell),) = export(source, [name])
    graph = cell.pop("graph", None) or graph_hash(source)
    cell |= {"key": cell_key(graph, name), "inputs": inputs}
    return {**entry, "graph": graph, "formats": {name: cell}}


def matrix_digest() -> str:
    """sha256 over the source of what turns a name into a file, and of what is asked here."""
    return hashlib.sha256(code_digest().encode() + Path(__file__).read_bytes()).hexdigest()


def is_made(cell: Mapping[str, Any]) -> bool:
    """Whether there was a file that held, checked here or not."""
    return bool(cell["status"] != "failed")


def graph_hash(source: Source) -> str:
    """Hash of the graph as exporters get it."""
    from edgevit.capture import capture
    from edgevit.passes import EXACT, run_passes

    program = capture(source.module, source.inputs)
    program, _ = run_passes(program, EXACT)
    return program.fingerprint()


@cache
def cell_key(graph: str, format_name: str) -> str:
    """Everything that decides a file."""
    digest = hashlib.sha256(graph.encode())
    digest.update(json.dumps(tool_versions(TOOLS[format_name]), sort_keys=True).encode())
    digest.update(format_digest([format_name]).encode())
    return digest.hexdigest()[:16]


def counts(subject: Subject, source: Source) -> dict[str, Any]:
    """Parameters and MACs, and what is off against those that are registered."""
    found: dict[str, Any] = {
        "params": count_parameters(source.module),
        "macs": count_macs(source.module, source.inputs),
    }
    if subject.kind == "model":
        info = model_info(subject.name)
        wrong = info.params is not None and found["params"] != info.params
        far = info.macs is not None and abs(found["macs"] / info.macs - 1) > MACS_TOLERANCE
        if wrong or far:
            found["off"] = f"registered are {info.params} and {info.macs}"
    return found


def export(source: Source, formats: Sequence[str]) -> Iterable[tuple[str, Cell]]:
    """Cells of all formats: together, which shares their work, or else each by itself."""
    if not formats:
        return []
    try:
        return _export(source, formats)
    except Exception as error:
        if len(formats) == 1:
            return [(formats[0], failed(error))]
    return [cell for name in formats for cell in export(source, [name])]


def _export(source: Source, formats: Sequence[str]) -> list[tuple[str, Cell]]:
    from edgevit.verbs.export import export_source, make_plan

    with tempfile.TemporaryDirectory(prefix="edgevit-zoo-") as folder:
        bundle = export_source(source, make_plan(formats), folder)
        return [(name, cell_of(bundle.manifest, name)) for name in formats]


def cell_of(manifest: Mapping[str, Any], name: str) -> Cell:
    """What the matrix keeps of a file."""
    artifact = manifest["artifacts"][name]
    verification = artifact["verification"]
    checks = []
    for check in verification["checks"]:
        worst = max(check["comparisons"], key=lambda c: c["relative"])
        checks.append(
            {
                "by": check["label"],
                "max_abs": _short(worst["max_abs"]),
                "of_scale": _short(worst["relative"]),
                "tolerated": check["tolerance"],
            }
        )
    folds = [p for p in manifest["passes"] if p["name"] == "fold_batchnorm"]
    return {
        "status": verification["status"],
        "reason": verification["reason"],
        "checks": checks,
        "seconds": round(manifest["seconds"][f"write {name}"], 1),
        "bytes": manifest["files"][artifact["file"]]["bytes"],
        "batchnorms_folded": sum(p["rewritten"] for p in folds),
        "batchnorms_kept": [r["layer"] for p in folds for r in p["refused"]],
        "kept_fp32": artifact["facts"].get("kept_fp32", {}).get("ops", None),
        "versions": artifact["versions"],
        "graph": manifest["graph_sha256"],
    }


def failed(error: BaseException) -> Cell:
    """The cell of a file that could not be made or is wrong; no path of this machine in it."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    for folder, word in ((f"{ROOT}{os.sep}", ""), (str(Path.home()), "~")):
        reason = reason.replace(folder, word)
    temporary = re.escape(tempfile.gettempdir())
    return {"status": "failed", "reason": re.sub(rf"{temporary}\S*", "TMP", reason)[:300]}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.2g}")
