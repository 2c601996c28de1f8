"""The data of a case, and what is called wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from homeostat import reference
from homeostat.bench.cases import (
    DTYPES,
    FORMS,
    SHAPES,
    WORKS,
    Case,
    layouts_of,
    make_inputs,
    round_to_bfloat16,
)
from homeostat.bench.oracle import expected, wrong
from homeostat.errors import SpecError


@pytest.mark.parametrize(("dtype", "margin"), [("float32", 1e-4), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("form", ["relu", "add+relu"])
def test_nothing_lies_in_the_corner_of_the_relu(dtype, margin, form):
    x, residual, _, gamma, beta, *_ = make_inputs(Case((64, 5, 5, 7), dtype=dtype, form=form))
    z, _ = reference.normalize_batch(x, gamma, beta, epsilon=1e-3, residual=residual)
    assert np.abs(z).min() >= margin


def test_rounding_is_that_of_bfloat16():
    dtypes = pytest.importorskip("ml_dtypes")
    draw = np.random.default_rng(0)
    values = (draw.standard_normal(10_000) * 10 ** draw.uniform(-20, 20, 10_000)).astype(np.float32)
    values = np.concatenate([values, np.float32([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8])])
    by_others = values.astype(dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(round_to_bfloat16(values), by_others)


def test_placing_and_taking_back():
    case = Case((2, 3, 4, 5), "NCHW")
    array = np.arange(120, dtype=np.float32).reshape(case.shape)
    assert case.place(array).shape == (2, 5, 3, 4)
    assert case.place(array).flags.c_contiguous
    np.testing.assert_array_equal(case.back(case.place(array)), array)


@pytest.mark.parametrize(("work", "form"), list(itertools.product(WORKS, FORMS)))
def test_each_result_that_is_off_is_called_wrong(work, form):
    case = Case((8, 4, 4, 3), work=work, form=form)
    exact = expected(case)
    gradients = {"dx", "dgamma", "dbeta"} | ({"dresidual"} if form == "add+relu" else set())
    assert set(exact) == {"y"} | (gradients if case.backward else set())
    assert wrong(case, exact) is None
    for name, array in exact.items():
        off = array.copy()
        off.flat[-1] += 0.01 * max(1.0, np.abs(array).max())
        assert wrong(case, {**exact, name: off}) == f"error 1.0e-02 in {name}"
        off.flat[0] = np.nan
        assert wrong(case, {**exact, name: off}) == f"error nan in {name}"


def test_bfloat16_has_room_for_its_rounding_only():
    case = Case((64, 8), "NC", "bfloat16")
    y = expected(case)["y"]
    assert wrong(case, {**expected(case), "y": y * 1.004}) is None
    assert wrong(case, {**expected(case), "y": y * 1.05})


def test_the_shapes_are_distinct_and_have_layouts():
    assert len(set(SHAPES)) == len(SHAPES)
    assert {layouts_of(shape) for shape in SHAPES} == {
        ("NC",), ("NHWC", "NCHW"), ("NDHWC", "NCDHW"),
    }  # fmt: skip
    assert set(DTYPES) == {"float32", "bfloat16"}
    with pytest.raises(SpecError, match="2 to 5 sizes"):
        layouts_of((4,))
