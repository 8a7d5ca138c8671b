"""Ways from a model to something that runs it: edgevit's and what everybody else does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.races import Array, Run
from edgevit.errors import ConversionError

if TYPE_CHECKING:
    from edgevit.source import Source

__all__ = [
    "CANDIDATES",
    "CONTROL",
    "EXECUTORCH",
    "FORMATS",
    "JOINED",
    "NAIVE",
    "OURS",
    "USUAL",
    "WITH_JOINED",
    "Candidate",
    "NothingToDoError",
    "Workbench",
    "eager",
    "graph_hash",
    "pass_candidates",
]  # fmt: skip

NAIVE = "naive"
OURS = "edgevit, onnxruntime"
JOINED = "edgevit, attention joined"
WITH_JOINED = "with attention joined"
CONTROL = "the same again"
USUAL = "naive, written the usual way"
EXECUTORCH = "ExecuTorch, naive"
USUAL_EXECUTORCH = "ExecuTorch, written the usual way"
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

    @cached_property
    def useful_passes(self) -> set[str]:
        """Those that rewrite anything where all of them run."""
        return useful_passes(self.source)

    @cached_property
    def useful_in_textbook(self) -> set[str]:
        """The same of the model that is written the usual way."""
        return useful_passes(self.textbook)

    @cached_property
    def useful_rewrites(self) -> set[str]:
        """What the exporter for onnxruntime rewrites."""
        from edgevit.verbs.export import export_source, make_plan

        bundle = export_source(self.source, make_plan("onnx"), self.own_folder())
        counts = bundle.artifact("onnx")["facts"]["rewritten"]
        return {name for name, count in counts.items() if count}

    def own_folder(self) -> Path:
        """A folder that nobody has written to."""
        self._exports += 1
        return self.folder / f"ours-{self._exports}"


@dataclass(frozen=True)
class Candidate:
    """A way from a model to something that runs.

    Args:
        name: in the tables.
        open: from the file to what runs it; from the model where there is no file.
        make: from the model to its file; None where the model itself is run.
        needs: the packages, as they are imported.
        ours: whether edgevit made the file.
    """

    name: str
    open: Callable[[Any], Run]
    make: Callable[[Workbench], Path] | None = None
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


def naive(bench: Workbench) -> Path:
    return bench.naive_file


def older(bench: Workbench) -> Path:
    return naive_file(bench.source, bench.folder / "older.onnx", dynamo=False)


def simplified(bench: Workbench) -> Path:
    import onnx
    import onnxsim

    model, ok = onnxsim.simplify(onnx.load(bench.naive_file))
    if not ok:
        raise RuntimeError("onnxsim's own check failed")
    path = bench.folder / "onnxsim.onnx"
    onnx.save(model, path)
    return path


def slimmed(bench: Workbench) -> Path:
    import onnx
    import onnxslim

    path = bench.folder / "onnxslim.onnx"
    onnx.save(onnxslim.slim(onnx.load(bench.naive_file)), path)
    return path


def usual(bench: Workbench) -> Path:
    return naive_file(bench.textbook, bench.folder / "usual.onnx", dynamo=True)


def litert(bench: Workbench) -> Path:
    import litert_torch
    import torch

    shape = bench.source.inputs[0].shape
    made = litert_torch.convert(bench.source.module, (torch.zeros(shape),))
    path = bench.folder / "naive.tflite"
    made.export(str(path))
    return path


def executorch(bench: Workbench) -> Path:
    return executorch_file(bench.source, bench.folder / "naive.pte")


def usual_executorch(bench: Workbench) -> Path:
    return executorch_file(bench.textbook, bench.folder / "usual.pte")


def executorch_file(source: Source, path: Path) -> Path:
    """As its documentation shows it: captured, handed to XNNPACK, written."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    inputs = (torch.zeros(source.inputs[0].shape),)
    exported = torch.export.export(source.module, inputs)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return path


# -- what runs a file or a model, on one thread ----------------------------------------------------


def onnx_session(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def eager(source: Source) -> Run:
    return torch_run(source.module)


def compiled(source: Source) -> Run:
    import torch

    return torch_run(torch.compile(source.module))


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
    textbook: bool = False,
    without: str | None = None,
) -> Path:
    """edgevit's own file; ``without`` one of the passes.

    Raises:
        NothingToDoError: that pass finds nothing here, or there is no other way to write the model.
    """
    from edgevit.passes import EXACT
    from edgevit.verbs.export import export_source, make_plan

    if without:
        useful = bench.useful_in_textbook if textbook else bench.useful_passes
        if without not in useful:
            raise NothingToDoError
    name, source = FORMATS[runner], bench.textbook if textbook else bench.source
    plan = make_plan(name, passes=[rule for rule in EXACT if rule != without])
    bundle = export_source(source, plan, bench.own_folder())
    return bundle.path / str(bundle.manifest["artifacts"][name]["file"])


