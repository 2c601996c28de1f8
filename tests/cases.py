"""The hard cases of batch normalization: one list, which feeds every test that cuts across rooms.

Arrays are drawn in float64 and rounded to the case's dtype, so that the oracle sees exactly the
values that a library is given.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from homeostat import reference
from homeostat.layout import Layout

LEAKY = {"name": "leaky_relu", "negative_slope": 0.1}
# Outputs nearer to an activation's kink than this may fall on its other side by rounding alone.
KINK = {"float64": 1e-9, "float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Case:
    """One call of `normalize_batch`, with its arrays still to be drawn.

    Args:
        name: the test's id.
        shape: of x.
        axis: the channel axis or axes.
        dtype: of x, the residual and dy.
        gamma: whether there is a gamma.
        beta: whether there is a beta.
        affine: dtype of gamma and beta; None for that of the statistics.
        activation: what is fused behind.
        residual: whether there is a residual.
        weights: the kind of weights: all ones; a boolean mask of some; fractions with zeros among
            them; nothing but zeros; a mask over elements that are NaN.
        covers: how many of the averaged axes the weights name; None for the input's rank.
        epsilon: added to the variance.
        offset: mean / std of every channel, or of the first one alone with ``lone_offset``.
        lone_offset: whether the other channels have mean 0.
        std: standard deviation of every channel; 0 for constant channels.
        memory: how x lies in memory, where a library has strides.
        summed: dy is the gradient of y.sum(), which torch hands over with strides of 0.
        representative: one of the few that slow ways of running take.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | tuple[int, ...] = -1
    dtype: str = "float32"
    gamma: bool = True
    beta: bool = True
    affine: str | None = None
    activation: Any = None
    residual: bool = False
    weights: Literal["ones", "mask", "fractions", "zeros", "nan"] | None = None
    covers: int | None = None
    epsilon: float = 1e-3
    offset: float = 0.0
    lone_offset: bool = False
    std: float = 1.5
    memory: Literal["dense", "reversed", "gaps", "channels_last"] = "dense"
    summed: bool = False
    representative: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def layout(self) -> Layout:
        """The layout of x."""
        return Layout.of(self.shape, self.axis)

    @property
    def affine_dtype(self) -> str:
        """The dtype of gamma and beta."""
        return self.affine or ("float64" if self.dtype == "float64" else "float32")


