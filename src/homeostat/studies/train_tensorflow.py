"""Training on TensorFlow: one compiled call loops over many steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from homeostat.studies.data import Split
from homeostat.studies.network import Network, Start
from homeostat.studies.trainer import Look

_State = tuple[list[Any], list[Any]]


class TensorFlowTrainer:
    """A `Trainer` whose state is two lists of tensors, carried through a `tf.while_loop`."""

    def __init__(self, network: Network) -> None:
        self._model = model = network.model
        self._kernels = network.kernel_positions
        # XLA fuses the many small operations of a step: several times as fast as the plain graph.
        self._train = tf.function(self._steps, jit_compile=True)
        self._singly = tf.function(self._classes_singly)
        self._look = tf.function(self._inside)
        # One trace for splits of any size.
        images = tf.TensorSpec((None, model.input_shape[-1]))
        state = [_specs(model.trainable_variables), _specs(model.non_trainable_variables)]
        self._predict = tf.function(self._classes, input_signature=[*state, images])

    def load(self, start: Start) -> _State:
        """Put start values on the device."""
        trainable = [tf.constant(value) for value in start.trainable]
        return trainable, [tf.constant(value) for value in start.non_trainable]

    def put(self, split: Split) -> Any:
        """Put images and labels on the device."""
        return tf.constant(split.images), tf.constant(split.labels)

    def train(
        self, state: _State, data: Any, rate: float, order: npt.NDArray[np.int32], count: int
    ) -> tuple[_State, float]:
        """Take the first ``count`` rows of ``order`` as steps."""
        *state, loss = self._train(
            *state, *data, tf.constant(rate, tf.float32), tf.constant(order), tf.constant(count)
        )
        return (state[0], state[1]), float(loss) / max(count, 1)

    def predict(self, state: _State, data: Any) -> npt.NDArray[np.int64]:
        """Return the class of each image, by the moving statistics."""
        return self._predict(*state, data[0]).numpy()

    def predict_singly(
        self, state: _State, data: Any, batch_statistics: bool
    ) -> npt.NDArray[np.int64]:
        """Return the class of each image, seen alone."""
        return self._singly(*state, data[0], batch_statistics).numpy()

    def look(self, state: _State, data: Any) -> Look:
        """Look inside, on these images as one batch."""
        norms, before = self._look(*state, *data)
        return Look(norms.numpy(), before.numpy())

    def _gradients(self, trainable: Any, non_trainable: Any, images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            (logits, before), non_trainable = self._model.stateless_call(
                trainable, non_trainable, images, training=True
            )
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, trainable), non_trainable, loss, before

    def _steps(
        self,
        trainable: Any,
        non_trainable: Any,
        images: Any,
        labels: Any,
        rate: Any,
        order: Any,
        count: Any,
    ) -> Any:
        def step(i: Any, trainable: Any, non_trainable: Any, total: Any) -> Any:
            chosen = order[i]
            gradients, non_trainable, loss, _ = self._gradients(
                trainable, non_trainable, tf.gather(images, chosen), tf.gather(labels, chosen)
            )
            pairs = zip(trainable, gradients, strict=True)
            return i + 1, [w - rate * g for w, g in pairs], non_trainable, total + loss

        first = (tf.constant(0), trainable, non_trainable, tf.constant(0.0))
        _, trainable, non_trainable, total = tf.while_loop(lambda i, *_: i < count, step, first)
        return trainable, non_trainable, total

    def _classes(self, trainable: Any, non_trainable: Any, images: Any) -> Any:
        (logits, _), _ = self._model.stateless_call(
            trainable, non_trainable, images, training=False
        )
        return tf.argmax(logits, axis=-1)

    def _classes_singly(
        self, trainable: Any, non_trainable: Any, images: Any, training: bool
    ) -> Any:
        def one(image: Any) -> Any:
            (logits, _), _ = self._model.stateless_call(
                trainable, non_trainable, image[None], training=training
            )
            return tf.argmax(logits[0])

        return tf.map_fn(one, images, fn_output_signature=tf.int64)

    def _inside(self, trainable: Any, non_trainable: Any, images: Any, labels: Any) -> Any:
        gradients, _, _, before = self._gradients(trainable, non_trainable, images, labels)
        return tf.stack([tf.norm(gradients[i]) for i in self._kernels]), before


def _specs(variables: Any) -> list[Any]:
    return [tf.TensorSpec(tuple(v.shape), v.dtype) for v in variables]
