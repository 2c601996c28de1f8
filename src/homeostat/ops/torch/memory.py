"""How a tensor lies in memory, and which kernels of our own take it as it lies."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homeostat import kernels
from homeostat.ops.torch.choice import prefers_gpu, prefers_loops

Tensor = torch.Tensor
# Types of tensors that are no more than their memory.
PLAIN = (torch.Tensor, torch.nn.Parameter)

# What the loops call a dtype: they take the bits of what numba does not have.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "uint16",
    torch.bfloat16: "int16",
}


@dataclass(frozen=True)
class Memory:
    """How a tensor lies in memory, without gaps.

    Args:
        shape: (outer, channels, inner), the first the outermost.
        strides: of a tensor that lies so.
        channels: the channel shape.
        dtype: of the elements.
    """

    shape: tuple[int, int, int]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, axes: tuple[int, ...]) -> Memory | None:
        """Return how x lies, whose channels are on ascending axes; None if not as kernels want.

        They want the channel axes beside each other, and nothing between the elements; and a tensor
        that is no more than its memory.
        """
        if type(x) not in PLAIN or x.layout is not torch.strided:
            return None
        # The compiler looks through no cache.
        look = _memory if torch.compiler.is_compiling() else memory_of
        return look(x.shape, x.stride(), x.dtype, axes)

    def prefers_loops(
        self, x: Tensor, what: str, residual: Tensor | None = None, slope: float | None = None
    ) -> bool:
        """Return whether the loops can take a call, and should; the kernels for GPUs come first.

        Args:
            x: the input, which lies so.
            what: "train", "infer" or "moments".
            residual: added before the activation, or None.
            slope: the activation's for negative values, or None for no activation.
        """
        if not x.is_cpu or kernels.enabled_on("cpu"):
            return False
        # Nothing may watch the operations on x.
        if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
            return False
        if torch._C._are_functorch_transforms_active():
            return False
        if residual is not None and (residual.dtype != x.dtype or not residual.is_cpu):
            return False
        inner = self.shape[2]
        order = "last" if inner == 1 else "first"
        purpose = _purpose(what, residual, slope)
        return prefers_loops(purpose, order, x.element_size(), x.numel(), inner)

    def prefers_gpu(
        self, x: Tensor, what: str, residual: Tensor | None = None, slope: float | None = None
    ) -> bool:
        """Return whether the kernels for GPUs can take a call, and should; see `prefers_loops`."""
        # First of all: on a CPU every step comes by here.
        if not kernels.enabled_on(x.device.type):
            return False
        if residual is not None and (residual.dtype, residual.device) != (x.dtype, x.device):
            return False
        return prefers_gpu(_purpose(what, residual, slope), x.numel())

    def batch(self, epsilon: float = 0.0, slope: float | None = None) -> Any:
        """Return the loops' `Batch` of a tensor that lies so."""
        make, plan = self._loops
        return make(plan, epsilon, slope)

    @functools.cached_property
    def _loops(self) -> Any:
        module = loops()
        return module.Batch, module.plan_of(DTYPES[self.dtype], module.Shape(*self.shape))

    def dense(self, t: Tensor) -> Tensor:
        """Return a tensor of this shape that lies in this order; a copy only if need be."""
        lies = t.stride() == self.strides or _lies(t.shape, t.stride(), self.strides)
        # While tracing there is no memory yet.
        if not torch.compiler.is_compiling():
            t = t.resolve_neg() if t.is_neg() else t
            lies = lies and not t.data_ptr() % t.element_size()
        return t if lies else self.empty(t).copy_(t)

    def empty(self, x: Tensor) -> Tensor:
        """Return a new tensor like x, in this order."""
        if x.stride() == self.strides:
            return torch.empty_like(x)
        return torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device)


def _purpose(what: str, residual: Tensor | None, slope: float | None) -> str:
    """Return what is asked for, as the tables of `choice` call it."""
    return what if residual is None and slope is None else f"{what}+"


def _memory(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, axes: tuple[int, ...]
) -> Memory | None:
    """Return what `Memory.of` does, by how a tensor looks."""
    if axes[-1] - axes[0] + 1 != len(axes) or 0 in shape or dtype not in DTYPES:
        return None
    as_it_is = tuple(range(len(shape)))
    last = (*(a for a in as_it_is if a not in axes), *axes)
    dense = [o for o in (as_it_is, last) if _lies(shape, strides, _strides(shape, o))]
    if not dense:
        return None
    order, each = dense[0], tuple(shape[a] for a in axes)
    channels = math.prod(each)
    count = math.prod(shape) // channels
    outer = count if order == last else math.prod(shape[: axes[0]])
    divided = (outer, channels, count // outer)
    return Memory(divided, _strides(shape, order), each, dtype)


# Looking at shapes once is not only faster: between passes over large tensors nothing of the
# interpreter is left in the cache, and each step of it takes many times as long as elsewhere.
memory_of = functools.lru_cache(maxsize=4096)(_memory)


def _strides(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense tensor whose axes follow in an order."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _lies(shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether strides are those wanted, wherever there is more than one element."""
    return all(
        size == 1 or stride == other
        for size, stride, other in zip(shape, strides, wanted, strict=True)
    )


@functools.cache
def loops() -> Any:
    """Return the module of the loops, which needs numba; they run on PyTorch's threads."""
    from homeostat.kernels import batchnorm, threads

    threads.use_openmp_of(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    return batchnorm
