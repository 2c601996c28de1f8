"""Rows made up to be awkward, for tests that need no training."""

from __future__ import annotations

from homeostat.report.rows import LessonRow, Probe, SpeedRow

VERSIONS = {"homeostat": "0.1.0", "keras": "3.15.1"}


def lesson_row(**changes) -> LessonRow:
    accuracy = changes.get("test_accuracy", 0.9)
    batch_norm = changes.get("batch_norm", True)
    probes = tuple(
        Probe(
            step=step,
            validation_accuracy=accuracy * step / 100,
            loss=None if step == 0 else 1.0 / step,
            gradient_norms=(0.1, 0.0, None, 2.5),
            quantiles=(-2.0, -1.0, 0.0, 1.0, 2.0),
        )
        for step in (0, 50, 100)
    )
    values = {
        "data": "mnist",
        "fingerprint": "00ff",
        "activation": "relu",
        "learning_rate": 0.01,
        "start": "normal",
        "batch_norm": batch_norm,
        "seed": 0,
        "steps": 2000,
        "batch_size": 60,
        "backend": "jax",
        "device": "CPU",
        "versions": VERSIONS,
        "finished": "2026-01-01T00:00:00+00:00",
        "wall_s": 1.5,
        "steps_per_second": 3000.0,
        "test_accuracy": accuracy,
        "single_batch_statistics": 0.1 if batch_norm else None,
        "single_moving_statistics": accuracy if batch_norm else None,
        "probes": probes,
    }
    return LessonRow(**values | changes)


def speed_row(**changes) -> SpeedRow:
    values = {
        "data": "mnist",
        "backend": "jax",
        "device": "CPU",
        "versions": VERSIONS,
        "batch_size": 60,
        "networks": 2,
        "together": 8000.0,
        "alone": 5000.0,
        "fit": 2000.0,
    }
    return SpeedRow(**values | changes)
