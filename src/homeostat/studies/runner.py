"""Run what has no row yet, several networks at a time, and keep every finished row."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from homeostat.report.jsonl import append_row
from homeostat.report.rows import LessonRow, Row
from homeostat.studies.experiment import Configuration, Laboratory, StoppedError


def pending(
    configurations: Iterable[Configuration], laboratory: Laboratory, rows: Iterable[Row]
) -> list[Configuration]:
    """Return the configurations that have no row with the same settings."""
    done = {row.settings for row in rows if isinstance(row, LessonRow)}
    return [c for c in configurations if laboratory.settings(c) not in done]


def run_pending(
    configurations: Sequence[Configuration],
    laboratory: Laboratory,
    path: Path,
    networks: int,
    console: Console,
) -> list[LessonRow]:
    """Train the configurations, appending each row to ``path`` when its network is finished.

    Args:
        configurations: what to train.
        laboratory: what trains it.
        path: the rows' file.
        networks: how many to train at the same time.
        console: where the progress bar goes.

    Raises:
        KeyboardInterrupt: passed on after Ctrl-C, with the finished rows on disk.
        DataError: a row cannot be written.
    """
    kinds = sorted({(c.activation, c.batch_norm) for c in configurations})
    with _progress(console) as progress:
        compiling = progress.add_task("compiling", total=len(kinds))
        for activation, batch_norm in kinds:
            laboratory.prepare(activation, batch_norm)
            progress.advance(compiling)
        progress.remove_task(compiling)
        total = len(configurations)
        steps = progress.add_task("training", total=total * laboratory.steps)
        rows: list[LessonRow] = []

        def keep(row: LessonRow) -> None:
            append_row(path, row)
            rows.append(row)
            progress.update(steps, description=f"training, {len(rows)} of {total} networks done")

        def advance(count: int) -> None:
            progress.advance(steps, count)

        _train_all(configurations, laboratory, networks, advance, keep)
    return rows


def _train_all(
    configurations: Sequence[Configuration],
    laboratory: Laboratory,
    networks: int,
    advance: Callable[[int], None],
    keep: Callable[[LessonRow], None],
) -> None:
    stop = threading.Event()
    pool = ThreadPoolExecutor(networks, thread_name_prefix="train")
    running: set[Future[LessonRow]] = set()
    try:
        running = {pool.submit(laboratory.run, c, advance, stop) for c in configurations}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                keep(future.result())
    finally:
        # After Ctrl-C or an error the networks in training end at their next probe.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for future in running:
            if not future.cancelled() and not isinstance(future.exception(), StoppedError):
                keep(future.result())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
