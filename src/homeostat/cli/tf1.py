"""`homeostat run` and `homeostat graph`: programs of TensorFlow 1."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.app import FOUND, app, quiet_frameworks


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    script: Annotated[Path, typer.Argument(help="A Python file, or a notebook (.ipynb).")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="The script's own arguments and options."),
    ] = None,
    check: Annotated[
        str,
        typer.Option(
            help="What to do about a training step that forgets the updates of moving means and "
            "variances: warn once, stop with an error before it runs, or off."
        ),
    ] = "warn",
    fix: Annotated[
        bool, typer.Option("--fix", help="Run forgotten updates with the training step.")
    ] = False,
) -> None:
    """Run a script written for TensorFlow 1, as it is, on today's TensorFlow.

    In the script and the modules beside it, import tensorflow gives the API of TensorFlow 1, with
    tf.layers and tf.Session. Batch norms whose updates the training step forgets are found.

    [bold]Examples[/bold]

      homeostat run train.py
      [dim]warns where the training op does not run tf.GraphKeys.UPDATE_OPS[/dim]

      homeostat run --fix train.py --learning_rate 0.1
      [dim]and runs them; what follows the script is the script's[/dim]

      homeostat run --check error train.py

      homeostat run lesson.ipynb
      [dim]the code cells of a notebook, in order; lines with % or ! are skipped[/dim]

    Exit codes: the script's own; 2 could not run, 130 stopped by Ctrl-C.
    """
    with _tensorflow_1():
        from homeostat.tf1.run import run_script
    raise typer.Exit(run_script(script, arguments or [], check=check, fix=fix))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def graph(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A Python file or notebook; a checkpoint's prefix, .meta file or folder; an "
            "events file, or a folder with such.",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="A script's own arguments and options."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for TensorBoard to show.")] = Path(
        "homeostat-graph"
    ),
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Run a script to its end, to see every graph that it makes and every step that "
            "it takes; otherwise it is stopped before its first training step.",
        ),
    ] = False,
) -> None:
    """See a TensorFlow 1 graph: its layers, its batch norms, and whether training updates them.

    A table of the layers, and for each batch norm whether the training op runs
    the updates of its moving mean and variance: run, not run, or repeated. The
    graph is also written for TensorBoard.

    A script is run as by `homeostat run`, but only up to its first training step.
    Training ops that it did not come to are found by the gradients that they
    apply, as in a checkpoint. Of a checkpoint and of events nothing is run.

    [bold]Examples[/bold]

      homeostat graph train.py
      [dim]runs the script up to its first training step[/dim]

      homeostat graph --whole train.py --epochs 1
      [dim]runs it to its end; what follows the script is the script's[/dim]

      homeostat graph model/model.ckpt-1000
      [dim]the graph in model.ckpt-1000.meta; without it, what the variables tell[/dim]

      homeostat graph --out seen logs/
      [dim]the newest graph in the events of a folder[/dim]

    Exit codes: 0 all fine, 1 a training op forgets updates, 2 could not run,
    130 stopped by Ctrl-C; a script's own if it failed.
    """
    from rich.console import Console

    from homeostat.report.graph import describe_in_words, render_graph

    with _tensorflow_1():
        from homeostat.tf1.graph.events import write_graphs
        from homeostat.tf1.graph.source import open_source
    opened = open_source(source, arguments or [], whole=whole)
    console = Console()
    for _, report in opened.graphs:
        console.print(report.title, style="italic", highlight=False, markup=False)
        console.print(render_graph(report))
        for words in describe_in_words(report):
            console.print(words, highlight=False, markup=False)
        console.print()
    for note in opened.notes:
        console.print(note, highlight=False, markup=False)
    graphs = [(graph, report) for graph, report in opened.graphs if graph is not None]
    if graphs:
        write_graphs(out, graphs)
        typer.echo(f"To see the graph: tensorboard --logdir {shlex.quote(str(out))}")
    forgotten = any(report.forgotten for _, report in opened.graphs)
    raise typer.Exit(opened.code or (FOUND if forgotten else 0))


@contextlib.contextmanager
def _tensorflow_1() -> Iterator[None]:
    """Load TensorFlow 1 as we have it, without what TensorFlow says when it is loaded."""
    from homeostat.errors import MissingExtraError

    # TensorFlow reads these when it is loaded. tf.keras of TensorFlow 1 is Keras 2.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        with quiet_frameworks():
            yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("homeostat"):
            raise
        raise MissingExtraError(
            f"programs of TensorFlow 1 need the package {error.name!r}, which is not installed: "
            "expected the extra 'tf1'. Run: pip install 'homeostat[tf1]'"
        ) from error
