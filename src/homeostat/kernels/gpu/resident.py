"""Kernels that keep a tile on chip between statistics and output: one launch, every tensor once.

Each program has one tile of a block of channels. With several tiles to a block, its programs wait
for each other, so all of the grid must be running at once: a cooperative launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.gpu.channels import (
    PIVOT,
    SCALE,
    SHIFT,
    coefficients,
    gradient_coefficients,
    load_kept,
    merge_partials,
    store_kept,
    store_pair,
    store_partial,
    tile_moments,
)
from homeostat.kernels.gpu.gradients import (
    entered,
    gradient_of_gamma,
    input_gradient,
    merge_split_sums,
    number,
    store_split_sums,
)
from homeostat.kernels.gpu.moving import move
from homeostat.kernels.gpu.tiles import (
    activate,
    count_of,
    load,
    normalized,
    place,
    share_of,
    spread_out,
    store,
    sum_of,
)


@triton.jit
def meet(arrivals, SPLITS: tl.constexpr):
    """Wait until all programs of a block of channels have written what they have.

    Arrivals is 0 at first. Only integers are added atomically, so nothing depends on the order.
    """
    # All threads have written before one of them says so.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < SPLITS:
        arrived = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def normalize_resident(
    x, residual, y, gamma, beta, moments, kept, moving_mean, moving_variance, skipped, updates,
    partials, arrivals, outer, channel_units, inner_units,
    EPSILON: tl.constexpr, SLOPE: tl.constexpr, MOMENTUM: tl.constexpr, SAMPLE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write y, the batch's mean and variance and what the backward needs of the channels.

    Statistics that are given move.

    Grid: SPLITS, which is the tiles of a block, * blocks of channels. Partials are float64,
    (3, SPLITS, channels), and arrivals 32-bit zeros, one for each block; None for one split.
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    start, within, inside = place(split, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I)
    its_x = load(x, start, within, inside)
    its_count = count_of(split, outer, inner, BLOCK_O, BLOCK_I)
    mean, spread = tile_moments(its_x, inside, its_count)
    count = its_count.to(tl.float64)
    if SPLITS > 1:
        store_partial(partials, split, SPLITS, block, channels, count, mean, spread, BLOCK_C)
        meet(arrivals + block, SPLITS)
        n, mean, spread = merge_partials(partials, block, channels, SPLITS, BLOCK_C, BLOCK_S)
        variance = spread / n
    else:
        n = count
        variance = spread / count
    pivot, scale, shift, inverse, offset = coefficients(
        mean, variance, gamma, beta, block, channels, kept.dtype.element_ty, EPSILON, BLOCK_C
    )
    if split == 0:
        store_pair(moments, block, channels, mean, variance, BLOCK_C)
        store_kept(kept, block, channels, pivot, scale, shift, inverse, offset, BLOCK_C)
        if moving_mean is not None:
            move(
                moving_mean, moving_variance, skipped, updates, block, channels,
                mean, variance, n, MOMENTUM, SAMPLE, BLOCK_C,
            )  # fmt: skip
    z = normalized(its_x, pivot, scale, shift)
    if residual is not None:
        z += load(residual, start, within, inside)
    store(y, start, within, inside, activate(z, SLOPE))


@triton.jit
def differentiate_resident(
    x, dy, y, g, kept, results, dx, count, partials, arrivals,
    outer, channel_units, inner_units,
    SLOPE: tl.constexpr, COUNTED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write dx, dgamma and dbeta; of y and dy also g.

    Grid, partials, (2, SPLITS, channels), and arrivals: as in `normalize_resident`.
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    start, within, inside = place(split, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I)
    pivot = load_kept(kept, PIVOT, block, channels, BLOCK_C)
    scale = load_kept(kept, SCALE, block, channels, BLOCK_C)
    shift = load_kept(kept, SHIFT, block, channels, BLOCK_C)
    its_x, its_g = entered(x, dy, y, g, start, within, inside, pivot, scale, shift, SLOPE)
    dbeta = sum_of(its_g).to(tl.float64)
    centred = sum_of(its_g * (its_x - spread_out(pivot))).to(tl.float64)
    if SPLITS > 1:
        store_split_sums(partials, split, SPLITS, block, channels, dbeta, centred, BLOCK_C)
        meet(arrivals + block, SPLITS)
        dbeta, centred = merge_split_sums(partials, block, channels, SPLITS, BLOCK_C, BLOCK_S)
    dgamma = gradient_of_gamma(kept, dbeta, centred, block, channels, BLOCK_C)
    if split == 0:
        store_pair(results, block, channels, dgamma, dbeta, BLOCK_C)
    n = number(count, COUNTED)
    by_x, constant = gradient_coefficients(kept, dgamma, dbeta, n, block, channels, BLOCK_C)
    found = input_gradient(its_x, its_g, pivot, scale, by_x, constant)
    store(dx, start, within, inside, found)
