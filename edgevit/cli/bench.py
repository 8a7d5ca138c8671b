"""``edgevit bench``: models and blocks, checked and timed on a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.common import (
    CliProgress,
    error_console,
    out_console,
    parse_ints,
    parse_options,
    parse_size,
    print_json,
    split_list,
)
from edgevit.errors import OptionError, ShapeError, UsageError

if TYPE_CHECKING:
    from devices.base import Schedule
    from edgevit.measure.results import Result
    from edgevit.source import BlockSpec
    from edgevit.verbs.suites import Suite


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(help="Models, bundles (folders of `edgevit export`), module:factory."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", "-d", help="Where to run; several with commas. local without."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="A set of subjects; `default` if no subject is named."),
    ] = None,
    list_suites: Annotated[
        bool, typer.Option("--list-suites", help="List the suites, and measure nothing.")
    ] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="Which formats; the usual ones of the device without."),
    ] = None,
    block: Annotated[
        list[str] | None, typer.Option("--block", help="An attention block; repeat for more.")
    ] = None,
    shape: Annotated[str, typer.Option(help="Of blocks: tokens N, width D of a head.")] = "256,64",
    heads: Annotated[int, typer.Option(help="Of blocks.")] = 8,
    total_width: Annotated[
        bool, typer.Option("--total-width", help="D of --shape is the width of all heads together.")
    ] = False,
    projections: Annotated[
        bool, typer.Option("--projections", help="Blocks with their projections, not the core.")
    ] = False,
    order: Annotated[
        str | None,
        typer.Option(help="Of blocks that have the choice: nn for (QK^T)V, dd for Q(K^TV)."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help='Blocks at all combinations of tokens n, head width d, heads h: "n=64,128 d=32".',
        ),
    ] = None,
    threads: Annotated[
        str | None, typer.Option(help="One count or several: 1,2,4. The device's own without.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images in one inference.")] = 1,
    runs: Annotated[
        int | None, typer.Option(help="Exactly so many timed runs, 1000 in the papers.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time at least so long, if --runs is not given.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(help="Go on until the median's interval is so narrow: 0.02 for 2 %."),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Seconds to warm up at least; 0 for none.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory, in a run of its own.")
    ] = True,
    compute: Annotated[
        str | None, typer.Option(help="Core ML's compute unit: cpu, gpu, ane or all.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="What runs the files, if a device has several: tensorrt, onnxruntime."),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", help="ONNX Runtime's providers, in order of preference."),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="TensorRT or OpenVINO may compute in half precision.")
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="OpenVINO may compute in bfloat16, if the CPU has it.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, if this bench was cut short before.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "results"
    ),
    seed: Annotated[int, typer.Option(help="Of random weights, inputs and the order.")] = 0,
    activation: Annotated[str | None, typer.Option(help="relu, as for export.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 224 or 800x1280.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights file, or owner/name on the hub.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to run on.")] = None,
    model_option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the model's family or the block.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The results on stdout.")] = False,
) -> None:
    """Check and time models and attention blocks on one or more devices.

    A model is exported first if it is not a bundle yet. Whatever computes something else than it
    should is not timed. Results are written to a folder, for `edgevit table`; the same command
    again goes on where it was cut short.
    """
    if list_suites:
        _list_suites(as_json)
        return
    from edgevit.verbs.bench import bench as run

    _check_precision(fp16, bf16, runtime, split_list(formats))
    options = parse_options("--set", model_option)
    blocks = [_block(name, shape, heads, total_width, projections, options) for name in block or []]
    blocks = _swept(blocks, order, sweep)
    chosen = _suite(suite, bool(subjects or blocks), projections)
    model: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": parse_size(image_size),
        "weights": weights,
        # Beside models the options are those models'; alone they are the blocks'.
        "model_options": (options or None) if subjects or chosen else None,
    }
    with CliProgress(quiet=as_json) as progress:
        results = run(
            [*(subjects or []), *blocks],
            device=split_list(device) or ["local"],
            formats=split_list(formats),
            threads=parse_ints("--threads", threads) if threads is not None else None,
            batch=batch,
            schedule=_schedule(
                chosen.runs if chosen and runs is None and seconds is None else runs,
                seconds,
                warmup,
                interval,
                seed,
            ),
            memory=memory,
            runtime=runtime,
            suite=chosen,
            output=output,
            fresh=fresh,
            seed=seed,
            backends=_backends(compute, provider, fp16, bf16),
            progress=progress,
            activation=activation,
            image=image,
            **model,
        )
    _show(results, output, as_json, published=chosen is not None and chosen.published)


def _suite(name: str | None, named: bool, projections: bool) -> Suite | None:
    """The suite that was asked for, or the default one if nothing else was."""
    from edgevit.verbs.suites import DEFAULT, find_suite

    if name is None and named:
        return None
    suite = find_suite(name or DEFAULT)
    return suite.with_projections() if projections else suite


def _list_suites(as_json: bool) -> None:
    from edgevit.source import BlockSpec
    from edgevit.verbs.suites import SUITES

    listed: list[dict[str, Any]] = [
        {
            "name": suite.name,
            "title": suite.title,
            "runs": suite.runs,
            "subjects": [s.label if isinstance(s, BlockSpec) else s for s in suite.subjects],
        }
        for suite in SUITES.values()
    ]
    if as_json:
        print_json(listed)
        return
    for entry in listed:
        runs = f", {entry['runs']} runs each" if entry["runs"] else ""
        head = f"{entry['name']:<14} {entry['title']}{runs}"
        out_console().print(head, highlight=False, markup=False)
        subjects = " ".join(entry["subjects"])
        out_console().print(f"{'':<14} {subjects}", style="dim", highlight=False, markup=False)


def _swept(blocks: list[BlockSpec], order: str | None, items: list[str] | None) -> list[BlockSpec]:
    """The blocks in that order of products, at all sizes of the sweep."""
    if not blocks and (order is not None or items):
        option = "--sweep" if items else "--order"
        raise UsageError(f"{option} is for blocks", hint="name some with --block")
    from edgevit.verbs.suites import fixed_order, sweep

    if order is not None:
        blocks = [fixed_order(block, order) for block in blocks]
    axes: dict[str, tuple[int, ...]] = {}
    for part in " ".join(items or []).split():
        axis, equals, sizes = part.partition("=")
        if not equals:
            raise OptionError("--sweep", expected='axes and sizes such as "n=64,128"', got=part)
        axes[axis.lower()] = axes.get(axis.lower(), ()) + parse_ints("--sweep", sizes)
    return sweep(blocks, axes) if axes else blocks


def _check_precision(fp16: bool, bf16: bool, runtime: str | None, formats: list[str]) -> None:
    """A lower precision is asked of a runtime that has it."""
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other; give one")
    openvino = "openvino" in (runtime, *formats)
    if fp16 and runtime != "tensorrt" and not openvino:
        hint = "--runtime tensorrt on a device that has it, or --format openvino"
        raise UsageError("--fp16 is for TensorRT and OpenVINO", hint=hint)
    if bf16 and not openvino:
        raise UsageError("--bf16 is for OpenVINO", hint="--format openvino")


def _backends(
    compute: str | None, providers: list[str] | None, fp16: bool, bf16: bool
) -> dict[str, dict[str, Any]]:
    """Options of the agent's backends."""
    from devices.apple import PHONE_BACKEND, coreml_options

    options: dict[str, dict[str, Any]] = {}
    if compute is not None:
        options |= {name: dict(coreml_options(compute)) for name in ("coreml", PHONE_BACKEND)}
    if providers:
        options["onnxruntime"] = {"providers": split_list(providers)}
    if fp16:
        options["tensorrt"] = {"fp16": True}
    if fp16 or bf16:
        options["openvino"] = {"precision": "bf16" if bf16 else "f16"}
    return options


