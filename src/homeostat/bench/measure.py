"""Answer a job: check every column, then time those that are right, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from homeostat.bench.accuracy import errors_of, make_data
from homeostat.bench.call import Call, Framework
from homeostat.bench.cases import make_inputs
from homeostat.bench.columns import AGAIN, COPY, Column
from homeostat.bench.jobs import AccuracyJob, Job, TimeJob, TrainingJob
from homeostat.bench.memory import peak_of
from homeostat.bench.oracle import wrong
from homeostat.bench.timing import interleave
from homeostat.report.bench.rows import Environment, Row

MIB = 2**20


def answer(
    job: Job, framework: Framework, columns: Sequence[Column], where: Environment
) -> list[Row]:
    """Return the rows of a job, controls first."""
    if isinstance(job, TimeJob):
        return list(_time(job, framework, columns, where))
    if isinstance(job, AccuracyJob):
        return list(_accuracy(job, framework, columns, where))
    return list(_train(job, columns, where))


def _time(
    job: TimeJob, framework: Framework, columns: Sequence[Column], where: Environment
) -> Iterator[Row]:
    case, inputs = job.case, make_inputs(job.case)
    calls: dict[str, Call] = {}
    unmeasured: list[Row] = []
    for column in columns:
        call, state, note = _try(column, lambda name=column.name: _checked(framework, job, name))
        if call is None:
            unmeasured.append(job.row(column.name, where, state, note))
        else:
            calls[column.name] = call
    candidates: dict[str, Callable[[], object]] = {COPY: framework.copy(case, inputs)}
    candidates |= {name: call.run for name, call in calls.items()}
    repeated = _add_control(candidates, columns)
    times = interleave(candidates, job.rounds)
    for name, timing in times.items():
        memory = _memory(job, calls[name]) if name in calls else {}
        yield job.row(
            name, where, "measured", repeated if name == AGAIN else "",
            **_percentiles(timing), copies=timing.p50 / times[COPY].p50, **memory,
        )  # fmt: skip
    yield from unmeasured


def _checked(framework: Framework, job: TimeJob, name: str) -> Call | str:
    """Return a column's call, or what is wrong with its results."""
    call = framework.make(name, job.case, make_inputs(job.case))
    return wrong(job.case, call.results()) or call


def _try(column: Column, check: Callable[[], Any]) -> tuple[Any, str, str]:
    """Return what a check found, or None with the state and the reason."""
    if column.missing:
        return None, "missing", column.missing
    try:
        found = check()
    except Exception as error:
        # What a column cannot do is its own dash; the others go on.
        return None, "failed", f"{type(error).__name__}: {_first_line(error)}"
    return (None, "wrong", found) if isinstance(found, str) else (found, "measured", "")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]


def _add_control(candidates: dict[str, Callable[[], object]], columns: Sequence[Column]) -> str:
    """Add the null control, one of ours once more; return which."""
    names = [column.name for column in columns if column.name in candidates]
    ours = [column.name for column in columns if column.ours and column.name in candidates]
    for name in (*ours, *names):
        candidates[AGAIN] = candidates[name]
        return name
    return ""


def _memory(job: TimeJob, call: Call) -> dict[str, float | None]:
    nbytes = job.case.nbytes
    found = {"saved": call.saved() if job.case.backward else None, "peak": call.peak()}
    return {name: None if value is None else value / nbytes for name, value in found.items()}


def _percentiles(timing: Any) -> Mapping[str, float]:
    return {"p20_ms": timing.p20, "p50_ms": timing.p50, "p80_ms": timing.p80}


def _accuracy(
    job: AccuracyJob, framework: Framework, columns: Sequence[Column], where: Environment
) -> Iterator[Row]:
    case, inputs = make_data(job.data)
    for column in columns:
        observed, state, note = _try(
            column, lambda name=column.name: framework.observe(name, case, inputs)
        )
        errors = {} if observed is None else errors_of(observed, inputs.x)
        yield job.row(column.name, where, state, note, **errors)


def _train(job: TrainingJob, columns: Sequence[Column], where: Environment) -> Iterator[Row]:
    from homeostat.bench.training import CHANGES, TrainingStep

    steps: dict[str, TrainingStep] = {}
    unmeasured: list[Row] = []
    for column in columns:
        if column.name not in CHANGES:
            continue
        step, state, note = _try(column, lambda name=column.name: _checked_step(job, name))
        if step is None:
            unmeasured.append(job.row(column.name, where, state, note))
        else:
            steps[column.name] = step
    candidates: dict[str, Callable[[], object]] = {name: step.run for name, step in steps.items()}
    repeated = _add_control(candidates, columns)
    for name, timing in (interleave(candidates, job.rounds) if candidates else {}).items():
        memory: dict[str, float | None] = {}
        if name in steps:
            peak = peak_of(steps[name].run)
            memory["saved_mib"] = steps[name].saved() / MIB
            memory["peak_mib"] = None if peak is None else peak / MIB
        yield job.row(
            name, where, "measured", repeated if name == AGAIN else "",
            **_percentiles(timing), images_per_s=1000 * job.batch / timing.p50, **memory,
        )  # fmt: skip
    yield from unmeasured


def _checked_step(job: TrainingJob, name: str) -> Any:
    """Return a network's training step, or what is wrong with it."""
    from homeostat.bench.training import TrainingStep

    step = TrainingStep(job.network, name, job.layout, job.batch)
    return step.fault() or step
