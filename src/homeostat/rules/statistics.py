"""Rules of moving statistics: what they are, whatever the model around them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from homeostat.rules.precision import precision
from homeostat.rules.registry import NormSubject, Outcome, count_channels, rule

STATISTICS = ("moving_mean", "moving_variance")


@rule("BN001", "error", fields=STATISTICS)
def never_updated(subject: NormSubject) -> Iterator[Outcome]:
    """Moving statistics are those that norms are built with.

    What it does:
        Finds norms whose moving mean is exactly 0 and whose moving variance is exactly 1 at every
        channel. No average of real batches is that.

    Why is this bad:
        At inference such a norm normalizes nothing: it passes its input on, scaled by gamma. A
        network that trained well on its batches' statistics is then often no better than chance.

        The usual causes: a TensorFlow 1 training step that does not run `UPDATE_OPS`; a norm that
        was called with `training=False`, or left in `eval()`, while it trained; weights that were
        loaded without the statistics; a model that is not trained at all.

    What to do instead:
        Mend the training step, or estimate the statistics from training data with
        `homeostat recalibrate`.

    Fix safety:
        Safe. Recalibration writes statistics and touches no parameter.
    """
    if not subject.at_start:
        return
    norm = subject.norm
    start = f"moving mean 0 and variance 1 at {count_channels(subject.mean == 0)}"
    if norm.updates:
        tail = f" although {norm.updates:,} updates are counted: they were reset or overwritten"
    elif _affine_moved(subject):
        tail = ": gamma or beta has been trained, but no batch has moved the statistics"
    else:
        tail = ": no batch has moved them, and gamma and beta are at their start too"
    if norm.updates == 0:
        tail += " (updates = 0)"
    yield subject.find(start + tail + ".", updates=norm.updates or 0)


def _affine_moved(subject: NormSubject) -> bool:
    arrays = subject.norm.arrays
    moved = "gamma" in arrays and not np.isin(subject.gamma, (0, 1)).all()
    return bool(moved or ("beta" in arrays and (subject.beta != 0).any()))


@rule("BN002", "error")
def nonfinite_statistics(subject: NormSubject) -> Iterator[Outcome]:
    """Moving statistics hold NaN or infinity.

    What it does:
        Finds channels whose moving mean or moving variance is not finite.

    Why is this bad:
        At inference these channels give NaN, or nothing but beta, for every input. One batch with
        a single NaN is enough: a moving average never forgets it.

    What to do instead:
        Look for what made the batch (a bad example, an overflow in float16), skip such updates as
        `homeostat.keras` and `homeostat.torch` do, and estimate the statistics again with
        `homeostat recalibrate`.

    Fix safety:
        Safe, as long as the parameters are finite (see BN010).
    """
    yield from subject.find_nonfinite(STATISTICS)


@rule("BN003", "error", fields=("moving_variance",))
def negative_variance(subject: NormSubject) -> Iterator[Outcome]:
    """A moving variance is negative.

    What it does:
        Finds channels whose moving variance is below 0, and says where adding epsilon does not
        mend it.

    Why is this bad:
        No data has a negative variance. It comes from E[x²] − E[x]² in too few digits, from an
        update by an unclamped sample correction, or from a file that was written wrongly. Where
        variance + epsilon is below 0 the output is NaN.

    What to do instead:
        Compute variances around their mean, as `homeostat` does, and estimate these again with
        `homeostat recalibrate`.

    Fix safety:
        Safe.
    """
    negative = subject.variance < 0
    if not negative.any():
        return
    message = (
        f"negative moving variance at {count_channels(negative)}, down to "
        f"{subject.variance[negative].min():.3g}"
    )
    if subject.norm.epsilon is not None:
        fatal = np.count_nonzero(subject.variance + subject.norm.epsilon <= 0)
        message += f"; {fatal} of them give NaN or infinity" if fatal else "; epsilon covers it"
    yield subject.find(
        message + ".",
        negative,
        affected=np.count_nonzero(negative),
        worst=subject.variance[negative].min(),
    )


@rule("BN004", "warning", fields=("moving_variance",))
def vanishing_variance(subject: NormSubject) -> Iterator[Outcome]:
    """A moving variance is nothing beside epsilon: the channel's input is constant.

    What it does:
        Finds channels whose moving variance is below `vanishing-variance` (0.001) of epsilon. From
        `dead-share` (half) of a norm's channels on it is a warning, below that a piece of
        information: networks that are trained on ImageNet with weight decay have such channels
        in many layers, and work. Where a file does not tell epsilon, it is taken as 1e-5.

    Why is this bad:
        These channels carry nothing, but cost as much as others. If at inference their input is
        not constant after all, it is multiplied by gamma / sqrt(epsilon): 316 times gamma at an
        epsilon of 1e-5.

    What to do instead:
        If half of a layer is dead, look at its activation, its learning rate and its start. Dead
        channels can be pruned: with the moving mean they amount to a constant.
    """
    epsilon, told = subject.suppose_epsilon(1e-5)
    limit = subject.settings.thresholds.vanishing_variance * epsilon
    variance = subject.variance
    vanishing = (variance >= 0) & (variance < limit)
    number = np.count_nonzero(vanishing)
    if not number:
        return
    many = number >= subject.settings.thresholds.dead_share * vanishing.size
    yield subject.find(
        f"variance below {limit:.3g}, nothing beside epsilon {epsilon:g}{told}, at "
        f"{count_channels(vanishing)}; the smallest is {variance[vanishing].min():.3g}.",
        vanishing,
        severity="warning" if many else "info",
        affected=number,
        worst=variance[vanishing].min(),
    )


@rule("BN005", "warning", fields=STATISTICS)
def exploded_mean(subject: NormSubject) -> Iterator[Outcome]:
    """The mean is so many standard deviations from 0 that digits are lost.

    What it does:
        Compares |mean| / sqrt(variance + epsilon) of each channel with what the dtype can hold.
        Rounding an input near the mean moves it by |mean| · u, with u half the distance of 1 to
        the next number: that must stay below `rounding` (0.05) standard deviations, which allows
        a ratio of 102 in float16 and 12.8 in bfloat16. In any dtype the ratio must stay below
        `mean-to-std` (1000), where a variance taken as E[x²] − E[x]² in float32 is off by 6 %.
        Behind a linear operation the ratio is seldom above 10. It is an error where rounding alone
        moves inputs by a standard deviation. Where a file tells no epsilon, it is taken as 1e-3.

    Why is this bad:
        The norm subtracts two large numbers that are nearly the same. Its output is then rounding
        noise, and differs from one machine, batch size or runtime to the next. It becomes worse
        when the norm is folded or the model is moved to fewer bits.

    What to do instead:
        Take the mean off the inputs, drop the large bias before the norm, or keep this layer in
        float32. Dead inputs (see BN004) raise the ratio too.
    """
    roundoff = precision(subject.norm.dtype).roundoff
    thresholds = subject.settings.thresholds
    epsilon, _ = subject.suppose_epsilon(1e-3)
    deviation = np.sqrt(np.maximum(subject.variance, 0) + epsilon)
    ratio = np.abs(subject.mean) / deviation
    ratio[~np.isfinite(ratio)] = 0
    limit = min(thresholds.mean_to_std, thresholds.rounding / roundoff)
    exploded = ratio > limit
    if not exploded.any():
        return
    worst = ratio.max()
    yield subject.find(
        f"|mean| / std above {limit:.3g} at {count_channels(exploded)}, up to {worst:.3g}; "
        f"rounding moves inputs there by {worst * roundoff:.2g} standard deviations.",
        exploded,
        severity="error" if worst * roundoff >= 1 else "warning",
        affected=np.count_nonzero(exploded),
        worst=worst,
    )
