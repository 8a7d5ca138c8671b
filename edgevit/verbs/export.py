"""Export: a model becomes a bundle of checked files.

    module --capture--> program --passes--> program --exporters--> files

Each stage is checked against the one before it; a stage that does not agree ends the export, and
nothing is left behind.
"""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from devices.profile import DeviceProfile
from edgevit.artifacts import (
    Arrays,
    Expected,
    artifact_json,
    stack_runs,
    summarize,
    verify_artifact,
)
from edgevit.bundle import (
    GOLDEN,
    MANIFEST,
    SCHEMA_VERSION,
    Bundle,
    carry_golden,
    hash_file,
    save_golden,
    write_bundle,
    write_manifest,
)
from edgevit.errors import (
    BundleError,
    MissingExtraError,
    OptionError,
    UnknownNameError,
    UsageError,
    VerificationError,
)
from edgevit.garbage import heap_frozen
from edgevit.passes import EXACT, TIDYING
from edgevit.preprocess import PHOTOGRAPH, load_image
from edgevit.progress import Progress
from edgevit.source import BlockSpec, Source, block_source, model_source, slug
from edgevit.verbs.targets import find_profile, fit_formats, fit_options, target_json
from edgevit.verify import Verification, compare, tolerance_for, verify_outputs
from edgevit.versions import tool_versions
from exporters.base import Artifact, Exporter, exporters, make_options

if TYPE_CHECKING:
    from torch import nn

    from edgevit.capture import Program
    from edgevit.passes import PassReport
    from edgevit.tensorspec import TensorSpec

__all__ = ["Graphs", "export", "export_source", "rewritten_graph"]

#: Noise samples that verification runs, beside the picture.
NOISE_SAMPLES = 2
DEFAULT_FORMAT = "onnx"
ACTIVATIONS = ("relu",)
#: Options of an export that are not about the source.
PLAN_OPTIONS = (
    "activation", "fold_batchnorm", "passes", "dynamic_batch", "verify", "image", "name", "options",
    "device",
)  # fmt: skip


@dataclass(frozen=True)
class Rewritten:
    """A graph after its passes, checked.

    Args:
        program: it.
        passes: what the manifest says of them.
        outputs: what it gives for the samples of the export, which every file has to give.
    """

    program: Program
    passes: dict[str, Any]
    outputs: Arrays


