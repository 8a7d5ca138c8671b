"""``edgevit profile``: where the time of a model goes, by operator, block, module or stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.common import CliProgress, error_console, parse_options, parse_size, print_json
from edgevit.errors import OptionError

if TYPE_CHECKING:
    from devices.base import Schedule

__all__ = ["profile"]


def profile(
    subject: Annotated[
        str, typer.Argument(help="A model, a bundle (folder of `edgevit export`), module:factory.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Where to run.")] = "local",
    format_name: Annotated[
        str, typer.Option("--format", "-f", help="onnx, tflite or torch.")
    ] = "onnx",
    by: Annotated[
        str, typer.Option(help="Rows: op, kind, block, module, stage, or every node.")
    ] = "op",
    ablate: Annotated[
        str | None, typer.Option(help="block: also time it without each block, in turns.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="The device's own without.")] = None,
    batch: Annotated[int, typer.Option(help="Images in one inference.")] = 1,
    seconds: Annotated[float | None, typer.Option(help="Profile at least so long.")] = None,
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="The machine's own peaks, measured once.")
    ] = True,
    top: Annotated[int, typer.Option(min=0, help="So many rows; 0 for all.")] = 30,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the profile.")] = Path(
        "results"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of random weights and inputs.")] = 0,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 224 or 800x1280.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights file, or owner/name on the hub.")
    ] = None,
    model_option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the model's family.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The profile on stdout.")] = False,
) -> None:
    """Time a model's operators one by one, and say where in the model they come from.

    Times are the runtime's own; what its profiler costs is measured and printed.
    """
    from edgevit.profiling.summary import BY, summary
    from edgevit.verbs.profile import profile as run

    if by not in BY:
        raise OptionError("--by", expected=" or ".join(BY), got=by)
    options: dict[str, Any] = {
        "image_size": parse_size(image_size),
        "weights": weights,
        "model_options": parse_options("--set", model_option),
    }
    with CliProgress(quiet=as_json) as progress:
        made = run(
            subject,
            device=device,
            format=format_name,
            threads=threads,
            batch=batch,
            ablate=ablate,
            schedule=_schedule(seconds, seed),
            peak=peak,
            output=output,
            seed=seed,
            progress=progress,
            **{name: value for name, value in options.items() if value},
        )
    if as_json:
        print_json({**made.to_json(), "summary": summary(made)})
        return
    from edgevit.cli.profile_text import print_profile

    print_profile(made, by, top)
    error_console().print(f"profile in {output / made.filename}", style="dim", markup=False)


def _schedule(seconds: float | None, seed: int) -> Schedule:
    from dataclasses import replace

    from edgevit.verbs.profile import SCHEDULE

    if seconds is None:
        return replace(SCHEDULE, seed=seed)
    if seconds <= 0:
        raise OptionError("--seconds", expected="more than 0", got=seconds)
    return replace(SCHEDULE, min_seconds=seconds, max_seconds=max(30.0, 3 * seconds), seed=seed)
