"""Ways from a model to something that runs it: edgevit's and what everybody else does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgevit.passes import PassReport
    from edgevit.source import Source

__all__ = [
    "CANDIDATES", "CONTROL", "NAIVE", "OURS", "USUAL", "Candidate", "NothingToDoError", "Workbench",
    "graph_hash", "pass_candidates",
]  # fmt: skip

NAIVE = "naive"
OURS = "edgevit, onnxruntime"
CONTROL = "the same again"
USUAL = "naive, written the usual way"
#: Formats of edgevit by the runtime that runs them.
FORMATS = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "litert": "tflite",
    "executorch": "executorch",
}
#: What openvino is told: one thread, and fp32 where it would take bf16.
OPENVINO = {
    "INFERENCE_NUM_THREADS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
}

Array = NDArray[np.float32]
Run = Callable[[Array], Array]


class NothingToDoError(Exception):
    """A pass has nothing to rewrite in a model, or a model is written the usual way anyhow."""


@dataclass
class Workbench:
    """One model and what several candidates make of it first.

    Args:
        source: the model.
        folder: to write into.
    """

    source: Source
    folder: Path
    _reports: dict[tuple[str, ...], Sequence[PassReport]] = field(default_factory=dict)
    _exports: int = 0

    @cached_property
    def naive_file(self) -> Path:
        """``torch.onnx.export(dynamo=True)``, weights inside."""
        return naive_file(self.source, self.folder / "naive.onnx", dynamo=True)

    @cached_property
    def textbook(self) -> Source:
        """The same weights in a model that is written the usual way.

        Raises:
            NothingToDoError: it is written that way already.
        """
        from benchmarks.textbook import textbook

        if (source := textbook(self.source)) is None:
            raise NothingToDoError
        return source

    def finds(self, names: Sequence[str], name: str) -> bool:
        """Whether one of the passes rewrites anything where all of them run."""
        from edgevit.capture import capture
        from edgevit.passes import run_passes

        key = tuple(sorted(names))
        if key not in self._reports:
            program = capture(self.source.module, self.source.inputs)
            self._reports[key] = run_passes(program, key)[1]
        return any(report.rewritten for report in self._reports[key] if report.name == name)

    def own_folder(self) -> Path:
        """A folder that nobody has written to."""
        self._exports += 1
        return self.folder / f"ours-{self._exports}"


@dataclass(frozen=True)
class Candidate:
    """A way from a model to something that runs.

    Args:
        name: in the tables.
        make: from the model to what runs a batch.
        needs: the packages, as they are imported.
        ours: whether edgevit made the file.
    """

    name: str
    make: Callable[[Workbench], Run]
    needs: tuple[str, ...] = ()
    ours: bool = False

    def missing(self) -> list[str]:
        """Those of its packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


# -- others' files ---------------------------------------------------------------------------------


def naive_file(source: Source, path: Path, *, dynamo: bool) -> Path:
    import torch

    inputs = (torch.zeros(source.inputs[0].shape),)
    # The newer one puts the weights beside its file otherwise.
    extra: dict[str, Any] = {"external_data": False} if dynamo else {}
    torch.onnx.export(source.module, inputs, str(path), dynamo=dynamo, **extra)
    return path


def naive(bench: Workbench) -> Run:
    return onnx_session(bench.naive_file)


def older(bench: Workbench) -> Run:
    return onnx_session(naive_file(bench.source, bench.folder / "older.onnx", dynamo=False))


def simplified(bench: Workbench) -> Run:
    import onnx
    import onnxsim

    model, ok = onnxsim.simplify(onnx.load(bench.naive_file))
    if not ok:
        raise RuntimeError("onnxsim's own check failed")
    return onnx_session(model.SerializeToString())


def slimmed(bench: Workbench) -> Run:
    import onnx
    import onnxslim

    return onnx_session(onnxslim.slim(onnx.load(bench.naive_file)).SerializeToString())


def usual(bench: Workbench) -> Run:
    path = bench.folder / "usual.onnx"
    return onnx_session(naive_file(bench.textbook, path, dynamo=True))


def eager(bench: Workbench) -> Run:
    return torch_run(bench.source.module)


def compiled(bench: Workbench) -> Run:
    import torch

    return torch_run(torch.compile(bench.source.module))


def litert(bench: Workbench) -> Run:
    import litert_torch
    import torch

    shape = bench.source.inputs[0].shape
    made = litert_torch.convert(bench.source.module, (torch.zeros(shape),))
    path = bench.folder / "naive.tflite"
    made.export(str(path))
    return litert_run(path)


def openvino(bench: Workbench) -> Run:
    return openvino_run(bench.naive_file)


