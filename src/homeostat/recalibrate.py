"""Estimate a model's batch-norm statistics anew from data, exactly, and write them into it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from homeostat.data import unpack
from homeostat.errors import DataError, SpecError
from homeostat.models import LiveModel, adapt, count_examples
from homeostat.moments import Moments, merge

Method = Literal["together", "in order"]
METHODS: tuple[Method, ...] = ("together", "in order")
Progress = Callable[[str, int], object]
"""Called with what goes on, and the number of examples seen in it so far."""

LEAST_BATCHES = 8
"""Fewer batches tell too little of how much they differ to stop for it."""


@dataclass(frozen=True, eq=False)
class NormChange:
    """What became of one batch norm.

    Args:
        name: its name in the model.
        statistics: the pooled moments of its inputs, float64, shape (channels,); population
            variance.
        mean_shift: the largest distance between the old mean and the new one over channels, in new
            standard deviations; NaN where the old one was not finite.
        variance_ratio: the largest ratio between the old and the new variance, either way round.
        error: the largest standard error over channels, of means in standard deviations and of
            variances relative to them, from how much batches differ; NaN for a single batch.
        skipped: channels of batches that were left out because they were not finite.
    """

    name: str
    statistics: Moments
    mean_shift: float
    variance_ratio: float
    error: float
    skipped: int = 0


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What `recalibrate` did.

    Args:
        norms: the norms that were written, in the order of the network.
        left: names of norms that no batch came to, or with channels that were never finite; they
            are as they were.
        batches: how many batches were seen, in the longest pass.
        examples: how many examples.
        seconds: how long it took.
        converged: whether it stopped before the data ended.
    """

    norms: tuple[NormChange, ...]
    left: tuple[str, ...]
    batches: int
    examples: int
    seconds: float
    converged: bool


def recalibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    method: Method = "together",
    tolerance: float | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Replace the moving statistics of a model's batch norms by the population's, in place.

    The moments of each batch are merged by count (Chan, Golub & LeVeque 1979), the variance between
    batches included, so that ragged, sorted and drifting batches give the statistics of all their
    elements together. With ``method="together"`` every norm normalizes with its batch's statistics
    while they are gathered, as in training, in one pass. With ``"in order"`` each norm's are
    gathered while those before it have their final ones, as in inference: a pass for each norm.

    If anything fails, Ctrl-C included, the model is as it was.

    Args:
        model: a Keras model or a `torch.nn.Module`, or an adapter of one.
        batches: what `homeostat.data.unpack` reads: inputs, (inputs, labels) or (inputs, labels,
            weights); weights of examples count in the statistics. Gone through again for each pass.
        method: ``"together"`` or ``"in order"``.
        tolerance: stop when the largest standard error of any channel (see `NormChange.error`) is
            below this, after at least eight batches; None to take all the data.
        limit: stop after so many batches; data that ends earlier is fine.
        progress: called after each batch.

    Returns:
        What was written where, and how sure it is.

    Raises:
        SpecError: an option is not valid, or the batches cannot be gone through again.
        DataError: there is no batch.
        UnsupportedError: the model is of no known framework.

    Example:
        >>> import numpy as np, torch
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
        >>> done = recalibrate(model, [np.float32([[1], [2]]), np.float32([[6]])])
        >>> done.examples, model[0].running_mean.tolist()
        (3, [3.0])
    """
    if method not in METHODS:
        raise SpecError(
            f"method={method!r} is not known: expected one of {METHODS}. Choose one of these."
        )
    if tolerance is not None and not tolerance > 0:
        raise SpecError(
            f"tolerance={tolerance} is out of range: expected a number above 0, such as 0.01, or "
            "None for all the data."
        )
    if method == "in order" and isinstance(batches, Iterator):
        raise SpecError(
            "batches can be gone through once, but method='in order' needs a pass for each norm: "
            "expected a list, a loader or a dataset. Pass what makes the batches."
        )
    started = time.perf_counter()
    live = adapt(model)
    gather = _Gather(live, batches, tolerance, limit, progress or (lambda *_: None))
    record = {norm.name: norm for norm in live.record().norms}
    with live.preserved():
        passes = [gather.once("all norms")] if method == "together" else list(gather.in_order())
        found = {name: pooled for each in passes for name, pooled in each.norms.items()}
        names = [name for name in record if name in found and found[name].complete]
        changes = [_change(found[name], record[name].arrays, name) for name in names]
        if method == "together":
            for change in changes:
                live.write(change.name, change.statistics)
    return Recalibration(
        norms=tuple(changes),
        left=tuple(name for name in record if name not in names),
        batches=max(each.batches for each in passes),
        examples=max(each.examples for each in passes),
        seconds=time.perf_counter() - started,
        converged=any(each.converged for each in passes),
    )


class Pooled:
    """The moments of one norm's inputs over all batches so far, and how sure they are."""

    def __init__(self) -> None:
        self.skipped = 0
        self._moments: Moments | None = None
        self._batches: Any = 0
        self._pivot: Any = np.nan
        # Sums over batches of n**2, and of n**2 times powers 1 and 2 of what is followed.
        self._weight: Any = 0.0
        self._first: Any = 0.0
        self._second: Any = 0.0

    @property
    def moments(self) -> Moments:
        """The pooled moments; of a norm that no batch came to there are none."""
        if self._moments is None:
            raise DataError("no batch came to this norm: expected at least one.")
        return self._moments

    @property
    def complete(self) -> bool:
        """Whether every channel has seen a finite element."""
        return self._moments is not None and bool(np.all(self._moments.count > 0))

    def add(self, batch: Moments) -> None:
        """Merge a batch's moments, but for channels that are empty or not finite."""
        mean, variance = (np.asarray(a, np.float64) for a in (batch.mean, batch.variance))
        count = np.broadcast_to(np.asarray(batch.count, np.float64), mean.shape)
        finite = np.isfinite(mean) & np.isfinite(variance)
        self.skipped += int(np.sum(~finite & (count > 0)))
        usable = finite & (count > 0)
        batch = Moments(*(np.where(usable, a, 0.0) for a in (count, mean, variance)))
        before = self._moments
        self._moments = batch if before is None else merge(before, batch, np)
        self._pivot = np.where(usable & np.isnan(self._pivot), batch.mean, self._pivot)
        followed = _about(batch, np.where(usable, self._pivot, 0.0))
        square = batch.count**2
        self._batches = self._batches + usable
        self._weight = self._weight + square
        self._first = self._first + square * followed
        self._second = self._second + square * followed**2

    def error(self) -> float:
        """Return the largest standard error over channels; see `NormChange.error`.

        Batches are the unit, since elements of one image resemble each other: with the shares
        w_b = n_b / n, the standard error of a pooled mean is sqrt(sum of w_b**2 (m_b - m)**2), as
        of a weighted mean (Cochran 1977, ratio estimators), times sqrt(B / (B - 1)) for B batches.
        The variance is a mean of squares, and has its own in the same way.
        """
        if not self.complete or np.min(self._batches) < 2:
            return float("nan")
        count, _, variance = self.moments
        centre = _about(self.moments, self._pivot)
        squares = self._second - 2 * centre * self._first + centre**2 * self._weight
        errors = np.sqrt(np.maximum(squares, 0) * self._batches / (self._batches - 1)) / count
        scale = np.maximum(variance, np.finfo(np.float64).tiny)
        return float(np.max(errors / np.stack([np.sqrt(scale), scale])))


