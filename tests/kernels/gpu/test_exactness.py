"""What costs other algorithms digits, or the same result twice, by the GPU's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.gpu.devices import DEVICE, need_kernels, torch

need_kernels()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from homeostat import reference  # noqa: E402
from homeostat.kernels import gpu  # noqa: E402
from homeostat.kernels.gpu import tiles  # noqa: E402
from homeostat.kernels.gpu.arguments import sizes  # noqa: E402
from tests.kernels.gpu.steps import (  # noqa: E402
    EPSILON,
    WAYS,
    close,
    draw,
    options,
    parameters,
    small_tiles,
    step,
    wide,
)


def outlier_first(x: np.ndarray) -> None:
    # At the start of the tensor, and of every tile and split that starts at such a place.
    x.reshape(-1)[::4096] = 1e6
    x.reshape(-1)[:7] = 1e6


def mostly_zero(x: np.ndarray) -> None:
    x[np.random.default_rng(1).random(x.shape) < 0.9] = 0


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("spoil", [None, outlier_first, mostly_zero])
@pytest.mark.parametrize("shape", [(2048, 8, 1), (301, 70, 1), (16, 3, 900), (64, 5, 49)], ids=str)
def test_the_variance_is_exact_whatever_the_data(shape: Any, spoil: Any, ratio: float) -> None:
    x = np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(ratio)
    if spoil is not None:
        spoil(x)
    with small_tiles(shape, 5):
        mean, variance = wide(gpu.moments(torch.from_numpy(x).to(DEVICE), gpu.Shape(*shape)))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(variance, exact.var((0, 2)), rtol=1e-6)
    # The mean's error is small beside the standard deviation.
    off = np.abs(mean - exact.mean((0, 2))) / exact.std((0, 2))
    assert (off < 1e-7 * max(1.0, ratio)).all()


def drifting(x: np.ndarray) -> None:
    # Each chain of tiles far from the one before, and the last of them alone.
    x += np.linspace(0, 100, len(x), dtype=np.float32)[:, None, None] ** 2


@pytest.mark.parametrize("spoil", [None, outlier_first, mostly_zero, drifting])
@pytest.mark.parametrize("shape", [(5000, 3, 1), (3, 2, 20_000)], ids=str)
def test_many_tiles_of_one_program_keep_their_digits(shape: Any, spoil: Any) -> None:
    x, dy, _ = draw(shape, "float32")
    values = wide(x).astype(np.float32) + np.float32(1000)
    if spoil is not None:
        spoil(values)
    x = torch.from_numpy(values).to(DEVICE)
    with small_tiles(shape, 1):
        plan = gpu.plan(gpu.Shape(*shape), torch.float32, "moments", DEVICE)
        assert plan.splits == 1
        assert plan.tiles(gpu.Shape(*shape)) > 4 * tiles.CHAIN.value
        found = step(shape, x, dy, None, None, None, None)
    exact = wide(x)
    mean, variance = exact.mean((0, 2)), exact.var((0, 2))
    np.testing.assert_allclose(wide(found.moments[1]), variance, rtol=1e-6)
    assert (np.abs(wide(found.moments[0]) - mean) < 1e-6 * np.sqrt(variance)).all()
    hat = (exact - mean[:, None]) / np.sqrt(variance + EPSILON)[:, None]
    for sums, terms in ((found.dbeta, wide(dy)), (found.dgamma, wide(dy) * hat)):
        # As if a sum were rounded a few times before its terms cancel.
        assert (np.abs(wide(sums) - terms.sum((0, 2))) < 5e-7 * np.abs(terms).sum((0, 2))).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(64, 24, 1), (8, 3, 16)], ids=str)
def test_a_large_mean_costs_the_output_nothing(shape: Any, dtype: str, way: str) -> None:
    x, dy, _ = draw(shape, dtype)
    x += 1e6 if dtype == "float32" else 1e9
    with WAYS[way](shape):
        found = step(shape, x, dy, None, None, None, None)
    y, batch = reference.normalize_batch(wide(x), **options(None, None))
    close(found.y, y, 3e-6)
    close(found.dx, reference.backward(wide(dy), wide(x), **options(None, None)).x, 3e-6)
    np.testing.assert_allclose(wide(found.moments[1]), batch.variance, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(33, 3, 1), (5, 3, 70)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(shape: Any, way: str) -> None:
    x, dy, _ = draw(shape, "float32")
    x[1, 1, 0] = torch.inf
    with WAYS[way](shape), np.errstate(invalid="ignore"):
        found = step(shape, x, dy, None, None, None, 0.0)
    for values in (found.y, found.dx):
        assert values[:, ::2].isfinite().all()
        assert not values[:, 1].isfinite().any()


def test_a_slope_of_0_stops_an_infinite_gradient_and_minus_0() -> None:
    x = torch.tensor([3.0, -3.0, 1.0, -1.0], device=DEVICE)
    dy = torch.tensor([1.0, torch.inf, 1.0, 1.0], device=DEVICE)
    found = step((4, 1, 1), x, dy, None, None, None, 0.0)
    assert found.dx.isfinite().all()
    assert not torch.signbit(found.y).any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(128, 64, 1), (2, 64, 64)], ids=str)
def test_forward_and_backward_agree_on_every_sign(shape: Any, dtype: str, way: str) -> None:
    """The mask of the backward is the sign of the very output that the forward computed.

    Around where z is 0 every number that there is: a product rounded before the sum, here but not
    there, would give the other sign.
    """
    shape = gpu.Shape(*shape)
    gamma, beta = (t.to(torch.float64) for t in parameters(64))
    moments = torch.stack([torch.zeros_like(gamma), torch.ones_like(gamma)])
    zero = wide(-beta / gamma) * np.sqrt(1 + EPSILON)
    kind = np.float32 if dtype == "float32" else np.float64
    near = zero.astype(kind)[:, None].repeat(128, 1)
    near += np.arange(-64, 64) * np.spacing(np.abs(near))
    lies = near.reshape(64, shape.outer, shape.inner).transpose(1, 0, 2)
    x = torch.from_numpy(np.ascontiguousarray(lies)).to(DEVICE)
    with WAYS[way](shape):
        y, kept = gpu.normalize(x, moments, gamma, beta, None, shape, EPSILON, 0.0)
        ones = torch.ones_like(x)
        sums, _ = gpu.gradient_sums(x, ones, None, kept, shape, 0.0)
        _, _, dbeta, _ = gpu.backward(x, ones, None, kept, shape, 0.0)
        dx = gpu.input_gradient(x, ones, None, kept, torch.zeros_like(sums), 1, shape, 0.0)
    positive = (y > 0).sum((0, 2))
    assert 32 < positive.double().mean() < 96
    assert sums[1].tolist() == dbeta.tolist() == positive.tolist()
    assert (dx != 0).equal(y > 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(300, 24, 1), (7, 2, 300)], ids=str)
def test_the_same_tensors_give_the_same_bits(shape: Any, way: str) -> None:
    x, dy, residual = draw(shape, "float32")
    gamma, beta = parameters(shape[1])
    with WAYS[way](shape):
        first, second = (step(shape, x, dy, residual, gamma, beta, 0.0) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert one.view(torch.uint8).equal(other.view(torch.uint8))


@pytest.mark.parametrize("slope", [None, 0.0])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_two_replicas_equal_the_whole(slope: Any, with_residual: bool, counted: bool) -> None:
    shape, parts = (50, 7, 3), (slice(0, 18), slice(18, 50))
    x, dy, residual = draw(shape, "float32")
    residual = residual if with_residual else None
    gamma, beta = parameters(7)
    whole = step(shape, x, dy, residual, gamma, beta, slope)
    shapes = [gpu.Shape(x[part].shape[0], 7, 3) for part in parts]
    counts = torch.tensor([[s.outer * s.inner] for s in shapes], device=DEVICE).double()
    found = torch.stack([gpu.moments(x[p], s) for p, s in zip(parts, shapes, strict=True)])
    # Chan, Golub & LeVeque 1979.
    mean = (counts * found[:, 0]).sum(0) / counts.sum()
    spread = (counts * (found[:, 1] + (found[:, 0] - mean) ** 2)).sum(0)
    together = torch.stack([mean, spread / counts.sum()])
    close(together, wide(whole.moments), 1e-6)
    passes = []
    for part, shape_of_part in zip(parts, shapes, strict=True):
        added = None if residual is None else residual[part]
        given = (together, gamma, beta, added, shape_of_part, EPSILON, slope)
        y, kept = gpu.normalize(x[part], *given)
        close(y, wide(whole.y[part]), 3e-6)
        behind = y if with_residual and slope is not None else None
        sums, g = gpu.gradient_sums(x[part], dy[part], behind, kept, shape_of_part, slope)
        passes.append((part, shape_of_part, kept, sums, g))
    sums = passes[0][3] + passes[1][3]
    close(sums[0], wide(whole.dgamma), 3e-6, 12.0)
    close(sums[1], wide(whole.dbeta), 3e-6, 12.0)
    count = counts.sum() if counted else 150
    for part, shape_of_part, kept, _, g in passes:
        given = (x[part], dy[part], g, kept, sums, count)
        dx = gpu.input_gradient(*given, shape_of_part, slope)
        close(dx, wide(whole.dx[part]), 3e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_count_of_its_own_divides(way: str) -> None:
    shape = gpu.Shape(20, 6, 1)
    x, dy, _ = draw(shape, "float64")
    with WAYS[way](shape):
        _, _, kept = gpu.train(x, None, None, None, shape, EPSILON, None)
        dx, dgamma, dbeta, _ = gpu.backward(x, dy, None, kept, shape, None, 50)
        tensor = torch.tensor(50.0, device=DEVICE)
        again, *_ = gpu.backward(x, dy, None, kept, shape, None, tensor)
    mean, variance = wide(x).mean((0, 2)), wide(x).var((0, 2))
    inverse = (1 / np.sqrt(variance + EPSILON))[:, None]
    hat = (wide(x) - mean[:, None]) * inverse
    through = (wide(dbeta)[:, None] + hat * wide(dgamma)[:, None]) / 50
    close(dx, inverse * (wide(dy) - through), 1e-12)
    assert dx.equal(again)


@triton.jit
def place_one(
    out, tile, block, outer, channel_units, inner_units,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write where a tile starts, its last offset inside the tensor, and how many are inside."""
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    # Of a tensor, as in the kernels, not a constant that there may be.
    tile += tl.program_id(0)
    start, within, inside = tiles.place(
        tile, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I
    )
    tl.store(out, start)
    tl.store(out + 1, tl.max(tl.max(tl.max(tl.where(inside, within, -1), 2), 1), 0).to(tl.int64))
    tl.store(out + 2, tl.sum(tl.sum(tl.sum(inside.to(tl.int32), 2), 1), 0).to(tl.int64))
    tl.store(out + 3, tiles.tiles_of(outer, inner, BLOCK_O, BLOCK_I).to(tl.int64))


