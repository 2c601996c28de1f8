"""How a batch norm's statistics fare between two times of its training: drift, and what is wrong.

What every framework's monitor writes and warns of, on arrays of NumPy.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from homeostat.errors import HomeostatWarning, SpecError, UnsupportedError
from homeostat.moments import Average

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class State:
    """A batch norm's arrays at one time, and how its statistics move.

    Args:
        mean: moving mean, float64, of the channel shape, as are the others.
        variance: moving variance.
        epsilon: added to the variance.
        average: how the statistics follow the batches.
        moves: whether training should move them.
        gamma: scale, or None.
        beta: offset, or None.
        stddev: moving standard deviation where that is averaged instead, or None.
        updates: updates that each channel took, or None where the average does not ask.
        skipped: updates that each channel left out, or None where nothing counts them.
    """

    mean: Array
    variance: Array
    epsilon: float
    average: Average
    moves: bool
    gamma: Array | None = None
    beta: Array | None = None
    stddev: Array | None = None
    updates: Array | None = None
    skipped: Array | None = None

    @property
    def finite(self) -> bool:
        """Whether all statistics are."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.variance).all())

    def same_as(self, other: State | None) -> bool:
        """Return whether the statistics are those of another time."""
        return (
            other is not None
            and np.array_equal(self.mean, other.mean, equal_nan=True)
            and np.array_equal(self.variance, other.variance, equal_nan=True)
        )


def drift_between(before: State, after: State, steps: int) -> dict[str, Array]:
    """Return how the batches between two times differ from the statistics before them.

    A step moves statistics by new - old = w * (batch - old), so the batch's own mean and variance
    follow from how far they moved; over several steps, an average of the batches that weighs late
    ones more.

    Args:
        before: the norm before the steps.
        after: the norm after them.
        steps: how many updates there were, at least 1.

    Returns:
        For each channel ``mean_shift``, (batch mean - mean) / sqrt(variance + epsilon), and
        ``log_variance_ratio``, log((batch variance + epsilon) / (variance + epsilon)); NaN where
        the channel left a batch out.

    Example:
        >>> old, new = np.zeros(1), np.ones(1)
        >>> average = Average(0.5)
        >>> before, after = (State(m, new, 0.0, average, True) for m in (old, new))
        >>> drift_between(before, after, 1)["mean_shift"].tolist()
        [2.0]
    """
    kept: Any = np.float64(1.0)
    for step in range(steps):
        updates = 0 if before.updates is None else before.updates + step
        kept = kept * (1.0 - before.average.change(0.0, 1.0, updates))
    weight = 1.0 - kept
    with np.errstate(all="ignore"):
        mean = (after.mean - before.mean) / weight
        if before.stddev is not None and after.stddev is not None:
            # Batch renormalization averages standard deviations, sqrt(variance + epsilon) each.
            old = before.stddev**2
            new = (before.stddev + (after.stddev - before.stddev) / weight) ** 2
        else:
            old = before.variance + before.epsilon
            new = old + (after.variance - before.variance) / weight
        # Rounding may leave less than nothing of the variance.
        found = {
            "mean_shift": mean / np.sqrt(old),
            "log_variance_ratio": np.log(np.maximum(new, before.epsilon) / old),
        }
    if before.skipped is not None and after.skipped is not None:
        whole = after.skipped == before.skipped
        found = {what: np.where(whole, values, np.nan) for what, values in found.items()}
    return found


