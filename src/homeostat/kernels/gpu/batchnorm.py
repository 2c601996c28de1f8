"""Batch normalization of tensors on a GPU, forward and backward, by the kernels of this room.

A tensor is seen as (outer, channels, inner), dense in memory; inner is 1 where channels come last.
All tensors of a call lie in the same order, whatever their shapes; outputs keep x's strides.
Statistics are float32, or float64 for float64, and are merged in float64. Nothing here waits for
the device, and the same tensors give the same bits on the same device.
"""

from __future__ import annotations

import torch

from homeostat.kernels.gpu import gradients, outputs, resident, statistics
from homeostat.kernels.gpu.arguments import beside, merging_of, programs, sizes, tiles_per_split
from homeostat.kernels.gpu.channels import KEPT
from homeostat.kernels.gpu.launch import is_traceable, launch
from homeostat.kernels.gpu.moving import Moving, arguments_of
from homeostat.kernels.gpu.plans import Plan, Shape, plan

Tensor = torch.Tensor


def moments(x: Tensor, shape: Shape) -> Tensor:
    """Return mean and population variance of each channel, float64, (2, channels).

    With the count, outer * inner, they are what replicas exchange: moments of parts merge exactly
    (Chan, Golub & LeVeque 1979).

    Args:
        x: of the shape's size.
        shape: how x is divided.
    """
    shape = _divided(shape)
    found = _channels(x, shape, 2, torch.float64)
    _find_moments(x, shape, found, None, None, None, None, 0.0)
    return found


