"""The columns: Homeostat's module, PyTorch's own eager and compiled, and a copy of the tensor."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from benchmarks.gpu.cases import EPSILON, Case, Inputs, Parameters
from benchmarks.gpu.clock import Candidate

Tensor = torch.Tensor
Around = Callable[[], contextlib.AbstractContextManager[object]]

COPY, OURS, AGAIN, EAGER, NATIVE = "copy", "homeostat", "again", "torch", "torch native"
COMPILED, OURS_COMPILED = "torch.compile", "homeostat compiled"
AUTOTUNED = "torch.compile autotuned"
COLUMNS = (COPY, OURS, AGAIN, EAGER, NATIVE, COMPILED)
"""What is measured unless other columns are asked for."""
ALL_COLUMNS = (*COLUMNS, OURS_COMPILED, AUTOTUNED)
PEERS = (EAGER, NATIVE, COMPILED, AUTOTUNED)
COMPILING = (COMPILED, OURS_COMPILED, AUTOTUNED)


class Column(NamedTuple):
    """A column's layer.

    Args:
        apply: (x, residual) -> y, the ReLU and the addition included.
        parameters: its scale and shift.
        around: makes the context that it runs in.
    """

    apply: Callable[[Tensor, Tensor | None], Tensor]
    parameters: Sequence[Tensor]
    around: Around = contextlib.nullcontext

    def forward(self, case: Case, inputs: Inputs) -> Tensor:
        """Return y."""
        if case.training:
            return self.apply(inputs.x, inputs.residual)
        with torch.inference_mode():
            return self.apply(inputs.x, inputs.residual)

    def step(self, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return y and, in training, its gradients."""
        y = self.forward(case, inputs)
        if not case.training:
            return (y,)
        leaves = [inputs.x, *self.parameters]
        leaves += [] if inputs.residual is None else [inputs.residual]
        return y, *torch.autograd.grad(y, leaves, inputs.dy)

    def candidate(self, case: Case, work: str, sets: Sequence[Inputs]) -> Candidate:
        """Return what is timed: each call takes the next set of inputs."""
        turns = itertools.cycle(sets)
        run = self.step if work == "forward+backward" else self.forward
        return Candidate(lambda: run(case, next(turns)), self.around)


def build(name: str, case: Case, parameters: Parameters, backend: str) -> Column:
    """Return a column's layer of a case.

    Args:
        name: one of `ALL_COLUMNS` but the copy.
        case: what is called.
        parameters: what its channels have.
        backend: of `torch.compile`.
    """
    if name in (OURS, AGAIN):
        return _ours(case, parameters)
    if name == OURS_COMPILED:
        return _compiled(_ours(case, parameters), backend)
    native = _native(case, parameters)
    if name == NATIVE:
        return native._replace(around=_without_cudnn)
    if name == COMPILED:
        return _compiled(native, backend)
    if name == AUTOTUNED:
        return _compiled(native, backend, mode="max-autotune-no-cudagraphs")
    return native


def _ours(case: Case, parameters: Parameters) -> Column:
    from homeostat.torch import BatchNorm2d

    channels, device = case.shape[1], parameters.gamma.device
    activation = "relu" if case.relu else None
    module = BatchNorm2d(channels, EPSILON, activation=activation, device=device)
    return Column(_load(module, case, parameters), (module.weight, module.bias))


def _native(case: Case, parameters: Parameters) -> Column:
    """PyTorch's own module, then the addition and the ReLU as one would write them."""
    module = torch.nn.BatchNorm2d(case.shape[1], EPSILON, device=parameters.gamma.device)
    _load(module, case, parameters)
    relu = case.relu

    def apply(x: Tensor, residual: Tensor | None) -> Tensor:
        y = module(x)
        if residual is not None:
            y = y + residual
        return functional.relu(y) if relu else y

    return Column(apply, (module.weight, module.bias))


def _compiled(column: Column, backend: str, **options: Any) -> Column:
    chosen = {} if backend != "inductor" else options
    compiled = torch.compile(column.apply, backend=backend, dynamic=False, **chosen)
    return column._replace(apply=compiled)


def _load(module: Any, case: Case, parameters: Parameters) -> Any:
    with torch.no_grad():
        module.weight.copy_(parameters.gamma)
        module.bias.copy_(parameters.beta)
        module.running_mean.copy_(parameters.mean)
        module.running_var.copy_(parameters.variance)
    return module.train(case.training)


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def copy_of(sets: Sequence[Inputs]) -> Candidate:
    """Return what copies x from device memory to device memory, to another place each time."""
    turns = itertools.cycle([(inputs.x.detach(), torch.empty_like(inputs.x)) for inputs in sets])

    def call() -> object:
        source, target = next(turns)
        return target.detach().copy_(source)

    return Candidate(call)


def way_of(name: str, column: Column, case: Case, parameters: Parameters, inputs: Inputs) -> str:
    """Return what computes a column's batch norm in training: the name of its autograd node.

    For PyTorch's own module it tells cuDNN's kernels from the native ones.
    """
    if not case.training:
        return ""
    if name in (EAGER, NATIVE):
        # What follows the norm has a node of its own.
        alone = _native(Case(case.shape, "plain", case.dtype, case.layout), parameters)
        column = alone._replace(around=column.around)
    with column.around():
        node = column.forward(case, inputs).grad_fn
    # Not its method `name`, which a compiled function does not have.
    return "" if node is None else type(node).__name__


def reset_compiler() -> None:
    """Forget what was compiled: each case compiled anew would soon meet a limit."""
    torch.compiler.reset()


def keep_choices_to_oneself() -> None:
    """Have torch.compile choose among its kernels' settings in this process, on a quiet device.

    What processes beside the tests compile may be taken over, but not what they found fast.
    """
    import torch._inductor.config

    torch._inductor.config.autotune_local_cache = False