@dataclass
class Graphs:
    """What several exports of one source, activation, seed and picture have in common.

    Args:
        captured: the source's graph, once it is there.
        rewritten: graphs by the passes that were asked for.
    """

    captured: Program | None = None
    rewritten: dict[tuple[str, ...], Rewritten] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is to be written, checked before any work is done.

    Args:
        formats: exporter and its validated options by format name.
        activation: ``"relu"`` to replace every smooth activation, or None.
        fold_batchnorm: fold every BatchNorm that can be folded.
        passes: the exact rewrites to make, beside those that only tidy.
        dynamic_batch: let the batch vary in the files.
        verify: check every file.
        image: picture to verify on; the one that ships with edgevit if None.
        name: the bundle's folder name; made from the source and the options if None.
        device: the device whose limits the files obey, if they were made for one.
    """

    formats: Mapping[str, tuple[Exporter, Any]]
    activation: str | None = None
    fold_batchnorm: bool = True
    passes: Sequence[str] = EXACT
    dynamic_batch: bool = False
    verify: bool = True
    image: Path | None = None
    name: str | None = None
    device: DeviceProfile | None = None

    @classmethod
    def make(
        cls,
        formats: str | Sequence[str],
        options: Mapping[str, Mapping[str, Any]],
        *,
        activation: str | None,
        dynamic_batch: bool,
        passes: Sequence[str] = EXACT,
        **rest: Any,
    ) -> Plan:
        """A plan from what the user said.

        Raises:
            UnknownNameError: a format or a pass that does not exist.
            MissingExtraError: a format whose packages are not installed.
            OptionError: an option that its format does not know.
        """
        names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
        if not names:
            raise OptionError("format", expected="at least one format", got=names)
        if activation is not None and activation not in ACTIVATIONS:
            raise OptionError("activation", expected=" or ".join(ACTIVATIONS), got=activation)
        for name in options.keys() - set(names):
            raise OptionError(
                f"options[{name!r}]", expected=f"options of {', '.join(names)}", got=name
            )
        for name in passes:
            if name not in EXACT:
                raise UnknownNameError("exact pass", name, EXACT)
        chosen = {}
        for name in names:
            exporter = exporters.get(name)
            if missing := exporter.missing():
                raise MissingExtraError(f"format {name}", missing, exporter.extra)
            if dynamic_batch and not exporter.dynamic_batch:
                raise OptionError(
                    "dynamic_batch",
                    expected=f"a fixed batch for format {name}",
                    got=True,
                    hint="export that format by itself, without dynamic batch",
                )
            chosen[name] = (exporter, make_options(exporter, dict(options.get(name, {}))))
        return cls(
            chosen, activation=activation, dynamic_batch=dynamic_batch, passes=passes, **rest
        )

    def rewrites(self) -> list[str]:
        """The passes that an export makes, in their order."""
        asked = {*TIDYING, *self.passes} - (set() if self.fold_batchnorm else {"fold_batchnorm"})
        return [name for name in EXACT if name in asked]


def export(
    model: str | nn.Module | BlockSpec,
    *,
    formats: str | Sequence[str] | None = None,
    output: str | Path = "exports",
    device: str | DeviceProfile | None = None,
    activation: str | None = None,
    fold_batchnorm: bool = True,
    passes: Sequence[str] = EXACT,
    dynamic_batch: bool = False,
    verify: bool = True,
    image: str | Path | None = None,
    name: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch: int = 1,
    seed: int = 0,
    tuned: bool = False,
    progress: Progress | None = None,
    **source_options: Any,
) -> Bundle:
    """Export a model to one or more formats, each checked, as a bundle.

    Args:
        model: a name of the zoo, ``package.module:factory``, an ``nn.Module``, or a block.
        formats: one or more of ``onnx``, ``coreml``, ``tflite``, ``torch``; the device's, or ONNX,
            by default.
        output: the folder that the bundle's own folder is made in.
        device: a device profile or host that the files have to load on: its formats, opset and IR
            version.
        activation: ``"relu"`` to replace GELU, SiLU and hard-swish; this changes the model.
        fold_batchnorm: fold every BatchNorm that can be folded exactly.
        passes: names of :data:`edgevit.passes.EXACT`, the rewrites to make beside those that only
            tidy; those that hurt on no runtime by default.
        dynamic_batch: let the batch vary, for formats that can.
        verify: check each stage against the one before; off leaves ``unverified`` behind.
        image: a picture to verify on; one that ships with edgevit by default.
        name: the bundle's folder name; made from the model and the options by default.
        options: options by format, ``{"onnx": {"opset": 15}}``.
        batch: first axis of the input.
        seed: of random weights and of the noise that verification runs.
        tuned: take format, passes and options that ``edgevit tune`` found for the device.
        progress: told about stages.
        **source_options: for a name of the zoo ``num_classes``, ``image_size``, ``in_chans``,
            ``weights`` and ``options`` as ``model_options``; see
            :func:`edgevit.source.model_source`.

    Returns:
        The written bundle.

    Raises:
        UsageError: something asked for does not exist or does not fit.
        VerificationError: a stage does not compute the same thing; nothing is left behind.
        UnavailableError: a package is missing, a converter gave up, or the disk refuses.
    """
    source, rest = make_source(model, batch=batch, seed=seed, **source_options)
    if tuned:
        told = formats or options or tuple(passes) != EXACT
        winner = _tuned(source, device, told, progress or Progress())
        formats, passes = [winner["format"]], tuple(winner["passes"])
        options = {winner["format"]: winner["options"]}
    plan = make_plan(
        formats,
        activation=activation,
        fold_batchnorm=fold_batchnorm,
        passes=passes,
        dynamic_batch=dynamic_batch,
        verify=verify,
        image=image,
        name=name,
        options=options,
        device=device,
        **rest,
    )
    return export_source(source, plan, output, seed=seed, progress=progress)


def _tuned(
    source: Source, device: str | DeviceProfile | None, told: object, progress: Progress
) -> dict[str, Any]:
    """What tuning found for the device; the settings of its runtime are told.

    Raises:
        UsageError: no device is named, or something that tuning decides.
        UnavailableError: it was never tuned there.
    """
    from edgevit.tuning.store import find_tuned

    if device is None:
        raise UsageError("what was tuned depends on the device", hint="name it: --for DEVICE")
    if told:
        raise UsageError("tuning decides about format, passes and options; name either")
    profile = find_profile(device) if isinstance(device, str) else device
    name = device if isinstance(device, str) else profile.name
    winner: dict[str, Any] = find_tuned(source, list(dict.fromkeys([name, profile.name])))["winner"]
    settings = ", ".join(f"{k}={v}" for k, v in winner["settings"].items())
    progress.note(
        f"tuned for {name}: {winner['label']}"
        + (f"; its runtime has to be set up with {settings}" if settings else "")
    )
    return winner


def make_source(
    model: str | nn.Module | BlockSpec, *, batch: int = 1, seed: int = 0, **options: Any
) -> tuple[Source, dict[str, Any]]:
    """The source of an export, and those options that were not the source's."""
    rest = {k: options.pop(k) for k in list(options) if k in PLAN_OPTIONS}
    if isinstance(model, BlockSpec):
        if given := [key for key, value in options.items() if value is not None]:
            raise UsageError(f"a block takes no {', '.join(given)}; it has a shape")
        return block_source(model, batch=batch, seed=seed), rest
    family = options.pop("model_options", None)
    return model_source(model, batch=batch, seed=seed, options=family, **options), rest


