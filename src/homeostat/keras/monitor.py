"""A callback that writes to TensorBoard how batch norms fare while a model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from homeostat.drift import (
    Array,
    State,
    Warner,
    check_observe_every,
    drift_between,
    write_affine,
    write_step,
)
from homeostat.events import EventWriter, need_tensorboard
from homeostat.keras.layer import BatchNormalization
from homeostat.moments import Average

_SKIPS = "homeostat.keras.BatchNormalization"
_REMEDY = "Call them with training=True, or set trainable=False if they are to stay."


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
            finite or did not move although they should, and where a rule about statistics or
            parameters finds a warning or an error.

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
        self.log_dir, self.observe_every = log_dir, check_observe_every(observe_every)
        need_tensorboard()
        self._writer: EventWriter | None = None
        self._step = 0
        self._start: Mapping[str, State] = {}
        self._before: Mapping[str, State] = {}
        self._began = self._first = self._counted = 0
        self._warner = Warner(_SKIPS, _REMEDY)

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
        """Write gamma and beta; warn of statistics that did not move, and of what rules find."""
        states = self._states()
        if self._writer is not None:
            write_affine(self._writer, states, self._step)
        self._warner.warn(states, self._start, epoch + 1, moved=self._step > self._began)
        self._warner.warn_of_rules(self.model, epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write_step(self, name: str, before: State | None, after: State, steps: int) -> None:
        if self._writer is not None:
            moves = before is not None and before.moves
            found = drift_between(before, after, steps) if moves else {}
            write_step(self._writer, name, found, after, self._step)

    def _iterations(self) -> int:
        found = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        return 0 if found is None else int(found)

    def _states(self) -> dict[str, State]:
        # With JAX `self.model` brings the variables up to date.
        return {name: _state(layer) for name, layer in _batch_norms(self.model)}


def _batch_norms(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the built batch norms of a model with their names, each name once."""
    seen: dict[str, int] = {}
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, _KINDS) and layer.moving_mean is not None:
            number = seen[layer.name] = seen.get(layer.name, 0) + 1
            yield (layer.name if number == 1 else f"{layer.name}_{number}"), layer


_KINDS = (keras.layers.BatchNormalization, BatchNormalization)


def _state(layer: Any) -> State:
    """Copy a layer's arrays; those of Keras's own layer lack what only ours has."""
    frozen = getattr(layer, "frozen_statistics", False) or getattr(layer, "inference_mode", False)
    ours = isinstance(layer, BatchNormalization)
    average = Average.of(layer.spec) if ours else Average(layer.momentum)
    return State(
        _copied(layer.moving_mean),
        _copied(layer.moving_variance),
        layer.epsilon,
        average,
        bool(layer.trainable) and not frozen and average.momentum != 1.0,
        gamma=_copy(layer.gamma),
        beta=_copy(layer.beta),
        stddev=_copy(getattr(layer, "moving_stddev", None)),
        updates=_copy(getattr(layer, "updates", None)),
        skipped=_copy(getattr(layer, "skipped_updates", None)),
    )


def _copy(variable: Any) -> Array | None:
    return None if variable is None else _copied(variable)


def _copied(variable: Any) -> Array:
    # The array that a backend gives may be the variable's own memory.
    return np.array(keras.ops.convert_to_numpy(variable), np.float64)