def executorch(bench: Workbench) -> Run:
    """As its documentation shows it: captured, handed to XNNPACK, written."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    inputs = (torch.zeros(bench.source.inputs[0].shape),)
    exported = torch.export.export(bench.source.module, inputs)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path = bench.folder / "naive.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    return executorch_run(path)


# -- what runs a file, on one thread ---------------------------------------------------------------


def onnx_session(file: Path | bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    content = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def torch_run(module: Callable[..., Any]) -> Run:
    import torch

    def run(x: Array) -> Array:
        with torch.inference_mode():
            out: Array = module(torch.from_numpy(x)).numpy()
        return out

    return run


def litert_run(path: Path) -> Run:
    from exporters.tflite_checks import open_interpreter, run_interpreter

    interpreter = open_interpreter(path)
    return lambda x: np.asarray(run_interpreter(interpreter, [x])[0])


def openvino_run(path: Path) -> Run:
    # Without this package it sends nothing to anybody.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    file = path / "model.xml" if path.is_dir() else path
    made = openvino.compile_model(str(file), "CPU", OPENVINO)
    request = made.create_infer_request()
    return lambda x: np.array(request.infer([x])[made.output(0)])


def executorch_run(path: Path) -> Run:
    import torch
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    module = portable_lib._load_for_executorch(str(path))
    return lambda x: np.array(module.forward([torch.from_numpy(x)])[0].numpy())


RUNNERS: dict[str, Callable[[Path], Run]] = {
    "onnxruntime": onnx_session,
    "openvino": openvino_run,
    "litert": litert_run,
    "executorch": executorch_run,
}


# -- our files -------------------------------------------------------------------------------------


def ours(
    bench: Workbench,
    *,
    runner: str,
    more: str | None = None,
    less: str | None = None,
    textbook: bool = False,
    whole: bool = False,
) -> Run:
    """edgevit's own file, run as the naive ones are; ``whole`` leaves the layers of ONNX uncut.

    Raises:
        NothingToDoError: the pass that is to be more or less finds nothing here, or there is no
            other way to write the model.
    """
    from edgevit.verbs.export import export_source, make_plan

    name = FORMATS[runner]
    chosen: dict[str, Any] = {}
    if changed := more or less:
        asked = [n for n in (*default_passes(name), *([more] if more else [])) if n != less]
        if not bench.finds([*asked, changed], changed):
            raise NothingToDoError
        chosen = {"passes": asked}
    if whole:
        if not bench.finds([*default_passes(name), "split_layers"], "split_layers"):
            raise NothingToDoError
        chosen = {"options": {"onnx": {"split_layers": False}}}
    source = bench.textbook if textbook else bench.source
    bundle = export_source(source, make_plan(name, **chosen), bench.own_folder())
    return RUNNERS[runner](bundle.path / bundle.manifest["artifacts"][name]["file"])


def default_passes(format_name: str) -> list[str]:
    """The rewrites that an export to a format makes by itself."""
    from edgevit.verbs.export import make_plan

    return make_plan(format_name).rewrites()


def graph_hash(source: Source) -> str:
    """Hash of the graph, with its weights, as it is written to ONNX."""
    from edgevit.capture import capture
    from edgevit.passes import run_passes

    program = capture(source.module, source.inputs)
    return run_passes(program, default_passes("onnx"))[0].fingerprint()


def _ours(runner: str, needs: tuple[str, ...] = ()) -> Candidate:
    return Candidate(f"edgevit, {runner}", functools.partial(ours, runner=runner), needs, ours=True)


def pass_candidates() -> list[Candidate]:
    """The default file, then files without one of its passes or with one more.

    The same file once more is the control: what it differs by says nothing.
    """
    from edgevit.passes import EXACT, TIDYING

    make: Any = functools.partial(ours, runner="onnxruntime")
    found = [Candidate(OURS, make, ours=True), Candidate(CONTROL, make, ours=True)]
    default = default_passes("onnx")
    # An option of ONNX files, which have it anyhow.
    found.append(Candidate("without split_layers", functools.partial(make, whole=True), ours=True))
    for name in [name for name in EXACT if name not in {*TIDYING, "split_layers"}]:
        word, option = ("without", "less") if name in default else ("with", "more")
        made = functools.partial(make, **{option: name})
        found.append(Candidate(f"{word} {name}", made, ours=True))
    return found


LITERT = ("litert_torch", "ai_edge_litert")
CANDIDATES = (
    Candidate(NAIVE, naive),
    Candidate("naive, older exporter", older),
    Candidate("onnxsim", simplified, ("onnxsim",)),
    Candidate("onnxslim", slimmed, ("onnxslim",)),
    _ours("onnxruntime"),
    Candidate(USUAL, usual),
    Candidate(
        "edgevit of the usual way",
        functools.partial(ours, runner="onnxruntime", textbook=True),
        ours=True,
    ),
    Candidate("OpenVINO of the naive file", openvino, ("openvino",)),
    _ours("openvino", ("openvino",)),
    Candidate("LiteRT, naive", litert, LITERT),
    _ours("litert", LITERT),
    Candidate("ExecuTorch, naive", executorch, ("executorch",)),
    _ours("executorch", ("executorch",)),
    Candidate("torch, eager", eager),
    Candidate("torch, compiled", compiled),
)
