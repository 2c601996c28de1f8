"""A callback that writes to TensorBoard how batch norms fare while a model trains."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from homeostat.errors import HomeostatWarning, SpecError
from homeostat.events import EventWriter, need_tensorboard
from homeostat.keras.layer import BatchNormalization
from homeostat.moments import Average

Array = np.ndarray[Any, np.dtype[np.float64]]


class BatchNormMonitor(keras.callbacks.Callback):
    """Writes each batch norm's drift, skipped updates, gamma and beta, and warns of what is wrong.

    A step moves statistics by new - old = w * (batch - old), where w = 1 - momentum. So the batch's
    own mean and variance follow from how far the step moved the statistics: nothing is added to the
    model, and no forward pass. Of every ``observe_every``-th step are written, under the norm's
    name,

    - ``mean_shift`` and ``mean_shift_max``: root mean square and largest over the channels of
      (batch mean - old moving mean) / sqrt(old moving variance + epsilon);
    - ``log_variance_ratio`` and ``log_variance_ratio_max``: the same of
      log((batch variance + epsilon) / (old moving variance + epsilon));
    - ``skipped_updates``: updates that batches with NaN or infinity cost the worst channel so far,
      of Homeostat's layers;

    and after each epoch histograms of ``gamma`` and ``beta``. One batch strays from any average:
    look at how drift moves over many steps. Norms whose statistics do not move have none.

    Works for `keras.layers.BatchNormalization` and `homeostat.keras.BatchNormalization`, on every
    backend. A layer that a step calls twice shows the sum of both moves.

    Args:
        log_dir: folder of the event file; TensorBoard's ``--logdir`` or a folder in it.
        observe_every: of how many steps the first is looked at.

    Raises:
        SpecError: ``observe_every`` is no positive integer.
        MissingExtraError: tensorboard is not installed.

    Warns:
        HomeostatWarning: at the end of an epoch, once for each norm, where statistics are not
            finite, or did not move although they should.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((3,)), BatchNormalization(name="bn")])
        >>> model.compile(loss="mse")
        >>> monitor = BatchNormMonitor(tempfile.mkdtemp(), observe_every=10)
        >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
        >>> history = model.fit(x, x, batch_size=8, verbose=0, callbacks=[monitor])
    """

    def __init__(self, log_dir: str | Path, observe_every: int = 100) -> None:
        super().__init__()
        every: Any = observe_every
        if isinstance(every, bool) or not isinstance(every, numbers.Integral) or every < 1:
            raise SpecError(
                f"observe_every={observe_every!r} is not valid: expected a positive integer. 100 "
                "looks at every hundredth step."
            )
        need_tensorboard()
        self.log_dir, self.observe_every = log_dir, int(every)
        self._writer: EventWriter | None = None
        self._step = 0
        self._start: Mapping[str, _State] = {}
        self._before: Mapping[str, _State] = {}
        self._began = self._first = self._counted = 0
        self._warned: set[tuple[str, str]] = set()

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the event file; training that goes on counts its steps on."""
        self._writer = EventWriter(self.log_dir)
        self._step = max(self._step, self._iterations())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember the statistics."""
        self._start, self._began = self._states(), self._step

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Remember the statistics if this step is to be looked at."""
        self._first = batch
        # One call may run several steps.
        called = getattr(self.model, "steps_per_execution", 1)
        if -self._step % self.observe_every < called:
            self._before, self._counted = self._states(), self._iterations()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write how far the step moved the statistics."""
        steps = batch - self._first + 1
        if self._before:
            # The last call of an epoch may have run fewer steps than it says.
            run = min(steps, self._iterations() - self._counted) or steps
            for name, after in self._states().items():
                self._write_step(name, self._before.get(name), after, max(run, 1))
            self._before = {}
        self._step += steps

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write gamma and beta, and warn of statistics that are not finite or did not move."""
        states = self._states()
        for name, state in states.items():
            for what, values in (("gamma", state.gamma), ("beta", state.beta)):
                if values is not None and self._writer is not None:
                    self._writer.add_histogram(f"{name}/{what}", values, self._step)
        if self._writer is not None:
            self._writer.flush()
        broken = [name for name, state in states.items() if not state.finite]
        self._warn(
            "not finite",
            broken,
            f"moving statistics hold NaN or infinity after epoch {epoch + 1}: expected finite "
            "ones, since inference uses them. Look for the batch that brought it; "
            "homeostat.keras.BatchNormalization leaves such batches out.",
        )
        still = [
            name
            for name, state in states.items()
            if self._step > self._began and state.moves and state.same_as(self._start.get(name))
        ]
        self._warn(
            "never moved",
            still,
            f"moving statistics did not move in epoch {epoch + 1}: expected every step to move "
            "them, since the layers train. Call them with training=True, or set trainable=False "
            "if they are to stay.",
        )

    def on_train_end(self, logs: Any = None) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write_step(self, name: str, before: _State | None, after: _State, steps: int) -> None:
        writer = self._writer
        if writer is None:
            return
        if before is not None and before.moves:
            for what, values in _drift(before, after, steps).items():
                sizes = np.abs(values[np.isfinite(values)])
                if sizes.size:
                    root = float(np.sqrt(np.mean(sizes**2)))
                    writer.add_scalar(f"{name}/{what}", root, self._step)
                    writer.add_scalar(f"{name}/{what}_max", float(sizes.max()), self._step)
        if after.skipped is not None:
            writer.add_scalar(f"{name}/skipped_updates", float(after.skipped.max()), self._step)

    def _warn(self, kind: str, names: list[str], message: str) -> None:
        new = [name for name in names if (kind, name) not in self._warned]
        self._warned.update((kind, name) for name in new)
        if new:
            listed = ", ".join(map(repr, new[:8]))
            more = f" and {len(new) - 8} more" if len(new) > 8 else ""
            warnings.warn(f"{listed}{more}: {message}", HomeostatWarning, stacklevel=2)

    def _iterations(self) -> int:
        found = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        return 0 if found is None else int(found)

    def _states(self) -> dict[str, _State]:
        # With JAX `self.model` brings the variables up to date.
        return {name: _State.of(layer) for name, layer in _batch_norms(self.model)}


