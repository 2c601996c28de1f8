"""Steps by the GPU's kernels, against the oracle: odd shapes, every dtype, every fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.gpu.devices import DEVICE, need_kernels, torch

need_kernels()

from homeostat import reference  # noqa: E402
from homeostat.kernels import gpu  # noqa: E402
from tests.kernels.gpu.steps import (  # noqa: E402
    DTYPES,
    EPSILON,
    FUSED,
    TOLERANCES,
    WAYS,
    Outcome,
    away_from_the_kink,
    close,
    draw,
    options,
    parameters,
    step,
    wide,
)

# (outer, channels, inner): few elements, odd sizes, several tiles and splits in either order.
SHAPES = [
    (1, 1, 1), (2, 5, 1), (33, 7, 1), (300, 70, 1), (513, 3, 1),
    (1, 3, 2), (5, 3, 7), (3, 17, 49), (2, 3, 1100), (700, 1, 1),
]  # fmt: skip
# Odd ones in every dtype and fusion, the others in float32.
EVERYWHERE = [(33, 7, 1), (5, 3, 49)]
CASES = [(shape, dtype, fused) for shape in EVERYWHERE for dtype in DTYPES for fused in FUSED]
CASES += [
    (shape, "float32", fused)
    for shape in SHAPES
    if shape not in EVERYWHERE
    for fused in ((None, False), (0.0, True))
]


def check(found: Outcome, given: tuple[Any, ...], slope: float | None, tolerance: float) -> None:
    x, dy, residual, gamma, beta = given
    arguments = (wide(x), wide(gamma), wide(beta))
    expected, batch = reference.normalize_batch(*arguments, **options(slope, residual))
    exact = reference.backward(wide(dy), *arguments, **options(slope, residual))
    root = np.sqrt(batch.count).max()
    close(found.y, expected, tolerance)
    close(found.dx, exact.x, tolerance)
    close(found.dgamma, exact.gamma, tolerance, root)
    close(found.dbeta, exact.beta, tolerance, root)
    close(found.moments[0], batch.mean, 1e-6)
    np.testing.assert_allclose(wide(found.moments[1]), batch.variance, rtol=1e-6, atol=1e-12)
    assert (found.g is not None) == (slope is not None and residual is not None)
    if found.g is not None:
        close(found.g, exact.residual, tolerance)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "dtype", "fused"), CASES, ids=str)
def test_a_step_equals_the_oracle(shape: Any, dtype: str, fused: Any, way: str) -> None:
    x, dy, residual = draw(shape, dtype)
    gamma, beta = parameters(shape[1])
    slope, with_residual = fused
    residual, tolerance = residual if with_residual else None, TOLERANCES[dtype]
    if slope is not None:
        dy = away_from_the_kink(x, dy, gamma, beta, residual, 10 * tolerance)
    with WAYS[way](shape):
        found = step(shape, x, dy, residual, gamma, beta, slope)
    check(found, (x, dy, residual, gamma, beta), slope, tolerance)
    kind = torch.float64 if dtype == "float64" else torch.float32
    assert found.y.dtype == found.dx.dtype == x.dtype
    assert found.dgamma.dtype == found.dbeta.dtype == kind
    assert found.moments.dtype == torch.float64


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("channels", [*range(1, 71, 5), 64, 70, 96, 128, 255, 256, 257, 300])
def test_every_number_of_channels(channels: int) -> None:
    x, dy, _ = draw((61 if channels % 2 else 2, channels, 1), "float32")
    found = step(x.shape, x, dy, None, None, None, None)
    check(found, (x, dy, None, None, None), None, 3e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("given", [(True, False), (False, True)], ids=["gamma", "beta"])
def test_either_parameter_in_any_dtype(given: Any, dtype: str) -> None:
    x, dy, _ = draw((17, 6, 5), "float32")
    pair = [t.to(DTYPES[dtype]) for t in parameters(6)]
    gamma, beta = (t if there else None for t, there in zip(pair, given, strict=True))
    dy = away_from_the_kink(x, dy, gamma, beta, None, 1e-4)
    found = step(x.shape, x, dy, None, gamma, beta, 0.0)
    check(found, (x, dy, None, gamma, beta), 0.0, 3e-6)


LAYOUTS: dict[str, Any] = {
    "NC": ((6, 5), lambda t: t, lambda n, c: (n, c, 1)),
    "NCL": ((4, 5, 3), lambda t: t, lambda n, c: (4, c, 3)),
    "NCHW": ((4, 5, 3, 2), lambda t: t, lambda n, c: (4, c, 6)),
    "NHWC": (
        (4, 5, 3, 2), lambda t: t.to(memory_format=torch.channels_last), lambda n, c: (n, c, 1)
    ),
    "NDHWC": (
        (2, 5, 3, 2, 2),
        lambda t: t.to(memory_format=torch.channels_last_3d),
        lambda n, c: (n, c, 1),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_its_strides(layout: str) -> None:
    logical, arrange, divide = LAYOUTS[layout]
    x, dy, residual = (arrange(t) for t in draw(logical, "float32"))
    gamma, beta = parameters(5)
    dy = arrange(away_from_the_kink(x, dy, gamma, beta, residual, 1e-4))
    shape = divide(x.numel() // 5, 5)
    found = step(shape, x, dy, residual, gamma, beta, 0.0)
    check(found, (x, dy, residual, gamma, beta), 0.0, 3e-6)
    for t in (found.y, found.dx, found.g):
        assert t is not None
        assert (t.shape, t.stride()) == (x.shape, x.stride())


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 70, 1), (3, 7, 49), (40, 1, 1)], ids=str)
def test_given_moments_normalize(shape: Any, dtype: str) -> None:
    x, _, residual = draw(shape, dtype)
    gamma, beta = parameters(shape[1])
    mean, variance = np.random.default_rng(2).uniform(0.5, 2.0, (2, shape[1]))
    moments = torch.from_numpy(np.stack([mean, variance])).to(DEVICE)
    for kind in (torch.float64, torch.float32):
        y, _ = gpu.normalize(
            x, moments.to(kind), gamma, beta, residual, gpu.Shape(*shape), EPSILON, 0.25
        )
        expected = reference.normalize(
            wide(x), mean, variance, wide(gamma), wide(beta), **options(0.25, residual)
        )
        least = 1e-6 if kind == torch.float32 else 0.0
        close(y, expected, max(TOLERANCES[dtype], least))
