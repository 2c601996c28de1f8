"""Time every column of every case, in turns, once its results were found right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks.gpu import columns
from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.cases import Case, Inputs, Parameters, make_inputs, make_parameters
from benchmarks.gpu.clock import Candidate, Clock, prepare, synchronize, take_turns
from benchmarks.gpu.columns import Column
from benchmarks.gpu.device import cache_bytes, free_memory, peak_of
from benchmarks.gpu.exact import clear_corner, fault, name_results
from benchmarks.gpu.rows import FAILED, MEASURED, NOT_MEASURED, WRONG, Row, timed
from benchmarks.gpu.traffic import streaming_floor
from homeostat.bench.torch_saved import saved_bytes

LARGEST_COPY = {"cuda": 2**30, "cpu": 2**20}
"""Bytes of the copy that tells the device's bandwidth."""
# What a case may take, its compilation included: what does not fit any more is not begun.
CASE_SECONDS = {"cuda": 8.0, "cpu": 0.1}
# Samples of how fast calls follow each other; each is of several.
FOLLOWING_ROUNDS = 5


class Settings(NamedTuple):
    """How cases are timed.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        columns: names of `columns.ALL_COLUMNS`.
        rounds: samples of each column.
        backend: of `torch.compile`.
    """

    device: str
    columns: Sequence[str]
    rounds: int
    backend: str