def check_observe_every(value: Any) -> int:
    """Return how many steps apart a monitor looks.

    Raises:
        SpecError: it is no positive integer.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SpecError(
            f"observe_every={value!r} is not valid: expected a positive integer. Pass "
            "100 to look at every hundredth step."
        )
    return int(value)


def write_step(writer: Any, name: str, drift: Mapping[str, Array], after: State, step: int) -> None:
    """Write a norm's drift, root mean square and largest, and its skipped updates.

    Args:
        writer: an `EventWriter`, or what has its ``add_scalar``.
        name: the norm's, under which the tags are.
        drift: what `drift_between` returned, or nothing.
        after: the norm after the step.
        step: its number.
    """
    for what, values in drift.items():
        sizes = np.abs(values[np.isfinite(values)])
        if sizes.size:
            writer.add_scalar(f"{name}/{what}", float(np.sqrt(np.mean(sizes**2))), step)
            writer.add_scalar(f"{name}/{what}_max", float(sizes.max()), step)
    if after.skipped is not None:
        writer.add_scalar(f"{name}/skipped_updates", float(after.skipped.max()), step)


def write_affine(writer: Any, states: Mapping[str, State], step: int) -> None:
    """Write histograms of the finite values of each norm's gamma and beta.

    Args:
        writer: an `EventWriter`, or what has its ``add_histogram`` and ``flush``.
        states: the norms by their names.
        step: how many there were.
    """
    for name, state in states.items():
        for what, values in (("gamma", state.gamma), ("beta", state.beta)):
            finite = None if values is None else values[np.isfinite(values)]
            if finite is not None and finite.size:
                writer.add_histogram(f"{name}/{what}", finite, step)
    writer.flush()


class Warner:
    """Warns of statistics after each epoch, once for each norm and what is wrong with it.

    Args:
        skips: what leaves batches out that are not finite.
        remedy: what to do where statistics do not move.

    Example:
        >>> state = State(np.full(2, np.nan), np.ones(2), 1e-3, Average(0.9), True)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     Warner("a layer", "").warn({"bn": state}, {}, 1, moved=False)
        >>> str(caught[0].message)[:50]
        "'bn': moving statistics hold NaN or infinity after"
    """

    def __init__(self, skips: str, remedy: str) -> None:
        self._skips, self._remedy = skips, remedy
        self._warned: set[tuple[str, str]] = set()

    def warn(
        self,
        states: Mapping[str, State],
        start: Mapping[str, State],
        epoch: int,
        *,
        moved: bool,
    ) -> None:
        """Warn of statistics that are not finite, and of those that did not move.

        Args:
            states: the norms after the epoch, by name.
            start: the norms before it.
            epoch: its number, from 1.
            moved: whether it had steps, so that they should have moved.

        Warns:
            HomeostatWarning: something is wrong that was not warned of before.
        """
        self._tell(
            "not finite",
            [name for name, state in states.items() if not state.finite],
            f"moving statistics hold NaN or infinity after epoch {epoch}: expected finite ones, "
            f"since inference uses them. Look for the batch that brought it; {self._skips} leaves "
            "such batches out.",
        )
        still = [n for n, s in states.items() if moved and s.moves and s.same_as(start.get(n))]
        self._tell(
            "never moved",
            still,
            f"moving statistics did not move in epoch {epoch}: expected every step to move them, "
            f"since the layers train. {self._remedy}",
        )

    def warn_of_rules(self, model: Any, epoch: int) -> None:
        """Warn of what `homeostat audit` finds in a model's statistics and parameters.

        Asked are the rules about these, BN00 and BN01, but those whose matter `warn` knows more of.
        A model that an audit cannot look into is let be.

        Args:
            model: a Keras model or a `torch.nn.Module`.
            epoch: its number, from 1.

        Warns:
            HomeostatWarning: a warning or error was found that was not told before.
        """
        # Only where something is watched: the tools know the front doors.
        from homeostat.audit import audit
        from homeostat.rules import Settings

        settings = Settings(select=("BN00", "BN01"), ignore=("BN001", "BN002"))
        try:
            found = audit(model, settings=settings)
        except UnsupportedError:
            return
        for rule in found.rules:
            names = [
                finding.norm or "the model"
                for finding in found.findings
                if finding.rule == rule.identifier and finding.severity != "info"
            ]
            self._tell(
                rule.identifier,
                names,
                f"{rule.identifier} {rule.name} after epoch {epoch}: {rule.summary} "
                f"`homeostat rules {rule.identifier}` tells more.",
            )

    def _tell(self, kind: str, names: list[str], message: str) -> None:
        new = [name for name in names if (kind, name) not in self._warned]
        self._warned.update((kind, name) for name in new)
        if new:
            listed = ", ".join(map(repr, new[:8]))
            more = f" and {len(new) - 8} more" if len(new) > 8 else ""
            # The caller of the monitor.
            warnings.warn(f"{listed}{more}: {message}", HomeostatWarning, stacklevel=4)
