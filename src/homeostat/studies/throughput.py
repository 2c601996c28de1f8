"""Training speed of the study beside `model.fit`, measured in one run."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import keras

from homeostat.report.rows import SpeedRow
from homeostat.studies.experiment import BATCH_SIZE, Laboratory
from homeostat.studies.network import Network

_ROUNDS = 3
_STEPS = 600


def measure_speed(laboratory: Laboratory, networks: int) -> SpeedRow:
    """Measure steps per second of the network with batch norm and ReLU.

    Everything is warmed up first; then the study's training (as many networks at a time as the
    study trains, and one alone) and `model.fit` take turns, and medians are kept.

    Args:
        laboratory: what trains.
        networks: how many networks the study trains at the same time.
    """
    network, trainer = laboratory.prepare("relu", True)
    fit = _Fit(network, laboratory)
    laboratory.train_freely(network, trainer, _STEPS)
    fit.run()
    together: list[float] = []
    alone: list[float] = []
    fitted: list[float] = []
    with ThreadPoolExecutor(networks) as pool:
        for _ in range(_ROUNDS):
            together.append(_together(laboratory, networks, pool))
            fitted.append(fit.run())
            alone.append(laboratory.train_freely(network, trainer, _STEPS))
    return SpeedRow(
        data=laboratory.dataset.name,
        backend=laboratory.backend,
        device=laboratory.device,
        versions=laboratory.versions,
        batch_size=BATCH_SIZE,
        networks=networks,
        together=round(median(together), 1),
        alone=round(median(alone), 1),
        fit=round(median(fitted), 1),
    )


def _together(laboratory: Laboratory, networks: int, pool: ThreadPoolExecutor) -> float:
    network, trainer = laboratory.prepare("relu", True)
    began = time.perf_counter()
    jobs = [pool.submit(laboratory.train_freely, network, trainer, _STEPS) for _ in range(networks)]
    for job in jobs:
        job.result()
    return networks * _STEPS / (time.perf_counter() - began)


class _Fit:
    """`model.fit` at its defaults on the same network and images, its printing thrown away."""

    def __init__(self, network: Network, laboratory: Laboratory) -> None:
        train = laboratory.dataset.train
        count = min(len(train), _STEPS * BATCH_SIZE)
        self._images, self._labels = train.images[:count], train.labels[:count]
        self._epochs = -(-_STEPS * BATCH_SIZE // count)
        self._steps = self._epochs * -(-count // BATCH_SIZE)
        self._model = keras.models.clone_model(network.classifier)
        self._model.compile(
            optimizer=keras.optimizers.SGD(0.01),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    def run(self) -> float:
        """Train for as many steps as the study does; return steps per second."""
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            began = time.perf_counter()
            self._model.fit(self._images, self._labels, batch_size=BATCH_SIZE, epochs=self._epochs)
            return self._steps / (time.perf_counter() - began)
