"""What kernels are told of a shape and of the plan that it is computed by.

Small tensors are waited for by the time that Python takes: what a shape and a plan give is kept.
"""

from __future__ import annotations

import functools

from homeostat.kernels.gpu.plans import Plan, Shape, divide_up, power_of_2

# What a program beside a tile that it keeps reads at a time of what it merges, splits * channels.
_MERGED_BESIDE = 512
# The channels of a program that does nothing else, a sector of memory; it reads all splits at once.
_MERGED_CHANNELS = 4


@functools.lru_cache(maxsize=4096)
def sizes(shape: Shape, way: Plan) -> dict[str, int]:
    """Return what every kernel over tiles takes: sizes of the tensor and of a tile."""
    channel_unit, inner_unit = _unit(shape.channels), _unit(shape.inner)
    return {
        "outer": shape.outer,
        "channel_units": shape.channels // channel_unit,
        "inner_units": shape.inner // inner_unit,
        "CHANNEL_UNIT": channel_unit,
        "INNER_UNIT": inner_unit,
        "BLOCK_O": way.block_o,
        "BLOCK_C": way.block_c,
        "BLOCK_I": way.block_i,
    }


def _unit(size: int) -> int:
    """Return the power of two that a size is given in units of.

    The compiler sees for itself whether an argument is divisible by 16; told a smaller divisor it
    still reads several elements at a time. A product of arguments has 32 bits: no more is given so.
    """
    power = size & -size
    return power if power < 16 and size < 2**31 else 1


def programs(way: Plan, shape: Shape) -> int:
    """Return the programs of a launch over tiles."""
    return way.blocks(shape) * way.splits


@functools.lru_cache(maxsize=4096)
def tiles_per_split(way: Plan, shape: Shape) -> int:
    """Return the most tiles that a program has."""
    return divide_up(way.tiles(shape), way.splits)


@functools.lru_cache(maxsize=4096)
def beside(way: Plan) -> dict[str, int]:
    """Return what a program takes that merges splits beside a tile that it keeps."""
    at_a_time = max(1, _MERGED_BESIDE // way.block_c)
    return {"SPLITS": way.splits, "BLOCK_S": min(power_of_2(way.splits), at_a_time)}


@functools.lru_cache(maxsize=4096)
def merging_of(way: Plan, shape: Shape) -> tuple[dict[str, int], int, Plan]:
    """Return what a kernel that only merges splits takes, its programs and what it runs by."""
    block_c = min(_MERGED_CHANNELS, power_of_2(shape.channels))
    block_s = power_of_2(way.splits)
    told = {
        "channels": shape.channels,
        "splits": way.splits,
        "BLOCK_C": block_c,
        "BLOCK_S": block_s,
    }
    warps = max(1, min(8, block_s * block_c // 512))
    return told, divide_up(shape.channels, block_c), way._replace(num_warps=warps, registers=None)
