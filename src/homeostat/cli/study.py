"""`homeostat study` and `homeostat report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeostat.cli.app import STOPPED, app, quiet_frameworks

if TYPE_CHECKING:
    from rich.console import Console

    from homeostat.report.rows import Row


@app.command()
def study(
    question: Annotated[
        str, typer.Argument(help="Which study: lesson, the MNIST lesson.")
    ] = "lesson",
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist or fashion_mnist (downloaded once), or a FOLDER with the four IDX "
            "files of MNIST, plain or .gz."
        ),
    ] = "digits",
    grid: Annotated[
        str,
        typer.Option(
            help="quick (rates 0.01 and 1, 2,000 steps) or full (also rate 2, 50,000 steps)."
        ),
    ] = "quick",
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps for each network.", show_default="the grid's"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="How many seeds for each configuration.", show_default="3"),
    ] = None,
    backend: Annotated[
        str, typer.Option(envvar="KERAS_BACKEND", help="tensorflow, jax or torch.")
    ] = "tensorflow",
    out: Annotated[Path, typer.Option(help="Folder for the rows and the report.")] = Path(
        "homeostat-study"
    ),
) -> None:
    """Train small networks with and without batch norm, side by side, and see the difference.

    Without arguments: the lesson on the small digits that scikit-learn ships, in about a minute.
    Both networks of a pair start from the same weights; learning rates, activations and start
    weights (normal, and bad: a hundred times too large) are varied.

    [bold]Examples[/bold]

      homeostat study
      [dim]the whole lesson, small[/dim]

      homeostat study lesson --data mnist
      [dim]on MNIST, 2,000 steps for each network, beside the published results[/dim]

      homeostat study lesson --data mnist --grid full --out mnist-full
      [dim]the published grid, 50,000 steps for each network; Ctrl-C any time, and run the same
      command again to go on[/dim]

      homeostat study lesson --data path/to/idx/files --backend jax --steps 500 --seeds 1

    Exit codes: 0 done, 2 could not run, 130 stopped by Ctrl-C.
    """
    from rich.console import Console

    from homeostat.errors import SpecError

    if question != "lesson":
        raise SpecError(f"study {question!r} is not known: expected 'lesson', the MNIST lesson.")
    console = Console()
    try:
        from homeostat.studies.lesson import LessonOptions, run_lesson

        options = LessonOptions(data, grid, steps, seeds, backend, out)
        with quiet_frameworks():
            rows = run_lesson(options, console)
    except KeyboardInterrupt:
        console.print(
            f"Stopped. Finished networks are kept in {out}; run the same command again to go on "
            "with the others.",
            highlight=False,
            markup=False,
        )
        raise typer.Exit(STOPPED) from None
    _show(rows, console)
    _write_report(out, console)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that a study wrote with --out.")
    ] = Path("homeostat-study"),
) -> None:
    """Rebuild a study's table and report.html from its rows, without training.

    No framework is needed for this.

    [bold]Examples[/bold]

      homeostat report

      homeostat report mnist-full

    Exit codes: 0 done, 2 could not run.
    """
    from rich.console import Console

    from homeostat.report.jsonl import ROWS_FILE, read_rows

    console = Console()
    _show(read_rows(folder / ROWS_FILE), console)
    _write_report(folder, console)


def _show(rows: list[Row], console: Console) -> None:
    from homeostat.report.text import render_notes, render_tables

    for table in render_tables(rows):
        console.print(table)
    for note in render_notes(rows):
        console.print(note, highlight=False, markup=False)


def _write_report(folder: Path, console: Console) -> None:
    from homeostat.errors import MissingExtraError
    from homeostat.report.html import REPORT_FILE, write_report
    from homeostat.report.jsonl import ROWS_FILE, read_rows

    try:
        path = write_report(read_rows(folder / ROWS_FILE), folder / REPORT_FILE)
    except MissingExtraError as error:
        # The table stands without it.
        typer.echo(f"No report.html: {error}", err=True)
        typer.echo(f"Rows: {folder / ROWS_FILE}")
        return
    typer.echo(f"Report: {path}")
    typer.echo(f"Rows: {folder / ROWS_FILE}")
