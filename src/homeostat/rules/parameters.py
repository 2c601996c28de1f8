"""Rules of gamma, beta and epsilon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from homeostat.models import BatchNormRecord
from homeostat.rules.precision import Precision, precision
from homeostat.rules.registry import ModelSubject, NormSubject, Outcome, count_channels, rule

Array = np.ndarray[Any, np.dtype[Any]]


@rule("BN010", "error")
def nonfinite_parameters(subject: NormSubject) -> Iterator[Outcome]:
    """Gamma or beta holds NaN or infinity.

    What it does:
        Finds channels whose gamma or beta is not finite.

    Why is this bad:
        These channels, and soon the whole network behind them, give NaN for every input. Training
        diverged, or the file is damaged.

    What to do instead:
        Go back to a checkpoint from before; lower the learning rate, clip gradients, or scale the
        loss in float16. No data brings lost parameters back.
    """
    yield from subject.find_nonfinite(("gamma", "beta"))


@rule("BN011", "warning", fields=("gamma",))
def dead_channels(subject: NormSubject) -> Iterator[Outcome]:
    """Gamma is exactly 0: the channel's output does not depend on its input.

    What it does:
        Finds channels whose gamma is exactly 0, and says where beta is 0 too. From `dead-share`
        (half) of a norm's channels on it is a warning, below that a piece of information, since
        pruning by gamma leaves such channels on purpose. A norm that is 0 everywhere and was never
        updated is left alone: residual blocks are often built like that.

    Why is this bad:
        The channel is a constant, and so is all that was computed for it. In a norm that is 0
        everywhere a whole branch is off.

    What to do instead:
        Remove the channels from the layer before and behind; the constant beta goes into the next
        bias. If nobody pruned, look for a penalty that pulls gamma to 0.
    """
    dead = subject.gamma == 0
    number = np.count_nonzero(dead)
    arrays = subject.norm.arrays
    fresh = {"moving_mean", "moving_variance"} <= set(arrays) and subject.at_start
    if not number or (number == dead.size and (fresh or subject.norm.updates == 0)):
        return
    message = f"gamma is exactly 0 at {count_channels(dead)}"
    if "beta" not in arrays:
        message += ", whose output is 0"
    else:
        silent = np.count_nonzero(subject.beta[dead] == 0)
        message += f"; {silent} of them put out 0, {number - silent} a constant beta"
    many = number >= subject.settings.thresholds.dead_share * dead.size
    yield subject.find(message + ".", dead, severity="warning" if many else "info", affected=number)


@rule("BN012", "warning", fields=("gamma",))
def vanishing_gamma(subject: NormSubject) -> Iterator[Outcome]:
    """Gamma is nearly 0 at every channel.

    What it does:
        Finds norms whose largest |gamma| is above 0, but below `vanishing-gamma` (0.001). In
        trained networks it is between 0.01 and 10, in residual blocks that start at 0 too.

    Why is this bad:
        The branch puts out next to nothing beside what it is added to or normalized with; it is
        paid for at every inference. In float16 its products underflow.

    What to do instead:
        Look for weight decay that also pulls gamma, for a learning rate that killed the layer, or
        remove the branch.
    """
    largest = np.abs(subject.gamma).max()
    if 0 < largest < subject.settings.thresholds.vanishing_gamma:
        yield subject.find(
            f"the largest |gamma| of {subject.gamma.size} channels is {largest:.3g}.", worst=largest
        )


@rule("BN013", "warning", fields=("moving_variance", "epsilon"))
def tiny_epsilon(subject: NormSubject) -> Iterator[Outcome]:
    """Epsilon is too small for the dtype to keep it.

    What it does:
        Rounds variance and epsilon to the dtype that the norm computes in. It is an error where
        their sum is 0 or epsilon is negative or not finite, and a warning where a sum is below the
        smallest normal number. Keras and PyTorch compute norms of float16 and bfloat16 inputs in
        float32; where the inputs' own dtype would not keep epsilon that is a piece of information:
        float16 has no normal numbers below 6.1e-5 and nothing below 6e-8.

    Why is this bad:
        Epsilon is there so that nothing is divided by 0. Rounded to 0 it is not there, and a
        channel with a vanishing variance gives infinity; as a subnormal number it has few digits,
        and many processors flush it to 0. Runtimes for small devices do compute in float16.

    What to do instead:
        Use 1e-3 for float16, and keep the norm in float32 under mixed precision.
    """
    epsilon, dtype = subject.epsilon, subject.norm.dtype
    if not (np.isfinite(epsilon) and epsilon >= 0):
        yield subject.find(f"epsilon is {epsilon:g}, which is no number above 0.", severity="error")
        return
    narrow = dtype in ("float16", "bfloat16")
    limits = precision("float32" if narrow else dtype)
    zero, subnormal = _lost(subject, limits)
    if zero.any():
        yield subject.find(
            f"epsilon {epsilon:g} and the variance are both 0 at {count_channels(zero)}: they are "
            "divided by 0.",
            zero, severity="error", affected=np.count_nonzero(zero),
        )  # fmt: skip
    elif subnormal.any():
        yield subject.find(
            f"variance + epsilon is below the smallest normal number {limits.normal:.2g} at "
            f"{count_channels(subnormal)}.",
            subnormal, affected=np.count_nonzero(subnormal),
        )  # fmt: skip
    elif narrow and 0 < epsilon < precision(dtype).normal:
        zero, subnormal = _lost(subject, precision(dtype))
        bad = zero if zero.any() else subnormal
        what = "variance + epsilon would be 0" if zero.any() else "their sum would be too"
        tail = f"{what} at {count_channels(bad)}" if bad.any() else "no variance here is as small"
        yield subject.find(
            f"epsilon {epsilon:g} is below the smallest normal number "
            f"{precision(dtype).normal:.2g} of {dtype}; where a norm computes in that, {tail}.",
            bad if bad.any() else None,
            severity="info",
        )


def _lost(subject: NormSubject, limits: Precision) -> tuple[Array, Array]:
    """Return where variance + epsilon is 0 in a dtype, and where it has few digits or none."""
    variance = np.where(subject.variance >= limits.smallest / 2, subject.variance, 0)
    kept = subject.epsilon if subject.epsilon > limits.smallest / 2 else 0.0
    # NaN and negative variances are other rules' findings.
    total = np.where(subject.variance >= 0, variance + kept, 1)
    return total == 0, total < limits.normal


@rule("BN014", "warning", fields=("moving_variance", "epsilon"))
def dominating_epsilon(subject: NormSubject) -> Iterator[Outcome]:
    """Epsilon is large beside most channels' variance.

    What it does:
        Counts channels whose epsilon is more than `epsilon-to-variance` (half) of their variance,
        and speaks when that is more than half of the channels that do not vanish (see BN004). At
        half the variance a channel's outputs have 0.82 of the standard deviation that gamma asks
        for.

    Why is this bad:
        The norm does not normalize: its outputs depend on the scale of its inputs again, and so
        does training. After a change of epsilon (Keras builds with 1e-3, PyTorch with 1e-5) such a
        model puts out something else altogether.

    What to do instead:
        Use a smaller epsilon when training, or larger inputs. A model that was trained with this
        epsilon needs it at inference too.
    """
    thresholds, variance = subject.settings.thresholds, subject.variance
    alive = variance >= thresholds.vanishing_variance * subject.epsilon
    dominated = alive & (subject.epsilon > thresholds.epsilon_to_variance * variance)
    if 2 * np.count_nonzero(dominated) > np.count_nonzero(alive):
        middle = np.median(variance[alive])
        yield subject.find(
            f"epsilon {subject.epsilon:g} is above {thresholds.epsilon_to_variance:g} of the "
            f"variance at {count_channels(dominated)}, whose median is {middle:.3g}.",
            dominated,
            affected=np.count_nonzero(dominated),
            median=middle,
        )


@rule("BN015", "info", whole=True)
def mixed_epsilon(subject: ModelSubject) -> Iterator[Outcome]:
    """Norms of one model have different epsilons.

    What it does:
        Names the norms whose epsilon differs from that of most norms by a factor of 10 or more. It
        is a warning where the other epsilon would change the scale of half of the norm's channels
        by more than 5 %.

    Why is this bad:
        Frameworks build with different epsilons: Keras with 1e-3, PyTorch and flax with 1e-5. A
        model with both is often one whose weights came from elsewhere without their epsilon, and
        then its outputs are off wherever variances are small.

    What to do instead:
        Look up the epsilon that the weights were trained with. If parts come from different
        models on purpose, ignore this rule there.
    """
    known = [norm for norm in subject.model.norms if norm.epsilon is not None and norm.epsilon > 0]
    if len(known) < 2:
        return
    [(usual, number)] = Counter(float(norm.epsilon or 0) for norm in known).most_common(1)
    for norm in known:
        epsilon = float(norm.epsilon or 0)
        if max(epsilon / usual, usual / epsilon) < 9.99:
            continue
        change = _change(norm, epsilon, usual)
        yield subject.find(
            f"epsilon {epsilon:g}, where {number} of {len(known)} norms have {usual:g}; with that, "
            f"half of its channels would be scaled by {change:.1%} more or less, or by more.",
            norm=norm.name,
            severity="warning" if change > 0.05 else "info",
            epsilon=epsilon,
            usual=usual,
            change=change,
        )


def _change(norm: BatchNormRecord, epsilon: float, usual: float) -> float:
    """Return by what part the other epsilon changes the median channel's scale."""
    if norm.moving_variance is None or not norm.moving_variance.size:
        return 0.0
    variance = norm.moving_variance.astype(np.float64)
    variance = variance[np.isfinite(variance) & (variance >= 0)]
    if not variance.size:
        return 0.0
    return float(np.median(np.abs(np.sqrt((variance + epsilon) / (variance + usual)) - 1)))
