"""The command line: arguments and exit codes, nothing else.

Exit codes: 0 done, 1 `graph` found forgotten updates, 2 could not run, 130 stopped by Ctrl-C;
`run` ends with its script's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeostat import HomeostatError, __version__

if TYPE_CHECKING:
    from rich.console import Console

    from homeostat.report.bench.rows import Row as BenchRow
    from homeostat.report.rows import Row

FORGOTTEN = 1
COULD_NOT_RUN = 2
STOPPED = 130

app = typer.Typer(
    name="homeostat",
    help="Batch normalization: see what it does, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"homeostat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


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
        with _quiet_frameworks():
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
        shapes=tuple(map(parse_shape, _split(shapes))), dtypes=_split(dtype), quick=quick, out=out,
        frameworks=_split(frameworks), columns=_split(columns), parts=_split(only),
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
    raise typer.Exit(opened.code or (FORGOTTEN if forgotten else 0))


@contextlib.contextmanager
def _tensorflow_1() -> Iterator[None]:
    """Load TensorFlow 1 as we have it, without what TensorFlow says when it is loaded."""
    from homeostat.errors import MissingExtraError

    # TensorFlow reads these when it is loaded. tf.keras of TensorFlow 1 is Keras 2.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        with _quiet_frameworks():
            yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("homeostat"):
            raise
        raise MissingExtraError(
            f"programs of TensorFlow 1 need the package {error.name!r}, which is not installed: "
            "expected the extra 'tf1'. Run: pip install 'homeostat[tf1]'"
        ) from error


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


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


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


@contextlib.contextmanager
def _quiet_frameworks() -> Iterator[None]:
    """Keep what frameworks log from C++ off the screen, unless the run fails or it is wanted.

    TensorFlow logs its build and its search for a GPU straight to the process's stderr, before any
    setting of its logger counts, whenever Keras first needs it. Python's own stderr stays.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    python_stderr = sys.stderr
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log, os.fdopen(terminal, "w", buffering=1) as stderr:
        sys.stderr = stderr
        os.dup2(log.fileno(), 2)
        try:
            yield
        except (HomeostatError, KeyboardInterrupt):
            raise
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            sys.stderr = python_stderr


def main() -> None:
    """Run the command line; the entry point of the `homeostat` command."""
    try:
        app()
    except HomeostatError as error:
        typer.echo(f"homeostat: {error}", err=True)
        sys.exit(COULD_NOT_RUN)


if __name__ == "__main__":
    main()
