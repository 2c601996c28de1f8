"""The kernel that writes the output, of what was kept of the channels or of given moments."""

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.gpu.channels import (
    PIVOT,
    SCALE,
    SHIFT,
    coefficients,
    load_kept,
    load_pair,
    store_kept,
)
from homeostat.kernels.gpu.tiles import (
    activate,
    load,
    load_last,
    normalized,
    place,
    share_of,
    store,
    tiles_of,
)


@triton.jit
def normalize_tiles(
    x, residual, y, moments, gamma, beta, kept, outer, channel_units, inner_units, tiles_per_split,
    EPSILON: tl.constexpr, SLOPE: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write y = activation((x - pivot) * scale + shift + residual) of some tiles.

    With moments, gamma and beta are applied here and the coefficients kept; without, the
    coefficients are those kept before. Grid: splits * blocks of channels.
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    if moments is not None:
        mean, variance = load_pair(moments, block, channels, BLOCK_C)
        pivot, scale, shift, inverse, offset = coefficients(
            mean, variance, gamma, beta, block, channels, kept.dtype.element_ty, EPSILON, BLOCK_C
        )
        if split == 0:
            store_kept(kept, block, channels, pivot, scale, shift, inverse, offset, BLOCK_C)
    else:
        pivot = load_kept(kept, PIVOT, block, channels, BLOCK_C)
        scale = load_kept(kept, SCALE, block, channels, BLOCK_C)
        shift = load_kept(kept, SHIFT, block, channels, BLOCK_C)
    tiles = tiles_of(outer, inner, BLOCK_O, BLOCK_I)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tiles)):
        # Backwards: what the pass for the statistics read last may still be in the cache.
        start, within, inside = place(
            tiles - 1 - tile, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I
        )
        z = normalized(load_last(x, start, within, inside), pivot, scale, shift)
        if residual is not None:
            z += load(residual, start, within, inside)
        store(y, start, within, inside, activate(z, SLOPE))
