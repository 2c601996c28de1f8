"""What a study asks of each backend: many training steps in one call, and ways to look inside."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from homeostat.studies.data import Split
from homeostat.studies.network import Network, Start

State = Any
"""The values of a network's variables while it trains, as its backend holds them."""


@dataclass(frozen=True)
class Look:
    """A look inside a network in training mode, which leaves the network as it was.

    Args:
        gradient_norms: norm of the loss's gradient for each layer's weights.
        before_activation: inputs of the last hidden layer's activation, (images, 100).
    """

    gradient_norms: npt.NDArray[np.float32]
    before_activation: npt.NDArray[np.float32]


class Trainer(Protocol):
    """Trains one kind of network; it keeps no state, so several networks can train at once."""

    def load(self, start: Start) -> State:
        """Put start values on the device."""
        ...

    def put(self, split: Split) -> Any:
        """Put images and labels on the device."""
        ...

    def train(
        self, state: State, data: Any, rate: float, order: npt.NDArray[np.int32], count: int
    ) -> tuple[State, float]:
        """Take the first ``count`` rows of ``order`` as steps; return state and mean loss."""
        ...

    def predict(self, state: State, data: Any) -> npt.NDArray[np.int64]:
        """Return the class of each image, by the moving statistics."""
        ...

    def predict_singly(
        self, state: State, data: Any, batch_statistics: bool
    ) -> npt.NDArray[np.int64]:
        """Return the class of each image, seen alone, by its own or by the moving statistics."""
        ...

    def look(self, state: State, data: Any) -> Look:
        """Look inside, on these images as one batch."""
        ...


_CLASSES = {
    "tensorflow": "TensorFlowTrainer",
    "jax": "JaxTrainer",
    "torch": "TorchTrainer",
}


def make_trainer(backend: str, network: Network) -> Trainer:
    """Return the backend's trainer for a network."""
    module = importlib.import_module(f"homeostat.studies.train_{backend}")
    return getattr(module, _CLASSES[backend])(network)
