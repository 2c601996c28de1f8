"""How a shape's elements are shared out among programs: one table, to be overridden in tuning.

Plans depend on the shape, the dtype and the number of multiprocessors, on nothing that changes
between runs: the same tensor gives the same bits on the same device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

# Of an H100, where there is no device to ask: Triton's interpreter, tracing.
MULTIPROCESSORS = 132
# What one access of a warp should read of a line of channels at least, and at best, in bytes.
SECTOR, ROW = 32, 256
# Programs of a reduction, for each multiprocessor: enough to hide each other's waiting.
PROGRAMS = 4
# Of a multiprocessor: their registers are shared out among programs.
REGISTERS = 65536
# The most splits that a single program merges.
MOST_SPLITS = 1024


class Shape(NamedTuple):
    """How a flat tensor is divided: outer * channels * inner elements, none of the three 0."""

    outer: int
    channels: int
    inner: int


class Plan(NamedTuple):
    """How one pass over tensors is shared out.

    Args:
        resident: whether tiles stay on chip between statistics and output, in a single launch;
            there is a tile to each split then.
        block_o: the outer elements of a tile, a power of two, as are the others.
        block_c: its channels.
        block_i: its inner elements.
        splits: programs that share the elements of a block of channels.
        num_warps: of a program.
        registers: the most of a thread, None for as many as the compiler wants.
    """

    resident: bool
    block_o: int
    block_c: int
    block_i: int
    splits: int
    num_warps: int
    registers: int | None = None

    def tiles(self, shape: Shape) -> int:
        """Return how many tiles a block of channels has."""
        return divide_up(shape.outer, self.block_o) * divide_up(shape.inner, self.block_i)

    def blocks(self, shape: Shape) -> int:
        """Return how many blocks of channels there are."""
        return divide_up(shape.channels, self.block_c)


class Budget(NamedTuple):
    """What a pass may hold in registers.

    Args:
        tile: elements of a tile that is read and let go.
        kept: elements of a tile that stays, 0 for a pass that keeps none.
        run: the most tiles of a program, 0 for a reduction, whose splits are few instead.
    """

    tile: int
    kept: int = 0
    run: int = 0


# By what a pass does. The backward holds twice as many tensors at a time.
BUDGETS = {
    "forward": Budget(4096, kept=16384),
    "moments": Budget(2048),
    "normalize": Budget(4096, run=4),
    "backward": Budget(2048, kept=16384),
    "sums": Budget(1024),
    "gradient": Budget(2048, run=4),
}

_given: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextmanager
def using(plan: Plan) -> Iterator[None]:
    """Run every pass in the body by one plan, whatever the table says: to time it, or to test it.

    Args:
        plan: must fit the shapes that come: a resident plan has as many splits as tiles.
    """
    token = _given.set(plan)
    try:
        yield
    finally:
        _given.reset(token)


def plan(shape: Shape, dtype: torch.dtype, purpose: str, device: torch.device) -> Plan:
    """Return how a pass is shared out.

    Args:
        shape: of the tensors.
        dtype: of x.
        purpose: one of `BUDGETS`.
        device: where x is.
    """
    given = _given.get()
    if given is not None:
        return given if BUDGETS[purpose].kept else given._replace(resident=False)
    return _plan(shape, dtype.itemsize, purpose, multiprocessors(device))


def multiprocessors(device: torch.device) -> int:
    """Return how many programs of any size run at once for certain."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS
    return _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.lru_cache(maxsize=4096)
def _plan(shape: Shape, size: int, purpose: str, programs: int) -> Plan:
    budget = BUDGETS[purpose]
    resident = _resident(shape, size, budget.kept, programs) if budget.kept else None
    return resident or _streaming(shape, size, budget, programs)


