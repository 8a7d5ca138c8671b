"""``edgevit tune``: the fastest correct file for a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.common import (
    CliProgress,
    out_console,
    parse_ints,
    parse_options,
    parse_size,
    print_json,
    split_list,
)

if TYPE_CHECKING:
    from edgevit.verbs.tune import Tuned

ENDINGS = {
    "significant": "every other candidate that was measured is slower",
    "none faster": "of what stayed in the race, nothing is faster by more than {regret:.0%}",
    "budget": "the budget is spent before all is decided",
    "only": "nothing else was measured",
}


def tune(
    model: Annotated[str, typer.Argument(help="A name from `edgevit models`, or module:factory.")],
    device: Annotated[
        str, typer.Option("--device", "-d", help="Where it is to be fast.")
    ] = "local",
    budget: Annotated[
        str, typer.Option(help="For exporting and measuring together: 120s, 5m, 1h.")
    ] = "120s",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the winner and tune.json.")
    ] = Path("tuned"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="Try these alone, with commas.")
    ] = None,
    threads: Annotated[str | None, typer.Option(help="Counts to try: 1,2,4.")] = None,
    batch: Annotated[int, typer.Option(help="Images in one inference.")] = 1,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 224 or 800x1280.")] = None,
    in_chans: Annotated[int, typer.Option(help="Channels of the image.")] = 3,
    input_shape: Annotated[
        str | None, typer.Option(help="For a factory that takes no image: sizes without batch.")
    ] = None,
    model_option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the model's family.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="File or owner/name; random without it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and order.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, if the same tuning was cut short.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="tune.json on stdout.")] = False,
) -> None:
    """Find the format, rewrites and settings that are fastest on a device.

    Candidates that compute something else are out; of equally fast ones the plainest is taken.
    Cut short, the same command goes on. `edgevit export --for DEVICE --tuned` uses what was found.
    """
    from edgevit.verbs.tune import parse_budget
    from edgevit.verbs.tune import tune as run

    source: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": parse_size(image_size),
        "in_chans": in_chans,
        "weights": weights,
        "input_shape": parse_ints("--input-shape", input_shape) if input_shape else None,
        "model_options": parse_options("--set", model_option),
    }
    with CliProgress(quiet=as_json) as progress:
        tuned = run(
            model,
            device=device,
            budget_s=parse_budget(budget),
            output=output,
            formats=split_list(formats) or None,
            threads=parse_ints("--threads", threads) if threads else None,
            batch=batch,
            seed=seed,
            fresh=fresh,
            progress=progress,
            **source,
        )
    if as_json:
        print_json(tuned.report)
    else:
        print_tuned(tuned)


def print_tuned(tuned: Tuned) -> None:
    """The winner, how it was decided, and what became of the others."""
    report, console = tuned.report, out_console()
    winner, ending = report["winner"], ENDINGS[report["ended"]].format(**report)
    lines = [
        str(tuned.bundle.path),
        f"  {winner['label']}: {winner['median_ms']:.4g} ms; {ending}",
    ]
    if winner["tied"]:
        lines.append(f"  as fast: {', '.join(winner['tied'])}")
    lines.append(
        f"  {report['exporting_s']:.0f} s of exporting, {report['measuring_s']:.0f} s of "
        f"measuring, of {report['budget_s']:.0f} s"
    )
    lines += [
        f"  {candidate['status']:<7} {candidate['label']}: {candidate['reason']}"
        for candidate in report["candidates"]
        if candidate["status"] != "won"
    ]
    lines += [f"  left out {name}: {why}" for name, why in report["left_out"].items()]
    for line in lines:
        console.print(line, highlight=False, markup=False)