def measure_copy(settings: Settings, clock: Clock) -> Row:
    """Return the row of a copy so large that it tells the device's bandwidth."""
    size = LARGEST_COPY[settings.device]
    source = torch.empty(size // 2, dtype=torch.bfloat16, device=settings.device).normal_()
    target = torch.empty_like(source)
    candidates = {columns.COPY: Candidate(lambda: target.copy_(source))}
    prepare(clock, candidates)
    samples = take_turns(clock.sample, candidates, settings.rounds)[columns.COPY]
    return {
        "dtype": "bfloat16", "shape": str(size // 2), "work": "copy", "column": columns.COPY,
        "tensor_bytes": size, "floor_bytes": 2 * size, **timed(samples),
    }  # fmt: skip


def measure_cases(
    cases: Sequence[Case], settings: Settings, clock: Clock, deadline: Deadline, bandwidth: float
) -> Iterator[Row]:
    """Yield the rows of all cases; what no longer fits has rows that say so.

    Args:
        cases: the most important first.
        settings: how.
        clock: what times them.
        deadline: of all of them.
        bandwidth: bytes a second of the largest copy.
    """
    for case in cases:
        if not deadline.allows(CASE_SECONDS[settings.device]):
            yield from _unmeasured(case, settings, NOT_MEASURED, "no time was left")
            continue
        try:
            yield from _measure_case(case, settings, clock, bandwidth)
        except torch.OutOfMemoryError:
            yield from _unmeasured(case, settings, FAILED, "out of memory")
        free_memory(settings.device)


def _unmeasured(case: Case, settings: Settings, state: str, note: str) -> Iterator[Row]:
    for work in case.works:
        for name in settings.columns:
            yield {**case.name(), "work": work, "column": name, "state": state, "note": note}


class _Built(NamedTuple):
    """A column that may be timed, or why it may not."""

    column: Column | None
    way: str = ""
    state: str = MEASURED
    note: str = ""


def _measure_case(case: Case, settings: Settings, clock: Clock, bandwidth: float) -> Iterator[Row]:
    device = settings.device
    sets = make_inputs(case, device, cache_bytes(device))
    parameters = make_parameters(case, device)
    clear_corner(case, sets[0], parameters)
    built = _build(case, settings, sets, parameters)
    ready = {name: each.column for name, each in built.items() if each.column is not None}
    for work in case.works:
        candidates = {name: column.candidate(case, work, sets) for name, column in ready.items()}
        if columns.COPY in settings.columns:
            candidates[columns.COPY] = columns.copy_of(sets)
        prepare(clock, candidates)
        samples = take_turns(clock.sample, candidates, settings.rounds)
        following = take_turns(clock.follow, candidates, FOLLOWING_ROUNDS, seed=1)
        for name in settings.columns:
            row = {**case.name(), "work": work, "column": name, "tensor_bytes": case.nbytes}
            if name not in samples:
                known = built[name]
                yield row | {"way": known.way, "state": known.state, "note": known.note}
                continue
            row |= timed(samples[name])
            row["follow_ms"] = timed(following[name])["p50_ms"]
            if name in built:
                row["way"] = built[name].way
            copy_seconds = timed(samples.get(columns.COPY, [0.0, 0.0]))["p50_ms"] / 1e3
            row |= _fractions(row, case, work, copy_seconds, bandwidth)
            if name in ready:
                row |= _memory(name, ready[name], case, work, sets[0], device)
            yield row


def _build(
    case: Case, settings: Settings, sets: Sequence[Inputs], parameters: Parameters
) -> dict[str, _Built]:
    """Return every column's layer, called once and found right, or why it is not timed."""
    built: dict[str, _Built] = {}
    columns.reset_compiler()
    for name in settings.columns:
        if name == columns.COPY:
            continue
        try:
            built[name] = _build_one(name, case, settings, sets, parameters, built)
        except torch.OutOfMemoryError:
            built[name] = _Built(None, state=FAILED, note="out of memory")
        except Exception as error:
            # One column that a device cannot run must not cost the others; but after an error of
            # the device itself nothing runs any more.
            if "CUDA error" in str(error):
                raise
            note = f"{type(error).__name__}: {first_line(error)}"
            built[name] = _Built(None, state=FAILED, note=note)
    return built


def _build_one(
    name: str,
    case: Case,
    settings: Settings,
    sets: Sequence[Inputs],
    parameters: Parameters,
    built: dict[str, _Built],
) -> _Built:
    column = columns.build(name, case, parameters, settings.backend)
    inputs = sets[0]
    way = columns.way_of(name, column, case, parameters, inputs)
    eager = built.get(columns.EAGER)
    if name == columns.NATIVE and way and eager is not None and way == eager.way:
        return _Built(None, way, NOT_MEASURED, f"the same as {columns.EAGER}")
    wrong = check(column, case, inputs, parameters)
    if wrong is not None:
        return _Built(None, way, WRONG, wrong)
    synchronize(settings.device)
    return _Built(column, way)


def first_line(error: Exception) -> str:
    """Return the beginning of what an error says."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def check(column: Column, case: Case, inputs: Inputs, parameters: Parameters) -> str | None:
    """Return what is wrong with a column's results, or None."""
    work = "forward+backward" if case.training else "inference"
    with column.around():
        values = column.step(case, inputs)
    return fault(case, name_results(case, work, values), inputs, parameters)


def _fractions(row: Row, case: Case, work: str, copy_seconds: float, bandwidth: float) -> Row:
    """Return the floor's bytes, and at what fraction of a copy's bandwidth they were moved."""
    tensors = 2 if row["column"] == columns.COPY else streaming_floor(work, case.form)
    floor, seconds = tensors * case.nbytes, row["p50_ms"] / 1e3
    found: Row = {"floor_bytes": floor}
    if seconds:
        if copy_seconds:
            found["of_copy"] = round(tensors / 2 * copy_seconds / seconds, 4)
        found["of_largest_copy"] = round(floor / seconds / bandwidth, 4)
    return found


def _memory(name: str, column: Column, case: Case, work: str, inputs: Inputs, device: str) -> Row:
    """Return the bytes kept for the backward and those added at the peak."""
    run = column.step if work == "forward+backward" else column.forward
    with column.around():
        found: Row = {"peak_bytes": peak_of(device, lambda: run(case, inputs))}
        # What watches saved tensors makes a compiled call compile anew.
        if work == "forward+backward" and name not in columns.COMPILING:
            found["saved_bytes"] = saved_bytes(
                lambda: column.forward(case, inputs), column.parameters
            )
    return {key: value for key, value in found.items() if value is not None}
