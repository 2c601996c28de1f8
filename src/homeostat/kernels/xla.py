"""The CPU kernels as operations of XLA, through its foreign function interface."""

from __future__ import annotations

import ctypes
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numba import cfunc, types

from homeostat.errors import HomeostatWarning
from homeostat.kernels import cpu, ffi, record, strips, sums
from homeostat.kernels.addresses import call, float32s, float64s, words

Array = Any

TARGET = "homeostat_channel_sums"

# What is asked for: moments, or gradient sums without an activation, with one whose input is
# computed again, or whose output was kept.
MOMENTS, LINEAR, RECOMPUTING, KEEPING = range(4)

_ROWS_MOMENTS = cpu.c_function_of(cpu.rows_moments, "float32").address
_ROWS_SUMS = cpu.c_function_of(cpu.rows_sums, "float32").address
# The fields of what XLA gives, in its order.
_GIVEN = (record.X, record.DY, record.PIVOT, record.SLOPE, record.SCALE, record.SHIFT)


@cfunc(types.intp(types.intp))
def _run_parts(address):
    """Run parts of a job until none is left; its own words are a function and its record."""
    part = ffi.take(address)
    while part >= 0:
        call(words(address, ffi.OWN + 1)[ffi.OWN], address + 8 * (ffi.OWN + 1), part, 0, 0)
        ffi.finish(address)
        part = ffi.take(address)
    ffi.leave(address)
    return 0


RUN_PARTS = _run_parts.address


@cfunc(types.intp(types.intp))
def _handler(address):
    """Answer XLA's call: arguments are what is asked for, x and what else it needs."""
    frame = words(address, ffi.FRAME_WORDS)
    if not ffi.is_run(frame):
        return 0
    arguments = words(frame[ffi.ARGUMENTS], frame[ffi.ARGUMENTS_NUMBER])
    kind = words(ffi.data_of(arguments[0]), 1)[0] & 0xFFFFFFFF
    result = words(frame[ffi.RESULTS], 1)[0]
    channels = ffi.elements_of(result) // 2
    count = ffi.elements_of(arguments[1]) // channels
    parts = -(-count // strips.rows_per_part(count, channels))
    room = np.empty(2 * channels * parts, np.float64)
    job = ffi.new_job(parts, 2 + record.WORDS)
    own = words(job + 8 * ffi.OWN, 2 + record.WORDS)
    own[0] = _ROWS_MOMENTS if kind == MOMENTS else _ROWS_SUMS
    # Behind the record, its slope as a double.
    asked, slope_address = own[1:], job + 8 * (ffi.OWN + 1 + record.WORDS)
    asked[:] = 0
    asked[record.OUTER], asked[record.CHANNELS], asked[record.INNER] = count, channels, 1
    asked[record.ROOM] = room.ctypes.data
    for i in range(1, arguments.size):
        asked[_GIVEN[i - 1]] = ffi.data_of(arguments[i])
    if kind == KEEPING:
        asked[record.Y] = asked[record.SCALE]
    slope = float64s(slope_address, 1)
    slope[0] = 1.0
    if kind in (RECOMPUTING, KEEPING):
        slope[0] = float32s(asked[record.SLOPE], 1)[0]
    asked[record.SLOPE] = slope_address
    if kind != RECOMPUTING:
        # Not asked for, but looked at.
        asked[record.SCALE] = asked[record.SHIFT] = asked[record.PIVOT]
    ffi.run(frame, RUN_PARTS, job)
    ffi.leave(job)
    one, other = np.empty(channels), np.empty(channels)
    sums.merge_parts(count, channels, room, kind == MOMENTS, one, other)
    results = float32s(ffi.data_of(result), 2 * channels)
    for c in range(channels):
        results[c] = one[c]
        results[channels + c] = other[c] / count if kind == MOMENTS else other[c]
    return 0


def moments(x: Array) -> Array:
    """Return each channel's mean and population variance.

    Args:
        x: float32, (rows, channels), not empty.

    Returns:
        float32, (2, channels).
    """
    return _call(MOMENTS, x)


def gradient_sums(
    x: Array,
    dy: Array,
    mean: Array,
    *,
    slope: float | None = None,
    y: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
) -> Array:
    """Return the sums of g and of g * (x - mean) for each channel, where g = dy * activation'(z).

    Args:
        x: float32, (rows, channels), not empty.
        dy: like x.
        mean: float32, (channels,).
        slope: the activation's for negative values, or None for no activation.
        y: like x, z or the activation's output; None to compute z = (x - mean) * scale + shift.
        scale: float32, (channels,), where it is needed.
        shift: float32, (channels,), where it is needed.

    Returns:
        float32, (2, channels).
    """
    if slope is None:
        return _call(LINEAR, x, dy, mean)
    slopes = np.asarray([slope], np.float32)
    if y is None:
        return _call(RECOMPUTING, x, dy, mean, slopes, scale, shift)
    return _call(KEEPING, x, dy, mean, slopes, y)


def _call(kind: int, x: Array, *others: Array) -> Array:
    result = jax.ShapeDtypeStruct((2, x.shape[1]), jnp.float32)
    # Two of them: what is read is a word.
    kinds = np.asarray([kind, 0], np.int32)
    return jax.ffi.ffi_call(TARGET, result, vmap_method="sequential")(kinds, x, *others)


@functools.cache
def available() -> bool:
    """Return whether this runtime runs the kernels: registers them, and tries them once."""
    try:
        target = jax.ffi.pycapsule(ctypes.c_void_p(_handler.address))
        jax.ffi.register_ffi_target(TARGET, target, platform="cpu")
        with (
            jax.ensure_compile_time_eval(),
            jax.default_device(jax.local_devices(backend="cpu")[0]),
        ):
            x = jnp.asarray([[1.0, 2.0], [5.0, 3.0]], jnp.float32)
            mean, scale, shift = jnp.asarray([[3.0, 2.5], [1.0, 2.0], [0.0, 0.0]], jnp.float32)
            found = (
                moments(x),
                gradient_sums(x, 1 + x, mean, slope=0.5, scale=scale, shift=shift),
            )
        if np.array_equal(found, [[[3.0, 2.5], [4.0, 0.25]], [[7.0, 5.5], [10.0, 1.25]]]):
            return True
        reason = "a trial run returned something else than it should"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"Homeostat's CPU kernels do not fit JAX {jax.__version__}: {reason}. JAX's own operations "
        "take their place. To do without this warning: homeostat.kernels(False).",
        HomeostatWarning,
        stacklevel=2,
    )
    return False
