"""One network from its start weights to its row, with looks inside on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from homeostat.report.rows import QUANTILES, LessonRow, Probe
from homeostat.studies.backends import describe_device, read_versions
from homeostat.studies.data import Dataset, Split
from homeostat.studies.network import Network, order_batches
from homeostat.studies.trainer import Trainer, make_trainer

BATCH_SIZE = 60
SCALES = {"normal": 0.05, "bad": 5.0}
"""Standard deviation of the start weights, by name."""

_PROBES = 20
_LOOKED_AT = 500
_SINGLE = 1_000


class StoppedError(Exception):
    """Training was told to stop before this network was finished."""


@dataclass(frozen=True)
class Configuration:
    """What is varied from network to network."""

    activation: str
    learning_rate: float
    start: str
    batch_norm: bool
    seed: int


class Laboratory:
    """Trains networks on one set of images with one backend.

    Each kind of network (activation, with or without batch norm) is built and compiled once;
    learning rates and start weights are data to it.

    Args:
        dataset: the images.
        backend: the backend that Keras runs on.
        steps: training steps for each network.
    """

    def __init__(self, dataset: Dataset, backend: str, steps: int) -> None:
        self.dataset = dataset
        self.backend = backend
        self.steps = steps
        self.device = describe_device(backend)
        self.versions = read_versions(backend)
        self._chunk = max(1, -(-steps // _PROBES))
        self._kinds: dict[tuple[str, bool], tuple[Network, Trainer]] = {}
        self._data: dict[str, Any] = {}

    def settings(self, configuration: Configuration) -> tuple[Any, ...]:
        """Return the `LessonRow.settings` that the configuration's row will have."""
        c = configuration
        return (
            *(self.dataset.fingerprint, self.backend, self.steps, BATCH_SIZE, c.seed),
            *(c.activation, c.learning_rate, c.start, c.batch_norm),
        )

    def prepare(self, activation: str, batch_norm: bool) -> tuple[Network, Trainer]:
        """Build and compile one kind of network, once. Not for several threads at a time."""
        key = (activation, batch_norm)
        if key not in self._kinds:
            network = Network(self.dataset.train.images.shape[1], activation, batch_norm)
            trainer = make_trainer(self.backend, network)
            self._kinds[key] = network, trainer
            self._put_data(trainer)
            self._compile(network, trainer)
        return self._kinds[key]

    def _put_data(self, trainer: Trainer) -> None:
        if self._data:
            return
        data = self.dataset
        self._data = {
            "train": trainer.put(data.train),
            "validation": trainer.put(data.validation),
            "test": trainer.put(data.test),
            "looked at": trainer.put(_first(data.train, _LOOKED_AT)),
            "single": trainer.put(_first(data.test, _SINGLE)),
        }

    def _compile(self, network: Network, trainer: Trainer) -> None:
        state = trainer.load(network.start(0, SCALES["normal"]))
        order = np.zeros((self._chunk, BATCH_SIZE), np.int32)
        trainer.train(state, self._data["train"], 0.0, order, 0)
        for part in ("validation", "test"):
            trainer.predict(state, self._data[part])
        trainer.look(state, self._data["looked at"])
        if network.batch_norm:
            self._score_singly(trainer, state)

    def run(
        self,
        configuration: Configuration,
        advance: Callable[[int], None],
        stop: threading.Event,
    ) -> LessonRow:
        """Train one network and return its row.

        Args:
            configuration: the network; its kind must have been prepared.
            advance: called with the number of steps done since the last call.
            stop: when set, training ends at the next opportunity.

        Raises:
            StoppedError: ``stop`` was set before the network was finished.
        """
        c = configuration
        network, trainer = self._kinds[c.activation, c.batch_norm]
        began = time.perf_counter()
        state = trainer.load(network.start(c.seed, SCALES[c.start]))
        probes = [self._probe(trainer, state, 0, None)]
        training_s = 0.0
        done = 0
        for order, count in self._chunks(c.seed):
            if stop.is_set():
                raise StoppedError
            entered = time.perf_counter()
            state, loss = trainer.train(state, self._data["train"], c.learning_rate, order, count)
            training_s += time.perf_counter() - entered
            done += count
            probes.append(self._probe(trainer, state, done, loss))
            advance(count)
        single = self._score_singly(trainer, state) if c.batch_norm else (None, None)
        return LessonRow(
            data=self.dataset.name,
            fingerprint=self.dataset.fingerprint,
            activation=c.activation,
            learning_rate=c.learning_rate,
            start=c.start,
            batch_norm=c.batch_norm,
            seed=c.seed,
            steps=self.steps,
            batch_size=BATCH_SIZE,
            backend=self.backend,
            device=self.device,
            versions=self.versions,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=round(time.perf_counter() - began, 3),
            steps_per_second=round(self.steps / training_s, 1),
            test_accuracy=self._score(trainer, state, "test"),
            single_batch_statistics=single[0],
            single_moving_statistics=single[1],
            probes=tuple(probes),
        )

    def _chunks(self, seed: int) -> Iterator[tuple[Any, int]]:
        """Yield the steps between two probes; the last ones are padded, so nothing recompiles."""
        order = order_batches(seed, len(self.dataset.train), self.steps, BATCH_SIZE)
        for first in range(0, self.steps, self._chunk):
            part = order[first : first + self._chunk]
            padding = ((0, self._chunk - len(part)), (0, 0))
            yield np.pad(part, padding), len(part)

    def _probe(self, trainer: Trainer, state: Any, step: int, loss: float | None) -> Probe:
        look = trainer.look(state, self._data["looked at"])
        before = look.before_activation
        # Quantiles of a diverged network would be a warning and NaN.
        finite = bool(np.isfinite(before).all())
        quantiles = np.quantile(before, QUANTILES) if finite else [None] * len(QUANTILES)
        return Probe(
            step=step,
            validation_accuracy=self._score(trainer, state, "validation"),
            loss=_finite(loss),
            gradient_norms=tuple(_finite(norm) for norm in look.gradient_norms),
            quantiles=tuple(_finite(quantile) for quantile in quantiles),
        )

    def _score(self, trainer: Trainer, state: Any, part: str) -> float:
        labels = (
            self.dataset.validation.labels if part == "validation" else self.dataset.test.labels
        )
        return _accuracy(trainer.predict(state, self._data[part]), labels)

    def _score_singly(self, trainer: Trainer, state: Any) -> tuple[float, float]:
        """Return the accuracy one image at a time, by batch statistics and by moving statistics."""
        labels = self.dataset.test.labels[:_SINGLE]
        images = self._data["single"]
        wrong = trainer.predict_singly(state, images, batch_statistics=True)
        right = trainer.predict_singly(state, images, batch_statistics=False)
        return _accuracy(wrong, labels), _accuracy(right, labels)

    def train_freely(self, network: Network, trainer: Trainer, steps: int) -> float:
        """Train a fresh network for ``steps`` without looking; return steps per second."""
        state = trainer.load(network.start(0, SCALES["normal"]))
        order = order_batches(0, len(self.dataset.train), self._chunk, BATCH_SIZE)
        began = time.perf_counter()
        for done in range(0, steps, self._chunk):
            count = min(self._chunk, steps - done)
            state, _ = trainer.train(state, self._data["train"], 0.01, order, count)
        return steps / (time.perf_counter() - began)


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def _accuracy(predicted: Any, labels: Any) -> float:
    return round(float(np.mean(predicted == labels)), 6)


def _finite(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if value is not None and np.isfinite(value) else None