def _batch_norms(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the built batch norms of a model with their names, each name once."""
    seen: dict[str, int] = {}
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, _KINDS) and layer.moving_mean is not None:
            number = seen[layer.name] = seen.get(layer.name, 0) + 1
            yield (layer.name if number == 1 else f"{layer.name}_{number}"), layer


_KINDS = (keras.layers.BatchNormalization, BatchNormalization)


@dataclass(frozen=True, eq=False)
class _State:
    """A layer's arrays at one time, as float64 copies, and how its statistics move."""

    mean: Array
    variance: Array
    stddev: Array | None
    gamma: Array | None
    beta: Array | None
    updates: Array | None
    skipped: Array | None
    epsilon: float
    average: Average
    moves: bool

    @classmethod
    def of(cls, layer: Any) -> _State:
        """Copy a layer's arrays; those of Keras's own layer lack what only ours has."""
        names = ("moving_stddev", "gamma", "beta", "updates", "skipped_updates")
        frozen = getattr(layer, "frozen_statistics", False) or getattr(
            layer, "inference_mode", False
        )
        ours = isinstance(layer, BatchNormalization)
        average = Average.of(layer.spec) if ours else Average(layer.momentum)
        return cls(
            _copy(layer.moving_mean),
            _copy(layer.moving_variance),
            *(_copy(getattr(layer, name, None)) for name in names),
            epsilon=layer.epsilon,
            average=average,
            moves=bool(layer.trainable) and not frozen and average.momentum != 1.0,
        )

    @property
    def finite(self) -> bool:
        """Whether all statistics are."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.variance).all())

    def same_as(self, other: _State | None) -> bool:
        """Return whether the statistics are those of another time."""
        return (
            other is not None
            and np.array_equal(self.mean, other.mean, equal_nan=True)
            and np.array_equal(self.variance, other.variance, equal_nan=True)
        )


def _copy(variable: Any) -> Array | None:
    # The array that a backend gives may be the variable's own memory.
    if variable is None:
        return None
    return np.array(keras.ops.convert_to_numpy(variable), np.float64)


def _drift(before: _State, after: _State, steps: int) -> dict[str, Array]:
    """Return each channel's mean shift and log variance ratio of the batches between two times.

    NaN for a channel that left a batch out.
    """
    kept = np.float64(1.0)
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
