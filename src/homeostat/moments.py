"""Moments of a batch, how they merge, and how moving statistics follow them.

Only arithmetic and an array namespace's ``where`` and ``isfinite``, so every function here takes
NumPy, TensorFlow, PyTorch or JAX arrays alike. Momentum is the weight of the OLD value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from homeostat.errors import ShapeError, SpecError
from homeostat.spec import BatchNormSpec, RenormClipping

Array = Any


class Moments(NamedTuple):
    """The count, mean and population variance of each channel over some elements.

    Args:
        count: elements (or summed weights) per channel: a number, or an array of the channel shape.
        mean: array of the channel shape, float32 or wider.
        variance: array of the channel shape: the mean squared deviation from ``mean``, divided
            by ``count``, not by ``count - 1``.
    """

    count: Array
    mean: Array
    variance: Array

    def sample_variance(self, xp: Any) -> Array:
        """Return variance * n / (n - 1), or the variance itself where n <= 1.

        Args:
            xp: the array namespace (`numpy`, `keras.ops`, `torch`, `jax.numpy`).
        """
        return self.variance * sample_correction(self.count, xp)


def sample_correction(count: Array, xp: Any) -> Array:
    """Return n / (n - 1), the factor from population to sample variance; 1 where n <= 1.

    Args:
        count: elements per channel: a number or an array.
        xp: the array namespace.
    """
    if _is_number(count):
        return count / (count - 1) if count > 1 else 1.0
    divisor = xp.where(count > 1, count - 1, 1)
    return xp.where(count > 1, count / divisor, xp.ones_like(count))


def _is_number(count: Array) -> bool:
    """Return whether a count is a number, or a compiler's symbol of one, and no array."""
    return isinstance(count, (int, float)) or not hasattr(count, "shape")


def merge(first: Moments, second: Moments, xp: Any) -> Moments:
    """Merge the moments of two disjoint sets of elements into those of their union.

    With d = mean_b - mean_a and n = n_a + n_b (Chan, Golub & LeVeque 1979)::

        mean     = mean_a + d * n_b / n
        variance = (n_a * variance_a + n_b * variance_b) / n + d**2 * n_a * n_b / n**2

    An empty set, of count 0, changes nothing.

    Args:
        first: moments of the first set.
        second: moments of the second set, with arrays of the same shape.
        xp: the array namespace.

    Example:
        >>> import numpy as np
        >>> a = Moments(np.array(3.0), np.array([2.0]), np.array([1.0]))
        >>> b = Moments(np.array(1.0), np.array([6.0]), np.array([0.0]))
        >>> merged = merge(a, b, np)
        >>> float(merged.count), merged.mean.tolist(), merged.variance.tolist()
        (4.0, [3.0], [3.75])
    """
    if tuple(first.mean.shape) != tuple(second.mean.shape):
        raise ShapeError(
            f"moments of shapes {tuple(first.mean.shape)} and {tuple(second.mean.shape)} do not "
            "merge: expected the same channels in both. Merge moments of the same layer only."
        )
    count = first.count + second.count
    if _is_number(count):
        share = second.count / count if count > 0 else 0.0
    else:
        share = xp.where(count > 0, second.count / xp.where(count > 0, count, 1), 0.0)
    delta = second.mean - first.mean
    mean = first.mean + delta * share
    variance = (
        first.variance * (1 - share)
        + second.variance * share
        + delta * delta * (share * (1 - share))
    )
    return Moments(count, mean, variance)


def merge_all(batches: Iterable[Moments], xp: Any) -> Moments:
    """Merge the moments of any number of disjoint sets, in order.

    Raises:
        SpecError: there is nothing to merge.
    """
    total: Moments | None = None
    for batch in batches:
        total = batch if total is None else merge(total, batch, xp)
    if total is None:
        raise SpecError("no moments to merge: expected at least one batch. Check the data source.")
    return total


def average_groups(groups: Moments, axis: int, xp: Any) -> Moments:
    """Average the moments of equally large ghost batches, for the moving statistics.

    This is the plain mean over groups, as TF1's ``virtual_batch_size`` takes it: the statistics
    that inference uses stand for one ghost batch, not for the whole batch.
    """
    return Moments(groups.count, xp.mean(groups.mean, axis), xp.mean(groups.variance, axis))


def finite_channels(moments: Moments, xp: Any) -> Array:
    """Return, for each channel, whether its mean and variance are finite."""
    return xp.isfinite(moments.mean) & xp.isfinite(moments.variance)


