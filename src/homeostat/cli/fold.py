"""`homeostat fold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.app import FOUND, STOPPED, app, parse_size, quiet_frameworks
from homeostat.cli.options import Force, ImageSize, Transform, Weights
from homeostat.cli.output import check_output, write_beside


@app.command()
def fold(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A .keras file, or package.module:factory, which is run."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="File to write: .keras, or weights as .pt, .pth or .safetensors."
        ),
    ],
    weights: Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Examples to compare both models on: .npy, .npz, a folder of images or .npy "
            "files, or package.module:function that returns batches. The first batch is taken.",
            show_default="random ones",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="Largest difference of an output that is allowed, relative to the largest."
        ),
    ] = 1e-5,
    forward: Annotated[
        bool,
        typer.Option(
            help="Fold a norm into the layer after it where it cannot be folded into the one "
            "before it."
        ),
    ] = True,
    image_size: ImageSize = None,
    transform: Transform = None,
    force: Force = False,
) -> None:
    """Write a model without its batch norms that computes the same, for deployment.

    Each norm becomes part of the convolution or dense layer beside it. Both models are run in
    float64 before anything is written; what could not be folded is listed with the reason. MODEL
    stays as it is.

    [bold]Examples[/bold]

      homeostat fold model.keras -o folded.keras
      [dim]and what that saves: parameters, operations, time[/dim]

      homeostat fold model.keras -o folded.keras --data images.npy
      [dim]compared and timed on your own images too[/dim]

      homeostat fold package.models:resnet --weights resnet.pt -o folded.pt
      [dim]the weights of the folded model; docs/fold.md tells how to load them[/dim]

    Exit codes: 0 written, 1 no norm could be folded and nothing was written, 2 could not run, 130
    stopped by Ctrl-C.
    """
    from homeostat.data import open_batches
    from homeostat.fold import fold as run
    from homeostat.models import adapt, open_live

    check_output(out, force)
    try:
        with quiet_frameworks():
            live = open_live(model, weights)
            if hasattr(live.model, "eval"):
                # What a factory of PyTorch makes is in training mode.
                live.model.eval()
            inputs = None
            if data is not None:
                first = open_batches(
                    data, 32, limit=1, image_size=parse_size(image_size), transform=transform,
                    channels_first=live.record().framework == "torch",
                )  # fmt: skip
                inputs = next(iter(first)).inputs
            folded = run(live.model, inputs, tolerance=tolerance, forward=forward)
            typer.echo(str(folded.report))
            if not folded.report.folded:
                typer.echo("Nothing was written.", err=True)
                raise typer.Exit(FOUND)
            undo = write_beside(out, adapt(folded.model).save)
    except KeyboardInterrupt:
        typer.echo("Stopped. Nothing was written.", err=True)
        raise typer.Exit(STOPPED) from None
    typer.echo(f"Written: {out}")
    typer.echo(f"To undo: {undo}")
