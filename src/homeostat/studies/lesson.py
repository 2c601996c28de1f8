"""The MNIST lesson: what does batch norm do to a plain network's training?

The network, the grid and the published results are those of the batch-norm lesson of Udacity's
deep-learning course; the question is that of Ioffe & Szegedy 2015, section 4.1.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from homeostat.errors import OneElementWarning, SpecError
from homeostat.report.jsonl import ROWS_FILE, append_row, read_rows
from homeostat.report.rows import LessonRow, Row, SpeedRow
from homeostat.studies.backends import BACKENDS, count_networks, select_backend
from homeostat.studies.data import load_data

ACTIVATIONS = ("relu", "sigmoid")
STARTS = ("normal", "bad")


@dataclass(frozen=True)
class Grid:
    """Learning rates, and the steps and seeds that are taken where none are asked for."""

    learning_rates: tuple[float, ...]
    steps: int
    seeds: int


GRIDS = {"quick": Grid((0.01, 1.0), 2_000, 3), "full": Grid((0.01, 1.0, 2.0), 50_000, 3)}


@dataclass(frozen=True)
class LessonOptions:
    """What the lesson trains, on what, where to.

    Args:
        data: a name or a folder, as `homeostat.studies.data.load_data` takes it.
        grid: ``"quick"`` or ``"full"``.
        steps: training steps for each network; None for the grid's own.
        seeds: seeds for each configuration; None for the grid's own.
        backend: Keras's backend.
        out: folder for the rows and the report.

    Raises:
        SpecError: an option is not valid.
    """

    data: str = "digits"
    grid: str = "quick"
    steps: int | None = None
    seeds: int | None = None
    backend: str = "tensorflow"
    out: Path = Path("homeostat-study")

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise SpecError(f"grid={self.grid!r} is not known: expected one of {', '.join(GRIDS)}.")
        if self.backend not in BACKENDS:
            raise SpecError(
                f"backend={self.backend!r} is not known: expected one of {', '.join(BACKENDS)}."
            )
        for name in ("steps", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(
                    f"{name}={value} is too small: expected a whole number, at least 1. Leave it "
                    "out for the grid's own."
                )


def run_lesson(options: LessonOptions, console: Console) -> list[Row]:
    """Train what has no row yet and return the rows of this lesson, old and new.

    Rows are appended to ``rows.jsonl`` in the out folder as networks finish; a rerun with the same
    options goes on where the last one stopped.

    Raises:
        DataError: the data or the rows cannot be read, or the rows cannot be written.
        MissingExtraError: the backend or scikit-learn is not installed.
        UnsupportedError: Keras already runs on another backend.
    """
    path = options.out / ROWS_FILE
    rows = read_rows(path) if path.exists() else []
    select_backend(options.backend)
    dataset = load_data(options.data)
    # Keras chooses its backend when it is imported, so only now.
    from homeostat.studies.experiment import Configuration, Laboratory
    from homeostat.studies.runner import pending, run_pending
    from homeostat.studies.throughput import measure_speed

    grid = GRIDS[options.grid]
    laboratory = Laboratory(dataset, options.backend, options.steps or grid.steps)
    configurations = [
        Configuration(activation, rate, start, batch_norm, seed)
        for seed in range(options.seeds or grid.seeds)
        for start in STARTS
        for activation in ACTIVATIONS
        for rate in grid.learning_rates
        for batch_norm in (False, True)
    ]
    missing = pending(configurations, laboratory, rows)
    networks = count_networks(options.backend)
    console.print(
        f"{dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} validation "
        f"and {len(dataset.test):,} test images; {options.backend} on {laboratory.device}; "
        f"{len(missing)} of {len(configurations)} networks to train, "
        f"{laboratory.steps:,} steps each",
        highlight=False,
    )
    if missing:
        with warnings.catch_warnings():
            # That one image has no statistics to speak of is what the wrong mode shows.
            warnings.simplefilter("ignore", OneElementWarning)
            rows.extend(run_pending(missing, laboratory, path, networks, console))
            with console.status("measuring the speed beside model.fit"):
                speed = measure_speed(laboratory, networks)
        append_row(path, speed)
        rows.append(speed)
    wanted = {laboratory.settings(configuration) for configuration in configurations}
    return [row for row in rows if _belongs(row, wanted, dataset.name, options.backend)]


def _belongs(row: Row, wanted: set[tuple[object, ...]], data: str, backend: str) -> bool:
    if isinstance(row, SpeedRow):
        return (row.data, row.backend) == (data, backend)
    return isinstance(row, LessonRow) and row.settings in wanted
