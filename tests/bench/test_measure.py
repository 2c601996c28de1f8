"""What is wrong, missing or broken is not timed; memory and accuracy are what they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from homeostat.bench.accuracy import DATA, errors_of, make_data
from homeostat.bench.call import Observed
from homeostat.bench.cases import Case, make_inputs
from homeostat.bench.columns import TRAINED, Column, select_columns
from homeostat.bench.environment import describe
from homeostat.bench.jobs import AccuracyJob, TimeJob, TrainingJob, from_message, to_message
from homeostat.bench.memory import WORTH_MEASURING, peak_of

pytest.importorskip("torch")

from homeostat.bench import torch as frames
from homeostat.bench import training
from homeostat.bench.measure import answer

WHERE = describe("torch", 1, "system")
JOB = TimeJob(Case((16, 4, 4, 8), form="relu"), 2)
NAMES = ("torch", "homeostat.torch")


def columns(*names: str) -> tuple[Column, ...]:
    return select_columns("torch", names or NAMES)


def rows_by_column(job, chosen=None):
    return {row.column: row for row in answer(job, frames, chosen or columns(), WHERE)}


def test_what_is_right_is_timed_with_both_controls():
    rows = rows_by_column(JOB)
    assert list(rows) == ["copy", "torch", "homeostat.torch", "again"]
    assert all(row.state == "measured" for row in rows.values())
    assert all(0 < row.p20_ms <= row.p50_ms <= row.p80_ms for row in rows.values())
    assert rows["copy"].copies == 1.0
    assert rows["torch"].copies == pytest.approx(rows["torch"].p50_ms / rows["copy"].p50_ms)
    assert rows["again"].note == "homeostat.torch"


def test_what_is_wrong_is_not_timed(monkeypatch):
    calls = []

    def other_epsilon(case, inputs, weight=0.01):
        layer = frames.native(case, inputs, weight)

        def apply(x, residual):
            calls.append(1)
            return layer.apply(x, residual) * 1.01

        return layer._replace(apply=apply)

    monkeypatch.setitem(frames.BUILDERS, "torch", other_epsilon)
    row = rows_by_column(JOB)["torch"]
    assert row.state == "wrong"
    assert row.note.startswith("error 1.0e-02 in y")
    assert (row.p50_ms, row.copies, row.saved) == (None, None, None)
    assert len(calls) == 1


def test_what_breaks_is_a_dash_with_its_reason(monkeypatch):
    def broken(case, inputs, weight=0.01):
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setitem(frames.BUILDERS, "torch", broken)
    rows = rows_by_column(JOB)
    assert (rows["torch"].state, rows["torch"].note) == ("failed", "RuntimeError: no such kernel")
    assert rows["homeostat.torch"].state == "measured"


def test_what_is_not_installed_is_a_dash():
    absent = Column("keras", "torch", ("no_such_package",))
    rows = rows_by_column(JOB, (*columns(), absent))
    assert (rows["keras"].state, rows["keras"].note) == (
        "missing", "not installed: no_such_package",
    )  # fmt: skip
    assert rows["torch"].state == "measured"


@pytest.mark.parametrize("column", ["torch", "homeostat.torch"])
def test_bytes_kept_for_the_backward(column):
    # Plain batch norm keeps x and two numbers a channel; the ReLU's output comes on top.
    for form, tensors in (("plain", 1), ("relu", 2)):
        case = Case((16, 8, 8, 8), form=form)
        call = frames.make(column, case, make_inputs(case))
        kept = call.saved() / case.nbytes
        assert tensors <= kept < tensors + 0.05


def test_the_peak_is_what_a_call_takes():
    size = 4 * WORTH_MEASURING
    peak = peak_of(lambda: np.ones(size, np.uint8))
    if peak is None:
        pytest.skip("needs Linux and glibc")
    assert size * 0.9 < peak < size * 1.5
    two = peak_of(lambda: (np.ones(size, np.uint8), np.ones(size, np.uint8)))
    assert size * 1.8 < two < size * 3
    assert peak_of(lambda: None) < size * 0.5


@pytest.mark.slow
def test_the_peak_of_a_call_holds_its_results():
    """Forward and backward leave y and dx at least, in PyTorch as in JAX."""
    pytest.importorskip("jax")
    from homeostat.bench import jax as arrays

    case = Case((32, 28, 28, 64))
    for framework, column in ((frames, "torch"), (arrays, "homeostat.jax")):
        peak = framework.make(column, case, make_inputs(case)).peak()
        assert peak is None or 1.9 < peak / case.nbytes < 5, framework


def test_accuracy_is_zero_for_the_exact_and_tells_the_inexact():
    from homeostat import reference

    for name in DATA:
        _, inputs = make_data(name)
        y, batch = reference.normalize_batch(inputs.x)
        exact = errors_of(Observed(y, batch.variance), inputs.x)
        assert exact == {"variance_error": 0.0, "output_error": 0.0}
        off = errors_of(Observed(y * np.nan, batch.variance * 1.5), inputs.x)
        assert off["variance_error"] == pytest.approx(0.5)
        assert off["output_error"] is None


def test_accuracy_of_ours_far_from_zero():
    rows = rows_by_column(AccuracyJob("mean/std 1e4"))
    assert rows["homeostat.torch"].variance_error < 1e-4 < rows["torch"].variance_error


@pytest.mark.parametrize("job", [JOB, AccuracyJob("mean/std 1"), TrainingJob("net", "NHWC", 4, 2)])
def test_jobs_travel_between_processes(job):
    assert from_message(to_message(job)) == job
    row = job.row("torch", WHERE, "missing", "not here")
    assert dataclasses.replace(row, column="keras").job == row.job


def test_the_trained_columns_are_those_that_change_a_network():
    assert set(TRAINED) == set(training.CHANGES)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_training_steps_are_held_to_float64_and_timed(monkeypatch, layout):
    job = TrainingJob("19 convolutions, 28x28", layout, 4, 2)
    rows = rows_by_column(job)
    assert list(rows) == ["torch", "homeostat.torch", "again"]
    assert all(row.images_per_s == pytest.approx(4000 / row.p50_ms) for row in rows.values())
    assert rows["torch"].saved_mib > 0

    def wrong(model):
        model[0].register_forward_hook(lambda module, inputs, y: y**2)
        return model

    monkeypatch.setitem(training.CHANGES, "torch", wrong)
    rows = rows_by_column(job)
    assert rows["torch"].state == "wrong"
    assert rows["torch"].images_per_s is None
