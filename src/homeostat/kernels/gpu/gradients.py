"""Kernels of the backward: sums of gradients by splits, all splits together, the input's gradient.

With g = dy * activation'(z), n elements to a channel and x_hat = (x - mean) * inverse::

    dbeta = sum(g)    dgamma = sum(g * x_hat)
    dx = scale * (g - (dbeta + x_hat * dgamma) / n)
"""

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.gpu.channels import (
    INVERSE,
    OFFSET,
    PIVOT,
    SCALE,
    SHIFT,
    gradient_coefficients,
    load_kept,
    load_pair,
    split_places,
    store_pair,
)
from homeostat.kernels.gpu.tiles import (
    AT_ONCE,
    CHAIN,
    behind,
    channels_of,
    load,
    load_last,
    normalized,
    place,
    share_of,
    spread_out,
    store,
    sum_of,
    tiles_of,
)


@triton.jit
def entering(x, dy, y, pivot, scale, shift, SLOPE: tl.constexpr):
    """Return g, by the sign of y or, without one, of z as the forward computed it."""
    if SLOPE is not None:
        z = normalized(x, pivot, scale, shift) if y is None else y
        dy = behind(z, dy, SLOPE)
    return dy


@triton.jit
def entered(x, dy, y, g, start, within, inside, pivot, scale, shift, SLOPE: tl.constexpr):
    """Return a tile's x and g; write g where it goes to memory."""
    its_x, its_dy = load(x, start, within, inside), load(dy, start, within, inside)
    its_y = None
    if y is not None:
        its_y = load(y, start, within, inside)
    its_g = entering(its_x, its_dy, its_y, pivot, scale, shift, SLOPE)
    if g is not None:
        store(g, start, within, inside, its_g)
    return its_x, its_g


@triton.jit
def input_gradient(x, g, pivot, scale, by_x, constant):
    """Return dx = scale * g + by_x * (x - pivot) + constant."""
    rest = tl.fma(
        tl.broadcast_to(spread_out(by_x), x.shape),
        x - spread_out(pivot),
        tl.broadcast_to(spread_out(constant), x.shape),
    )
    return tl.fma(tl.broadcast_to(spread_out(scale), x.shape), g, rest)


