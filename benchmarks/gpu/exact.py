"""Hold a call's results to the same call in float64 before it is timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.gpu.cases import EPSILON, MARGIN, Case, Inputs, Parameters

Tensor = torch.Tensor

# The largest error, in units of the largest value of the array (or 1), and the norm of the error
# over that of the array: rounding to the dtype, twice where the addition is a step of its own.
LARGEST = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
NORM = {"float32": 5e-5, "float16": 2e-3, "bfloat16": 1e-2}
CHANNELS = {"dgamma": 1e-3, "dbeta": 1e-3, "mean": 1e-5, "variance": 1e-5}
"""Likewise for what each channel has, whatever the dtype: it is summed in float32 or wider."""
# Elements of the slices of channels that are computed at a time: each is a dozen float64 tensors.
SLICE_ELEMENTS = 2**26

Results = Mapping[str, Tensor]


def name_results(case: Case, work: str, values: tuple[Tensor, ...]) -> Results:
    """Return y and the gradients of a call by their names."""
    names = ("y", "dx", "dgamma", "dbeta", "dresidual")
    wanted = (4 + case.adds) if work == "forward+backward" else 1
    return dict(zip(names, values[:wanted], strict=False))


def clear_corner(case: Case, inputs: Inputs, parameters: Parameters) -> None:
    """Set dy to zero where y is so near the ReLU's corner that rounding decides on its sign."""
    if not (case.training and case.relu):
        return
    for channels, z, *_ in _slices(case, inputs, parameters):
        inputs.dy[:, channels].masked_fill_(z.abs() < MARGIN[case.dtype], 0)


def fault(case: Case, results: Results, inputs: Inputs, parameters: Parameters) -> str | None:
    """Return what is wrong with results, as ``"dx is off by 3.1e-02"``, or None.

    Args:
        case: what was called.
        results: y, and all gradients or none.
        inputs: what it was called with.
        parameters: likewise.
    """
    wanted = inputs.x.dtype
    for name in {"y", "dx", "dresidual"} & set(results):
        if results[name].dtype != wanted or results[name].shape != inputs.x.shape:
            return f"{name} is {results[name].dtype} of {tuple(results[name].shape)}"
    errors: dict[str, list[Tensor]] = {name: [] for name in results}
    for channels, exact in expected(
        case, inputs, parameters, backward=bool({"dx", "dgamma"} & set(results))
    ):
        for name, part in results.items():
            found = part[:, channels] if part.ndim > 1 else part[channels]
            errors[name].append(_compare(found.detach().double(), exact[name]))
    for name, parts in errors.items():
        largest, biggest, square, squares = _joined(torch.stack(parts))
        off = largest / max(1.0, biggest)
        # NaN is off too.
        if not off <= CHANNELS.get(name, LARGEST[case.dtype]):
            return f"{name} is off by {off:.1e}"
        norm = (square / max(squares, 1e-30)) ** 0.5
        if not norm <= CHANNELS.get(name, NORM[case.dtype]):
            return f"{name} is off by {norm:.1e} of its norm"
    return None


def expected(
    case: Case, inputs: Inputs, parameters: Parameters, backward: bool
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield slices of channels with their results in float64."""
    for channels, z, x_hat, mean, variance in _slices(case, inputs, parameters):
        exact = {"y": z.clamp_min(0) if case.relu else z, "mean": mean, "variance": variance}
        if backward:
            g = inputs.dy[:, channels].double()
            g = g * (z > 0) if case.relu else g
            axes = (0, *range(2, z.ndim))
            dbeta, dgamma = g.sum(axes), (g * x_hat).sum(axes)
            count = z.numel() // len(dbeta)
            scale = parameters.gamma[channels].double() / torch.sqrt(variance + EPSILON)
            mean_g, mean_gx = _spread(dbeta / count), _spread(dgamma / count)
            exact |= {"dgamma": dgamma, "dbeta": dbeta, "dresidual": g}
            exact["dx"] = _spread(scale) * (g - mean_g - x_hat * mean_gx)
        yield channels, exact


def _slices(
    case: Case, inputs: Inputs, parameters: Parameters
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Yield slices of channels: what enters the activation there, x_hat, mean and variance."""
    size = max(1, SLICE_ELEMENTS * case.shape[1] // inputs.x.numel())
    for start in range(0, case.shape[1], size):
        channels = slice(start, start + size)
        x = inputs.x.detach()[:, channels].double()
        axes = (0, *range(2, x.ndim))
        if case.training:
            mean, variance = x.mean(axes), x.var(axes, correction=0)
        else:
            mean = parameters.mean[channels].double()
            variance = parameters.variance[channels].double()
        x_hat = (x - _spread(mean)) / _spread(torch.sqrt(variance + EPSILON))
        gamma, beta = parameters.gamma[channels].double(), parameters.beta[channels].double()
        z = _spread(gamma) * x_hat + _spread(beta)
        if inputs.residual is not None:
            z = z + inputs.residual.detach()[:, channels].double()
        yield channels, z, x_hat, mean, variance


def _spread(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def _compare(found: Tensor, exact: Tensor) -> Tensor:
    off = found - exact
    return torch.stack(
        [off.abs().max(), exact.abs().max(), off.square().sum(), exact.square().sum()]
    )


def _joined(parts: Any) -> tuple[float, float, float, float]:
    # amax keeps NaN, as the largest error must.
    largest, biggest = parts[:, :2].amax(0).tolist()
    square, squares = parts[:, 2:].sum(0).tolist()
    return largest, biggest, square, squares
