"""Hold a call's results to the float64 oracle before it is timed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from homeostat import reference
from homeostat.bench.cases import EPSILON, Case, Inputs, make_inputs

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""The largest error that is timed, relative to the largest value of the array (or 1)."""

Results = Mapping[str, np.ndarray]
"""A call's y and, with the backward, dx, dgamma, dbeta and dresidual; channels last."""


def expected(case: Case) -> Results:
    """Return what a case's results are in exact arithmetic."""
    key = (case.shape, case.dtype, case.form)
    found = _outputs(*key, case.training)
    return {**found, **_gradients(*key)} if case.backward else found


def wrong(case: Case, results: Results) -> str | None:
    """Return what is wrong with a call's results, ``"error 3.1e-02 in dx"``, or None."""
    for name, array in expected(case).items():
        error = error_of(np.asarray(results[name], np.float64), array)
        if not error <= TOLERANCE[case.dtype]:
            return f"error {error:.1e} in {name}"
    return None


def error_of(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest error, relative to the largest exact value or 1; NaN where one is NaN."""
    if found.shape != exact.shape:
        return float("inf")
    return float(np.abs(found - exact).max() / max(1.0, np.abs(exact).max()))


def _options(case: Case, inputs: Inputs) -> dict[str, Any]:
    relu = "relu" if case.relu else None
    return {"epsilon": EPSILON, "activation": relu, "residual": inputs.residual}


@functools.lru_cache(maxsize=2)
def _outputs(shape: tuple[int, ...], dtype: str, form: str, training: bool) -> Results:
    case = Case(shape, dtype=dtype, form=form)
    inputs = make_inputs(case)
    x, _, _, gamma, beta, mean, variance = inputs
    if not training:
        return {"y": reference.normalize(x, mean, variance, gamma, beta, **_options(case, inputs))}
    return {"y": reference.normalize_batch(x, gamma, beta, **_options(case, inputs))[0]}


@functools.lru_cache(maxsize=1)
def _gradients(shape: tuple[int, ...], dtype: str, form: str) -> Results:
    case = Case(shape, dtype=dtype, form=form)
    inputs = make_inputs(case)
    exact = reference.backward(
        inputs.dy, inputs.x, inputs.gamma, inputs.beta, **_options(case, inputs)
    )
    found = {"dx": exact.x, "dgamma": exact.gamma, "dbeta": exact.beta}
    return found | {"dresidual": exact.residual} if case.adds else found