@dataclass(frozen=True)
class Average:
    """How a moving statistic follows the batches: new = old + (value - old) * weight(t).

    After t earlier updates the weight of the new value is

    - exponential: 1 - momentum;
    - cumulative (``momentum=None``): 1 / (t + 1), the plain mean of all values;
    - zero-debiased: (1 - momentum) / (1 - momentum**(t + 1)), which is the exponential average
      from a start at zero, divided by 1 - momentum**t (Kingma & Ba 2015, section 3). The first
      value replaces whatever the statistic started from.

    Args:
        momentum: weight of the old value, or None for the cumulative average.
        zero_debias: whether the start has no weight.

    Example:
        >>> round(Average(0.9).step(1.0, 2.0), 12)
        1.1
        >>> Average(None).step(3.0, 6.0, updates=2)
        4.0
        >>> Average(0.9, zero_debias=True).step(1.0, 2.0, updates=0)
        2.0
    """

    momentum: float | None
    zero_debias: bool = False

    @classmethod
    def of(cls, spec: BatchNormSpec) -> Average:
        """Return the average that the options ask for."""
        return cls(spec.momentum, spec.zero_debias)

    @property
    def counts(self) -> bool:
        """Whether a step depends on how many updates there were."""
        return self.momentum is None or self.zero_debias

    def step(self, old: Array, value: Array, updates: Array = 0) -> Array:
        """Return the statistic after one more value.

        Args:
            old: the statistic so far.
            value: the batch's value.
            updates: how many values ``old`` has followed, floating where it is an array.
        """
        if self.counts or self.momentum is None:
            return old + self.change(old, value, updates)
        return old * self.momentum + value * (1.0 - self.momentum)

    def change(self, old: Array, value: Array, updates: Array = 0) -> Array:
        """Return by how much one more value moves the statistic; see `step`."""
        if self.momentum is None:
            return (value - old) / (updates + 1)
        if self.zero_debias:
            weight = (1.0 - self.momentum) / (1.0 - self.momentum ** (updates + 1))
            return (value - old) * weight
        return (value - old) * (1.0 - self.momentum)


class MovingStatistics(NamedTuple):
    """The moving statistics of one batch norm, arrays of the channel shape.

    Args:
        mean: moving mean.
        variance: moving variance.
        updates: updates that each channel took, floating; None where nothing counts them.
        skipped: updates that each channel left out because the batch was not finite, or None.
        stddev: with renorm, the moving standard deviation, from which the variance derives; None
            where it is taken from the variance.
        renorm_mean: the mean that renorm corrects towards.
        renorm_stddev: the standard deviation that renorm corrects towards.
    """

    mean: Array
    variance: Array
    updates: Array | None = None
    skipped: Array | None = None
    stddev: Array | None = None
    renorm_mean: Array | None = None
    renorm_stddev: Array | None = None


def advance(
    state: MovingStatistics,
    batch: Moments,
    spec: BatchNormSpec,
    xp: Any,
    *,
    finite: bool = False,
) -> MovingStatistics:
    """Move the statistics towards a batch, channel by channel.

    A channel whose batch is empty (count 0) stays as it is; so does, unless the spec says
    ``nonfinite="propagate"``, one whose batch mean or variance is not finite, and the latter is
    counted in ``skipped``. With renorm the moving standard deviation is averaged, the moving
    variance follows as stddev**2 - epsilon, and renorm's own statistics move with
    ``renorm_momentum`` (Ioffe 2017, Algorithm 1).

    Args:
        state: the statistics so far.
        batch: the batch's moments.
        spec: the batch norm's options.
        xp: the array namespace.
        finite: whether the caller knows the batch to be finite in every channel, and not empty;
            nothing is chosen channel by channel then.
    """
    applied, skipped = (None, None) if finite else _verdict(batch, spec, xp)
    average = Average.of(spec)
    updates = 0 if state.updates is None else state.updates

    def taken(old: Array, value: Array) -> Array:
        return value if applied is None else xp.where(applied, value, old)

    def moved(average: Average, old: Array, value: Array) -> Array:
        return taken(old, average.step(old, value, updates))

    variance = batch.sample_variance(xp) if spec.stored_variance == "sample" else batch.variance
    mean = moved(average, state.mean, batch.mean)
    counted = None if state.updates is None else taken(state.updates, state.updates + 1)
    left_out = state.skipped
    if left_out is not None and skipped is not None:
        left_out = xp.where(skipped, left_out + 1, left_out)
    if not spec.renorm:
        variance = moved(average, state.variance, variance)
        rest = (state.stddev, state.renorm_mean, state.renorm_stddev)
        return MovingStatistics(mean, variance, counted, left_out, *rest)
    renorm = Average(spec.renorm_momentum)
    old = xp.sqrt(state.variance + spec.epsilon) if state.stddev is None else state.stddev
    stddev = moved(average, old, xp.sqrt(variance + spec.epsilon))
    derived = stddev * stddev - spec.epsilon
    derived = xp.where(derived > 0, derived, xp.zeros_like(derived))
    return MovingStatistics(
        mean,
        variance=taken(state.variance, derived),
        updates=counted,
        skipped=left_out,
        stddev=None if state.stddev is None else stddev,
        renorm_mean=moved(renorm, state.renorm_mean, batch.mean),
        renorm_stddev=moved(renorm, state.renorm_stddev, xp.sqrt(batch.variance + spec.epsilon)),
    )