def rewritten_but(bench: Workbench, *, rule: str) -> Path:
    """edgevit's own file without one of what its exporter rewrites for onnxruntime.

    Raises:
        NothingToDoError: that finds nothing here.
    """
    from unittest import mock

    from exporters import onnx

    if rule not in bench.useful_rewrites:
        raise NothingToDoError
    kept = tuple(each for each in onnx.REWRITES if each.__name__ != rule)
    with mock.patch.object(onnx, "REWRITES", kept):
        return ours(bench, runner="onnxruntime")


def attention_joined(bench: Workbench) -> Path:
    """edgevit's own file, with attention as one operator.

    Raises:
        NothingToDoError: there is none that can be.
    """
    from edgevit.verbs.export import export_source, make_plan

    plan = make_plan("onnx", options={"onnx": {"attention": True}})
    try:
        bundle = export_source(bench.source, plan, bench.own_folder())
    except ConversionError as error:
        if "no attention" in error.message:
            raise NothingToDoError from None
        raise
    return bundle.path / str(bundle.artifact("onnx")["file"])


def useful_passes(source: Source) -> set[str]:
    """Those that rewrite anything where all of them run."""
    from edgevit.capture import capture
    from edgevit.passes import EXACT, run_passes

    _, reports = run_passes(capture(source.module, source.inputs), EXACT)
    return {report.name for report in reports if report.rewritten}


def graph_hash(source: Source) -> str:
    """Hash of the graph, with its weights, as it is written."""
    from edgevit.capture import capture
    from edgevit.passes import EXACT, run_passes

    program = capture(source.module, source.inputs)
    return run_passes(program, EXACT)[0].fingerprint()


def _ours(
    name: str, runner: str = "onnxruntime", needs: tuple[str, ...] = (), **changed: Any
) -> Candidate:
    make = functools.partial(ours, runner=runner, **changed)
    return Candidate(name, RUNNERS[runner], make, needs, ours=True)


def pass_candidates() -> list[Candidate]:
    """The default file, then files without one of its passes, or of what its exporter rewrites,
    and one with what it rewrites if asked to.

    The same file once more is the control: what it differs by says nothing. The zoo's attention is
    spelled out anyhow, so that pass is left out of the file of the model that is written the usual
    way.
    """
    from edgevit.passes import EXACT, TIDYING
    from exporters.onnx import REWRITES

    spelling = "spell_out_attention"
    chosen = [name for name in EXACT if name not in (*TIDYING, spelling)]
    without = [_ours(f"without {name}", without=name) for name in chosen]
    make = {r.__name__: functools.partial(rewritten_but, rule=r.__name__) for r in REWRITES}
    others = [Candidate(f"without {n}", onnx_session, m, ours=True) for n, m in make.items()]
    joined = Candidate(WITH_JOINED, onnx_session, attention_joined, ours=True)
    usual = [
        _ours("of the usual way", textbook=True),
        _ours(f"of the usual way, without {spelling}", textbook=True, without=spelling),
    ]
    return [_ours(OURS), _ours(CONTROL), *without, *others, joined, *usual]


LITERT = ("litert_torch", "ai_edge_litert")
CANDIDATES = (
    Candidate(NAIVE, onnx_session, naive),
    Candidate("naive, older exporter", onnx_session, older),
    Candidate("onnxsim", onnx_session, simplified, ("onnxsim",)),
    Candidate("onnxslim", onnx_session, slimmed, ("onnxslim",)),
    _ours(OURS),
    Candidate(JOINED, onnx_session, attention_joined, ours=True),
    Candidate(USUAL, onnx_session, usual),
    _ours("edgevit of the usual way", textbook=True),
    Candidate("OpenVINO of the naive file", openvino_run, naive, ("openvino",)),
    _ours("edgevit, openvino", "openvino", ("openvino",)),
    Candidate("LiteRT, naive", litert_run, litert, LITERT),
    _ours("edgevit, litert", "litert", LITERT),
    Candidate(EXECUTORCH, executorch_run, executorch, ("executorch",)),
    Candidate(USUAL_EXECUTORCH, executorch_run, usual_executorch, ("executorch",)),
    _ours("edgevit, executorch", "executorch", ("executorch",)),
    Candidate("torch, eager", eager),
    Candidate("torch, compiled", compiled),
)
