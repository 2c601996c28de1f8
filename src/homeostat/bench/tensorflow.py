"""TensorFlow's columns: its fused op, tf-keras, Keras on TensorFlow, and ours, in `tf.function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from homeostat.bench.call import Call, Observed
from homeostat.bench.cases import EPSILON, Case, Inputs
from homeostat.bench.oracle import Results
from homeostat.ops.tensorflow import normalize, normalize_batch

MOMENTUM = 0.99


class Layer(NamedTuple):
    """A column's layer.

    Args:
        apply: (x, residual) -> y, the ReLU and the addition included; moves the statistics.
        gamma: its scale.
        beta: its shift.
        variance: the moving variance.
        sample: whether that averages sample variances, n/(n-1) times the population's.
    """

    apply: Callable[[Any, Any], Any]
    gamma: Any
    beta: Any
    variance: Any
    sample: bool


def _finish(case: Case, y: Any, residual: Any) -> Any:
    y = y if residual is None else y + residual
    return tf.nn.relu(y) if case.relu else y


class _Variables(NamedTuple):
    """The variables of a layer written by hand."""

    gamma: Any
    beta: Any
    mean: Any
    variance: Any

    @classmethod
    def of(cls, inputs: Inputs) -> _Variables:
        """Make them with the values of the inputs."""
        return cls(*map(tf.Variable, (inputs.gamma, inputs.beta, inputs.mean, inputs.variance)))

    def follow(self, mean: Any, variance: Any, momentum: float) -> None:
        """Move the statistics towards a batch's."""
        for moving, found in ((self.mean, mean), (self.variance, variance)):
            moving.assign_sub((moving - found) * (1 - momentum))


def fused(case: Case, inputs: Inputs, momentum: float) -> Layer:
    """The fused op of images, other shapes seen as images; its variance is the sample variance."""
    variables = _Variables.of(inputs)
    moving = {} if case.training else {"mean": variables.mean, "variance": variables.variance}
    batch, channels = case.shape[0], case.channels
    view = (batch, channels, -1, 1) if case.first else (batch, -1, 1, channels)

    def apply(x: Any, residual: Any) -> Any:
        image = x if len(case.shape) == 4 else tf.reshape(x, view)
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            image, variables.gamma, variables.beta, **moving, epsilon=EPSILON,
            data_format="NCHW" if case.first else "NHWC", is_training=case.training,
        )  # fmt: skip
        if case.training:
            variables.follow(mean, variance, momentum)
        return _finish(case, tf.reshape(y, tf.shape(x)), residual)

    return Layer(apply, variables.gamma, variables.beta, variables.variance, True)


def ours(case: Case, inputs: Inputs, momentum: float) -> Layer:
    """`homeostat.ops.tensorflow`, the moving statistics updated as a layer would."""
    variables = _Variables.of(inputs)
    options: dict[str, Any] = {"axis": case.axis, "epsilon": EPSILON}
    options["activation"] = "relu" if case.relu else None

    def apply(x: Any, residual: Any) -> Any:
        gamma, beta, mean, variance = variables
        if not case.training:
            return normalize(x, mean, variance, gamma, beta, residual=residual, **options)
        y, batch = normalize_batch(x, gamma, beta, residual=residual, **options)
        variables.follow(batch.mean, batch.variance, momentum)
        return y

    return Layer(apply, variables.gamma, variables.beta, variables.variance, False)


def legacy(case: Case, inputs: Inputs, momentum: float) -> Layer:
    """tf-keras's layer; on images it takes the fused op, and with it the sample variance."""
    keras = importlib.import_module("tf_keras")
    dtype = "mixed_bfloat16" if case.dtype == "bfloat16" else "float32"
    layer = keras.layers.BatchNormalization(
        case.axis, momentum, EPSILON, dtype=keras.mixed_precision.Policy(dtype)
    )
    layer.build(case.place(inputs.x).shape)
    layer.set_weights([inputs.gamma, inputs.beta, inputs.mean, inputs.variance])

    def apply(x: Any, residual: Any) -> Any:
        return _finish(case, layer(x, training=case.training), residual)

    return Layer(apply, layer.gamma, layer.beta, layer.moving_variance, bool(layer.fused))


def _keras(column: str) -> Callable[..., Layer]:
    def build(case: Case, inputs: Inputs, momentum: float) -> Layer:
        keras = importlib.import_module("homeostat.bench.keras")
        layer = keras.make_layer(column, case, inputs, momentum)

        def apply(x: Any, residual: Any) -> Any:
            if column != "keras":
                return keras.call_layer(layer, x, residual, case.training)
            return _finish(case, layer(x, training=case.training), residual)

        found = (layer.gamma.value, layer.beta.value, layer.moving_variance.value)
        return Layer(apply, *found, False)

    return build


BUILDERS: dict[str, Callable[..., Layer]] = {
    "tf fused": fused,
    "tf-keras": legacy,
    "keras": _keras("keras"),
    "homeostat.tensorflow": ours,
    "homeostat.keras": _keras("homeostat.keras"),
}


def _place(array: Any, case: Case) -> Any:
    return None if array is None else tf.constant(case.place(array), case.dtype)


def make(column: str, case: Case, inputs: Inputs) -> Call:
    """Return a column's call of a case."""
    layer = BUILDERS[column](case, inputs, MOMENTUM)
    x, residual, dy = (_place(a, case) for a in (inputs.x, inputs.residual, inputs.dy))

    @tf.function
    def step(x: Any, residual: Any, dy: Any) -> Any:
        if not case.backward:
            return layer.apply(x, residual), ()
        sources = [x] if residual is None else [x, residual]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y = layer.apply(x, residual)
        sources = [x, layer.gamma, layer.beta, *sources[1:]]
        return y, tape.gradient(y, sources, output_gradients=dy)

    def results() -> Results:
        y, gradients = step(x, residual, dy)
        names = ("dx", "dgamma", "dbeta", "dresidual")
        found = {"y": y, **dict(zip(names, gradients, strict=False))}
        return {name: _as_array(value, case) for name, value in found.items()}

    return Call(lambda: step(x, residual, dy), results, lambda: None, lambda: None)


def _as_array(value: Any, case: Case) -> np.ndarray:
    array = tf.cast(value, tf.float32).numpy()
    return array if array.ndim == 1 else case.back(array)


def copy(case: Case, inputs: Inputs) -> Callable[[], object]:
    """Return what copies the case's tensor."""
    x = _place(inputs.x, case)
    return lambda: tf.raw_ops.DeepCopy(x=x)


def observe(column: str, case: Case, inputs: Inputs) -> Observed:
    """Return what one training step with momentum for the batch alone made of x."""
    layer = BUILDERS[column](case, inputs, 0.0)
    y = tf.function(lambda x: layer.apply(x, None))(_place(inputs.x, case))
    count = inputs.x.size // case.channels
    variance = tf.cast(layer.variance, tf.float64).numpy()
    return Observed(
        _as_array(y, case), variance * ((count - 1) / count) if layer.sample else variance
    )
