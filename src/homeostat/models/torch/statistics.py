"""Write statistics into a PyTorch batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.errors import ShapeError, SpecError, UnsupportedError
from homeostat.models.torch.norms import TORCH, epsilon_of
from homeostat.moments import Moments


def write_statistics(name: str, norm: nn.Module, statistics: Moments) -> None:
    """Make moments a norm's running statistics.

    Args:
        name: of the norm, for errors.
        norm: any batch norm.
        statistics: float64 arrays of shape (channels,), the variance of the population.

    Raises:
        SpecError: they are not finite, also not in the norm's dtype.
        ShapeError: they are of another shape.
        UnsupportedError: the norm has no running statistics.
    """
    state: Any = norm
    if state.running_mean is None or state.running_var is None:
        raise UnsupportedError(
            f"{name!r} keeps no running statistics: expected a norm with track_running_stats=True. "
            "It normalizes by each batch, in inference too, so there is nothing to write."
        )
    mean = np.asarray(statistics.mean, "float64")
    variance = np.asarray(statistics.variance, "float64")
    shape = tuple(state.running_mean.shape)
    if mean.shape != shape or variance.shape != shape:
        raise ShapeError(
            f"statistics of shapes {mean.shape} and {variance.shape} do not fit {name!r}: expected "
            f"{shape}, a value for each channel. Pass those of this norm."
        )
    stored = variance
    if TORCH.stored_variance == "sample":
        stored = statistics._replace(variance=variance).sample_variance(np)
    values = {
        "running_mean": mean,
        "running_var": stored,
        # Renorm corrects towards the same statistics.
        "renorm_mean": mean,
        "renorm_std": np.sqrt(np.maximum(variance, 0) + (epsilon_of(norm) or 0.0)),
    }
    written = {
        buffer: torch.as_tensor(value).to(buffer.device, buffer.dtype)
        for key, value in values.items()
        if (buffer := norm._buffers.get(key)) is not None
    }
    for value in written.values():
        if not bool(torch.isfinite(value).all()):
            raise SpecError(
                f"the statistics for {name!r} are not finite in {value.dtype}: expected finite "
                "numbers. Leave out batches with NaN or infinity, or keep statistics in float32."
            )
    with torch.no_grad():
        for buffer, value in written.items():
            buffer.copy_(value)
        _count_once(state)


def _count_once(norm: Any) -> None:
    """Have averages that count their updates not throw the statistics away at the next."""
    tracked = norm._buffers.get("num_batches_tracked")
    if tracked is not None:
        skipped = norm._buffers.get("skipped_updates")
        floor = 1 if skipped is None or not skipped.numel() else 1 + int(skipped.max())
        tracked.clamp_(min=floor)
