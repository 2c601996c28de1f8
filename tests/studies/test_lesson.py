from __future__ import annotations

import os
import signal
import time

import pytest

from homeostat.report.jsonl import ROWS_FILE, read_rows
from homeostat.report.rows import LessonRow, SpeedRow
from homeostat.report.summary import summarize
from tests.command import run_homeostat, start_homeostat

needs_mnist = pytest.mark.skipif(
    "HOMEOSTAT_MNIST" not in os.environ, reason="HOMEOSTAT_MNIST names no folder with MNIST"
)


def test_rows_hold_settings_results_and_environment(digits_study):
    rows = read_rows(digits_study / ROWS_FILE)
    lessons = [row for row in rows if isinstance(row, LessonRow)]
    assert len({row.settings for row in lessons}) == len(lessons) == 16
    for row in lessons:
        assert (row.data, row.backend, row.steps, row.seed) == ("digits", "tensorflow", 60, 0)
        assert {"homeostat", "python", "numpy", "keras", "tensorflow"} == set(row.versions)
        assert "cores" in row.device
        assert row.wall_s > 0
        assert row.steps_per_second > 0
        assert [probe.step for probe in row.probes] == list(range(0, 61, 3))
        assert all(len(probe.gradient_norms) == 4 for probe in row.probes)
        single = (row.single_batch_statistics, row.single_moving_statistics)
        assert (None in single) != row.batch_norm
    (group,) = summarize(rows)
    for pair in group.pairs:
        # Both networks of a pair start from the same weights.
        without, with_ = pair.without_rows[0], pair.with_rows[0]
        assert without.probes[0].step == with_.probes[0].step == 0
    best = next(p for p in group.pairs if p.name == "relu, rate 1, normal start")
    assert best.with_.mean > best.without.mean


def test_speed_is_measured_beside_fit(digits_study):
    (speed,) = (r for r in read_rows(digits_study / ROWS_FILE) if isinstance(r, SpeedRow))
    assert speed.fit > 0
    assert speed.ratio >= 3


def test_a_rerun_trains_only_what_is_missing(digits_study, tmp_path):
    lines = (digits_study / ROWS_FILE).read_text().splitlines(keepends=True)
    # As if the run had been killed in the middle of its last row.
    kept, cut = lines[:15], lines[15][: len(lines[15]) // 2]
    (tmp_path / ROWS_FILE).write_text("".join(kept) + cut)
    arguments = ("study", "--steps", "60", "--seeds", "1", "--out", str(tmp_path))
    run = run_homeostat(*arguments)
    assert run.returncode == 0, run.stderr
    assert "1 of 16 networks to train" in " ".join(run.stdout.split())
    after = (tmp_path / ROWS_FILE).read_text().splitlines(keepends=True)
    assert after[:15] == kept
    rows = [row for row in read_rows(tmp_path / ROWS_FILE) if isinstance(row, LessonRow)]
    first = [r for r in read_rows(digits_study / ROWS_FILE) if isinstance(r, LessonRow)]
    again = next(row for row in rows if row.settings == first[15].settings)
    assert again.test_accuracy == pytest.approx(first[15].test_accuracy, abs=0.02)
    assert len(rows) == 16
    done = run_homeostat(*arguments)
    assert done.returncode == 0, done.stderr
    assert "0 of 16 networks to train" in " ".join(done.stdout.split())
    assert (tmp_path / ROWS_FILE).read_text() == "".join(after)


def test_ctrl_c_keeps_finished_rows_and_says_how_to_go_on(tmp_path):
    arguments = ("study", "--steps", "4000", "--backend", "jax", "--out", str(tmp_path))
    run = start_homeostat(*arguments)
    rows = tmp_path / ROWS_FILE
    deadline = time.monotonic() + 120
    while not rows.exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "run the same command again" in " ".join(output.split())
    assert "Traceback" not in errors
    kept = read_rows(rows)
    assert 1 <= len(kept) < 48
    assert all(row.probes[-1].step == 4000 for row in kept)
    assert rows.read_text().endswith("\n")


@needs_mnist
def test_a_short_lesson_on_mnist(tmp_path):
    run = run_homeostat(
        *("study", "lesson", "--data", os.environ["HOMEOSTAT_MNIST"], "--backend", "jax"),
        *("--steps", "200", "--seeds", "1", "--out", str(tmp_path)),
    )
    assert run.returncode == 0, run.stderr
    (group,) = summarize(read_rows(tmp_path / ROWS_FILE))
    pairs = {pair.name: pair for pair in group.pairs}
    assert group.data == "mnist"
    assert pairs["relu, rate 1, normal start"].with_.mean > 0.85
    assert pairs["relu, rate 0.01, normal start"].gain > 0.3


@needs_mnist
@pytest.mark.slow
def test_the_published_effect_on_mnist(tmp_path):
    run = run_homeostat(
        *("study", "lesson", "--data", os.environ["HOMEOSTAT_MNIST"]),
        *("--steps", "2000", "--seeds", "1", "--out", str(tmp_path)),
    )
    assert run.returncode == 0, run.stderr
    assert "0.8262 / 0.9525" in run.stdout
    (group,) = summarize(read_rows(tmp_path / ROWS_FILE))
    pairs = {pair.name: pair for pair in group.pairs}
    relu = pairs["relu, rate 0.01, normal start"]
    assert relu.without.mean <= 0.88
    assert relu.with_.mean >= 0.94
    assert pairs["relu, rate 1, normal start"].with_.mean >= 0.96
    sigmoid = pairs["sigmoid, rate 0.01, normal start"]
    assert sigmoid.with_.mean >= 0.85
    assert sigmoid.gain >= 0.5
    wrong, right = relu.single
    assert wrong <= 0.2
    assert right >= 0.93