@triton.jit
def split_sums(
    x, dy, y, g, kept, partials, outer, channel_units, inner_units, splits,
    SLOPE: tl.constexpr, CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the sums of g and of g * (x - pivot) of one split; of y and dy also g.

    Grid: splits * blocks of channels. Partials are float64, (2, splits, channels).
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    pivot = load_kept(kept, PIVOT, block, channels, BLOCK_C)
    scale = load_kept(kept, SCALE, block, channels, BLOCK_C)
    shift = load_kept(kept, SHIFT, block, channels, BLOCK_C)
    tiles = tiles_of(outer, inner, BLOCK_O, BLOCK_I)
    sums = tl.zeros((BLOCK_C,), tl.float64)
    centred = tl.zeros((BLOCK_C,), tl.float64)
    for link in range(split, tiles, splits * CHAIN):
        of_g = tl.zeros((BLOCK_O, BLOCK_C, BLOCK_I), pivot.dtype)
        of_products = tl.zeros((BLOCK_O, BLOCK_C, BLOCK_I), pivot.dtype)
        end = tl.minimum(link + splits * CHAIN, tiles)
        for tile in tl.range(link, end, splits, loop_unroll_factor=AT_ONCE):
            start, within, inside = place(
                tile, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I
            )
            its_x, its_g = entered(
                x, dy, y, g, start, within, inside, pivot, scale, shift, SLOPE
            )  # fmt: skip
            of_g += its_g
            # Outside the tensor g is 0 and x - pivot is finite, unless the channel is not.
            of_products = tl.fma(its_g, its_x - spread_out(pivot), of_products)
        sums += sum_of(of_g).to(tl.float64)
        centred += sum_of(of_products).to(tl.float64)
    store_split_sums(partials, split, splits, block, channels, sums, centred, BLOCK_C)


@triton.jit
def store_split_sums(
    partials, split, splits, block, channels, sums, centred, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Write the sums of g and of g * (x - pivot) of one split."""
    c, there = channels_of(block, channels, BLOCK_C)
    at = partials + split.to(tl.int64) * channels + c
    tl.store(at, sums, mask=there)
    tl.store(at + tl.cast(splits, tl.int64) * channels, centred, mask=there)


@triton.jit
def merge_split_sums(
    partials, block, channels, splits, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """Return the sums of g and of g * (x - pivot) of all splits, in a fixed order.

    BLOCK_S splits are read at a time.
    """
    c, _ = channels_of(block, channels, BLOCK_C)
    step = tl.cast(splits, tl.int64) * channels
    sums = tl.zeros((BLOCK_C,), tl.float64)
    centred = tl.zeros((BLOCK_C,), tl.float64)
    for first in range(0, splits, BLOCK_S):
        at, inside = split_places(first, splits, c, channels, BLOCK_S)
        more = tl.load(partials + at, mask=inside, other=0.0, cache_modifier=".cg")
        sums += tl.sum(more, axis=0)
        more = tl.load(partials + step + at, mask=inside, other=0.0, cache_modifier=".cg")
        centred += tl.sum(more, axis=0)
    return sums, centred


@triton.jit
def gradient_of_gamma(kept, sums, centred, block, channels, BLOCK_C: tl.constexpr):
    """Return sum(g * x_hat) of the sums of g and of g * (x - pivot)."""
    inverse = load_kept(kept, INVERSE, block, channels, BLOCK_C).to(tl.float64)
    offset = load_kept(kept, OFFSET, block, channels, BLOCK_C).to(tl.float64)
    return inverse * (centred - offset * sums)


@triton.jit
def number(count, COUNTED: tl.constexpr):
    """Return a count that is given, or COUNTED and in memory."""
    given = tl.load(count) if COUNTED else count
    return tl.cast(given, tl.float64)


@triton.jit
def merge_sums(
    partials, kept, sums, results, channels, splits,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write dgamma and dbeta, (2, channels): float64 sums, and results of the parameters' dtype.

    Grid: blocks of channels.
    """
    block = tl.program_id(0)
    dbeta, centred = merge_split_sums(partials, block, channels, splits, BLOCK_C, BLOCK_S)
    dgamma = gradient_of_gamma(kept, dbeta, centred, block, channels, BLOCK_C)
    store_pair(sums, block, channels, dgamma, dbeta, BLOCK_C)
    if results is not None:
        store_pair(results, block, channels, dgamma, dbeta, BLOCK_C)


@triton.jit
def differentiate_tiles(
    x, g, kept, sums, count, dx, outer, channel_units, inner_units, tiles_per_split,
    SLOPE: tl.constexpr, COUNTED: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write dx of some tiles; with a slope g still is dy. COUNTED: the count is in memory.

    Grid: splits * blocks of channels.
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    n = number(count, COUNTED)
    pivot = load_kept(kept, PIVOT, block, channels, BLOCK_C)
    scale = load_kept(kept, SCALE, block, channels, BLOCK_C)
    shift = load_kept(kept, SHIFT, block, channels, BLOCK_C)
    dgamma, dbeta = load_pair(sums, block, channels, BLOCK_C)
    by_x, constant = gradient_coefficients(kept, dgamma, dbeta, n, block, channels, BLOCK_C)
    tiles = tiles_of(outer, inner, BLOCK_O, BLOCK_I)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tiles)):
        # Backwards: what the pass for the sums read last may still be in the cache.
        start, within, inside = place(
            tiles - 1 - tile, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I
        )
        its_x = load_last(x, start, within, inside)
        its_g = load_last(g, start, within, inside)
        its_g = entering(its_x, its_g, None, pivot, scale, shift, SLOPE)
        found = input_gradient(its_x, its_g, pivot, scale, by_x, constant)
        store(dx, start, within, inside, found)
