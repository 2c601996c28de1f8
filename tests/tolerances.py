"""How close results must be to the oracle, by quantity and dtype: one place, the same everywhere.

Results pass where |actual - expected| <= relative * |expected| + absolute * scale, with the scale
of each quantity as `check` says.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tests.cases import Case


class Tolerance(NamedTuple):
    """The relative part, and the absolute part in units of the quantity's scale."""

    relative: float
    absolute: float


# One rounding to the output's dtype (half a unit in the last place), and for float32 and float64
# the roundings of a normalization: a dozen of them.
OUTPUT = {
    "float64": Tolerance(1e-12, 1e-12),
    "float32": Tolerance(2e-6, 5e-6),
    "float16": Tolerance(1e-3, 1e-3),
    "bfloat16": Tolerance(8e-3, 8e-3),
}
# Gradients round twice more: the gradient that enters behind an activation, and the difference of
# nearly equal terms in dx.
GRADIENT = {
    "float64": Tolerance(1e-11, 1e-11),
    "float32": Tolerance(1e-5, 1e-5),
    "float16": Tolerance(2e-3, 2e-3),
    "bfloat16": Tolerance(1.6e-2, 1.6e-2),
}
# Statistics are kept in float32 for every dtype but float64. The promise for the variance is 1e-5
# up to mean / std = 1e3; its absolute part only meets variances that are 0 or nearly so.
VARIANCE = {"float64": Tolerance(1e-12, 1e-14), "float32": Tolerance(1e-5, 1e-12)}
# Beyond mean / std = 1e3 float32 itself holds the data coarsely, and the promise is 10 %.
VARIANCE_FAR = Tolerance(0.1, 1e-12)
FAR = 1e3
# The mean is rounded once to float32, and summed to a few units in the last place.
MEAN = {"float64": Tolerance(1e-14, 1e-13), "float32": Tolerance(3e-7, 2e-6)}
# Where a mean of m standard deviations was rounded to float32, x - mean is off by up to m / 2**24
# standard deviations, and so is y.
ROUNDED_MEAN = {"float64": 2.0**-53, "float32": 2.0**-24}


def statistics_of(case: Case) -> str:
    """Return the dtype in which a case's statistics are kept."""
    return "float64" if case.dtype == "float64" else "float32"


def of(quantity: str, case: Case) -> Tolerance:
    """Return the tolerance of ``"y"``, ``"mean"``, ``"variance"`` or a gradient for a case."""
    statistics = statistics_of(case)
    far = abs(case.offset) > FAR and statistics == "float32"
    if quantity == "mean":
        return MEAN[statistics]
    if quantity == "variance":
        return VARIANCE_FAR if far else VARIANCE[statistics]
    base = (OUTPUT if quantity == "y" else GRADIENT)[case.dtype]
    if case.std == 0:
        # A constant channel has no std: what its mean is off by is multiplied by 1/sqrt(epsilon).
        off = abs(case.offset) * ROUNDED_MEAN[statistics] / math.sqrt(case.epsilon)
    else:
        off = abs(case.offset) * ROUNDED_MEAN[statistics]
    # Twice, for the gammas of up to 2; half the 10 % of the variance goes to its square root.
    return Tolerance(base.relative + (0.05 if far else 0.0), base.absolute + 2 * off)


def check(quantity: str, actual: Any, expected: np.ndarray, case: Case) -> None:
    """Assert that a quantity is close enough to what the oracle expects of the case."""
    assert actual.shape == expected.shape, f"{quantity} of {case}"
    tolerance = of(quantity, case)
    np.testing.assert_allclose(
        actual,
        expected,
        rtol=tolerance.relative,
        atol=tolerance.absolute * scale(quantity, expected, case),
        err_msg=f"{quantity} of {case}",
    )


def scale(quantity: str, expected: np.ndarray, case: Case) -> float:
    """Return what a quantity's absolute tolerance is measured in.

    Outputs and gradients: their largest value. dx: at least 1 / sqrt(variance + epsilon), the size
    of the terms that cancel in it. dgamma and dbeta: at least the square root of the number of
    elements, which is what a sum of that many random terms comes to. The mean: the standard
    deviation.
    """
    if expected.size == 0:
        return 1.0
    largest = float(np.max(np.abs(np.nan_to_num(expected))))
    if quantity == "variance":
        return 1.0
    if quantity == "mean":
        return max(case.std, 1e-30)
    if quantity in ("gamma", "beta"):
        return max(largest, math.sqrt(case.layout.count or 1))
    if quantity == "x":
        return max(largest, 1.0 / math.sqrt(case.std**2 + case.epsilon))
    return max(largest, 1.0)
