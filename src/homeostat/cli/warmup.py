"""`homeostat warmup`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer

from homeostat.cli.app import app


@app.command()
def warmup(
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, bfloat16, float16 or float64; may be given again.",
            show_default="all of them",
        ),
    ] = None,
) -> None:
    """Compile the CPU kernels ahead, so that the first training step does not wait for them.

    Each is compiled once for this machine and kept on disk, beside the package or where
    NUMBA_CACHE_DIR says. Needs the extra 'cpu' (numba).

    [bold]Examples[/bold]

      homeostat warmup

      homeostat warmup --dtype float32
      [dim]only what float32 tensors need, in a quarter of the time[/dim]

    Exit codes: 0 done, 2 could not run.
    """
    from homeostat.errors import MissingExtraError, SpecError

    try:
        from homeostat.kernels.warmup import DTYPES, steps
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the CPU kernels need the package {error.name!r}, which is not installed: expected "
            "the extra 'cpu'. Run: pip install 'homeostat[cpu]'"
        ) from error
    chosen = tuple(dtype or DTYPES)
    for name in chosen:
        if name not in DTYPES:
            raise SpecError(
                f"dtype {name!r} is not known: expected one of {', '.join(DTYPES)}. "
                "Leave --dtype out for all of them."
            )
    _compile(list(steps(chosen)))


def _compile(steps: list[tuple[str, Callable[[], object]]]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # What the kernels say of a pause is no news to who asked for it.
    logging.getLogger("homeostat").setLevel(logging.ERROR)
    console = Console()
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for name, step in steps:
            progress.update(task, description=name)
            step()
            progress.advance(task)
    console.print(f"Ready: {len(steps)} kinds of step are compiled and kept.", highlight=False)
