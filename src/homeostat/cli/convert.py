"""`homeostat convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.app import app, quiet_frameworks
from homeostat.cli.options import Force
from homeostat.cli.output import check_output, write_beside


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Where the batch norms come from: any file that `homeostat audit` reads, or "
            "package.module:factory."
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            help="The model that takes them: a .keras or .h5 file, or package.module:factory."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write the target to.")],
    source_weights: Annotated[
        Path | None, typer.Option(help="Weights of what the source's factory makes.")
    ] = None,
    target_weights: Annotated[
        Path | None, typer.Option(help="Weights of what the target's factory makes.")
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            help='JSON file of names, {"in the source": "in the target"}; norms that it does not '
            "name stay as they are.",
            show_default="matched by name, order or shape",
        ),
    ] = None,
    count: Annotated[
        float | None,
        typer.Option(
            help="Elements per channel in each training batch (batch x height x width), to turn "
            "PyTorch's sample variance into Keras's population variance, or back.",
            show_default="variances as they are",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Move a model's batch norms into a matching model, of the same framework or another.

    gamma, beta, moving mean and variance, epsilon and momentum, translated between the frameworks'
    conventions. Each norm is run beside the one it came from; if one computes something else,
    nothing is written. Kernels of convolutions and dense layers stay as they are.

    [bold]Examples[/bold]

      homeostat convert old/model.ckpt-1000 model.keras -o converted.keras
      [dim]from a TensorFlow 1 checkpoint[/dim]

      homeostat convert model.keras mypackage.models:resnet -o norms.pt

      homeostat convert net.safetensors model.keras --mapping names.json --count 50176 -o new.keras

    Exit codes: 0 done, 2 could not run or not clear which norm belongs to which.
    """
    from rich.console import Console

    from homeostat.convert import convert as run
    from homeostat.convert import read_mapping
    from homeostat.models import open_live, open_model
    from homeostat.report.conversion import describe, render_table

    check_output(out, force)
    names = None if mapping is None else read_mapping(mapping)
    with quiet_frameworks():
        live = open_live(target, target_weights)
        done = run(open_model(source, source_weights), live, mapping=names, count=count)
        undo = write_beside(out, live.save)
    console = Console()
    console.print(render_table(done))
    for words in describe(done):
        console.print(words, highlight=False, markup=False)
    typer.echo(f"Written: {out}")
    typer.echo(f"To undo: {undo}")