def make_plan(
    formats: str | Sequence[str] | None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    activation: str | None = None,
    dynamic_batch: bool = False,
    image: str | Path | None = None,
    device: str | DeviceProfile | None = None,
    **rest: Any,
) -> Plan:
    """A plan from keywords; see :func:`export` for what they mean and what is raised."""
    names, chosen = [formats] if isinstance(formats, str) else list(formats or []), options or {}
    profile = find_profile(device) if isinstance(device, str) else device
    if profile is not None:
        names = fit_formats(profile, names)
        chosen = fit_options(profile, names, chosen)
    elif formats is None:
        names = [DEFAULT_FORMAT]
    return Plan.make(
        names,
        chosen,
        activation=activation,
        dynamic_batch=dynamic_batch,
        image=Path(image) if image is not None else None,
        device=profile,
        **rest,
    )


def export_source(
    source: Source,
    plan: Plan,
    output: str | Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    graphs: Graphs | None = None,
) -> Bundle:
    """Export a source as planned; see :func:`export`. ``graphs`` are taken and kept, if given."""
    run = _Export(source, plan, seed, progress or Progress(), graphs=graphs or Graphs())
    destination = Path(output) / (plan.name or bundle_name(source, plan))
    with write_bundle(destination) as folder:
        with heap_frozen():
            manifest = run.write(folder)
        kept = _carry_over(destination, folder, manifest)
        if kept:
            run.progress.note(f"kept {', '.join(kept)} from the earlier export of this graph")
        files = {f.name: f for f in sorted(folder.iterdir()) if f.name != MANIFEST}
        write_manifest(folder, manifest, files)
    return Bundle.open(destination)


def rewritten_graph(
    source: Source, plan: Plan, graphs: Graphs, *, seed: int = 0, progress: Progress | None = None
) -> Rewritten:
    """The checked graph that :func:`export_source` would write."""
    run = _Export(source, plan, seed, progress or Progress(), graphs=graphs)
    return run.graph(run._samples()[0])