def train(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    shape: Shape,
    epsilon: float,
    slope: float | None,
    moving: Moving | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize with the batch's own moments: y = activation(gamma * x_hat + beta + residual).

    x_hat = (x - mean) / sqrt(variance + epsilon) (Ioffe & Szegedy 2015, Algorithm 1).

    Args:
        x: of the shape's size.
        gamma: (channels,), of any float dtype, or None for 1.
        beta: like gamma, or None for 0.
        residual: like x, or None.
        shape: how x is divided.
        epsilon: added to the variance.
        slope: the activation's for negative values, or None for no activation.
        moving: statistics that follow the batch's, in the same launches; or None.

    Returns:
        y, like x; mean and population variance, float64, (2, channels); what the backward needs of
        the channels.
    """
    shape = _divided(shape)
    y, found = torch.empty_like(x), _channels(x, shape, 2, torch.float64)
    kept = _channels(x, shape, KEPT)
    way = plan(shape, x.dtype, "forward", x.device)
    if not _is_resident(way, x):
        _find_moments(x, shape, found, gamma, beta, kept, moving, epsilon)
        _normalize(x, None, None, None, residual, y, kept, shape, epsilon, slope)
        return y, found, kept
    partials, arrivals = _meeting(x, 3, way, shape)
    arguments = {"x": x, "residual": residual, "y": y, "gamma": gamma, "beta": beta}
    arguments |= {"moments": found, "kept": kept, "partials": partials, "arrivals": arrivals}
    arguments |= {
        "EPSILON": epsilon,
        "SLOPE": slope,
        **arguments_of(moving),
        **beside(way),
        **sizes(shape, way),
    }
    launch(resident.normalize_resident, programs(way, shape), way, arguments)
    return y, found, kept


def normalize(
    x: Tensor,
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    shape: Shape,
    epsilon: float,
    slope: float | None,
) -> tuple[Tensor, Tensor]:
    """Normalize with given moments, in one launch.

    Args:
        x: of the shape's size.
        moments: mean and variance, float64 or float32, (2, channels).
        gamma: (channels,), of any float dtype, or None for 1.
        beta: like gamma, or None for 0.
        residual: like x, or None.
        shape: how x is divided.
        epsilon: added to the variance.
        slope: the activation's for negative values, or None for no activation.

    Returns:
        y, like x, and what the backward needs of the channels.
    """
    y, kept = torch.empty_like(x), _channels(x, shape, KEPT)
    _normalize(x, moments, gamma, beta, residual, y, kept, _divided(shape), epsilon, slope)
    return y, kept


def again(x: Tensor, kept: Tensor, shape: Shape, slope: float | None) -> Tensor:
    """Return y of a forward pass without a residual, to the same bits.

    Args:
        x: as it was normalized.
        kept: what the forward pass kept of the channels.
        shape: how x is divided.
        slope: as in the forward pass.
    """
    y = torch.empty_like(x)
    _normalize(x, None, None, None, None, y, kept, _divided(shape), 0.0, slope)
    return y


def backward(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    kept: Tensor,
    shape: Shape,
    slope: float | None,
    count: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients, through the batch's mean and variance.

    With g = dy * activation'(z), n elements to a channel and x_hat = (x - mean) * inverse::

        dbeta = sum(g)    dgamma = sum(g * x_hat)
        dx = scale * (g - (dbeta + x_hat * dgamma) / n)

    Args:
        x: as it was normalized.
        dy: like x.
        y: like x, the activation's output, where z had a residual; None to compute z's sign again,
            to the last bit as the forward pass computed it.
        kept: what the forward pass kept of the channels.
        shape: how x is divided.
        slope: as in the forward pass.
        count: n, as in `input_gradient`, where it is not outer * inner.

    Returns:
        dx, like x; dgamma and dbeta, (2, channels), of the statistics' dtype; g, like x, where
        there are a y and a slope.
    """
    shape, g = _divided(shape), _entering(x, y, slope)
    way = plan(shape, x.dtype, "backward", x.device)
    results = _channels(x, shape, 2)
    count = shape.outer * shape.inner if count is None else count
    if not _is_resident(way, x):
        sums = _channels(x, shape, 2, torch.float64)
        _gradient_sums(x, dy, y, g, kept, shape, slope, sums, results)
        return _input_gradient(x, dy, g, kept, sums, count, shape, slope), results, g
    dx = torch.empty_like(x)
    partials, arrivals = _meeting(x, 2, way, shape)
    arguments = {"x": x, "dy": dy, "y": y if g is not None else None, "g": g, "kept": kept}
    arguments |= {"results": results, "dx": dx, "partials": partials, "arrivals": arrivals}
    arguments |= {"count": count, "COUNTED": isinstance(count, torch.Tensor), "SLOPE": slope}
    arguments |= {**beside(way), **sizes(shape, way)}
    launch(resident.differentiate_resident, programs(way, shape), way, arguments)
    return dx, results, g


def gradient_sums(
    x: Tensor, dy: Tensor, y: Tensor | None, kept: Tensor, shape: Shape, slope: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return dgamma and dbeta of these elements, which replicas add up, and g.

    Args:
        x: as it was normalized, with moments that all replicas share.
        dy: like x.
        y: as in `backward`.
        kept: what the forward pass kept of the channels.
        shape: how x is divided.
        slope: as in the forward pass.

    Returns:
        dgamma and dbeta, float64, (2, channels); g, like x, where there are a y and a slope.
    """
    shape, g = _divided(shape), _entering(x, y, slope)
    sums = _channels(x, shape, 2, torch.float64)
    _gradient_sums(x, dy, y, g, kept, shape, slope, sums, None)
    return sums, g


def input_gradient(
    x: Tensor,
    dy: Tensor,
    g: Tensor | None,
    kept: Tensor,
    sums: Tensor,
    count: int | Tensor,
    shape: Shape,
    slope: float | None,
) -> Tensor:
    """Return dx of the sums of all replicas.

    Args:
        x: as it was normalized.
        dy: like x.
        g: what `gradient_sums` returned.
        kept: what the forward pass kept of the channels.
        sums: dgamma and dbeta of all replicas, (2, channels).
        count: elements to a channel of all replicas, or a tensor of one number on x's device.
        shape: how x is divided.
        slope: as in the forward pass.
    """
    return _input_gradient(x, dy, g, kept, sums, count, _divided(shape), slope)


def _find_moments(
    x: Tensor,
    shape: Shape,
    found: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    kept: Tensor | None,
    moving: Moving | None,
    epsilon: float,
) -> None:
    """Write mean and variance, and with somewhere to keep them the coefficients; move others."""
    way = plan(shape, x.dtype, "moments", x.device)
    partials = _channels(x, shape, 3 * way.splits, torch.float64)
    arguments = {"x": x, "partials": partials, "splits": way.splits, **sizes(shape, way)}
    launch(statistics.split_moments, programs(way, shape), way, arguments)
    told, blocks, merging = merging_of(way, shape)
    arguments = {"partials": partials, "moments": found, "gamma": gamma, "beta": beta}
    arguments |= {"kept": kept, "EPSILON": epsilon, **arguments_of(moving), **told}
    launch(statistics.merge_moments, blocks, merging, arguments)


def _normalize(
    x: Tensor,
    moments: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    kept: Tensor,
    shape: Shape,
    epsilon: float,
    slope: float | None,
) -> None:
    way = plan(shape, x.dtype, "normalize", x.device)
    arguments = {"x": x, "residual": residual, "y": y, "moments": moments, "gamma": gamma}
    arguments |= {"beta": beta, "kept": kept, "EPSILON": epsilon, "SLOPE": slope}
    arguments |= {**sizes(shape, way), "tiles_per_split": tiles_per_split(way, shape)}
    launch(outputs.normalize_tiles, programs(way, shape), way, arguments)


def _gradient_sums(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    g: Tensor | None,
    kept: Tensor,
    shape: Shape,
    slope: float | None,
    sums: Tensor,
    results: Tensor | None,
) -> None:
    """Write dgamma and dbeta, and g where there is one."""
    way = plan(shape, x.dtype, "sums", x.device)
    partials = _channels(x, shape, 2 * way.splits, torch.float64)
    arguments = {"x": x, "dy": dy, "y": None if g is None else y, "g": g, "kept": kept}
    arguments |= {"partials": partials, "splits": way.splits, "SLOPE": slope}
    arguments |= sizes(shape, way)
    launch(gradients.split_sums, programs(way, shape), way, arguments)
    told, blocks, merging = merging_of(way, shape)
    arguments = {"partials": partials, "kept": kept, "sums": sums, "results": results, **told}
    launch(gradients.merge_sums, blocks, merging, arguments)


def _input_gradient(
    x: Tensor,
    dy: Tensor,
    g: Tensor | None,
    kept: Tensor,
    sums: Tensor,
    count: int | Tensor,
    shape: Shape,
    slope: float | None,
) -> Tensor:
    dx, way = torch.empty_like(x), plan(shape, x.dtype, "gradient", x.device)
    # g is behind the activation already.
    entered, left = (dy, slope) if g is None else (g, None)
    arguments = {"x": x, "g": entered, "kept": kept, "sums": sums, "count": count, "dx": dx}
    arguments |= {"SLOPE": left, "COUNTED": isinstance(count, torch.Tensor)}
    arguments |= {**sizes(shape, way), "tiles_per_split": tiles_per_split(way, shape)}
    launch(gradients.differentiate_tiles, programs(way, shape), way, arguments)
    return dx


def _divided(shape: Shape) -> Shape:
    """Return the same division with channels first where that is as well."""
    outer, channels, inner = shape
    # All of a single channel lies side by side.
    return Shape(1, 1, outer * inner) if channels == 1 else Shape(outer, channels, inner)


def _is_resident(way: Plan, x: Tensor) -> bool:
    # A traced launch cannot be cooperative, and the interpreter runs one program after the other.
    together = x.device.type != "cpu" and not is_traceable()
    return way.resident and (way.splits == 1 or together)


def _entering(x: Tensor, y: Tensor | None, slope: float | None) -> Tensor | None:
    """Return where g goes, None where it is dy or computed again."""
    return None if y is None or slope is None else torch.empty_like(x)


def _channels(x: Tensor, shape: Shape, rows: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return rows of channels still to be written, of the statistics' dtype unless told."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((rows, shape.channels), dtype=dtype or wide)


def _meeting(x: Tensor, rows: int, way: Plan, shape: Shape) -> tuple[Tensor | None, Tensor | None]:
    """Return where the programs of a resident plan leave their sums, and where they meet."""
    if way.splits == 1:
        return None, None
    partials = x.new_empty((rows, way.splits, shape.channels), dtype=torch.float64)
    # Of this call alone: other streams and replays of a graph have their own zeros.
    return partials, x.new_zeros(way.blocks(shape), dtype=torch.int32)
