"""``edgevit export``: a model, or several, each to a bundle of checked files."""

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
from edgevit.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.bundle import Bundle
    from edgevit.verbs.export_many import Exported

#: Shortcuts for options of a format: the flag goes to every chosen format that has the option.
FLAGS = ("opset", "ir_version", "simplify", "target", "precision", "layout")


def export(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Names from `edgevit models`, also with wildcards, or package.module:factory.",
        ),
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="onnx, coreml, tflite, openvino, executorch, torch; several with commas.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--for", help="A device or host: files that it can load (opset, IR)."),
    ] = None,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="With --for: as `edgevit tune` found for that device.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that the bundle's folder is made in.")
    ] = Path("exports"),
    name: Annotated[str | None, typer.Option(help="The bundle's folder name.")] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="relu replaces GELU, SiLU and hard-swish; this changes the model."),
    ] = None,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn/--no-fold-bn", help="Fold every BatchNorm that can be.")
    ] = True,
    passes: Annotated[
        str | None,
        typer.Option(
            help="Exact rewrites to make, with commas, or none; those that always pay without it."
        ),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 224 or 800x1280.")] = None,
    in_chans: Annotated[int, typer.Option(help="Channels of the image.")] = 3,
    input_shape: Annotated[
        str | None, typer.Option(help="For a factory that takes no image: sizes without batch.")
    ] = None,
    model_option: Annotated[
        list[str] | None,
        typer.Option("--set", help="Option of the model's family, such as softmax_axis=space."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help=".safetensors, .pth, .pt or owner/name on the hub; random without it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and of the test inputs.")] = 0,
    batch: Annotated[int, typer.Option(help="Batch size of the files.")] = 1,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Let the batch vary (onnx, openvino, torch).")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check each stage against the one before.")
    ] = True,
    image: Annotated[Path | None, typer.Option(help="A picture to verify on.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 13 to 23.")] = None,
    ir_version: Annotated[
        int | None, typer.Option(help="ONNX IR version, for old runtimes.")
    ] = None,
    simplify: Annotated[
        bool | None, typer.Option("--simplify", help="ONNX: run onnxsim over the file.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Core ML: ios15 to ios18.")] = None,
    precision: Annotated[str | None, typer.Option(help="Core ML: fp16 or fp32.")] = None,
    layout: Annotated[str | None, typer.Option(help="TFLite input: nchw or nhwc.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="Any option of a format: onnx.opset=15."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Of several models, how many at a time.")
    ] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest on stdout.")] = False,
) -> None:
    """Export models to ONNX, Core ML, TFLite or PyTorch, and check every file."""
    from edgevit.verbs.export import export as run
    from edgevit.verbs.export_many import export_many, is_pattern

    chosen = split_list(formats) if tuned else _formats(formats, device)
    given = {
        "opset": opset,
        "ir_version": ir_version,
        "simplify": simplify,
        "target": target,
        "precision": precision,
        "layout": layout,
    }
    source: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": parse_size(image_size),
        "in_chans": in_chans,
        "weights": weights,
        "input_shape": parse_ints("--input-shape", input_shape) if input_shape else None,
        "model_options": parse_options("--set", model_option),
    }
    asked: dict[str, Any] = {
        "formats": chosen,
        "device": device,
        "output": output,
        "activation": activation,
        "fold_batchnorm": fold_bn,
        "passes": _passes(passes),
        "dynamic_batch": dynamic_batch,
        "verify": verify,
        "image": image,
        "name": name,
        "options": format_options(chosen, given, option),
        "batch": batch,
        "seed": seed,
        **source,
    }
    several = len(models) > 1 or is_pattern(models[0])
    if tuned and several:
        raise OptionError("--tuned", expected="one model at a time", got=" ".join(models))
    with CliProgress(quiet=as_json) as progress:
        if several:
            outcomes = export_many(models, jobs=jobs, progress=progress, **asked)
        else:
            bundle = run(models[0], progress=progress, tuned=tuned, **asked)
    if several:
        print_many(outcomes, output, as_json=as_json)
    elif as_json:
        print_json({"path": str(bundle.path), **bundle.manifest})
    else:
        print_bundle(bundle)


def _passes(names: str | None) -> tuple[str, ...]:
    from edgevit.passes import EXACT

    if names is None:
        return EXACT
    return () if names == "none" else tuple(split_list([names]))