def bundle_name(source: Source, plan: Plan) -> str:
    """The bundle's folder: the model's name and whatever is not its default."""
    parts = [slug(source.name)]
    spec = source.inputs[0]
    if source.kind == "model":
        from edgevit.zoo.layers import as_pair
        from edgevit.zoo.registry import model_info

        info, size = model_info(source.name), spec.shape[2:]
        if tuple(size) != as_pair(info.image_size):
            parts.append(f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px")
        if source.identity["num_classes"] != info.num_classes:
            parts.append(f"{source.identity['num_classes']}c")
        parts += [slug(f"{k}_{v}") for k, v in sorted(source.identity["options"].items())]
    if plan.activation:
        parts.append(plan.activation)
    if not plan.fold_batchnorm:
        parts.append("unfolded")
    choice = [name for name in EXACT if name not in TIDYING]
    kept = [name for name in choice if name in plan.passes]
    if left_out := [name for name in choice if name not in kept]:
        shorter = ["without", *left_out] if len(left_out) <= len(kept) else ["only", *kept]
        parts += [slug(word) for word in shorter] if kept else ["unrewritten"]
    if plan.dynamic_batch:
        parts.append("dynamic")
    elif spec.shape[0] != 1:
        parts.append(f"b{spec.shape[0]}")
    if plan.device is not None:
        parts.append(slug(plan.device.name))
    return "-".join(parts)


@dataclass
class _Export:
    """One export under way."""

    source: Source
    plan: Plan
    seed: int
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    graphs: Graphs = field(default_factory=Graphs)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.progress.stage(name):
            yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def write(self, folder: Path) -> dict[str, Any]:
        """Fill the folder; returns the manifest without the files' hashes."""
        from edgevit.zoo.counting import count_macs, count_parameters

        device = self.plan.device
        samples, described = self._samples()
        rewritten = self.graph(samples)
        program, want = rewritten.program, rewritten.outputs
        sensitivity = self._sensitivity(program, want)
        artifacts, halves = {}, {}
        for name, (exporter, options) in self.plan.formats.items():
            artifacts[name], half = self._artifact(
                exporter, options, program, folder, samples, want
            )
            if half is not None:
                halves[name] = self._golden(program.outputs, half)
        # Golden tensors are single items of the batch, so that they fit any batch on the device.
        save_golden(
            folder,
            {
                spec.name: np.stack([arrays[i][:1] for arrays in samples])
                for i, spec in enumerate(program.inputs)
            },
            self._golden(program.outputs, want),
            halves,
        )
        return {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "edgevit": version("edgevit"),
            "host": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "tools": tool_versions(),
            },
            "model": {
                **self.source.identity,
                "kind": self.source.kind,
                "params": count_parameters(self.source.module),
                "macs": count_macs(self.source.module, self.source.inputs)
                // self.source.inputs[0].shape[0],
            },
            "seed": self.seed,
            "target": target_json(device) if device else None,
            "inputs": [spec.to_json() for spec in program.inputs],
            "outputs": [spec.to_json() for spec in program.outputs],
            "preprocessing": (
                self.source.preprocessing.to_json() if self.source.preprocessing else None
            ),
            "batch": {
                "size": program.inputs[0].shape[0],
                "dynamic": program.dynamic_batch,
            },
            "graph_sha256": program.fingerprint(),
            "samples": described,
            "golden": GOLDEN,
            "sensitivity": sensitivity,
            **rewritten.passes,
            "artifacts": artifacts,
            "seconds": self.seconds,
        }

    # -- the graph ---------------------------------------------------------------------------------

    def graph(self, samples: Sequence[Arrays]) -> Rewritten:
        """The rewritten program, made unless it is there."""
        key = tuple(self.plan.rewrites())
        if key not in self.graphs.rewritten:
            self.graphs.rewritten[key] = self._program(samples)
        return self.graphs.rewritten[key]

    def _program(self, samples: Sequence[Arrays]) -> Rewritten:
        """The rewritten program, with what the passes did and how they were checked."""
        from edgevit.capture import capture
        from edgevit.passes import run_passes

        module = self.source.module
        if self.graphs.captured is None:
            with self._stage("capture"):
                self.graphs.captured = capture(
                    module, self.source.inputs, dynamic_batch=self.plan.dynamic_batch
                )
        program = self.graphs.captured
        eager = _run_module(module, samples)
        checks = [self._check_capture(eager, program, samples)]
        reports: list[PassReport] = []
        drift = None
        reference = eager
        if self.plan.activation == "relu":
            with self._stage("substitute activations"):
                program, done = run_passes(program, ["drop_identities", "substitute_relu"])
            reports += done
            reference = _run_program(program, samples)
            checks.append(self._check_substitution(done[-1], reference, samples))
            drift = _drift(eager, reference)
            self.progress.note(_drift_note(drift))
        with self._stage("rewrite"):
            rewritten, done = run_passes(program, self.plan.rewrites())
        reports += done
        with self._stage("expected outputs"):
            outputs = _run_program(rewritten, samples)
        checks.append(self._check_rewrites(program, rewritten, done, reference, outputs, samples))
        for report in reports:
            for refusal in report.refusals:
                self.progress.note(f"{report.name} left {refusal.layer}: {refusal.reason}")
        passes = {
            "passes": [report.to_json() for report in reports],
            "drift": drift,
            "program_checks": [c for c in checks if c is not None],
        }
        return Rewritten(rewritten, passes, outputs)

    @staticmethod
    def _golden(outputs: Sequence[TensorSpec], arrays: Arrays) -> dict[str, NDArray[Any]]:
        return {spec.name: a[:, :1] for spec, a in zip(outputs, arrays, strict=True)}

    def _sensitivity(self, program: Program, want: Arrays) -> list[dict[str, Any]]:
        """How much the outputs depend on the inputs; if hardly, agreement proves little."""
        report = []
        for spec, values in zip(program.outputs, want, strict=True):
            same = compare(spec.name, values, values)
            report.append({"output": spec.name, "spread": same.spread, "scale": same.scale})
            if same.spread < 10 * tolerance_for("fp32") * same.scale:
                self.progress.note(
                    f"{spec.name} hardly depends on the input (it moves by {same.spread:.1e} at a "
                    f"scale of {same.scale:.1e}), so agreement proves little"
                )
        return report

    def _check_capture(
        self, eager: Arrays, program: Program, samples: Sequence[Arrays]
    ) -> dict[str, Any] | None:
        """The captured graph against the module itself: the same operators in the same order."""
        if not self.plan.verify:
            return None
        got = _run_program(program, samples)
        result = _agreement(program, eager, got, "torch", "exact")
        self._require(result, "capture", "eager module")
        return {"stage": "capture", "against": "eager module", **result.to_json()}

    def _check_rewrites(
        self,
        before: Program,
        after: Program,
        done: Sequence[PassReport],
        want: Arrays,
        got: Arrays,
        samples: Sequence[Arrays],
    ) -> dict[str, Any] | None:
        """The rewritten graph against the one before; where it is off, the pass that did it."""
        from edgevit.passes import run_passes

        if not self.plan.verify:
            return None
        result = _rewritten_agrees(before, after, want, got, samples)
        if not result.ok:
            names = [report.name for report in done]
            for count, name in enumerate(names, 1):
                partly, _ = run_passes(before, names[:count])
                outputs = _run_program(partly, samples)
                self._require(
                    _rewritten_agrees(before, partly, want, outputs, samples), name, "graph before"
                )
        self._require(result, "the rewritten graph", "graph before")
        return {"stage": "passes", "against": "graph before", **result.to_json()}

    def _check_substitution(
        self, report: PassReport, got: Arrays, samples: Sequence[Arrays]
    ) -> dict[str, Any] | None:
        """The substituted graph against the eager model with its activation modules swapped."""
        if not self.plan.verify:
            return None
        swapped, count = _swap_activations(self.source.module)
        if count != report.rewritten:
            # Activations called as functions cannot be swapped from outside.
            reason = f"{report.rewritten} activations in the graph, {count} as modules"
            unchecked = Verification("unverified", "torch", reason=reason)
            return {"stage": report.name, "against": "eager module", **unchecked.to_json()}
        result = verify_outputs(
            [f"output_{i}" for i in range(len(got))],
            _run_module(swapped, samples),
            got,
            label="torch",
            proves="verified",
            tolerance=tolerance_for("exact"),
        )
        self._require(result, report.name, "eager module with ReLU")
        return {"stage": report.name, "against": "eager module with ReLU", **result.to_json()}

    # -- the files ---------------------------------------------------------------------------------

    def _artifact(
        self,
        exporter: Exporter,
        options: Any,
        program: Program,
        folder: Path,
        samples: Sequence[Arrays],
        want: Arrays,
    ) -> tuple[dict[str, Any], Arrays | None]:
        """The manifest's entry; for a file of half precision the outputs with its weights too."""
        with self._stage(f"write {exporter.name}"):
            artifact = exporter.export(program, folder, options)
        for warning in artifact.warnings:  # before the check: they may say why it will fail
            self.progress.note(f"{exporter.name}: {warning}")
        with self._stage(f"verify {exporter.name}"):
            half = _run_rounded(program, artifact, samples)
            results = self._verify(exporter, artifact, folder, samples, Expected(want, half))
        return artifact_json(artifact) | {"verification": summarize(results)}, half

    def _verify(
        self,
        exporter: Exporter,
        artifact: Artifact,
        folder: Path,
        samples: Sequence[Arrays],
        want: Expected,
    ) -> list[Verification]:
        if not self.plan.verify:
            return [Verification("unverified", "none", reason="verification was switched off")]
        results = verify_artifact(exporter, artifact, folder, samples, want)
        for result in results:
            self._require(result, f"{artifact.file}, run by {result.label},", "program")
        return results

    @staticmethod
    def _require(result: Verification, what: str, against: str) -> None:
        if not result.ok:
            raise VerificationError(
                f"{what} does not agree with the {against}: {result.reason}",
                hint="nothing was written; `--no-verify` writes the file marked unverified",
            )

    # -- inputs ------------------------------------------------------------------------------------

    def _samples(self) -> tuple[list[Arrays], list[dict[str, Any]]]:
        """Inputs to verify on, one list of arrays a run, and what each of them is."""
        runs: list[Arrays] = []
        described: list[dict[str, Any]] = []
        # The picture comes first: the first sample is what a device is timed on.
        if self.source.preprocessing is not None:
            path = self.plan.image or PHOTOGRAPH
            runs.append([self._picture(path)])
            described.append({"kind": "image", "file": path.name, "sha256": hash_file(path)})
        elif self.plan.image is not None:
            raise UsageError(f"{self.source.name} takes no image, so none can be verified on")
        for index in range(NOISE_SAMPLES):
            generator = np.random.default_rng([self.seed, index])
            runs.append(
                [
                    generator.standard_normal(spec.shape, dtype=np.float32)
                    for spec in self.source.inputs
                ]
            )
            described.append({"kind": "normal noise", "seed": [self.seed, index]})
        return runs, described

    def _picture(self, path: Path) -> NDArray[Any]:
        spec, preprocessing = self.source.inputs[0], self.source.preprocessing
        assert preprocessing is not None
        image = load_image(path, (spec.shape[2], spec.shape[3]), preprocessing)
        # The rows of a batch must differ, or one that mixes them up would not be noticed.
        rows = [np.roll(image, 7 * row, axis=-1) for row in range(spec.shape[0])]
        return np.ascontiguousarray(np.concatenate(rows))


