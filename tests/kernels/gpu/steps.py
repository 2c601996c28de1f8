"""One training step by the kernels, and the same by the oracle."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from homeostat import reference
from homeostat.kernels import gpu
from homeostat.kernels.gpu.plans import divide_up, power_of_2
from tests.kernels.gpu.devices import DEVICE

DTYPES = {"float64": torch.float64, "float32": torch.float32}
DTYPES |= {"float16": torch.float16, "bfloat16": torch.bfloat16}
# The interpreter does not round to bfloat16 but cuts off, which is twice as far.
TOLERANCES = {"float64": 1e-12, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
FUSED = [(None, False), (0.0, False), (0.25, False), (None, True), (0.0, True), (0.25, True)]
EPSILON = 1e-3


class Outcome(NamedTuple):
    y: torch.Tensor
    moments: torch.Tensor
    dx: torch.Tensor
    dgamma: torch.Tensor
    dbeta: torch.Tensor
    g: torch.Tensor | None


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> list[torch.Tensor]:
    """Return x, dy and a residual."""
    rng = np.random.default_rng(seed)
    drawn = [torch.from_numpy(rng.normal(0.5, 2.0, shape)) for _ in range(3)]
    return [t.to(DTYPES[dtype]).to(DEVICE) for t in drawn]


def parameters(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gamma and beta."""
    drawn = np.random.default_rng(1).normal(size=(2, channels)).astype(np.float32)
    gamma, beta = torch.from_numpy(drawn).to(DEVICE)
    return gamma, beta


def step(
    shape: Any, x: Any, dy: Any, residual: Any, gamma: Any, beta: Any, slope: float | None
) -> Outcome:
    """Return what a forward and a backward pass give."""
    shape = gpu.Shape(*shape)
    y, moments, kept = gpu.train(x, gamma, beta, residual, shape, EPSILON, slope)
    both = y if residual is not None and slope is not None else None
    dx, dgamma, dbeta, g = gpu.backward(x, dy, both, kept, shape, slope)
    return Outcome(y, moments, dx, dgamma, dbeta, g)


def wide(t: torch.Tensor | None) -> np.ndarray | None:
    """Return a tensor in float64."""
    return None if t is None else t.double().cpu().numpy()


def options(slope: float | None, residual: torch.Tensor | None) -> dict[str, Any]:
    """Return what the oracle takes."""
    found: dict[str, Any] = {"axis": 1, "epsilon": EPSILON, "residual": wide(residual)}
    if slope is not None:
        named = {"name": "leaky_relu", "negative_slope": slope}
        found["activation"] = named if slope else "relu"
    return found


def away_from_the_kink(x: Any, dy: Any, gamma: Any, beta: Any, residual: Any, near: float) -> Any:
    """Return dy without the outputs that rounding may put on either side of 0."""
    z, _ = reference.normalize_batch(wide(x), wide(gamma), wide(beta), **options(None, residual))
    return dy.masked_fill(torch.from_numpy(np.abs(z) < near).to(dy.device), 0)


def close(actual: Any, expected: Any, tolerance: float, scale: float = 1.0) -> None:
    """Assert that values are close, measured in the largest of them."""
    scale = max(scale, np.abs(expected).max())
    np.testing.assert_allclose(wide(actual), expected, rtol=0, atol=tolerance * scale)


def small_tiles(shape: Any, splits: int = 3) -> AbstractContextManager[Any]:
    """Run by streaming plans of several tiles to a split and several splits."""
    outer, channels, inner = shape
    if channels == 1:
        outer, inner = 1, outer * inner
    # The interpreter adds up the rows of a tile one by one, as a GPU's thread does its own: no more
    # than 32 of them.
    if inner == 1:
        tile = (min(power_of_2(outer), 32), min(power_of_2(channels), 64), 1)
    else:
        block_i = min(power_of_2(inner), 256)
        tile = (min(power_of_2(outer), 512 // block_i), 1, block_i)
    plan = gpu.Plan(False, *tile, 1, 4)
    tiles = plan.tiles(gpu.Shape(outer, channels, inner))
    return gpu.using(plan._replace(splits=divide_up(tiles, divide_up(tiles, splits))))


# The plans of the table, which keep what is small on chip, and plans that stream.
WAYS = {"table": lambda shape: nullcontext(), "streaming": small_tiles}