# The last row of a tensor or the last elements of a line, at and beyond what 32 bits hold.
FAR = [
    (2**31 + 5, 2, 1), (2**31 - 1, 2, 1), (70_001, 40_000, 1), (60_000, 50_001, 1),
    (3, 5, 2**31), (2, 3, 2**31 - 1), (1, 2, 2**31 - 8), (2, 2, 2**32 + 12), (100_000, 3, 9_000),
]  # fmt: skip


@pytest.mark.parametrize("purpose", ["moments", "sums"])
@pytest.mark.parametrize("shape", FAR, ids=str)
def test_the_last_tile_of_a_large_tensor_is_where_it_is(shape: Any, purpose: str) -> None:
    shape = gpu.Shape(*shape)
    plan = gpu.plan(shape, torch.float16, purpose, DEVICE)
    count, block = plan.tiles(shape), plan.blocks(shape) - 1
    out = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    told = sizes(shape, plan)
    place_one[(1,)](out, count - 1, block, **told)
    outer, channels, inner = shape
    lines = -(-inner // plan.block_i)
    o, i = (count - 1) // lines * plan.block_o, (count - 1) % lines * plan.block_i
    c = block * plan.block_c
    start = (o * channels + c) * inner + i
    inside = min(plan.block_o, outer - o) * (channels - c) * (inner - i)
    last = outer * channels * inner - 1
    assert out.tolist() == [start, last - start, inside, count]