def _run_program(program: Program, samples: Sequence[Arrays]) -> Arrays:
    import torch

    return stack_runs(
        [[o.numpy() for o in program(*map(torch.from_numpy, run))] for run in samples]
    )


def _run_rounded(program: Program, artifact: Artifact, samples: Sequence[Arrays]) -> Arrays | None:
    """The program's outputs with what the file rounds rounded alike; None if it is all fp32."""
    from edgevit.capture import half_weights

    if artifact.precision != "fp16":
        return None
    kept = artifact.facts.get("kept_fp32", {})
    rounded = half_weights(
        program, kept=kept.get("tensors", ()), kept_factors=kept.get("factors", ())
    )
    return _run_module(rounded, samples)


def _rewritten_agrees(
    before: Program, after: Program, want: Arrays, got: Arrays, samples: Sequence[Arrays]
) -> Verification:
    """A rewritten graph against the one before it; ``got`` and ``want`` are their outputs.

    A network can blow up rounding: a BatchNorm whose input hardly varies divides by that little
    deviation. Where fp32 does not agree, both graphs are run in float64, with the same tolerance:
    what is left then is the rewrite's own doing.
    """
    result = _agreement(after, want, got, "torch", "passes")
    if result.ok:
        return result
    from edgevit.capture import double_precision

    exact, more = (_run_module(double_precision(p), _in_double(samples)) for p in (before, after))
    return _agreement(after, exact, more, "torch in float64", "passes")


