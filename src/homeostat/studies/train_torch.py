"""Training on torch: a plain eager loop."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch

from homeostat.studies.data import Split
from homeostat.studies.network import Network, Start
from homeostat.studies.trainer import Look

_State = tuple[list[Any], list[Any]]


class TorchTrainer:
    """A `Trainer` whose state is two lists of tensors, copied into the model for each call."""

    def __init__(self, network: Network) -> None:
        # More threads only wait for each other in matrix products of this size.
        torch.set_num_threads(1)
        self._model = network.model
        self._kernels = network.kernel_positions
        self._device = self._model.trainable_variables[0].value.device

    def load(self, start: Start) -> _State:
        """Put start values on the device."""
        trainable = [torch.tensor(value, device=self._device) for value in start.trainable]
        return trainable, [torch.tensor(v, device=self._device) for v in start.non_trainable]

    def put(self, split: Split) -> Any:
        """Put images and labels on the device."""
        images = torch.tensor(split.images, device=self._device)
        return images, torch.tensor(split.labels, dtype=torch.long, device=self._device)

    def train(
        self, state: _State, data: Any, rate: float, order: npt.NDArray[np.int32], count: int
    ) -> tuple[_State, float]:
        """Take the first ``count`` rows of ``order`` as steps."""
        weights = self._restore(state)
        images, labels = data
        batches = torch.tensor(order[:count], dtype=torch.long, device=self._device)
        total = torch.zeros((), device=self._device)
        for chosen in batches:
            gradients, loss, _ = self._gradients(weights, images[chosen], labels[chosen])
            with torch.no_grad():
                torch._foreach_add_(weights, gradients, alpha=-rate)
            total += loss.detach()
        return self._save(), float(total) / max(count, 1)

    def predict(self, state: _State, data: Any) -> npt.NDArray[np.int64]:
        """Return the class of each image, by the moving statistics."""
        self._restore(state)
        with torch.no_grad():
            logits, _ = self._model(data[0], training=False)
        return logits.argmax(-1).cpu().numpy()

    def predict_singly(
        self, state: _State, data: Any, batch_statistics: bool
    ) -> npt.NDArray[np.int64]:
        """Return the class of each image, seen alone."""
        self._restore(state)
        with torch.no_grad():
            # Batch statistics do not depend on the moving ones, which the caller's state keeps.
            logits = [self._model(x[None], training=batch_statistics)[0][0] for x in data[0]]
        return torch.stack(logits).argmax(-1).cpu().numpy()

    def look(self, state: _State, data: Any) -> Look:
        """Look inside, on these images as one batch."""
        gradients, _, before = self._gradients(self._restore(state), *data)
        norms = torch.stack([torch.linalg.norm(gradients[i]) for i in self._kernels])
        return Look(norms.cpu().numpy(), before.detach().cpu().numpy())

    def _gradients(self, weights: list[Any], images: Any, labels: Any) -> Any:
        logits, before = self._model(images, training=True)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, weights), loss, before

    def _restore(self, state: _State) -> list[Any]:
        for variables, values in zip(self._variables(), state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        return [variable.value for variable in self._model.trainable_variables]

    def _save(self) -> _State:
        trainable, non_trainable = self._variables()
        return [self._copy(v) for v in trainable], [self._copy(v) for v in non_trainable]

    def _variables(self) -> tuple[list[keras.Variable], list[keras.Variable]]:
        return self._model.trainable_variables, self._model.non_trainable_variables

    @staticmethod
    def _copy(variable: keras.Variable) -> Any:
        return variable.value.detach().clone()
