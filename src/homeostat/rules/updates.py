"""Rules of how moving statistics follow the batches: momentum, counts and modes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from homeostat.models import BatchNormRecord
from homeostat.rules.registry import ModelSubject, NormSubject, Outcome, rule
from homeostat.spec import CONVENTIONS

CONVERTED = (0.9, 0.99, 0.997, 0.999, 0.9997)
"""Momenta that frameworks and model zoos use as weight of the old value."""


@rule("BN020", "warning", fields=("momentum", "moving_mean", "moving_variance"))
def cold_start(subject: NormSubject) -> Iterator[Outcome]:
    """There were too few updates for this momentum: the start still weighs.

    What it does:
        After t updates the start (mean 0, variance 1) has the weight momentum**t in the moving
        statistics. It may be at most `start-weight` (1 %): 44 updates at a momentum of 0.9, 459 at
        0.99, 4,603 at 0.999. From one half on it is an error. Norms that do not count updates had
        as many as the optimizer took steps, if it is the only one that trained them: then it is a
        warning.

        Statistics that cannot have started from 1, because a variance is below the weight that the
        start would have, are left alone: they were loaded from elsewhere. So are all norms without
        counts in a model that has one like that, and cumulative and debiased averages.

    Why is this bad:
        The statistics are a mixture of the data's and of 0 and 1. Where the data's variance is
        0.01, a start that weighs 1 % doubles it, and 50 % multiply it by 50. Validation during
        short trainings then looks far worse than the network is.

    What to do instead:
        Train longer, use a smaller weight of the old value (0.9), or estimate the statistics with
        `homeostat recalibrate`.

    Fix safety:
        Safe.
    """
    norm, updates = subject.norm, subject.norm.updates
    if norm.cumulative or norm.debiased:
        return
    counted = updates is not None
    if updates is None and norm.tracking is not False:
        updates = subject.model.steps
    if updates is None:
        yield subject.skip(
            "the source does not tell how many updates there were. Audit the live model, or a file "
            "that holds that too."
        )
        return
    weight = _start_weight(norm, updates)
    others = (norm,) if counted else subject.model.norms
    loaded = any(_is_loaded(one, updates) for one in others)
    if weight > subject.settings.thresholds.start_weight and not loaded and not subject.at_start:
        seen = f"{updates:,} updates" if counted else f"the {updates:,} steps that were counted"
        yield subject.find(
            f"after {seen} at momentum {subject.momentum:g} the start, mean 0 and variance 1, "
            f"still weighs {weight:.1%}.",
            severity="error" if counted and weight >= 0.5 else "warning",
            updates=updates,
            momentum=subject.momentum,
            weight=weight,
        )


def _start_weight(norm: BatchNormRecord, updates: int) -> float:
    """Return the weight of the start after some updates; 0 where it is not known."""
    momentum = norm.momentum
    if momentum is None or not 0 <= momentum < 1 or updates <= 0:
        return 0.0
    return momentum**updates


def _is_loaded(norm: BatchNormRecord, updates: int) -> bool:
    """Return whether a variance is too small for one that started from 1."""
    if norm.moving_variance is None:
        return False
    # Stored variances are rounded; the start's share is not below this.
    return bool((norm.moving_variance < 0.99 * _start_weight(norm, updates)).any())


@rule("BN021", "warning", fields=("momentum", "moving_mean"))
def short_memory(subject: NormSubject) -> Iterator[Outcome]:
    """The momentum is so small that moving statistics are those of a few batches.

    What it does:
        An average with momentum m is as noisy as the plain mean of (1 + m) / (1 − m) batches: 199
        at 0.99, 19 at 0.9, 3 at 0.5, one at 0. Below `memory` (5 batches, a momentum of 0.67) it
        speaks. Momenta that look like another framework's are BN022's.

    Why is this bad:
        The last batches decide what the network does at inference; accuracy jumps from one
        evaluation to the next.

    What to do instead:
        Use a momentum of at least 0.9 as weight of the old value, and estimate the present
        statistics again with `homeostat recalibrate`.

    Fix safety:
        Safe.
    """
    momentum = subject.momentum
    if _frozen(subject) or not 0 <= momentum < 1 or _complement(momentum) is not None:
        return
    memory = (1 + momentum) / (1 - momentum)
    if memory < subject.settings.thresholds.memory:
        yield subject.find(
            f"momentum {momentum:g} (weight of the old value) averages about {memory:.1f} batches.",
            momentum=momentum,
            memory=memory,
        )


@rule("BN022", "warning", fields=("momentum", "moving_mean"))
def swapped_momentum(subject: NormSubject) -> Iterator[Outcome]:
    """The momentum looks as if it was written in another framework's sense.

    What it does:
        Finds momenta, as weight of the old value, of 0.1, 0.01, 0.003, 0.001 and 0.0003. As weight
        of the new value these are the usual ones. Keras, TensorFlow and flax mean the weight of
        the old value (0.99), PyTorch means that of the new one (0.1 or 0.01).

    Why is this bad:
        With 0.1 for 0.9, each update forgets 90 % of all that was known. Moving statistics are
        then the last batch's, and the mistake shows only as noise at inference.

    What to do instead:
        Use 1 − momentum. What has been trained with the wrong one needs new statistics:
        `homeostat recalibrate`.

    Fix safety:
        Safe.
    """
    meant = _complement(subject.momentum)
    if meant is None or _frozen(subject):
        return
    convention = CONVENTIONS["torch" if subject.model.framework == "torch" else "keras"]
    yield subject.find(
        f"momentum={convention.from_old_weight(subject.momentum):.4g} keeps "
        f"{subject.momentum:.4g} of the old value at each update; "
        f"{convention.from_old_weight(meant):.4g} was probably meant.",
        momentum=subject.momentum,
        meant=meant,
    )


def _complement(momentum: float) -> float | None:
    """Return the usual momentum of which this is the complement."""
    return next((usual for usual in CONVERTED if abs(1 - momentum - usual) < 1e-6), None)


def _frozen(subject: NormSubject) -> bool:
    norm = subject.norm
    return norm.cumulative or norm.tracking is False


@rule("BN023", "warning")
def skipped_updates(subject: NormSubject) -> Iterator[Outcome]:
    """Batches with NaN or infinity were kept out of the moving statistics.

    What it does:
        Reads the counter of skipped updates that norms of `homeostat` have. Above `skipped-share`
        (1 %) of all batches it is a warning. Loss scaling in float16 overflows on purpose about
        once in 2,000 steps, which is less.

    Why is this bad:
        The statistics are whole, but the data or the network before the norm is not: a bad
        example, a division by 0, or a range that float16 does not have.

    What to do instead:
        Find the batches, and look at this norm's input.
    """
    norm = subject.norm
    if not norm.skipped or norm.skipped < 0:
        return
    total = norm.skipped + (norm.updates or 0)
    share = norm.skipped / total
    yield subject.find(
        f"{norm.skipped:,} of {total:,} batches were not finite and are not in the statistics."
        if norm.updates is not None
        else f"{norm.skipped:,} batches were not finite and are not in the statistics.",
        severity="warning" if share > subject.settings.thresholds.skipped_share else "info",
        skipped=norm.skipped,
        share=share,
    )


@rule("BN024", "warning", fields=("trainable", "tracking", "moving_mean"))
def frozen_apart(subject: NormSubject) -> Iterator[Outcome]:
    """Parameters are frozen while statistics move, or the other way round.

    What it does:
        Compares whether training moves gamma and beta with whether it moves the statistics. Frozen
        parameters with moving statistics are a warning; frozen statistics with trained parameters
        are a piece of information, since fine-tuning does so on purpose. Norms without gamma and
        beta are left alone.

    Why is this bad:
        A layer that was frozen to stay as it was does not: its moving statistics drift towards the
        new data, and the frozen layers behind it get inputs that they never saw. In PyTorch
        `requires_grad = False` freezes no statistics; only `eval()` does, until the next `train()`.

    What to do instead:
        Freeze both, with `homeostat.freeze.freeze`, or neither.
    """
    norm = subject.norm
    if norm.gamma is None and norm.beta is None:
        return
    if norm.tracking and not norm.trainable:
        yield subject.find("training moves the statistics, but gamma and beta are frozen.")
    elif norm.trainable and not norm.tracking:
        yield subject.find(
            "training moves gamma and beta, but the statistics are frozen.", severity="info"
        )


@rule("BN025", "warning")
def batch_statistics(subject: NormSubject) -> Iterator[Outcome]:
    """At inference the norm takes its statistics from the batch.

    What it does:
        Finds norms without moving statistics, and norms that are in training mode while others
        are not. If the whole model is in training mode, but for norms that are frozen by that, it
        is a piece of information.

    Why is this bad:
        What the network says of one example depends on the others in its batch, and an example
        alone comes out as beta. Results cannot be repeated, and differ with the batch size.

    What to do instead:
        Keep moving statistics (`track_running_stats=True`) and switch the model to inference:
        `model.eval()`, or `training=False`. Missing statistics can be estimated from data.
    """
    norm = subject.norm
    if "training" in norm.unknown and norm.moving_mean is not None:
        yield subject.skip("the source does not tell its mode. Audit the live model.")
    elif {"moving_mean", "moving_variance"} & norm.unknown:
        yield subject.skip("the source does not tell whether it has moving statistics.")
    elif norm.moving_mean is None or norm.moving_variance is None:
        yield subject.find("it has no moving statistics, so inference takes the batch's.")
    elif norm.training:
        # A norm in eval mode in a model that trains is frozen, and says nothing of the others.
        alone = any(
            other.training is False and other.tracking is not False for other in subject.model.norms
        )
        mixed = "it is in training mode, though other norms of the model are not."
        yield subject.find(
            mixed if alone else "it is in training mode, as the whole model is.",
            severity="warning" if alone else "info",
        )


@rule("BN026", "warning", needs=("batch size",))
def few_elements(subject: NormSubject) -> Iterator[Outcome]:
    """An update takes its statistics over too few elements.

    What it does:
        Multiplies the batch size of training with the positions that the norm's input has for each
        channel, which the model's graph or data tells. Below `elements` (16) a batch's variance is
        off by more than a third (its relative standard error is the root of 2 / (n − 1)). Below
        `examples` (4) in a batch it speaks too, however many positions there are: those of one
        image are much alike. One element for each channel is an error: its variance is 0. Norms
        with frozen statistics are left alone.

    Why is this bad:
        The noise of the statistics is the noise of the network. Below 8 images its error rises
        steeply (Wu & He 2018, "Group Normalization", figure 1), and moving statistics of small
        batches fit no batch that inference sees.

    What to do instead:
        Use larger batches, statistics over all replicas or micro-batches, batch renormalization,
        or group normalization.
    """
    if subject.norm.tracking is False:
        return
    size, limits = subject.settings.batch_size or 1, subject.settings.thresholds
    positions = _positions(subject)
    elements = None if positions is None else size * positions
    if elements is None and size >= limits.examples:
        yield subject.skip("neither the graph nor data tells the size of its input.")
    elif elements is not None and elements < limits.elements:
        noise = np.sqrt(2 / (elements - 1)) if elements > 1 else np.inf
        off = f"by about {noise:.0%}" if elements > 1 else "altogether: it is 0"
        yield subject.find(
            f"an update of {size} examples has {elements:g} elements for each channel; its "
            f"variance is off {off}.",
            severity="error" if elements <= 1 else "warning",
            elements=elements,
            examples=size,
        )
    elif size < limits.examples:
        yield subject.find(
            f"an update takes its statistics over {size} "
            f"{'example' if size == 1 else 'examples'} only.",
            examples=size,
        )


def _positions(subject: NormSubject) -> float | None:
    """Return how many elements of each channel an example has at least; None if not known."""
    seen = subject.observation
    if seen is not None and subject.norm.name in seen.inputs and seen.examples:
        uses = max(len(subject.norm.operations), 1)
        found = float(np.min(seen.inputs[subject.norm.name].count)) / seen.examples / uses
        return found if np.isfinite(found) and found > 0 else None
    if subject.model.graph is None:
        return None
    counts = [_count(one.shape, subject.norm.channels) for one in subject.operations]
    return min((count for count in counts if count is not None), default=None)


def _count(shape: tuple[int | None, ...] | None, channels: int | None) -> int | None:
    if shape is None or channels is None or len(shape) < 2 or channels not in shape[1:]:
        return None
    sizes = list(shape[1:])
    sizes.remove(channels)
    total = 1
    for size in sizes:
        if size is None:
            return None
        total *= size
    return total


@rule("BN027", "warning", whole=True)
def not_synchronized(subject: ModelSubject) -> Iterator[Outcome]:
    """The model trains on several replicas, but each has its own statistics.

    What it does:
        Finds norms that are not synchronized in a model that is known to train on several
        replicas. With a batch size of at least `replica-examples` (32) on each replica it is a
        piece of information: statistics of a replica are then the usual choice (Goyal et al.
        2017, "Accurate, Large Minibatch SGD", section 2.3).

    Why is this bad:
        Statistics are over a part of the batch only, and grow noisier with every replica that is
        added. The moving statistics that are saved are those of one replica, or an average whose
        variance lacks the differences between replicas.

    What to do instead:
        Use `synchronized=True`, `torch.nn.SyncBatchNorm.convert_sync_batchnorm` or
        `homeostat.torch.SyncBatchNorm`.
    """
    size, model = subject.settings.batch_size, subject.model
    if model.distributed is None:
        yield subject.skip("it is not known whether the model trains on several replicas.")
    if not model.distributed:
        return
    enough = size is not None and size >= subject.settings.thresholds.replica_examples
    own = "examples" if size is None else f"{size} examples"
    if any("synchronized" in norm.unknown for norm in model.norms):
        yield subject.skip(
            "the source does not tell whether statistics are synchronized. Audit the live model."
        )
    for norm in model.norms:
        moves = norm.moving_mean is not None and norm.tracking is not False
        if norm.synchronized is False and moves:
            yield subject.find(
                f"each replica takes statistics over its own {own} only.",
                norm=norm.name,
                severity="info" if enough else "warning",
            )