def _agreement(
    program: Program, want: Arrays, got: Arrays, label: str, precision: str
) -> Verification:
    return verify_outputs(
        [spec.name for spec in program.outputs],
        want,
        got,
        label=label,
        proves="verified",
        tolerance=tolerance_for(precision),
    )


def _in_double(samples: Sequence[Arrays]) -> list[Arrays]:
    return [[a.astype(np.float64) if a.dtype == np.float32 else a for a in run] for run in samples]


def _run_module(module: nn.Module, samples: Sequence[Arrays]) -> Arrays:
    import torch

    runs = []
    with torch.inference_mode():
        for arrays in samples:
            out = module(*map(torch.from_numpy, arrays))
            runs.append([o.numpy() for o in ([out] if isinstance(out, torch.Tensor) else out)])
    return stack_runs(runs)


def _swap_activations(module: nn.Module) -> tuple[nn.Module, int]:
    """A copy with every smooth activation module replaced by ReLU, and how many there were."""
    from torch import nn

    smooth = (nn.GELU, nn.SiLU, nn.Hardswish)
    copied, count = copy.deepcopy(module), 0
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, smooth):
                setattr(parent, name, nn.ReLU())
                count += 1
    return copied, count


def _drift(before: Arrays, after: Arrays) -> dict[str, Any]:
    """How far the first output moved on purpose: a different model, not an error."""
    comparison = compare("output", before[0], after[0])
    agree = (before[0].argmax(-1) == after[0].argmax(-1)).mean()
    return {
        "max_abs": comparison.max_abs,
        "relative": comparison.relative,
        "cosine": comparison.cosine,
        "top1_agreement": float(agree),
        "advice": "fine-tune the weights with ReLU before use",
    }


def _drift_note(drift: Mapping[str, Any]) -> str:
    return (
        f"ReLU changes the model: outputs move by {drift['relative']:.1%} of their scale "
        f"(max abs {drift['max_abs']:.2e}, cosine {drift['cosine']:.4f}); {drift['advice']}"
    )


def _carry_over(destination: Path, folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Take over other formats of an earlier export, if it was of the very same graph."""
    import shutil

    if not (destination / MANIFEST).is_file():
        return []
    try:
        old = Bundle.open(destination)
    except BundleError:
        return []
    same = ("graph_sha256", "samples", "batch", "preprocessing", "edgevit", "target")
    if any(old.manifest.get(key) != manifest.get(key) for key in same):
        return []
    kept = [name for name in old.formats if name not in manifest["artifacts"]]
    for name in kept:
        entry = old.manifest["artifacts"][name]
        origin = destination / entry["file"]
        copier = shutil.copytree if origin.is_dir() else shutil.copy2
        copier(origin, folder / entry["file"])
        manifest["artifacts"][name] = entry
    carry_golden(old, folder, kept)
    return kept
