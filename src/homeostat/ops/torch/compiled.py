"""Batch normalization on the compiled CPU loops: unweighted, this process alone, dense memory.

The activation and the residual are fused into both passes. Beyond x only channels are kept for the
backward, which computes the sign of an output again; with a residual and an activation also y.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from homeostat.layout import Layout
from homeostat.moments import Moments
from homeostat.ops.torch.choice import prefers_loops
from homeostat.ops.torch.elements import (
    Call,
    Tensor,
    as_asked,
    behind_activation,
    dtypes,
    statistics,
)
from homeostat.ops.torch.plain import differentiable_gradients

# What the loops call a dtype: they take the bits of what numba does not have.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "uint16",
    torch.bfloat16: "int16",
}


class Memory(NamedTuple):
    """How a tensor lies in memory, without gaps.

    Args:
        order: its axes as they follow in memory, the first the outermost.
        shape: (outer, channels, inner) in that order.
        strides: of a tensor that lies so.
    """

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    strides: tuple[int, ...]

    @classmethod
    def of(
        cls, x: Tensor, layout: Layout, purpose: str, residual: Tensor | None = None
    ) -> Memory | None:
        """Return how x lies, or None where the loops cannot take it, or should not."""
        if x.device.type != "cpu" or x.layout is not torch.strided or _is_traced(x):
            return None
        if residual is not None and (residual.dtype, residual.device) != (x.dtype, x.device):
            return None
        memory = _memory(x.shape, x.stride(), layout.channel_axes)
        if memory is None or x.dtype not in DTYPES:
            return None
        inner = memory.shape[2]
        order = "last" if inner == 1 else "first"
        wanted = prefers_loops(purpose, order, x.element_size(), x.numel(), inner)
        return memory if wanted else None

    def dense(self, t: Tensor) -> Tensor:
        """Return a tensor of this shape that lies in this order; a copy only if need be."""
        if t.is_neg():
            t = t.resolve_neg()
        lies = t.stride() == self.strides or _is_dense(t.shape, t.stride(), self.order)
        if not lies or t.data_ptr() % t.element_size():
            t = self.empty(t).copy_(t)
        return t

    def empty(self, x: Tensor) -> Tensor:
        """Return a new tensor like x, in this order."""
        return torch.empty_strided(x.shape, self.strides, dtype=x.dtype)


# Looking at shapes once is not only faster: between passes over large tensors nothing of the
# interpreter is left in the cache, and each step of it takes many times as long as elsewhere.
@functools.lru_cache(maxsize=4096)
def _memory(
    shape: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]
) -> Memory | None:
    if axes[-1] - axes[0] + 1 != len(axes) or 0 in shape:
        return None
    as_it_is = tuple(range(len(shape)))
    last = (*(a for a in as_it_is if a not in axes), *axes)
    dense = [order for order in (as_it_is, last) if _is_dense(shape, strides, order)]
    if not dense:
        return None
    order, channels = dense[0], math.prod(shape[a] for a in axes)
    count = math.prod(shape) // channels
    outer = count if order == last else math.prod(shape[: axes[0]])
    lie = torch.empty_permuted(shape, order, device="meta").stride()
    return Memory(order, (outer, channels, count // outer), lie)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], order: tuple[int, ...]) -> bool:
    """Return whether a tensor's axes follow each other in an order, without gaps."""
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def _is_traced(x: Tensor) -> bool:
    """Return whether something watches operations on x, or x is more than its memory."""
    plain = type(x) in (torch.Tensor, torch.nn.Parameter)
    return not plain or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None


