"""Ordinary steps whose time is that of the calls, so that they take as few as there are."""

from __future__ import annotations

from typing import Any

import torch

from homeostat.ops.torch.elements import statistics, transformed
from homeostat.ops.torch.memory import DTYPES
from homeostat.ops.torch.small import few_calls_are_best, small_inference, small_step

Tensor = torch.Tensor


def takes_few_calls(bn: Any, x: Tensor, residual: Tensor | None, *, trains: bool) -> bool:
    """Return whether few calls are best, and dtypes, shapes and device are the ordinary ones.

    Args:
        bn: the module.
        x: its input.
        residual: added before the activation, or None.
        trains: whether x is normalized by its own moments.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    fused = residual is not None or bn.spec.activation is not None
    if not (few_calls_are_best(x, trains=trains, fused=fused) and x.is_cpu and x.dtype in DTYPES):
        return False
    shape, mean, dtype = x.shape, bn.running_mean, statistics(x)
    if (
        mean is None
        or mean.requires_grad
        or mean.dtype != dtype
        or shape[1:2] != mean.shape
        or shape[0] == 0
    ):
        return False
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        return False
    for parameter in (bn.weight, bn.bias):
        if parameter is not None and parameter.dtype != dtype:
            return False
    return not transformed()


def small_train(bn: Any, x: Tensor, residual: Tensor | None, *, moves: bool) -> Tensor | None:
    """Return y after a training step, or None, with nothing changed, where it takes the long way.

    Args:
        bn: a module without options that say otherwise.
        x: the input, for which `takes_few_calls`.
        residual: added before the activation, or None.
        moves: whether the running statistics follow.
    """
    spec = bn.spec
    mean, variance = bn.running_mean, bn.running_var
    if not moves:
        mean, variance = mean.clone(), variance.clone()
    y = small_step(
        x, bn.weight, bn.bias, residual, mean, variance, spec.momentum, spec.epsilon, _slope(spec)
    )
    if moves and y is not None:
        bn.num_batches_tracked.add_(1)
    return y


def small_eval(bn: Any, x: Tensor, residual: Tensor | None) -> Tensor | None:
    """Return y by the running statistics, or None where it takes the long way."""
    spec = bn.spec
    return small_inference(
        x, bn.weight, bn.bias, residual, bn.running_mean, bn.running_var, spec.epsilon, _slope(spec)
    )


def _slope(spec: Any) -> float | None:
    activation = spec.activation
    return None if activation is None else activation.negative_slope
