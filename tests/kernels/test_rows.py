"""The loops over rows of channels, against float64 on NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="the CPU kernels need numba")
loops = pytest.importorskip("homeostat.kernels.sums")
outputs = pytest.importorskip("homeostat.kernels.outputs")
strips = pytest.importorskip("homeostat.kernels.strips")

loop_moments = numba.njit(lambda *of: loops.moments(*of))
loop_sums = numba.njit(lambda *of: loops.gradient_sums(*of))
loop_apply = numba.njit(lambda *of: outputs.apply(*of))
loop_gradient = numba.njit(lambda *of: outputs.gradient(*of))

# Wide rows that are whole, that leave a rest, that are one row, less than four of them, and more
# than one block.
SHAPES = [(1, 1), (3, 5), (64, 16), (4, 1024), (257, 1024), (1000, 3), (5000, 64), (150, 1500)]
# Elements of tensors that the cache keeps, and that it does not.
SMALL, LARGE = 1, 2**40


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, spread = np.full((2, x.shape[1]), np.nan)
    loop_moments(x.ravel(), x.shape[1], mean, spread)
    return mean, spread / len(x)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
def test_moments_equal_numpy(shape: tuple[int, int], ratio: float) -> None:
    x = draw(*shape) + np.float32(ratio)
    mean, variance = moments(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-6, atol=1e-12)


def outlier_first(x: np.ndarray) -> None:
    x[0] = 1e6


def mostly_zero(x: np.ndarray) -> None:
    x[np.random.default_rng(1).random(x.shape) < 0.9] = 0


def drifting(x: np.ndarray) -> None:
    x += np.linspace(0, 3000, len(x), dtype=np.float32)[:, None]


@pytest.mark.parametrize("spoil", [outlier_first, mostly_zero, drifting])
def test_hard_data_cost_no_digits(spoil: Any) -> None:
    x = draw(50_000, 7)
    spoil(x)
    mean, variance = moments(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-6)


def test_moments_that_are_not_finite_stay_in_their_channel() -> None:
    x = draw(3000, 3)
    x[7, 1] = np.nan
    mean, variance = moments(x)
    assert np.isnan([mean[1], variance[1]]).all()
    assert np.isfinite([*mean[::2], *variance[::2]]).all()


@pytest.mark.parametrize("slope", [None, 0.0, 0.25])
@pytest.mark.parametrize("through_y", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_gradient_sums_equal_numpy(
    shape: Any, slope: float | None, through_y: bool, size: int
) -> None:
    x, dy = draw(*shape), draw(*shape, seed=1)
    mean, scale, shift = draw(3, shape[1], seed=2)
    z = (x - mean) * scale + shift
    # The loops may round once where NumPy rounds twice.
    dy[np.abs(z) < 1e-5] = 0
    sums = np.full((2, shape[1]), np.nan)
    y = np.maximum(z, 0).ravel() if slope is not None else z.ravel()
    slopes = np.float32(1.0 if slope is None else slope)
    flat, flat_dy = x.ravel(), dy.ravel()
    g_out = np.full_like(flat, np.nan)
    loop_sums(
        flat, flat_dy, y, through_y, g_out, through_y, mean, scale, shift, slopes, *sums,
        False, size,
    )  # fmt: skip
    g = dy.astype(np.float64) * (1.0 if slope is None else np.where(z > 0, 1.0, slope))
    if through_y:
        np.testing.assert_allclose(g_out.reshape(x.shape), g, rtol=1e-6)
    products = g * (x.astype(np.float64) - mean)
    atol = 1e-6 * np.sqrt(len(x))
    np.testing.assert_allclose(sums[0], g.sum(0), rtol=1e-5, atol=atol)
    np.testing.assert_allclose(sums[1], products.sum(0), rtol=1e-5, atol=5 * atol)


def test_a_slope_of_0_stops_what_is_not_finite() -> None:
    x, dy = np.float32([1, -1]), np.float32([2, np.inf])
    one, sums = np.ones(1, np.float32), np.empty((2, 1))
    zero = np.zeros(1, np.float32)
    loop_sums(x, dy, dy, False, dy, False, zero, one, zero, np.float32(0), *sums, False, SMALL)
    assert sums.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_size_of_a_tensor_changes_no_bit(shape: Any, adds: bool) -> None:
    x, dy = draw(*shape).ravel(), draw(*shape, seed=1).ravel()
    mean, scale, shift, by_x, constant = draw(5, shape[1], seed=2)
    slope, found = np.float32(0.25), []
    for size in (SMALL, LARGE):
        y, dx = np.full((2, x.size), np.nan, np.float32)
        loop_apply(x, dy, adds, mean, scale, shift, slope, y, False, size)
        loop_gradient(x, dy, mean, scale, shift, slope, by_x, constant, dx, False, size)
        found.append(np.stack([y, dx]))
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (10**6, 64), (128, 1024), (10**7, 3)])
def test_parts_cover_the_rows(rows: int, channels: int) -> None:
    size = strips.rows_per_part(rows, channels)
    parts = -(-rows // size)
    assert 1 <= parts <= strips.MOST_PARTS
    assert size % 4 == 0
    if rows * channels >= strips.PART_ELEMENTS:
        assert parts > 1
