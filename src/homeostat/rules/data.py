"""Rules of what data shows: moving against observed statistics, and what the difference does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from homeostat.moments import Moments
from homeostat.rules.findings import Severity, Skipped
from homeostat.rules.noise import ERRORS, estimate_stray, expected_variance
from homeostat.rules.registry import ModelSubject, NormSubject, Outcome, count_channels, rule

Array = np.ndarray[Any, np.dtype[Any]]

MOVING = ("moving_mean", "moving_variance", "epsilon")


@rule("BN040", "warning", needs=("data",), fields=MOVING)
def mean_shift(subject: NormSubject) -> Iterator[Outcome]:
    """Moving means are not the means of the data.

    What it does:
        Runs the data with every norm on its batch's statistics, and compares each channel's pooled
        mean m with the moving mean: |m − moving mean| / sqrt(moving variance + epsilon). Above
        `mean-shift` (0.5) and four standard errors of the difference the channel has shifted. The
        error is taken from the spread of the batches, so that few or small ones raise no alarm.

        From `shifted-share` (10 %) of the channels on it is a warning, below that a piece of
        information; it is an error where the root mean square over the norm is 1 or more. Moving
        means of healthy networks trail their data by up to 0.3 standard deviations, since
        augmentation differs and weights move on.

        For the 16 worst norms with a warning or an error, the first 4 batches tell what it does to
        the model: how many examples get another class, or how much the outputs change, and given
        labels the accuracy, when this norm alone takes the batch's statistics. Errors of several
        norms can also make up for each other; of the model as a whole BN043 and BN044 speak.

    Why is this bad:
        At inference each shifted channel is off by gamma times this number, for every input, and
        the layers behind see what they never saw in training.

    What to do instead:
        Make sure that the data is preprocessed as in training. If it is, estimate the statistics
        with `homeostat recalibrate`.

    Fix safety:
        Safe if the data is like that of training or of use; look at the accuracy before and after.
    """
    seen = _observed(subject)
    if not isinstance(seen, Moments):
        if seen is not None:
            yield seen
        return
    scale = np.sqrt(np.maximum(subject.variance, 0) + subject.epsilon)
    shift = (seen.mean - subject.mean) / scale
    stray = estimate_stray(subject.norm, subject.seen, seen).mean / scale
    yield from _compare(subject, shift, stray, subject.settings.thresholds.mean_shift, 1.0, _means)


def _means(number: str, worst: float, root: float) -> str:
    return (
        f"the data's mean is {worst:.2f} standard deviations off at worst (root mean square "
        f"{root:.2f}); {number} too far off."
    )


@rule("BN041", "warning", needs=("data",), fields=MOVING)
def variance_shift(subject: NormSubject) -> Iterator[Outcome]:
    """Moving variances are not the variances of the data.

    What it does:
        As BN040 for variances: compares the logarithm of (observed variance + epsilon) / (moving
        variance + epsilon) of each channel with `log-variance-ratio` (0.7, a factor of 2) and four
        standard errors. A stored sample variance is compared with the data's sample variance.

        From `shifted-share` (10 %) of the channels on it is a warning, below that a piece of
        information; it is an error where the root mean square over the norm is 1.4, a factor of
        4, or more.

    Why is this bad:
        Channels come out too large or too small by the root of the ratio. Over many layers that
        multiplies: ten norms with a factor of 2 make a factor of 32.

    What to do instead:
        As for BN040. If the data is right and has always been, look for a dropout before the norm
        (BN032), a cold start (BN020) or a shared norm (BN034).

    Fix safety:
        As for BN040.
    """
    seen = _observed(subject)
    if not isinstance(seen, Moments):
        return
    epsilon = subject.epsilon
    observed = expected_variance(subject.norm, subject.seen, seen) + epsilon
    ratio = np.log(observed / (np.maximum(subject.variance, 0) + epsilon))
    # An error of the variance counts less where epsilon makes up most of the sum.
    share = np.asarray(seen.variance, np.float64) / observed
    stray = estimate_stray(subject.norm, subject.seen, seen).log_variance * share
    limit = subject.settings.thresholds.log_variance_ratio
    yield from _compare(subject, ratio, stray, limit, 1.4, _variances)


def _variances(number: str, worst: float, root: float) -> str:
    more = "larger" if worst > 0 else "smaller"
    return (
        f"the data's variance is up to {np.exp(min(abs(worst), 300)):.3g} times {more} (root mean "
        f"square of the logarithm {root:.2f}); {number} too far off."
    )


def _observed(subject: NormSubject) -> Moments | Skipped | None:
    """Return the data's moments of the norm's inputs, or why there are none to compare."""
    seen = subject.seen.inputs.get(subject.norm.name)
    if seen is None:
        return subject.skip("no batch of the data came to it.")
    if np.shape(seen.mean) != subject.mean.shape:
        return subject.skip("the data gave it another number of channels.")
    if not (np.isfinite(seen.mean) & np.isfinite(seen.variance)).any():
        return subject.skip("its inputs are not finite on this data. Look at the norms before it.")
    return seen


def _compare(
    subject: NormSubject, value: Array, stray: Array, limit: float, severe: float, describe: Any
) -> Iterator[Outcome]:
    finite = np.isfinite(value)
    value = np.where(finite, value, 0.0)
    shifted = np.abs(value) > limit + ERRORS * np.where(np.isfinite(stray), stray, np.inf)
    number = np.count_nonzero(shifted)
    if not number:
        return
    root = float(np.sqrt(np.mean(value[finite] ** 2)))
    worst = float(value[np.argmax(np.abs(value))])
    severity: Severity = "info"
    if number >= subject.settings.thresholds.shifted_share * value.size:
        severity = "error" if root >= severe else "warning"
    message = describe(f"{count_channels(shifted)} {'is' if number == 1 else 'are'}", worst, root)
    effect, figures = _effect(subject) if severity != "info" else ("", {})
    yield subject.find(
        message + effect, shifted, severity=severity,
        affected=number, worst=worst, root_mean_square=root, **figures,
    )  # fmt: skip


def _effect(subject: NormSubject) -> tuple[str, dict[str, float]]:
    """Return in words and numbers what changes when this norm alone takes the batch's statistics.

    ``change`` is relative to the spread of the outputs, ``changed`` a share of examples, and
    ``drop`` the accuracy that its moving statistics cost.
    """
    alone = subject.seen.alone.get(subject.norm.name)
    if alone is None or not np.isfinite(alone.difference):
        return "", {}
    figures = {"change": alone.difference}
    if alone.agreement is None:
        text = f"the outputs change by {alone.difference:.2f} of their spread"
    else:
        figures["changed"] = 1 - alone.agreement
        text = f"{1 - alone.agreement:.1%} of {alone.examples:,} examples get another class"
    if alone.inference_accuracy is not None and alone.batch_accuracy is not None:
        figures["drop"] = alone.batch_accuracy - alone.inference_accuracy
        text += f", and accuracy is {alone.batch_accuracy:.1%} instead of "
        text += f"{alone.inference_accuracy:.1%}"
    return f" With the batch's statistics in this norm alone {text}.", figures


@rule("BN042", "warning", needs=("data",), fields=("moving_variance", "stored_variance"))
def variance_convention(subject: NormSubject) -> Iterator[Outcome]:
    """Moving variances hold the other kind of variance than the framework means.

    What it does:
        PyTorch stores sample variances, divided by n − 1; Keras 3 and flax store population
        variances, divided by n. With small batches the two differ by n / (n − 1) at every channel
        alike. The rule averages log(moving / observed variance of a batch) over the channels and
        speaks where that fits the other kind, within two standard errors and a quarter of the
        difference, and is more than four errors from its own.

        It needs the data in batches of training's size, of at most `convention-elements` (16)
        elements for each channel, 8 such batches and 8 channels. Above 16 the kinds differ by less
        than 7 %, which trained weights hide and networks do not feel.

    Why is this bad:
        It is the mark of a conversion that copied the numbers and not their meaning. Every channel
        of every norm comes out too small or too large by the same factor; the factors multiply
        from layer to layer.

    What to do instead:
        Convert with `homeostat convert`, which translates the variance, or estimate the statistics
        with `homeostat recalibrate`.

    Fix safety:
        Safe.
    """
    count, logs = _log_ratios(subject)
    own = subject.norm.stored_variance
    if logs is None or own is None:
        yield subject.skip(
            "it takes 8 batches of 2 to "
            f"{subject.settings.thresholds.convention_elements:g} elements for each channel, and 8 "
            "channels, to tell the kinds of variance apart."
        )
        return
    difference = float(np.log(count / (count - 1)))
    found, error = float(logs.mean()), float(logs.std(ddof=1) / np.sqrt(logs.size))
    expected, other = (difference, 0.0) if own == "sample" else (0.0, difference)
    near = abs(found - other) < min(2 * error, 0.25 * difference)
    if near and abs(found - expected) > 4 * error:
        kind = "population" if own == "sample" else "sample"
        yield subject.find(
            f"its variances are {np.exp(found):.3f} times those of batches of {count:g} elements: "
            f"it holds {kind} variances, but stands for {own} variances.",
            ratio=float(np.exp(found)),
            elements=count,
        )


def _log_ratios(subject: NormSubject) -> tuple[float, Array | None]:
    """Return the size of the batches, and log(moving / mean batch variance) of each channel."""
    batches = subject.seen.batch_moments.get(subject.norm.name, ())
    counts = [float(np.max(batch.count)) for batch in batches]
    count = float(np.median(counts)) if counts else 0.0
    alike = [batch for batch, size in zip(batches, counts, strict=True) if size == count]
    if len(alike) < 8 or not 2 <= count <= subject.settings.thresholds.convention_elements:
        return count, None
    if any(np.shape(batch.variance) != subject.variance.shape for batch in alike):
        return count, None
    within = np.mean([np.asarray(batch.variance, np.float64) for batch in alike], axis=0)
    logs = np.log(subject.variance / within)
    logs = logs[np.isfinite(logs)]
    return count, logs if logs.size >= 8 else None


@rule("BN043", "warning", needs=("data",), whole=True)
def outputs_disagree(subject: ModelSubject) -> Iterator[Outcome]:
    """The model says something else with moving statistics than with the batch's.

    What it does:
        Runs the data both ways, dropout off. Where outputs are classes, the share of examples that
        both put into the same class must be at least `agreement` (80 %); below 50 % it is an
        error. Otherwise the root mean square of the difference, relative to that of the outputs
        around their mean, may be at most `difference` (0.5); from 1 on it is an error. Outputs
        that are not finite are an error.

        Some difference is natural: batches of 32 move about one of ten ImageNet predictions.
        If there are labels and moving statistics are right more often, or the data is one batch of
        fewer than 16 examples, it is a piece of information: then it is the batches that are no
        measure, because they are small or sorted by class.

    Why is this bad:
        Training saw the network with batch statistics. If inference with moving ones is another
        network, its loss and accuracy in training say nothing of it.

    What to do instead:
        See which norms shift (BN040, BN041), and estimate the statistics with
        `homeostat recalibrate`.

    Fix safety:
        Safe if the data is like that of training.
    """
    behaviour = subject.seen.behaviour
    if behaviour is None:
        yield subject.skip("the outputs were not compared.")
        return
    thresholds, agreement, difference = (
        subject.settings.thresholds, behaviour.agreement, behaviour.difference,
    )  # fmt: skip
    figures = {"difference": difference, "examples": behaviour.examples}
    if np.isnan(difference):
        yield subject.find("outputs are not finite.", severity="error", **figures)
        return
    if agreement is not None:
        bad, severe = agreement < thresholds.agreement, agreement < 0.5
        figures["agreement"] = agreement
        message = f"{agreement:.1%} of {behaviour.examples:,} examples get the same class"
    else:
        bad, severe = difference > thresholds.difference, difference >= 1
        message = (
            f"outputs of {behaviour.examples:,} examples differ by {difference:.2f} of their spread"
        )
    if bad:
        severity: Severity = "error" if severe else "warning"
        right, batch = behaviour.inference_accuracy, behaviour.batch_accuracy
        if behaviour.examples < 16 or (right is not None and batch is not None and right >= batch):
            severity = "info"
        yield subject.find(
            f"{message} with moving and with batch statistics.", severity=severity, **figures
        )


@rule("BN044", "warning", needs=("data", "labels"), whole=True)
def accuracy_drop(subject: ModelSubject) -> Iterator[Outcome]:
    """Moving statistics cost accuracy.

    What it does:
        Compares the share of right classes with moving statistics and with the batch's, on data
        with labels. A loss above `accuracy-drop` (2 points) and two standard errors of the
        difference is a warning, from 10 points on an error.

    Why is this bad:
        It is accuracy that the network has learned and does not show. This is what users get.

    What to do instead:
        Estimate the statistics with `homeostat recalibrate`. The rules BN001, BN020, BN040 and
        BN041 say what is wrong with them.

    Fix safety:
        Safe if the data is like that of training.
    """
    behaviour = subject.seen.behaviour
    if (
        behaviour is None
        or behaviour.inference_accuracy is None
        or behaviour.batch_accuracy is None
    ):
        yield subject.skip("accuracies were not compared.")
        return
    drop = behaviour.batch_accuracy - behaviour.inference_accuracy
    # Only examples that get another class can change the accuracy (McNemar 1947).
    changed = 1.0 if behaviour.agreement is None else 1 - behaviour.agreement
    error = np.sqrt(max(changed, 0.0) / max(behaviour.examples, 1))
    if drop > subject.settings.thresholds.accuracy_drop + 2 * error:
        yield subject.find(
            f"accuracy is {behaviour.inference_accuracy:.1%} with moving statistics and "
            f"{behaviour.batch_accuracy:.1%} with the batch's, on {behaviour.examples:,} examples.",
            severity="error" if drop >= 0.1 else "warning",
            drop=drop,
            inference=behaviour.inference_accuracy,
            batch=behaviour.batch_accuracy,
        )