def _streaming(shape: Shape, size: int, budget: Budget, programs: int) -> Plan:
    """Return a plan that reads tiles one after the other."""
    # Twice as wide elements take twice the registers.
    tile = budget.tile // 2 if size == 8 else budget.tile
    block_c, block_i = _line(shape, size, tile)
    block_o = _rows(shape, tile // (block_c * block_i), block_c)
    found = _warped(Plan(False, block_o, block_c, block_i, 1, 4), each=8, most=4)
    tiles, blocks = found.tiles(shape), found.blocks(shape)
    splits = min(tiles, MOST_SPLITS, max(1, PROGRAMS * programs // blocks))
    if budget.run:
        splits = max(splits, divide_up(tiles, budget.run))
    else:
        # All programs of a reduction run at once: a few more would take as long as all again.
        most = REGISTERS // (PROGRAMS * 32 * found.num_warps)
        found = found._replace(registers=min(most, 255))
    # No split without a tile.
    return found._replace(splits=divide_up(tiles, divide_up(tiles, splits)))


def _resident(shape: Shape, size: int, kept: int, programs: int) -> Plan | None:
    """Return a plan that keeps every tile on chip, or None where they do not fit."""
    kept = kept // 2 if size == 8 else kept
    widest = _line(shape, size, kept)[0]
    narrow = max(1, min(widest, SECTOR // size)) if shape.inner == 1 else 1
    whole_o, whole_i = power_of_2(shape.outer), power_of_2(shape.inner)
    # One split, of as few channels as keep all multiprocessors at work.
    block_c = widest
    while block_c > narrow and divide_up(shape.channels, block_c) < programs:
        block_c //= 2
    while block_c > narrow and whole_o * block_c * whole_i > kept:
        block_c //= 2
    block_o = _rows(shape, whole_o, block_c)
    if block_o == whole_o and whole_o * block_c * whole_i <= kept:
        return _warped(Plan(True, whole_o, block_c, whole_i, 1, 4))
    return _cooperative(shape, size, kept, programs, widest)


def _cooperative(shape: Shape, size: int, kept: int, programs: int, block_c: int) -> Plan | None:
    """Return a plan of several splits, all of which run at once, or None."""
    most = programs // divide_up(shape.channels, block_c)
    block_i = min(power_of_2(shape.inner), kept // block_c)
    lines = divide_up(shape.inner, block_i)
    if most < 2 or most < lines:
        return None
    rows = power_of_2(divide_up(shape.outer, most // lines))
    block_o = _rows(shape, rows, block_c)
    if block_o < rows or rows * block_c * block_i > kept:
        return None
    found = Plan(True, rows, block_c, block_i, 1, 4)
    return _warped(found._replace(splits=found.tiles(shape)))


def _warped(plan: Plan, each: int = 16, most: int = 16) -> Plan:
    """Return a plan with as many warps as leave each thread some elements, up to a number."""
    elements = plan.block_o * plan.block_c * plan.block_i
    return plan._replace(num_warps=max(1, min(most, elements // (32 * each))))


def _line(shape: Shape, size: int, tile: int) -> tuple[int, int]:
    """Return the channels and the inner elements of a tile, by what lies side by side."""
    if shape.inner == 1:
        return min(power_of_2(shape.channels), ROW // size, tile), 1
    block_i = min(power_of_2(shape.inner), tile)
    # Channels whose lines are short share a tile.
    beside = max(1, SECTOR * 2 // (block_i * size))
    return min(power_of_2(shape.channels), beside), block_i


def _rows(shape: Shape, rows: int, block_c: int) -> int:
    """Return the outer elements of a tile: not more than there are, nor than 32 bits span."""
    rows = max(1, min(rows, power_of_2(shape.outer)))
    while rows > 1 and (rows * shape.channels + block_c) * shape.inner >= 2**31:
        rows //= 2
    return rows


def divide_up(whole: int, part: int) -> int:
    """Return whole / part, rounded up."""
    return -(-whole // part)


def power_of_2(number: int) -> int:
    """Return the least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