def changes(
    state: MovingStatistics, batch: Moments, spec: BatchNormSpec, xp: Any
) -> MovingStatistics:
    """Return by how much `advance` moves each statistic, in as few operations as that takes.

    For frameworks whose variables are added to.

    Args:
        state: the statistics so far.
        batch: the batch's moments.
        spec: the batch norm's options.
        xp: the array namespace.
    """
    if spec.renorm or state.updates is not None or state.skipped is not None:
        new = advance(state, batch, spec, xp)
        return MovingStatistics(
            *(None if old is None else b - old for old, b in zip(state, new, strict=True))
        )
    applied, _ = _verdict(batch, spec, xp)
    average = Average.of(spec)

    def change(old: Array, value: Array) -> Array:
        return xp.where(applied, average.change(old, value), xp.zeros_like(old))

    variance = batch.sample_variance(xp) if spec.stored_variance == "sample" else batch.variance
    return MovingStatistics(change(state.mean, batch.mean), change(state.variance, variance))


def _verdict(batch: Moments, spec: BatchNormSpec, xp: Any) -> tuple[Array, Array]:
    """Return, for each channel, whether the batch is taken, and whether it is skipped."""
    finite = finite_channels(batch, xp)
    guarded = spec.nonfinite != "propagate"
    if guarded and _is_number(batch.count) and batch.count > 0:
        return finite, ~finite
    filled = batch.count > 0
    if guarded:
        return finite & filled, ~finite & filled
    none = xp.zeros_like(finite)
    return none | filled, none


class RenormCorrection(NamedTuple):
    """Batch renormalization's constants: y = gamma * (x_hat * r + d) + beta."""

    r: Array
    d: Array


def renorm_correction(
    batch: Moments,
    renorm_mean: Array,
    renorm_stddev: Array,
    epsilon: float,
    clipping: RenormClipping,
    xp: Any,
) -> RenormCorrection:
    """Return r = clip(s_B / s, rmin, rmax) and d = clip((m_B - m) / s, -dmax, dmax).

    s_B = sqrt(variance_B + epsilon); s = max(renorm_stddev, sqrt(epsilon)) (Ioffe 2017,
    Algorithm 1). Where the batch or the statistics are not finite, r = 1 and d = 0.

    Args:
        batch: moments of the batch.
        renorm_mean: the mean that renorm corrects towards, of the channel shape.
        renorm_stddev: the standard deviation that it corrects towards.
        epsilon: the batch norm's epsilon.
        clipping: bounds of r and d.
        xp: the array namespace.
    """
    floor = epsilon**0.5
    stddev = xp.where(renorm_stddev > floor, renorm_stddev, floor)
    r = xp.sqrt(batch.variance + epsilon) / stddev
    d = (batch.mean - renorm_mean) / stddev
    if clipping.rmin is not None:
        r = xp.where(r < clipping.rmin, clipping.rmin, r)
    if clipping.rmax is not None:
        r = xp.where(r > clipping.rmax, clipping.rmax, r)
    if clipping.dmax is not None:
        d = xp.where(d < -clipping.dmax, -clipping.dmax, d)
        d = xp.where(d > clipping.dmax, clipping.dmax, d)
    known = xp.isfinite(r) & xp.isfinite(d)
    return RenormCorrection(xp.where(known, r, 1.0), xp.where(known, d, 0.0))


def corrected(
    gamma: Array | None, beta: Array | None, correction: RenormCorrection
) -> tuple[Array, Array]:
    """Return gamma * r and beta + gamma * d: (x_hat * r + d) * gamma + beta (Ioffe 2017).

    Args:
        gamma: of r's dtype, or None for 1.
        beta: of d's dtype, or None for 0.
        correction: renorm's r and d.
    """
    r, d = correction
    if gamma is not None:
        r, d = gamma * r, gamma * d
    return r, d if beta is None else beta + d