def _schedule(
    runs: int | None,
    seconds: float | None,
    warmup: float | None,
    interval: float | None,
    seed: int,
) -> Schedule:
    from devices.base import Schedule

    if runs is not None and interval is not None:
        raise UsageError("--runs says exactly how many, --interval as many as it takes; give one")
    given: dict[str, Any] = {"runs": runs, "interval": interval, "seed": seed}
    if seconds is not None:
        given |= {"min_seconds": seconds, "max_seconds": max(60.0, 3 * seconds)}
    if warmup is not None:
        # Ten inferences are the least otherwise, which take minutes on an emulator.
        given |= {"warmup_seconds": warmup} if warmup else {"warmup_seconds": 0, "warmup_runs": 0}
    return Schedule(**given)


def _block(
    name: str,
    shape: str,
    heads: int,
    total_width: bool,
    projections: bool,
    options: dict[str, Any],
) -> BlockSpec:
    from edgevit.source import BlockSpec

    numbers = parse_ints("--shape", shape)
    if len(numbers) != 2:
        raise OptionError("--shape", expected="tokens,width such as 256,64", got=shape)
    tokens, width = numbers
    if total_width:
        if heads < 1 or width % heads:
            raise ShapeError(f"{heads} heads do not divide a width of {width}")
        width //= heads
    return BlockSpec(name, tokens, width, heads, projections, options)


def _show(results: list[Result], output: Path, as_json: bool, *, published: bool) -> None:
    from edgevit.cli.table import print_table

    if as_json:
        print_json([result.to_json() for result in results])
    else:
        print_table(results, include="all", published=published)
        error_console().print(f"results in {output}", style="dim", markup=False)
    statuses = {result.status for result in results}
    if "mismatch" in statuses:
        sys.exit(1)
    if "failed" in statuses:
        sys.exit(3)
