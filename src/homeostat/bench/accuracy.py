"""Hard data, and how far from exact arithmetic a layer is on it."""

from __future__ import annotations

import functools

import numpy as np

from homeostat import reference
from homeostat.bench.call import Observed
from homeostat.bench.cases import EPSILON, Case, Inputs
from homeostat.bench.oracle import error_of

SHAPE = (32, 14, 14, 64)
FAR = {f"mean/std {name}": float(name) for name in ("1", "1e2", "1e4", "1e6")}
DATA = (*FAR, "outliers first", "90 % zeros")
"""Names of the hard data: far from zero; a first row of 1e6 in N(0, 1); sparse as behind a ReLU."""


def make_data(name: str) -> tuple[Case, Inputs]:
    """Return hard data by its name, with gamma 1 and beta 0."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal(SHAPE, np.float32)
    if name in FAR:
        x = (x.astype(np.float64) + FAR[name]).astype(np.float32)
    elif name == "outliers first":
        x[0, 0, 0] = 1e6
    else:
        x = np.where(draw.random(SHAPE) < 0.9, np.float32(0), np.abs(x))
    ones, zeros = np.ones(SHAPE[-1], np.float32), np.zeros(SHAPE[-1], np.float32)
    return Case(SHAPE, work="forward"), Inputs(x, None, x, ones, zeros, zeros, ones)


def errors_of(observed: Observed, x: np.ndarray) -> dict[str, float | None]:
    """Return the errors of a batch's variance and of the output; None where not finite."""
    y, variance = _exact(x.tobytes())
    far = float(np.max(np.abs(np.asarray(observed.variance, np.float64) - variance) / variance))
    off = error_of(np.asarray(observed.y, np.float64), y)
    return {"variance_error": _finite(far), "output_error": _finite(off)}


@functools.lru_cache(maxsize=1)
def _exact(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    x = np.frombuffer(data, np.float32).reshape(SHAPE)
    y, batch = reference.normalize_batch(x, epsilon=EPSILON)
    return y, np.asarray(batch.variance)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
