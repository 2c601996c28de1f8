"""`homeostat bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeostat.cli.app import STOPPED, app, split

if TYPE_CHECKING:
    from rich.console import Console

    from homeostat.report.bench.rows import Row as BenchRow


@app.command()
def bench(
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Shapes, channels last, with commas between them, such as 32x28x28x256,8192x128.",
            show_default="those of ResNet-50 at batch 32, dense ones, volumes and narrow ones",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or both, with a comma.", show_default="both"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two shapes, float32, forward + backward: minutes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the rows and the page.")] = Path(
        "homeostat-bench"
    ),
    frameworks: Annotated[
        str | None,
        typer.Option(
            help="torch, jax, tensorflow, with commas between them.",
            show_default="all that are installed",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="What to compare, such as torch,torch.compile,homeostat.torch.",
            show_default="all",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Of time, accuracy, training, with commas.", show_default="all"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processor cores to use.", show_default="all")
    ] = None,
    allocator: Annotated[
        str,
        typer.Option(
            help="keep: glibc keeps memory that is given back, so that no call pays for another "
            "one's; system: as it comes."
        ),
    ] = "keep",
    rounds: Annotated[
        int | None,
        typer.Option(help="Samples of each column.", show_default="15, or 5 with --quick"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Rebuild the tables and the page of DIR; measure nothing."
        ),
    ] = None,
) -> None:
    """Time every installed framework's batch norm and ours, side by side, on this machine.

    Inference, forward, and forward + backward; plain, with ReLU, with addition and
    ReLU; channels last and first. Each call is held to exact arithmetic first, and
    what is wrong is not timed. Also: memory, accuracy on hard data, and training
    steps of whole networks in PyTorch. It runs on the processor.

    [bold]Examples[/bold]

      homeostat bench --quick
      [dim]two shapes on everything that is installed, in a few minutes[/dim]

      homeostat bench --shapes 64x28x28x128,8192x128 --dtype float32
      [dim]the shapes of your own network[/dim]

      homeostat bench --frameworks torch --columns torch,torch.compile,homeostat.torch

      homeostat bench --only accuracy

      homeostat bench --threads 1 --out one-thread
      [dim]everything on one core, for hours; Ctrl-C any time, and give the same command again to
      go on[/dim]

      homeostat bench --report one-thread

    Exit codes: 0 done, 2 could not run, 130 stopped by Ctrl-C.
    """
    from rich.console import Console

    from homeostat.report.bench.rows import read_rows

    console = Console()
    if not console.is_terminal:
        # In a file the tables keep their lines whole.
        console = Console(width=160)
    if report is not None:
        _show_bench(read_rows(report), report, console)
        return
    from homeostat.bench.plan import Options, parse_shape
    from homeostat.bench.run import run_bench

    options = Options(
        shapes=tuple(map(parse_shape, split(shapes))), dtypes=split(dtype), quick=quick, out=out,
        frameworks=split(frameworks), columns=split(columns), parts=split(only),
        threads=threads, allocator=allocator, rounds=rounds,
    )  # fmt: skip
    try:
        rows = run_bench(options, console)
    except KeyboardInterrupt:
        console.print(
            f"Stopped. What is measured is kept in {out}; give the same command again to go on, or "
            f"see it with `homeostat bench --report {out}`.",
            highlight=False,
            markup=False,
        )
        raise typer.Exit(STOPPED) from None
    _show_bench(rows, out, console)


def _show_bench(rows: list[BenchRow], folder: Path, console: Console) -> None:
    from homeostat.errors import MissingExtraError
    from homeostat.report.bench.html import BENCH_FILE, render_bench
    from homeostat.report.bench.tables import make_notes
    from homeostat.report.bench.text import render_tables
    from homeostat.report.page import write_page

    for table in render_tables(rows):
        console.print(table)
        console.print()
    for note in make_notes(rows):
        console.print(note, highlight=False, markup=False)
    try:
        page = render_bench(rows)
    except MissingExtraError as error:
        # The tables stand without it.
        typer.echo(f"No {BENCH_FILE}: {error}", err=True)
    else:
        typer.echo(f"Page: {write_page(page, folder / BENCH_FILE)}")
    typer.echo(f"Rows: {folder}")
