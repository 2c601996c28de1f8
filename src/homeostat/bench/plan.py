"""Which jobs a run has, and how long they will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from homeostat.bench.accuracy import DATA
from homeostat.bench.cases import (
    DTYPES,
    FORMS,
    QUICK_SHAPES,
    SHAPES,
    WORKS,
    Case,
    Shape,
    layouts_of,
)
from homeostat.bench.columns import Column
from homeostat.bench.jobs import AccuracyJob, Job, TimeJob, TrainingJob
from homeostat.bench.timing import SAMPLE_SECONDS
from homeostat.errors import SpecError

PARTS = ("time", "accuracy", "training")
# The images in a training step, also of a quick run.
_NETWORKS = {
    "ResNet-18, 64x64": (32, 8),
    "ResNet-18 for small images, 64x64": (8, 2),
    "19 convolutions, 28x28": (64, 32),
}
# What a run's first guess of its time rests on: seconds to make and check a column's call, seconds
# to load a framework, and the copies that forward and backward take in the middle of the field.
_MAKING = {"torch": 0.1, "jax": 0.8, "tensorflow": 0.8}
_COMPILING, _LOADING, _COPIES, _STEP = 6.0, 12.0, 15.0, 0.5


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    Args:
        shapes: (batch, *space, channels) each; none for the run's own.
        dtypes: none for the run's own.
        quick: a few shapes and rounds.
        out: folder for the rows and the page.
        frameworks: none for all that are installed.
        columns: none for all.
        parts: of `PARTS`; none for all.
        threads: processor cores; None for all.
        allocator: ``"keep"`` or ``"system"``.
        rounds: samples of each column; None for the run's own.

    Raises:
        SpecError: an option is not valid.
    """

    shapes: tuple[Shape, ...] = ()
    dtypes: tuple[str, ...] = ()
    quick: bool = False
    out: Path = Path("homeostat-bench")
    frameworks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    threads: int | None = None
    allocator: str = "keep"
    rounds: int | None = None

    def __post_init__(self) -> None:
        for shape in self.shapes:
            layouts_of(shape)
        _known("dtype", self.dtypes, DTYPES)
        _known("part", self.parts, PARTS)
        _known("allocator", (self.allocator,), ("keep", "system"))
        if self.rounds is not None and self.rounds < 2:
            raise SpecError(f"rounds={self.rounds} is too small for a spread: expected at least 2.")


def _known(what: str, given: Sequence[str], expected: Sequence[str]) -> None:
    for name in given:
        if name not in expected:
            raise SpecError(f"{what} {name!r} is not known: expected {', '.join(expected)}.")


def parse_shape(text: str) -> Shape:
    """Read a shape such as ``32x28x28x256``.

    Raises:
        SpecError: it is not one.
    """
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise SpecError(
            f"shape {text!r} cannot be read: expected sizes with x between them, channels last, "
            "such as 32x28x28x256."
        ) from None


def make_jobs(options: Options, framework: str) -> list[Job]:
    """Return the jobs of a framework's process, in the order of their work."""
    parts, jobs = options.parts or PARTS, list[Job]()
    rounds = options.rounds or (5 if options.quick else 15)
    if "accuracy" in parts:
        jobs += [AccuracyJob(name) for name in DATA]
    if "training" in parts and framework == "torch":
        jobs += [
            TrainingJob(name, layout, batches[options.quick], rounds)
            for name, batches in _NETWORKS.items()
            for layout in (("NHWC",) if options.quick else ("NHWC", "NCHW"))
        ]
    if "time" in parts:
        jobs += [TimeJob(case, rounds) for case in _cases(options)]
    return jobs


def _cases(options: Options) -> list[Case]:
    """Return the cases: those of the same data one after another."""
    dtypes = options.dtypes or (("float32",) if options.quick else DTYPES)
    shapes = options.shapes or (QUICK_SHAPES if options.quick else SHAPES)
    works = WORKS[-1:] if options.quick else WORKS
    return [
        Case(shape, layout, dtype, work, form)
        for shape, dtype, form in product(shapes, dtypes, FORMS)
        for layout in layouts_of(shape)[: 1 if options.quick and form != "relu" else None]
        for work in works
    ]


def expected_seconds(jobs: Sequence[Job], framework: str, columns: Sequence[Column]) -> float:
    """Return a guess of how long a framework's jobs take, from the speed of a copy right now."""
    names = [column.name for column in columns if not column.missing]
    bandwidth = _bandwidth()
    seconds = _LOADING if jobs else 0.0
    for job in jobs:
        if isinstance(job, TimeJob):
            call = _COPIES * job.case.nbytes / bandwidth
            seconds += len(names) * _MAKING[framework]
            seconds += _COMPILING * (job.case.backward + 1) * ("torch.compile" in names)
            seconds += (len(names) + 1) * (job.rounds + 4) * max(SAMPLE_SECONDS, call)
            seconds += 40 * job.case.nbytes / bandwidth
        elif isinstance(job, TrainingJob):
            seconds += 3 * (job.rounds + 7) * _STEP
        else:
            seconds += len(names) * _MAKING[framework]
    return seconds


def _bandwidth() -> float:
    """Return bytes per second of copying a tensor that no cache holds."""
    source = np.ones(2**24, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return source.nbytes / min(times)
