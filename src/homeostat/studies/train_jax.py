"""Training on JAX: one compiled call loops over many steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from homeostat.studies.data import Split
from homeostat.studies.network import Network, Start
from homeostat.studies.trainer import Look

_State = tuple[list[Any], list[Any]]


class JaxTrainer:
    """A `Trainer` whose state is two lists of arrays, carried through a `lax.fori_loop`."""

    def __init__(self, network: Network) -> None:
        self._model = network.model
        self._kernels = network.kernel_positions
        self._train = jax.jit(self._steps)
        self._predict = jax.jit(self._classes)
        self._singly = jax.jit(self._classes_singly, static_argnums=2)
        self._look = jax.jit(self._inside)

    def load(self, start: Start) -> _State:
        """Put start values on the device."""
        return jax.device_put((start.trainable, start.non_trainable))

    def put(self, split: Split) -> Any:
        """Put images and labels on the device."""
        return jax.device_put((split.images, split.labels))

    def train(
        self, state: _State, data: Any, rate: float, order: npt.NDArray[np.int32], count: int
    ) -> tuple[_State, float]:
        """Take the first ``count`` rows of ``order`` as steps."""
        state, loss = self._train(state, data, rate, order, count)
        return state, float(loss) / max(count, 1)

    def predict(self, state: _State, data: Any) -> npt.NDArray[np.int64]:
        """Return the class of each image, by the moving statistics."""
        return np.asarray(self._predict(state, data[0]))

    def predict_singly(
        self, state: _State, data: Any, batch_statistics: bool
    ) -> npt.NDArray[np.int64]:
        """Return the class of each image, seen alone."""
        return np.asarray(self._singly(state, data[0], batch_statistics))

    def look(self, state: _State, data: Any) -> Look:
        """Look inside, on these images as one batch."""
        norms, before = self._look(state, data)
        return Look(np.asarray(norms), np.asarray(before))

    def _gradients(self, state: _State, images: Any, labels: Any) -> Any:
        trainable, non_trainable = state

        def loss_of(trainable: Any) -> Any:
            (logits, before), updated = self._model.stateless_call(
                trainable, non_trainable, images, training=True
            )
            # As a product: the gradient of an indexed read is a scatter, slow on a CPU.
            chosen = jax.nn.one_hot(labels, logits.shape[-1])
            loss = -jnp.mean(jnp.sum(chosen * jax.nn.log_softmax(logits), axis=-1))
            return loss, (updated, before)

        (loss, extra), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        return gradients, *extra, loss

    def _steps(self, state: _State, data: Any, rate: Any, order: Any, count: Any) -> Any:
        def step(i: Any, carry: Any) -> Any:
            state, total = carry
            batch = [array.at[order[i]].get(mode="promise_in_bounds") for array in data]
            gradients, updated, _, loss = self._gradients(state, *batch)
            trainable = [w - rate * g for w, g in zip(state[0], gradients, strict=True)]
            return (trainable, updated), total + loss

        return jax.lax.fori_loop(0, count, step, (state, jnp.float32(0)))

    def _classes(self, state: _State, images: Any) -> Any:
        (logits, _), _ = self._model.stateless_call(*state, images, training=False)
        return jnp.argmax(logits, axis=-1)

    def _classes_singly(self, state: _State, images: Any, training: bool) -> Any:
        def one(image: Any) -> Any:
            (logits, _), _ = self._model.stateless_call(*state, image[None], training=training)
            return jnp.argmax(logits[0])

        return jax.lax.map(one, images)

    def _inside(self, state: _State, data: Any) -> Any:
        gradients, _, before, _ = self._gradients(state, *data)
        return jnp.stack([jnp.linalg.norm(gradients[i]) for i in self._kernels]), before
