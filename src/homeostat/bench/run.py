"""Run a benchmark: a process for each framework, every answered job on disk at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from homeostat.bench import environment
from homeostat.bench.columns import TRAINED, Column, select_columns, select_frameworks
from homeostat.bench.jobs import Job, TrainingJob, key, to_message
from homeostat.bench.plan import Options, expected_seconds, make_jobs
from homeostat.report.bench.rows import Environment, Row, append_rows, from_record, read_rows


@dataclass(frozen=True)
class Batch:
    """A framework's process: where it runs, what it compares and what is left to do."""

    where: Environment
    columns: tuple[Column, ...]
    jobs: tuple[Job, ...]


def run_bench(options: Options, console: Console) -> list[Row]:
    """Measure what has no rows yet, and return the rows of this run, old and new.

    Rows are appended to the CSV files in the out folder as jobs are answered, so a run that was
    stopped goes on when the same command is given again.

    Raises:
        SpecError: an option is not valid.
        MissingExtraError: none of the frameworks is installed.
        DataError: rows cannot be read or written.
    """
    threads = environment.check_threads(options.threads)
    old = read_rows(options.out)
    plans: list[Batch] = []
    wanted: set[Any] = set()
    for framework in select_frameworks(options.frameworks):
        where = environment.describe(framework, threads, options.allocator)
        columns = select_columns(framework, options.columns)
        jobs = make_jobs(options, framework) if columns else []
        wanted |= {key(job, where) for job in jobs}
        plans.append(Batch(where, columns, tuple(_pending(jobs, where, columns, old))))
    _announce(plans, console)
    with _progress(console, plans) as progress:
        ended = [words for plan in plans if (words := _run(plan, options, progress))]
    for words in ended:
        console.print(words, highlight=False, markup=False)
    return [row for row in read_rows(options.out) if row.job in wanted]


def _pending(
    jobs: Sequence[Job], where: Environment, columns: Sequence[Column], rows: Sequence[Row]
) -> Iterator[Job]:
    """Yield the jobs of which a column has no row."""
    done: dict[Any, set[str]] = {}
    for row in rows:
        done.setdefault(row.job, set()).add(row.column)
    for job in jobs:
        names = {column.name for column in columns}
        names = names & set(TRAINED) if isinstance(job, TrainingJob) else names
        if not names <= done.get(key(job, where), set()):
            yield job


def _announce(plans: Sequence[Batch], console: Console) -> None:
    for plan in plans:
        where = plan.where
        console.print(
            f"{where.versions} on {where.machine}, {where.threads} of {where.cores} cores: "
            f"{len(plan.jobs)} to measure",
            highlight=False, markup=False,
        )  # fmt: skip
        for column in plan.columns:
            if column.missing:
                console.print(f"  {column.name}: {column.missing}", highlight=False, markup=False)
    guesses = (expected_seconds(p.jobs, p.where.framework, p.columns) for p in plans)
    minutes = sum(guesses) / 60
    if minutes:
        words = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"
        console.print(
            f"This will take about {words}. Ctrl-C any time: what is measured is kept.",
            highlight=False,
        )


Step = Callable[[str, int], None]


@contextlib.contextmanager
def _progress(console: Console, plans: Sequence[Batch]) -> Iterator[Step]:
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting", total=sum(len(plan.jobs) for plan in plans))
        yield lambda words, done: bar.update(task, description=words, advance=done)


def _run(plan: Batch, options: Options, step: Step) -> str | None:
    """Have a framework's process answer its jobs; what it dies of becomes its job's rows.

    Returns:
        None, or that it died.
    """
    if not plan.jobs:
        return None
    framework = plan.where.framework
    request = {
        "environment": dataclasses.asdict(plan.where),
        "columns": [column.name for column in plan.columns],
        "jobs": [to_message(job) for job in plan.jobs],
    }
    step(f"{framework}: loading", 0)
    current: Job | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with _worker(plan, request, log) as process:
            for line in process.stdout:
                answer = json.loads(line)
                if "started" in answer:
                    current = plan.jobs[answer["started"]]
                    step(f"{framework}: {current.words}", 0)
                else:
                    kind = plan.jobs[answer["finished"]].ROW
                    append_rows(options.out, [from_record(kind, row) for row in answer["rows"]])
                    current = None
                    step(f"{framework}: next", 1)
        if not process.returncode:
            return None
        note = f"the process ended with {_ending(process.returncode, log)}"
    lost = current or plan.jobs[0]
    rows = [lost.row(column.name, plan.where, "failed", note) for column in plan.columns]
    append_rows(options.out, rows)
    return f"{framework}, {lost.words}: {note}. Give the command again to go on behind it."


@contextlib.contextmanager
def _worker(plan: Batch, request: dict[str, Any], log: IO[str]) -> Iterator[Any]:
    command = [sys.executable, "-m", "homeostat.bench.worker"]
    process = subprocess.Popen(  # noqa: S603
        command, env=environment.variables(plan.where), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
    )  # fmt: skip
    try:
        assert process.stdin is not None  # noqa: S101
        # A process that could not start reads nothing; its exit code tells.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _ending(code: int, log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    signal = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{signal}: {lines[-1][:200]}" if lines else signal