@dataclass(frozen=True)
class Arrays:
    """A case's arrays, in float64 (weights: bool or float64); None where the case has none."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray | None
    beta: np.ndarray | None
    residual: np.ndarray | None
    weights: np.ndarray | None


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float64 values that ``dtype`` holds exactly, to the nearest even."""
    if dtype != "bfloat16":
        return values.astype(dtype).astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def draw(case: Case) -> Arrays:
    """Draw a case's arrays, the same ones every time."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    layout = case.layout
    channels = layout.known_channel_shape
    offsets = np.full(channels, case.offset * (case.std or 1.0))
    if case.lone_offset:
        offsets.flat[1:] = 0.0
    x = rng.standard_normal(case.shape) * case.std + offsets.reshape(layout.broadcast_shape)
    x = rounded(x, case.dtype)
    weights = _draw_weights(case, rng)
    if case.weights == "nan":
        full = np.broadcast_to(weights.reshape(layout.weights_shape(weights.shape)), case.shape)
        x = np.where(full > 0, x, np.nan)
    affine = case.affine_dtype
    # Gammas of both signs, none of them near zero.
    sign = rng.choice([-1.0, 1.0], channels)
    gamma = rounded(sign * rng.uniform(0.5, 2.0, channels), affine) if case.gamma else None
    beta = rounded(rng.standard_normal(channels), affine) if case.beta else None
    residual = rounded(rng.standard_normal(case.shape), case.dtype) if case.residual else None
    dy = np.ones(case.shape) if case.summed else rng.standard_normal(case.shape)
    if case.weights == "nan":
        # A loss that is masked as well; NaN is no business of those elements' neighbours then.
        dy = np.where(np.isnan(x), 0.0, dy)
    if case.activation is not None and not case.summed:
        z, _ = reference.normalize_batch(
            x, gamma, beta, axis=case.axis, epsilon=case.epsilon, weights=weights, residual=residual
        )
        dy = np.where(np.abs(z) < KINK[case.dtype], 0.0, dy)
    return Arrays(x, rounded(dy, case.dtype), gamma, beta, residual, weights)


def _draw_weights(case: Case, rng: np.random.Generator) -> Any:
    if case.weights is None:
        return None
    layout = case.layout
    averaged = [case.shape[a] for a in layout.reduction_axes]
    shape = (
        [1 if a in layout.channel_axes else n for a, n in enumerate(case.shape)]
        if case.covers is None
        else averaged[: case.covers]
    )
    if case.weights == "ones":
        return np.ones(shape)
    if case.weights == "zeros":
        return np.zeros(shape)
    kept = rng.uniform(size=shape) < 0.6
    kept.flat[: math.ceil(kept.size / 2) : 2] = True
    kept.flat[1] = False
    if case.weights == "fractions":
        return kept * rounded(rng.uniform(0.1, 2.5, shape), "float32")
    return kept


CASES = [
    # Ranks and axes.
    Case("dense", (33, 7), representative=True),
    Case("sequence", (5, 11, 3)),
    Case("image", (4, 6, 5, 3), representative=True),
    Case("volume", (2, 3, 4, 5, 6)),
    Case("image-channels-first", (4, 3, 6, 5), axis=1, representative=True),
    Case("sequence-channels-first", (5, 3, 11), axis=1),
    Case("volume-channels-first", (2, 5, 3, 4, 2), axis=1),
    Case("channels-on-axis-0", (3, 17), axis=0),
    Case("middle-axis-of-five", (2, 3, 5, 4, 3), axis=2),
    Case("two-last-axes", (6, 5, 4, 3), axis=(-2, -1)),
    Case("scattered-axes", (6, 5, 4, 3), axis=(1, 3), representative=True),
    Case("axes-out-of-order", (6, 5, 4), axis=(-1, 1)),
    Case("all-but-batch", (9, 4, 3), axis=(1, 2)),
    # Sizes at the edges.
    Case("one-element", (1, 5), representative=True),
    Case("one-element-image-first", (1, 5, 1, 1), axis=1),
    Case("two-elements", (2, 5)),
    Case("one-channel", (19, 1)),
    Case("one-channel-image", (3, 5, 5, 1), residual=True, activation="relu"),
    Case("one-channel-first", (3, 1, 5, 5), axis=1),
    Case("empty-batch", (0, 4), representative=True),
    Case("empty-batch-image-first", (0, 3, 4, 4), axis=1),
    Case("empty-image", (3, 0, 4, 2), residual=True, activation="relu"),
    Case("many-rows", (100352, 8), representative=True),
    Case("many-rows-first", (16, 3, 100, 90), axis=1, representative=True),
    Case("many-rows-scattered", (40000, 2, 2, 2), axis=(1, 3)),
    Case("many-channels", (3, 1031)),
    # Badly conditioned data.
    Case("mean-30-std", (64, 5), offset=30),
    Case("mean-1e3-std", (64, 5), offset=1e3, representative=True),
    Case("mean-1e3-std-many-rows", (50000, 3), offset=1e3, lone_offset=True),
    Case("mean-1e3-std-first", (8, 3, 5, 7), axis=1, offset=-1e3, activation="relu"),
    Case("mean-1e3-std-weighted", (64, 5), offset=1e3, weights="fractions", covers=1),
    Case("one-channel-off", (64, 5), offset=1e4, lone_offset=True),
    Case("mean-1e6-std", (256, 4), offset=1e6, representative=True),
    Case("mean-1e6-std-image", (4, 8, 8, 3), offset=1e6, lone_offset=True),
    Case("mean-1e6-std-float64", (64, 4), offset=1e6, dtype="float64"),
    Case("constant-channels", (16, 4), std=0.0, offset=3.0, representative=True),
    Case("constant-large-channels", (4, 3, 5, 5), axis=1, std=0.0, offset=1e4),
    Case("zero-input", (16, 4), std=0.0, activation="relu"),
    Case("tiny-values", (32, 4), std=1e-3, epsilon=1e-5),
    Case("large-values", (32, 4), std=1e4),
    Case("epsilon-zero", (32, 4), epsilon=0.0),
    # Affine parameters, activation and residual.
    Case("no-gamma", (12, 5), gamma=False),
    Case("no-beta", (4, 3, 5, 5), axis=1, beta=False),
    Case("bare", (12, 5), gamma=False, beta=False, activation="relu"),
    Case("relu", (4, 6, 5, 3), activation="relu", representative=True),
    Case("relu-first", (4, 3, 6, 5), axis=1, activation="relu", residual=True),
    Case("leaky", (12, 5), activation=LEAKY),
    Case("residual", (12, 5), residual=True),
    Case("residual-leaky", (4, 6, 5, 3), activation=LEAKY, residual=True, representative=True),
    Case("residual-scattered", (4, 6, 5, 3), axis=(1, 3), activation="relu", residual=True),
    Case("gradient-of-sum", (12, 5), summed=True),
    # Memory.
    Case("reversed", (6, 5, 4, 3), memory="reversed"),
    Case("gaps", (12, 6), memory="gaps"),
    Case("gaps-first", (4, 6, 3, 5), axis=1, memory="gaps", activation="relu"),
    Case("channels-last-strides", (4, 6, 3, 5), axis=1, memory="channels_last", residual=True),
    Case("reversed-sequence-first", (4, 6, 5), axis=1, memory="reversed"),
    # Weights and masks.
    Case("weights-one", (12, 5), weights="ones", covers=1),
    Case("mask-batch", (12, 5), weights="mask", covers=1, representative=True),
    Case("mask-batch-of-images", (6, 4, 3, 5), axis=1, weights="mask", covers=1),
    Case("mask-time", (4, 9, 3), weights="mask", covers=2, activation="relu"),
    Case("mask-time-first", (4, 3, 9), axis=1, weights="mask", covers=2),
    Case("mask-full-rank", (4, 3, 9), axis=1, weights="mask"),
    Case("mask-one-channel", (8, 5, 1), weights="mask", covers=2),
    Case("fractions", (4, 9, 3), weights="fractions", covers=2, residual=True, representative=True),
    Case("fractions-scattered", (4, 6, 5, 3), axis=(1, 3), weights="fractions", covers=1),
    Case("fully-masked", (6, 5, 3), weights="zeros", covers=2, representative=True),
    Case("nan-under-mask", (6, 5, 3), weights="nan", covers=2, representative=True),
    Case("nan-under-mask-first", (6, 3, 5), axis=1, weights="nan", covers=1, activation="relu"),
    # Dtypes.
    Case("float16", (16, 6), dtype="float16", representative=True),
    Case("float16-image-first", (4, 3, 5, 7), axis=1, dtype="float16", activation="relu"),
    Case("float16-residual", (4, 6, 5, 3), dtype="float16", activation=LEAKY, residual=True),
    Case("float16-affine", (16, 6), dtype="float16", affine="float16"),
    Case("float16-mask", (16, 6), dtype="float16", weights="mask", covers=1),
    # Sums of its squares overflow float16 by far.
    Case("float16-large", (512, 3), dtype="float16", std=4000.0),
    Case("bfloat16", (16, 6), dtype="bfloat16", representative=True),
    Case("bfloat16-image-first", (4, 3, 5, 7), axis=1, dtype="bfloat16"),
    Case("bfloat16-residual", (4, 6, 5, 3), dtype="bfloat16", activation="relu", residual=True),
    Case("bfloat16-offset", (64, 4), dtype="bfloat16", offset=20),
    Case("bfloat16-affine", (16, 6), dtype="bfloat16", affine="bfloat16"),
    Case("float64", (16, 6), dtype="float64", representative=True),
    Case("float64-image-first", (4, 3, 5, 7), axis=1, dtype="float64", activation="relu"),
    Case("float64-fractions", (4, 5, 3), dtype="float64", weights="fractions", covers=2),
    Case("float64-residual", (4, 5, 3), dtype="float64", residual=True, activation=LEAKY),
]

BY_NAME = {case.name: case for case in CASES}
REPRESENTATIVE = [case for case in CASES if case.representative]