def _about(moments: Moments, pivot: Any) -> Any:
    """Return the mean, and the mean square, about a pivot: shape (2, channels)."""
    away = moments.mean - pivot
    return np.stack([away, moments.variance + away**2])


@dataclass
class _Pass:
    norms: dict[str, Pooled]
    batches: int = 0
    examples: int = 0
    converged: bool = False


@dataclass(frozen=True)
class _Gather:
    """Passes over the data."""

    live: LiveModel
    source: Iterable[Any]
    tolerance: float | None
    limit: int | None
    progress: Progress

    def once(self, what: str, names: Sequence[str] | None = None) -> _Pass:
        """Gather the moments of all norms, or of some, which take the batch's statistics."""
        done = _Pass({})
        for batch in itertools.islice(map(unpack, self.source), self.limit):
            moments = self.live.observe(
                batch.inputs,
                batch_statistics=True if names is None else names,
                weights=batch.weights,
            )
            for name, found in moments.items():
                done.norms.setdefault(name, Pooled()).add(found)
            done.batches += 1
            done.examples += count_examples(batch.inputs)
            self.progress(what, done.examples)
            if self._enough(done, names):
                done.converged = True
                break
        if not done.batches:
            raise DataError(
                "there is no batch to take statistics from: expected at least one. Check the data; "
                "an iterator that was used up gives nothing again."
            )
        return done

    def _enough(self, done: _Pass, names: Sequence[str] | None) -> bool:
        if self.tolerance is None or done.batches < LEAST_BATCHES:
            return False
        watched = done.norms if names is None else names[:1]
        return all(done.norms[name].error() < self.tolerance for name in watched)

    def in_order(self) -> Iterator[_Pass]:
        """Gather and write norm by norm, each behind those that are written already."""
        names: list[str] | None = None
        number = 0
        while names is None or number < len(names):
            done = self.once(
                "norm 1" if names is None else f"norm {number + 1} of {len(names)}",
                None if names is None else names[number:],
            )
            names = names or list(done.norms)
            name = names[number]
            if done.norms[name].complete:
                self.live.write(name, done.norms[name].moments)
            yield replace(done, norms={name: done.norms[name]})
            number += 1


def _change(pooled: Pooled, arrays: Mapping[str, Any], name: str) -> NormChange:
    new = pooled.moments
    mean, variance = (arrays.get(key) for key in ("moving_mean", "moving_variance"))
    shift = ratio = float("nan")
    scale = np.maximum(new.variance, np.finfo(np.float64).tiny)
    with np.errstate(all="ignore"):
        if mean is not None:
            shift = float(np.max(np.abs(new.mean - mean.astype(np.float64)) / np.sqrt(scale)))
        if variance is not None:
            quotient = variance.astype(np.float64) / scale
            ratio = float(np.max(np.maximum(quotient, 1 / quotient)))
    return NormChange(name, new, shift, ratio, pooled.error(), pooled.skipped)