def _formats(formats: list[str] | None, device: str | None) -> list[str]:
    """The formats asked for, or the device's own, or ONNX."""
    from devices.resolve import find_profile
    from edgevit.verbs.export import DEFAULT_FORMAT
    from edgevit.verbs.targets import default_format

    if chosen := split_list(formats):
        return chosen
    return [default_format(find_profile(device)) if device else DEFAULT_FORMAT]


def format_options(
    formats: list[str], flags: dict[str, Any], items: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Options by format from the shortcut flags and from ``format.name=value`` items.

    Raises:
        OptionError: a flag that none of the formats has, an item without a format.
    """
    from dataclasses import fields

    from exporters.base import exporters

    options: dict[str, dict[str, Any]] = {}
    have = {f: {x.name for x in fields(exporters.get(f).options)} for f in formats}  # type: ignore[arg-type]
    for flag, value in flags.items():
        if value is None:
            continue
        takers = [f for f in formats if flag in have[f]]
        if not takers:
            raise OptionError(
                f"--{flag.replace('_', '-')}",
                expected=f"an option of format {' or '.join(formats)}",
                got=value,
            )
        for taker in takers:
            options.setdefault(taker, {})[flag] = value
    for key, value in parse_options("--option", items).items():
        format_name, dot, option = key.partition(".")
        if not dot or format_name not in formats:
            raise OptionError(
                "--option", expected=f"format.name=value for {', '.join(formats)}", got=key
            )
        options.setdefault(format_name, {})[option] = value
    return options


def print_bundle(bundle: Bundle) -> None:
    """What was written and how it was checked."""
    console = out_console()
    manifest = bundle.manifest
    console.print(f"{bundle.path}", highlight=False, markup=False)
    for report in manifest["passes"]:
        refused = len(report["refused"])
        console.print(
            f"  {report['name']}: {report['rewritten']} rewritten, {refused} refused",
            highlight=False,
        )
    for name, entry in manifest["artifacts"].items():
        size = manifest["files"][entry["file"]]["bytes"] / 2**20
        console.print(
            f"  {entry['file']:<16} {size:7.1f} MiB  {verification_text(entry['verification'])}",
            highlight=False,
            markup=False,
        )
        del name


def print_many(outcomes: list[Exported], output: Path, *, as_json: bool) -> None:
    """A line a file, a line a failure; exits with what went wrong, if anything did."""
    from edgevit.verbs.export_many import exit_code

    code = exit_code(outcomes)
    if as_json:
        print_json({"output": str(output), "models": [o.to_json() for o in outcomes]})
    else:
        out_console().print(many_table(outcomes))
        for outcome in outcomes:
            if outcome.error is not None and outcome.error.hint:
                text = f"{outcome.model}: {outcome.error.hint}"
                error_console().print(f"  hint: {text}", highlight=False, markup=False)
    if code:
        sys.exit(code)


def many_table(outcomes: list[Exported]) -> Table:
    """Models, files, sizes, how they were checked, seconds."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("file", no_wrap=True)
    for title in ("MiB", "s"):
        table.add_column(title, justify="right")
    table.add_column("verification", overflow="fold")
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}"
        if outcome.manifest is None:
            said = outcome.error.message if outcome.error else ""
            table.add_row(outcome.model, "-", "-", seconds, Text(f"failed: {said}", style="red"))
            continue
        for entry in outcome.manifest["artifacts"].values():
            size = outcome.manifest["files"][entry["file"]]["bytes"] / 2**20
            words = Text(verification_text(entry["verification"]))
            table.add_row(outcome.model, entry["file"], f"{size:.1f}", seconds, words)
            seconds = ""
    return table


def verification_text(verification: dict[str, Any]) -> str:
    """A file's status in one line, with the closest figures."""
    status = verification["status"]
    if status == "unverified":
        return f"unverified: {verification['reason']}"
    parts = []
    for check in verification["checks"]:
        worst = max(check["comparisons"], key=lambda c: c["relative"] or float("inf"), default=None)
        if worst is not None and worst["max_abs"] is not None:
            parts.append(
                f"{check['label']}: max abs {worst['max_abs']:.1e}, "
                f"{worst['relative']:.1e} of scale, cosine {worst['cosine']:.6f}"
            )
        else:
            parts.append(f"{check['label']}: {check['reason']}")
    return f"{status} ({'; '.join(parts)})"
