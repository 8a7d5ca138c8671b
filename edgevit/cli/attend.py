"""``edgevit attend``: what a model pays attention to, drawn over a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.common import (
    error_console,
    out_console,
    parse_options,
    parse_size,
    print_json,
)


def attend(
    model: Annotated[
        str, typer.Argument(help="A name from `edgevit models`, or package.module:factory.")
    ],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path(
        "attention.png"
    ),
    weights: Annotated[
        str | None,
        typer.Option(help=".safetensors, .pth, .pt or owner/name on the hub; random without it."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="sima, elementwise or softmax; what the model has without.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Which attention of that kind, from 1; the last without.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="One head, or channel of element-wise attention, from 1.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: 224 or 800x1280.")] = None,
    model_option: Annotated[
        list[str] | None,
        typer.Option("--set", help="Option of the model's family, such as softmax_axis=space."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="The maps' statistics on stdout.")
    ] = False,
) -> None:
    """Draw what a model pays attention to over a picture, as in the papers' figures.

    SimA: magnitudes of query and key; EleViT: its attention map; ViT and DeiT: the class token's.
    """
    from edgevit.verbs.attend import attend as run

    attended = run(
        model,
        image,
        kind=kind,
        layer=layer,
        head=head,
        weights=weights,
        num_classes=num_classes,
        image_size=parse_size(image_size),
        seed=seed,
        options=parse_options("--set", model_option),
    )
    attended.draw(output)
    if attended.random:
        error_console().print(
            "note: the weights are random, so the maps show nothing that was learned; "
            "--weights takes a file",
            highlight=False,
        )
    if as_json:
        print_json({"output": str(output), **attended.to_json()})
        return
    out_console().print(f"{output}", highlight=False, markup=False)
    for one in attended.to_json()["maps"]:
        height, width = one["size"]
        out_console().print(
            f"  {one['name']:<12} {one['layer']}, {height} x {width}: {one['min']:.2e} to "
            f"{one['max']:.2e}, mean {one['mean']:.2e}, peak at {tuple(one['peak'])}",
            highlight=False,
            markup=False,
        )
