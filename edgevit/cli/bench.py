"""``edgevit bench``: models and blocks, checked and timed on a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.common import (
    CliProgress,
    error_console,
    parse_ints,
    parse_options,
    parse_size,
    print_json,
    split_list,
)
from edgevit.errors import OptionError, ShapeError, UsageError

if TYPE_CHECKING:
    from edgevit.measure.results import Result
    from edgevit.source import BlockSpec


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(help="Models, bundles (folders of `edgevit export`), module:factory."),
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="Where to run.")] = "local",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="Which formats; all that the device runs without."),
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
    threads: Annotated[str, typer.Option(help="One count or several: 1,2,4.")] = "1",
    batch: Annotated[int, typer.Option(help="Images in one inference.")] = 1,
    runs: Annotated[
        int | None, typer.Option(help="Exactly so many timed runs, 1000 in the papers.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time at least so long, if --runs is not given.")
    ] = None,
    warmup: Annotated[float | None, typer.Option(help="Seconds to warm up at least.")] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory, in a run of its own.")
    ] = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "results"
    ),
    seed: Annotated[int, typer.Option(help="Of random weights, inputs and the order.")] = 0,
    activation: Annotated[str | None, typer.Option(help="relu, as for export.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 224 or 800x1280.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to run on.")] = None,
    model_option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the model's family or the block.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The results on stdout.")] = False,
) -> None:
    """Check and time models and attention blocks on a device.

    A model is exported first if it is not a bundle yet. Whatever computes something else than it
    should is not timed. Results are written to a folder, for `edgevit table`.
    """
    from edgevit.verbs.bench import bench as run

    options = parse_options("--set", model_option)
    common: dict[str, Any] = {"activation": activation, "image": image}
    source: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": parse_size(image_size),
        "weights": weights,
        "model_options": options or None,
    }
    wanted = split_list(formats)
    chosen: dict[str, Any] = {
        "device": device,
        "formats": wanted,
        "threads": parse_ints("--threads", threads),
        "batch": batch,
        "schedule": _schedule(runs, seconds, warmup, seed),
        "memory": memory,
        "output": output,
        "seed": seed,
    }
    blocks = [_block(name, shape, heads, total_width, projections, options) for name in block or []]
    if not subjects and not blocks:
        raise UsageError(
            "nothing to bench", hint="name a model, a bundle or a --block; see `edgevit models`"
        )
    results: list[Result] = []
    with CliProgress(quiet=as_json) as progress:
        if subjects:
            results += run(list(subjects), progress=progress, **chosen, **common, **source)
        if blocks:
            # With models beside them the options are those models'; alone they are a mistake.
            mistaken = {} if subjects else source | {"model_options": None}
            results += run(blocks, progress=progress, **chosen, **common, **mistaken)
    _show(results, output, as_json)


def _schedule(runs: int | None, seconds: float | None, warmup: float | None, seed: int) -> Any:
    from devices.base import Schedule

    given: dict[str, Any] = {"runs": runs, "seed": seed}
    if seconds is not None:
        given |= {"min_seconds": seconds, "max_seconds": max(60.0, 3 * seconds)}
    if warmup is not None:
        given["warmup_seconds"] = warmup
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


def _show(results: list[Result], output: Path, as_json: bool) -> None:
    from edgevit.cli.table import print_table

    if as_json:
        print_json([result.to_json() for result in results])
    else:
        print_table(results, include="all")
        error_console().print(f"results in {output}", style="dim", markup=False)
    statuses = {result.status for result in results}
    if "mismatch" in statuses:
        sys.exit(1)
    if "failed" in statuses:
        sys.exit(3)
