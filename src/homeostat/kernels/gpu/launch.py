"""The one place that starts a kernel: at once, or as a node of the graph that is being traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.library import wrap_triton

from homeostat.kernels.gpu.plans import Plan

_traced: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def traceable() -> Iterator[None]:
    """Start kernels so that tracing sees them; outside of tracing they run all the same.

    A kernel started at once costs microseconds, one that can be traced about a millisecond.
    """
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


def is_traceable() -> bool:
    """Return whether kernels are started so that tracing sees them."""
    return _traced.get()


def launch(kernel: Any, programs: int, plan: Plan, arguments: dict[str, Any]) -> None:
    """Start a kernel on the current stream of the device of its tensors.

    Args:
        kernel: of `triton.jit`.
        programs: of the grid.
        plan: what it runs by. Programs of a resident plan with several splits wait for each other.
        arguments: of the kernel, by their names; the first is a tensor.
    """
    if is_traceable():
        # Tracing knows no other options.
        wrap_triton(kernel)[(programs,)](**arguments, num_warps=plan.num_warps)
        return
    with _on(next(iter(arguments.values()))):
        kernel[(programs,)](**arguments, **options_of(plan))


def options_of(plan: Plan) -> dict[str, Any]:
    """Return what the compiler and the launcher are told of a plan."""
    # Fusion is named, as Triton means to change what it takes by default.
    options: dict[str, Any] = {"num_warps": plan.num_warps, "enable_fp_fusion": True}
    if plan.registers:
        options["maxnreg"] = plan.registers
    if plan.resident and plan.splits > 1:
        options["launch_cooperative_grid"] = True
    return options


def _on(x: torch.Tensor) -> Any:
    """Make x's device the current one, where it is not."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