@functools.cache
def _loops() -> Any:
    """Return the module of the loops, which needs numba; they run on PyTorch's threads."""
    from homeostat.kernels import batchnorm, threads

    threads.use_openmp_of(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    return batchnorm


def on_loops(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    batch: Moments | None,
    memory: Memory,
    call: Call,
) -> tuple[Tensor, Moments]:
    """Normalize with the batch's moments, given or computed, on the compiled loops."""
    results = _results(x, memory)
    y = Compiled.apply(x, gamma, beta, residual, batch, results, memory, call)
    return y, _moments(results, call.layout) if batch is None else batch


class Compiled(torch.autograd.Function):
    """Keeps x for the backward, and y where there are activation and residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        batch: Moments | None,
        results: Tensor,
        memory: Memory,
        call: Call,
    ) -> Tensor:
        """Return y, and write the moments into the results where they are not given."""
        loops = _batch(x, memory, call.epsilon, call.slope)
        y = _normalized(loops, x, gamma, beta, residual, batch, results, memory)
        both = call.slope is not None and residual is not None
        ctx.save_for_backward(x, gamma, y if both else None)
        ctx.memory, ctx.call, ctx.loops = memory, call, loops
        ctx.dtypes = dtypes(x, gamma, beta, residual)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the gradients by the equations of `normalize_batch`."""
        x, gamma, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            if y is None and ctx.call.slope is not None:
                y = _again(ctx.loops, x, ctx.memory)
            g = behind_activation(dy, y, ctx.call.slope)
            needs = ctx.needs_input_grad
            found = differentiable_gradients(x, gamma, g, None, needs, ctx.call)
        else:
            found, g = _gradients(ctx.loops, x, dy, y, ctx.memory)
        return *as_asked(ctx, found, g, x.shape), None, None, None, None


def loop_moments(x: Tensor, memory: Memory, layout: Layout) -> Moments:
    """Return x's moments."""
    dense, results = memory.dense(x), _results(x, memory)
    loops = _batch(x, memory)
    loops.find_moments(dense.data_ptr(), results.data_ptr(), torch.get_num_threads())
    return _moments(results, layout)


def loop_normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    memory: Memory,
    call: Call,
) -> Tensor:
    """Return y, with given moments and without gradients."""
    batch = Moments(call.layout.count, mean, variance)
    loops = _batch(x, memory, call.epsilon, call.slope)
    return _normalized(loops, x, gamma, beta, residual, batch, None, memory)


def _batch(x: Tensor, memory: Memory, *options: Any) -> Any:
    loops = _loops()
    return loops.Batch(DTYPES[x.dtype], loops.Shape(*memory.shape), *options)


def _results(x: Tensor, memory: Memory) -> Tensor:
    return torch.empty((2, memory.shape[1]), dtype=statistics(x))


def _moments(results: Tensor, layout: Layout) -> Moments:
    if layout.known_channel_shape != results.shape[1:]:
        results = results.view(2, *layout.known_channel_shape)
    return Moments(layout.count, *results.unbind())


def _normalized(
    loops: Any,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    batch: Moments | None,
    results: Tensor | None,
    memory: Memory,
) -> Tensor:
    """Return y, by the moments of x, which go into the results, or by given ones."""
    dtype, y = statistics(x), memory.empty(x)
    if batch is not None:
        results = None
        given = torch.stack([batch.mean.detach(), batch.variance.detach()])
        loops.moments[...] = given.to(dtype).view(2, -1).numpy()
    held = (
        memory.dense(x), None if residual is None else memory.dense(residual), y,
        _values(gamma, dtype), _values(beta, dtype), results,
    )  # fmt: skip
    loops.normalize(*map(_address, held), torch.get_num_threads())
    return y


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _values(channels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if channels is None or (channels.dtype == dtype and channels.is_contiguous()):
        return channels
    return channels.to(dtype).contiguous()


def _again(loops: Any, x: Tensor, memory: Memory) -> Tensor:
    """Return y of a forward pass without a residual, as it was."""
    y, dense = memory.empty(x), memory.dense(x)
    loops.apply(dense.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y


def _gradients(
    loops: Any, x: Tensor, dy: Tensor, y: Tensor | None, memory: Memory
) -> tuple[Any, Tensor | None]:
    """Return dx, dgamma and dbeta, and the gradient behind the activation where it is needed."""
    dx, results = memory.empty(x), _results(x, memory)
    g = None if y is None else memory.empty(x)
    held = [memory.dense(x), memory.dense(dy), None if y is None else memory.dense(y), dx, g]
    held.append(results)
    loops.gradients(*map(_address, held), torch.get_num_threads())
    # Without an activation the gradient behind it is dy; without a residual nobody asks for it.
    return (dx, *results.unbind()), dy if g is None else g
