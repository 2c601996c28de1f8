"""PyTorch's columns: its own batch norm, eager and compiled, Keras on torch, and ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from homeostat.bench.call import Call, Observed
from homeostat.bench.cases import EPSILON, Case, Inputs
from homeostat.bench.memory import WORTH_MEASURING, peak_of
from homeostat.bench.oracle import Results
from homeostat.bench.torch_saved import saved_bytes
from homeostat.torch import BatchNorm1d, BatchNorm2d, BatchNorm3d

MOMENTUM = 0.01
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NATIVE = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}
_NATIVE[5] = torch.nn.BatchNorm3d


class Layer(NamedTuple):
    """A column's layer.

    Args:
        apply: (x, residual) -> y, the ReLU and the addition included.
        gamma: its scale.
        beta: its shift.
        variance: returns the moving variance.
        sample: whether that averages sample variances, n/(n-1) times the population's.
    """

    apply: Callable[[Any, Any], Any]
    gamma: Any
    beta: Any
    variance: Callable[[], Any]
    sample: bool


def tensor(array: np.ndarray, case: Case, as_keras: bool) -> torch.Tensor:
    """Return an array as a tensor: axes in torch's order, unless Keras takes it, memory as asked.

    PyTorch has its channels at axis 1 always, and tells NHWC from NCHW by the strides.
    """
    placed = torch.from_numpy(case.place(array)).to(_DTYPES[case.dtype])
    return placed if as_keras or case.first else placed.movedim(-1, 1)


def channels_last(value: torch.Tensor, case: Case, as_keras: bool) -> np.ndarray:
    """Return a result as a float32 array, channels last."""
    last = value.detach().float()
    return (last if as_keras and not case.first else last.movedim(1, -1)).numpy()


def native(case: Case, inputs: Inputs, weight: float = MOMENTUM) -> Layer:
    """PyTorch's own module, then the addition and the ReLU as one would write them."""
    module = _NATIVE[len(case.shape)](case.channels, eps=EPSILON, momentum=weight)
    _load(module, inputs, case)
    if not case.relu:
        return _module_layer(module, lambda x, residual: module(x))

    def apply(x: Any, residual: Any) -> Any:
        y = module(x)
        return torch.relu(y if residual is None else y + residual)

    return _module_layer(module, apply)


def compiled(case: Case, inputs: Inputs, weight: float = MOMENTUM) -> Layer:
    """The same by `torch.compile`."""
    # What is compiled again for each case would soon meet the limit of recompilations.
    torch.compiler.reset()
    layer = native(case, inputs, weight)
    return layer._replace(apply=torch.compile(layer.apply, dynamic=False))


def ours(case: Case, inputs: Inputs, weight: float = MOMENTUM) -> Layer:
    """Our module, which takes the addition and the ReLU in."""
    module = our_module(len(case.shape))(
        case.channels, eps=EPSILON, momentum=weight, activation="relu" if case.relu else None
    )
    _load(module, inputs, case)
    if case.adds:
        return _module_layer(module, lambda x, residual: module(x, residual))
    return _module_layer(module, lambda x, residual: module(x))


def our_module(rank: int) -> Any:
    """Return the class of our batch norm for inputs of a rank."""
    return {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}[rank]


def _keras(column: str) -> Callable[..., Layer]:
    def build(case: Case, inputs: Inputs, weight: float = MOMENTUM) -> Layer:
        keras = importlib.import_module("homeostat.bench.keras")
        layer = keras.make_layer(column, case, inputs, 1 - weight)
        training, fused = case.training, column != "keras"

        def apply(x: Any, residual: Any) -> Any:
            if fused:
                return keras.call_layer(layer, x, residual, training)
            y = layer(x, training=training)
            y = y if residual is None else y + residual
            return torch.relu(y) if case.relu else y

        def variance() -> Any:
            return layer.moving_variance.value

        return Layer(apply, layer.gamma.value, layer.beta.value, variance, False)

    return build


BUILDERS: dict[str, Callable[..., Layer]] = {
    "torch": native,
    "torch.compile": compiled,
    "keras": _keras("keras"),
    "homeostat.torch": ours,
    "homeostat.keras": _keras("homeostat.keras"),
}


def _load(module: Any, inputs: Inputs, case: Case) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(inputs.gamma))
        module.bias.copy_(torch.from_numpy(inputs.beta))
        module.running_mean.copy_(torch.from_numpy(inputs.mean))
        module.running_var.copy_(torch.from_numpy(inputs.variance))
    module.train(case.training)


def _module_layer(module: Any, apply: Callable[[Any, Any], Any]) -> Layer:
    return Layer(apply, module.weight, module.bias, lambda: module.running_var, True)


def make(column: str, case: Case, inputs: Inputs) -> Call:
    """Return a column's call of a case."""
    as_keras = column in ("keras", "homeostat.keras")
    layer = BUILDERS[column](case, inputs)
    x, dy = tensor(inputs.x, case, as_keras), tensor(inputs.dy, case, as_keras)
    residual = None if inputs.residual is None else tensor(inputs.residual, case, as_keras)
    sources = [x.requires_grad_(case.training), layer.gamma, layer.beta]
    if residual is not None:
        sources.append(residual.requires_grad_(case.training))

    def forward() -> Any:
        if case.training:
            return layer.apply(x, residual)
        with torch.inference_mode():
            return layer.apply(x, residual)

    def run() -> Any:
        y = forward()
        return (y, *torch.autograd.grad(y, sources, dy)) if case.backward else (y,)

    def results() -> Results:
        names = ("y", "dx", "dgamma", "dbeta", "dresidual")
        return {
            name: _as_array(value, case, as_keras)
            for name, value in zip(names, run(), strict=False)
        }

    def saved() -> int | None:
        return saved_bytes(forward, (layer.gamma, layer.beta)) if case.training else None

    def peak() -> int | None:
        return peak_of(run) if case.nbytes >= WORTH_MEASURING else None

    return Call(run, results, saved, peak)


def _as_array(value: torch.Tensor, case: Case, as_keras: bool) -> np.ndarray:
    per_channel = value.ndim == 1
    return value.detach().numpy() if per_channel else channels_last(value, case, as_keras)


def copy(case: Case, inputs: Inputs) -> Callable[[], object]:
    """Return what copies the case's tensor."""
    x = tensor(inputs.x, case, as_keras=False)
    return lambda: x.clone()


def observe(column: str, case: Case, inputs: Inputs) -> Observed:
    """Return what one training step with momentum for the batch alone made of x."""
    as_keras = column in ("keras", "homeostat.keras")
    layer = BUILDERS[column](case, inputs, 1.0)
    y = layer.apply(tensor(inputs.x, case, as_keras), None)
    count = inputs.x.size // case.channels
    variance = layer.variance().detach().double().numpy()
    return Observed(
        channels_last(y, case, as_keras),
        variance * ((count - 1) / count) if layer.sample else variance,
    )
