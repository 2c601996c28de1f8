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

# Elements as the loops take them: NumPy has no bfloat16, and numba no float16.
BITS = {torch.float16: torch.uint16, torch.bfloat16: torch.int16}
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class Memory(NamedTuple):
    """How a tensor lies in memory, without gaps.

    Args:
        order: its axes as they follow in memory, the first the outermost.
        shape: (outer, channels, inner) in that order.
    """

    order: tuple[int, ...]
    shape: tuple[int, int, int]

    @classmethod
    def of(
        cls, x: Tensor, layout: Layout, purpose: str, residual: Tensor | None = None
    ) -> Memory | None:
        """Return how x lies, or None where the loops cannot take it, or should not."""
        dtype = DTYPES.get(x.dtype)
        if dtype is None or x.device.type != "cpu" or x.layout is not torch.strided:
            return None
        if residual is not None and (residual.dtype, residual.device) != (x.dtype, x.device):
            return None
        last = layout.channel_axes[-1] == x.dim() - 1 or not x.is_contiguous()
        memory = _memory(tuple(x.shape), layout.channel_axes, last)
        if memory is None or not prefers_loops(
            "last" if memory.shape[2] == 1 else "first", dtype, purpose, x.numel(), memory.shape[2]
        ):
            return None
        dense = x.permute(memory.order).is_contiguous()
        return memory if dense and not _is_traced(x) else None

    def flat(self, t: Tensor) -> Any:
        """Return a tensor of this shape as a flat buffer in this order; a copy only if need be."""
        # An expanded tensor, as the gradient of a sum is, reshapes to a view without memory.
        flat = t.detach().resolve_neg().permute(self.order).reshape(-1).contiguous()
        return flat.view(BITS.get(t.dtype, t.dtype)).numpy()

    def empty(self, x: Tensor) -> Tensor:
        """Return a new tensor like x, in this order."""
        return torch.empty_permuted(x.shape, self.order, dtype=x.dtype)


@functools.lru_cache(maxsize=1024)
def _memory(shape: tuple[int, ...], axes: tuple[int, ...], last: bool) -> Memory | None:
    scattered = axes[-1] - axes[0] + 1 != len(axes)
    if scattered or 0 in shape:
        return None
    channels = math.prod(shape[a] for a in axes)
    count = math.prod(shape) // channels
    if last:
        order = (*(a for a in range(len(shape)) if a not in axes), *axes)
        return Memory(order, (count, channels, 1))
    outer = math.prod(shape[: axes[0]])
    return Memory(tuple(range(len(shape))), (outer, channels, count // outer))


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


class Compiled(torch.autograd.Function):
    """Normalize with the batch's moments, given or computed, on the compiled loops."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        batch: Moments | None,
        memory: Memory,
        call: Call,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, mean and variance; keep x, and y where there are activation and residual."""
        loops, shape = _loops(), _loops().Shape(*memory.shape)
        if batch is None:
            mean, variance = loops.moments(memory.flat(x), shape, torch.get_num_threads())
        else:
            mean, variance = _double(batch.mean), _double(batch.variance)
        y, by = _normalized(x, mean, variance, gamma, beta, residual, memory, call)
        both = call.slope is not None and residual is not None
        ctx.save_for_backward(x, gamma, y if both else None)
        ctx.memory, ctx.call, ctx.by = memory, call, by
        ctx.dtypes = dtypes(x, gamma, beta, residual)
        mean, variance = (_of_channels(part, x, call.layout) for part in (mean, variance))
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
        """Return the gradients by the equations of `normalize_batch`."""
        if dy is None:
            return (None,) * 7
        x, gamma, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            if y is None and ctx.call.slope is not None:
                y = _applied(x, None, ctx.by, ctx.memory, ctx.call)
            g = behind_activation(dy, y, ctx.call.slope)
            needs = ctx.needs_input_grad
            found = differentiable_gradients(x, gamma, g, None, needs, ctx.call)
        else:
            found, g = _gradients(x, dy, y, ctx.by, ctx.memory, ctx.call)
        return *as_asked(ctx, found, g, x.shape), None, None, None


def loop_moments(x: Tensor, memory: Memory, layout: Layout) -> Moments:
    """Return x's moments."""
    loops = _loops()
    found = loops.moments(memory.flat(x), loops.Shape(*memory.shape), torch.get_num_threads())
    return Moments(layout.count, *(_of_channels(part, x, layout) for part in found))


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
    given = _double(mean), _double(variance), gamma, beta, residual
    return _normalized(x, *given, memory, call)[0]


def _normalized(
    x: Tensor,
    mean: Any,
    variance: Any,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    memory: Memory,
    call: Call,
) -> tuple[Tensor, Any]:
    """Return y and the coefficients that it was computed by."""
    by = _loops().coefficients(
        mean, variance,
        None if gamma is None else _double(gamma),
        None if beta is None else _double(beta),
        call.epsilon, "float64" if x.dtype == torch.float64 else "float32",
    )  # fmt: skip
    return _applied(x, residual, by, memory, call), by


def _applied(x: Tensor, residual: Tensor | None, by: Any, memory: Memory, call: Call) -> Tensor:
    y, loops = memory.empty(x), _loops()
    loops.normalize(
        memory.flat(x),
        None if residual is None else memory.flat(residual),
        memory.flat(y),
        loops.Shape(*memory.shape), by, call.slope, torch.get_num_threads(),
    )  # fmt: skip
    return y


def _gradients(
    x: Tensor, dy: Tensor, y: Tensor | None, by: Any, memory: Memory, call: Call
) -> tuple[Any, Tensor | None]:
    """Return dx, dgamma and dbeta, and the gradient behind the activation where it is needed."""
    dx, loops = memory.empty(x), _loops()
    g = None if y is None else memory.empty(x)
    dgamma, dbeta = loops.gradients(
        memory.flat(x),
        memory.flat(dy),
        None if y is None else memory.flat(y),
        memory.flat(dx),
        None if g is None else memory.flat(g),
        loops.Shape(*memory.shape), by, call.slope, torch.get_num_threads(),
    )  # fmt: skip
    # Without an activation the gradient behind it is dy; without a residual nobody asks for it.
    return (dx, torch.from_numpy(dgamma), torch.from_numpy(dbeta)), dy if g is None else g


def _double(channels: Tensor) -> Any:
    return channels.detach().to(torch.float64).reshape(-1).numpy()


def _of_channels(values: Any, x: Tensor, layout: Layout) -> Tensor:
    return torch.from_numpy(values).to(statistics(x)).reshape(layout.known_channel_shape)
