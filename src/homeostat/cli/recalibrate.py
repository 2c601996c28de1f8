"""`homeostat recalibrate`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeostat.cli.app import STOPPED, app, parse_size, quiet_frameworks
from homeostat.cli.options import Force, ImageSize, Limit, Transform, Weights
from homeostat.cli.output import check_output, write_beside
from homeostat.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from homeostat.recalibrate import Method, Progress


@app.command()
def recalibrate(
    model: Annotated[
        str,
        typer.Argument(
            help="A .keras or .h5 file, or package.module:factory for a model that needs code, "
            "such as a PyTorch one."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A .npy or .npz file, a folder of .npy files or images, or "
            "package.module:function that returns a DataLoader, a tf.data.Dataset or batches."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write the model to.")],
    weights: Weights = None,
    method: Annotated[
        str,
        typer.Option(
            help="together: one pass, every norm on its batch's statistics, as in training; "
            "in-order: a pass for each norm, behind those that are done."
        ),
    ] = "together",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Stop when the standard error of every channel is below this, such as 0.01 "
            "standard deviations.",
            show_default="take all the data",
        ),
    ] = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a batch of files.")] = 64,
    image_size: ImageSize = None,
    transform: Transform = None,
    force: Force = False,
) -> None:
    """Give a model's batch norms the statistics of your data, exactly.

    For moving averages that were never updated, are stale after fine-tuning, averaged weights or
    new data, or were gathered on batches too small. The moments of all batches are merged by count,
    so batches may be of any size and in any order. The model that you give is not changed.

    [bold]Examples[/bold]

      homeostat recalibrate model.keras --data images.npy -o repaired.keras

      homeostat recalibrate model.keras --data photos/ --image-size 224x224 -o repaired.keras

      homeostat recalibrate mypackage.models:resnet --weights net.pt --data mypackage.data:train -o
      repaired.pt

    Exit codes: 0 done, 2 could not run, 130 stopped by Ctrl-C, with nothing written.
    """
    from rich.console import Console

    from homeostat.data import open_batches
    from homeostat.models import open_live
    from homeostat.recalibrate import recalibrate as run
    from homeostat.report.recalibration import describe, render_table

    console = Console()
    check_output(out, force)
    chosen, size = _parse_method(method), parse_size(image_size)

    with quiet_frameworks():
        live = open_live(model, weights)
        batches = open_batches(
            data, batch_size, limit=limit, image_size=size, transform=transform,
            channels_first=live.record().framework == "torch",
        )  # fmt: skip
        try:
            with _counting(console) as progress:
                done = run(live, batches, method=chosen, tolerance=tolerance, progress=progress)
            undo = write_beside(out, live.save)
        except KeyboardInterrupt:
            console.print("Stopped; nothing was written.", markup=False, highlight=False)
            raise typer.Exit(STOPPED) from None
    console.print(render_table(done))
    for words in describe(done):
        console.print(words, highlight=False, markup=False)
    typer.echo(f"Written: {out}")
    typer.echo(f"To undo: {undo}")


def _parse_method(text: str) -> Method:
    if text not in ("together", "in-order"):
        raise SpecError(
            f"--method {text!r} is not known: expected together or in-order. Leave it out for "
            "together."
        )
    return "in order" if text == "in-order" else "together"


@contextlib.contextmanager
def _counting(console: Console) -> Iterator[Progress]:
    """Show what goes on, and how many examples of it are done."""
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"),
        TextColumn("{task.completed} examples"), TimeElapsedColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, examples: bar.update(task, description=what, completed=examples)
