"""`homeostat fold`."""

from __future__ import annotations

import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homeostat.cli.app import FOUND, STOPPED, app, quiet_frameworks

if TYPE_CHECKING:
    from homeostat.fold import Folded


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
    weights: Annotated[
        Path | None, typer.Option(help="File of weights for the model of a factory.")
    ] = None,
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
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there; it is kept as .bak.")
    ] = False,
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
    _refuse_existing(out, force=force)
    try:
        with quiet_frameworks():
            folded = _fold(model, weights, data, tolerance=tolerance, forward=forward)
            typer.echo(str(folded.report))
            if not folded.report.folded:
                typer.echo("Nothing was written.", err=True)
                raise typer.Exit(FOUND)
            kept = _write(folded.model, out)
    except KeyboardInterrupt:
        typer.echo("Stopped. Nothing was written.", err=True)
        raise typer.Exit(STOPPED) from None
    typer.echo(f"Written: {out}")
    name = shlex.quote(str(out))
    undo = f"rm {name}" if kept is None else f"mv {shlex.quote(str(kept))} {name}"
    typer.echo(f"To undo: {undo}")


def _fold(
    source: str, weights: Path | None, data: str | None, *, tolerance: float, forward: bool
) -> Folded:
    from homeostat.fold import fold as run_fold
    from homeostat.models.source import open_live

    model = open_live(source, weights).model
    if hasattr(model, "eval"):
        # What a factory of PyTorch makes is in training mode.
        model.eval()
    inputs = None if data is None else _first_batch(data)
    return run_fold(model, inputs, tolerance=tolerance, forward=forward)


def _first_batch(data: str) -> Any:
    from homeostat.data import open_batches, unpack
    from homeostat.errors import DataError

    for batch in open_batches(data, 32):
        return unpack(batch).inputs
    raise DataError(f"{data} holds no examples: expected at least one. Leave --data out.")


def _refuse_existing(out: Path, *, force: bool) -> None:
    from homeostat.errors import DataError

    if out.exists() and not force:
        raise DataError(
            f"{out} is there already: expected the name of a new file. Choose another name, or "
            "add --force."
        )


def _write(model: Any, out: Path) -> Path | None:
    """Write a model beside its place, then put it there; return where what was there is kept."""
    from homeostat.models import adapt

    kept = out.with_name(f"{out.name}.bak") if out.exists() else None
    unfinished = out.with_name(f".{secrets.token_hex(4)}.{out.name}")
    try:
        adapt(model).save(unfinished)
        if kept is not None:
            out.replace(kept)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return kept
