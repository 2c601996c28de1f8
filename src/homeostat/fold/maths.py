"""How a batch norm in inference becomes part of the linear operation before or after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from homeostat.errors import SpecError
from homeostat.models.foldable import Kernel, LinearOp
from homeostat.models.records import BatchNormRecord

Float64 = np.ndarray[Any, np.dtype[np.float64]]


class Affine(NamedTuple):
    """What a batch norm does in inference: y = scale * x + offset, of each channel, in float64."""

    scale: Float64
    offset: Float64


def affine_of(norm: BatchNormRecord) -> Affine:
    """Return a batch norm's scale and offset in inference.

    scale = gamma / sqrt(variance + epsilon), offset = beta - mean * scale (Ioffe & Szegedy 2015,
    Algorithm 2), with the moving variance as it is stored.

    Args:
        norm: with moving statistics and epsilon.

    Raises:
        SpecError: the norm has no moving statistics, or its epsilon is not known.

    Example:
        >>> import numpy as np
        >>> one = np.ones(1)
        >>> affine_of(BatchNormRecord("bn", "BN", one, one, 2 * one, 3 * one, epsilon=1.0))
        Affine(scale=array([0.5]), offset=array([0.]))
    """
    if norm.moving_mean is None or norm.moving_variance is None or norm.epsilon is None:
        raise SpecError(
            f"{norm.name!r} has no moving statistics, or its epsilon is not known: expected a norm "
            "whose inference does not depend on the batch. Leave it as it is."
        )
    mean = np.asarray(norm.moving_mean, np.float64)
    variance = np.asarray(norm.moving_variance, np.float64)
    with np.errstate(all="ignore"):
        scale = 1.0 / np.sqrt(variance + norm.epsilon)
        if norm.gamma is not None:
            scale = scale * np.asarray(norm.gamma, np.float64)
        offset = -mean * scale
    if norm.beta is not None:
        offset = offset + np.asarray(norm.beta, np.float64)
    return Affine(scale, offset)


def fold_behind(linear: LinearOp, affine: Affine) -> LinearOp:
    """Return a linear operation that does what a norm behind it does as well.

    kernel' = kernel * scale along the output channels and bias' = bias * scale + offset (Jacob et
    al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.2).

    Args:
        linear: with as many output channels as the norm has.
        affine: of the norm.

    Returns:
        The operation with float64 kernels, and a float64 bias also where it had none.

    Example:
        >>> import numpy as np
        >>> dense = LinearOp("dense", (Kernel(np.array([[1.0, 2.0]]), (1, 2), (0,), (1,)),))
        >>> folded = fold_behind(dense, Affine(np.array([10.0, 100.0]), np.array([0.0, 5.0])))
        >>> folded.kernels[0].values, folded.bias
        (array([[ 10., 200.]]), array([0., 5.]))
    """
    *front, last = linear.kernels
    scaled = _times(last, affine.scale, last.outputs)
    bias = np.zeros_like(affine.offset) if linear.bias is None else linear.bias
    bias = np.asarray(bias, np.float64) * affine.scale + affine.offset
    return replace(linear, kernels=(*front, scaled), bias=bias)


def fold_ahead(linear: LinearOp, affine: Affine) -> LinearOp:
    """Return a linear operation that does what a norm before it does as well.

    Of y = K (scale * x + offset) + bias, kernel' = kernel * scale along the input channels and
    bias' = bias + the sum of kernel * offset over all that is summed for one output. Zeros around
    the input are not offset, so this is exact without padding or where the offset is 0.

    Args:
        linear: with as many input channels as the norm has.
        affine: of the norm.

    Returns:
        The operation with float64 kernels and bias.

    Example:
        >>> import numpy as np
        >>> dense = LinearOp("dense", (Kernel(np.array([[1.0], [2.0]]), (2, 1), (0,), (1,)),))
        >>> folded = fold_ahead(dense, Affine(np.array([10.0, 100.0]), np.array([1.0, 5.0])))
        >>> folded.kernels[0].values.ravel(), folded.bias
        (array([ 10., 200.]), array([11.]))
    """
    first, *rest = linear.kernels
    shift = affine.offset
    for kernel in linear.kernels:
        shift = _sums(_times(kernel, shift, kernel.inputs))
    scaled = _times(first, affine.scale, first.inputs)
    bias = shift if linear.bias is None else np.asarray(linear.bias, np.float64) + shift
    return replace(linear, kernels=(scaled, *rest), bias=bias)


def _times(kernel: Kernel, channels: Float64, axes: tuple[int, ...]) -> Kernel:
    """Multiply a kernel by a number for each channel along some axes of its view."""
    factors = channels.reshape([kernel.view[axis] for axis in axes])
    # A grouped kernel has its slowest channel axis behind the other.
    factors = factors.transpose(sorted(range(len(axes)), key=axes.__getitem__))
    shape = [size if axis in axes else 1 for axis, size in enumerate(kernel.view)]
    values = np.asarray(kernel.values, np.float64)
    product = values.reshape(kernel.view) * factors.reshape(shape)
    return replace(kernel, values=product.reshape(values.shape))


def _sums(kernel: Kernel) -> Float64:
    """Return a kernel's sum for each output channel."""
    others = tuple(axis for axis in range(len(kernel.view)) if axis not in kernel.outputs)
    sums = kernel.values.reshape(kernel.view).sum(axis=others)
    return sums.transpose(np.argsort(np.argsort(kernel.outputs))).ravel()
