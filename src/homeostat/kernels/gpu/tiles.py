"""One tile of a tensor: where it lies, its elements in registers, and its sums by channel.

A tile has BLOCK_O * BLOCK_C * BLOCK_I elements of the axes (outer, channels, inner), each block a
power of two, and is cut off where the tensor ends. Channels last is BLOCK_I = 1 of an inner of 1;
channels first mostly is BLOCK_C = 1. A tile starts at a 64-bit offset and spans 32-bit ones.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Tiles whose sums each element keeps to itself, in the statistics' dtype. Enough to make what comes
# behind a chain cheap, and few enough for float32: rounding that always goes the same way, as of
# data with few values, costs the variance 4e-7 at most, where 128 would cost more than 1e-6.
CHAIN = tl.constexpr(32)
# Tiles of a chain that are read before the first of them is needed.
AT_ONCE = tl.constexpr(2)


@triton.jit
def divide_up(whole, part: tl.constexpr):
    """Return whole / part, rounded up, of at least 1: without a sum that 32 bits may not hold."""
    return (whole - 1) // part + 1


@triton.jit
def tiles_of(outer, inner, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr):
    """Return how many tiles a block of channels has."""
    return divide_up(outer, BLOCK_O) * divide_up(inner, BLOCK_I)


@triton.jit
def start_of(tile, inner, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr):
    """Return where on the outer and the inner axis a tile starts."""
    lines = divide_up(inner, BLOCK_I)
    return tl.cast(tile // lines, tl.int64) * BLOCK_O, (tile % lines) * BLOCK_I


@triton.jit
def count_of(
    tile, outer, inner, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr
):  # fmt: skip
    """Return how many elements of a tile, or of each of several, every channel has."""
    o, i = start_of(tile, inner, BLOCK_O, BLOCK_I)
    return rest_of(o, outer, BLOCK_O) * rest_of(i, inner, BLOCK_I)


@triton.jit
def rest_of(first, size, BLOCK: tl.constexpr):
    """Return how many elements of a block are left of an axis, in 32 bits."""
    return tl.minimum(size - first, BLOCK).to(tl.int32)


@triton.jit
def place(
    tile, block, outer, channels, inner,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Return a tile's first offset, its offsets from there, and which are inside the tensor."""
    first_o, first_i = start_of(tile, inner, BLOCK_O, BLOCK_I)
    first_c = block * BLOCK_C
    o = tl.arange(0, BLOCK_O)[:, None, None]
    c = tl.arange(0, BLOCK_C)[None, :, None]
    i = tl.arange(0, BLOCK_I)[None, None, :]
    start = (first_o * channels + first_c) * inner + first_i
    within = (o * channels + c) * inner + i
    # What is left of an axis is compared with, for the same reason.
    inside = (c < channels - first_c) & (i < inner - first_i)
    inside &= o < rest_of(first_o, outer, BLOCK_O)
    return start, within, inside


@triton.jit
def share_of(channels, BLOCK_C: tl.constexpr):
    """Return which split of which block of channels a program has; blocks lie side by side."""
    blocks = divide_up(channels, BLOCK_C)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks


@triton.jit
def channels_of(block, channels, BLOCK_C: tl.constexpr):
    """Return the channels of a block, and which of them there are."""
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    return c, c < channels


@triton.jit
def load(pointer, start, within, inside):
    """Return a tile in the type of its statistics, 0 outside the tensor."""
    return widened(tl.load(pointer + start + within, mask=inside, other=0.0))


@triton.jit
def load_last(pointer, start, within, inside):
    """Return a tile as `load` does, that nothing reads again: the cache need not keep it."""
    return widened(
        tl.load(pointer + start + within, mask=inside, other=0.0, eviction_policy="evict_first")
    )


@triton.jit
def widened(value):
    """Return values in the type of their statistics."""
    return value if value.dtype == tl.float64 else value.to(tl.float32)


@triton.jit
def store(pointer, start, within, inside, value):
    """Write a tile, rounded to the array's type."""
    tl.store(pointer + start + within, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def sum_of(value):
    """Return the sums of a tile's channels."""
    return tl.sum(tl.sum(value, axis=2), axis=0)


@triton.jit
def spread_out(value):
    """Return values of channels as they go with a tile."""
    return value[None, :, None]


@triton.jit
def activate(z, SLOPE: tl.constexpr):
    """Return z where it is positive or NaN, else SLOPE * z; without a slope z."""
    if SLOPE is not None:
        # Not 0 * z: -0 of a negative value, NaN of minus infinity.
        z = tl.where(z <= 0, 0.0 if SLOPE == 0 else z * SLOPE, z)
    return z


@triton.jit
def behind(z, value, SLOPE: tl.constexpr):
    """Return value times the derivative of the activation that z went into, or came out of."""
    if SLOPE is not None:
        value = tl.where(z > 0, value, 0.0 if SLOPE == 0 else value * SLOPE)
    return value


@triton.jit
def normalized(x, pivot, scale, shift):
    """Return (x - pivot) * scale + shift, to the same bit in every kernel."""
    # An fma by name: left to themselves, compilers contract the same expression here but not there,
    # and the backward would see another sign than the forward.
    return tl.fma(
        x - spread_out(pivot),
        tl.broadcast_to(spread_out(scale), x.shape),
        tl.broadcast_to(spread_out(shift), x.shape),
    )
