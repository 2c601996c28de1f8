"""Keras models on which a rule speaks or does not, made as it happens to people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import keras
import numpy as np

from homeostat.keras import BatchNormalization
from tests.rules.real import pytorch
from tests.rules.real.pytorch import Pair
from tests.rules.real.table import Example

layers: Any = keras.layers
Array = np.ndarray[Any, np.dtype[Any]]
Batches = list[tuple[Array, Array]]


@cache
def batches(number: int = 20, shift: float = 2.0, scale: float = 1.5) -> Batches:
    """Return the images and classes of `pytorch.batches`, channels last."""
    return [
        (np.moveaxis(images.numpy(), 1, -1), classes.numpy())
        for images, classes in pytorch.batches(number, shift, scale)
    ]


def joined(data: Batches) -> tuple[Array, Array]:
    images, classes = zip(*data, strict=True)
    return np.concatenate(images), np.concatenate(classes)


def sequential(*parts: Any, shape: tuple[int, ...] = (8, 8, 3), tail: bool = True) -> Any:
    keras.utils.set_random_seed(0)
    end = [layers.GlobalAveragePooling2D(), layers.Dense(4)] if tail else []
    return keras.Sequential([layers.Input(shape), *parts, *end])


def conv(**options: Any) -> Any:
    return layers.Conv2D(8, 3, padding="same", **options)


def network(norm: Callable[..., Any] = layers.BatchNormalization, **options: Any) -> Any:
    """Return two convolutions with norms, called "first" and "second"."""
    options = {"momentum": 0.9, **options}
    return sequential(
        conv(use_bias=False), norm(name="first", **options), layers.ReLU(),
        conv(use_bias=False), norm(name="second", **options), layers.ReLU(),
        layers.AveragePooling2D(4), layers.Flatten(), layers.Dense(4), tail=False,
    )  # fmt: skip


def train(model: Any, steps: int = 80, optimizer: Any = None) -> Any:
    images, classes = joined(batches())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.05), loss)
    whole, rest = divmod(steps, len(batches()))
    if whole:
        model.fit(images, classes, batch_size=32, epochs=whole, verbose=0)
    if rest:
        model.fit(images[: rest * 32], classes[: rest * 32], batch_size=32, verbose=0)
    return model


def update(model: Any, inputs: list[Array], times: int = 1) -> Any:
    """Move the statistics of a model, and nothing else."""
    for _ in range(times):
        for each in inputs:
            model(each, training=True)
    return model


@cache
def _healthy() -> Any:
    return train(network())


def healthy() -> Any:
    model = network()
    model.set_weights(_healthy().get_weights())
    return model


def fine(**fields: Any) -> Callable[[], Example]:
    return lambda: Example(healthy(), **fields)


def images(number: int = 20, shift: float = 2.0) -> list[Array]:
    return [each for each, _ in batches(number, shift)]


def without_statistics() -> Any:
    """Keep a model's trainable variables alone, and load them into a new one."""
    model = network()
    for ours, theirs in zip(model.trainable_variables, _healthy().trainable_variables, strict=True):
        ours.assign(theirs)
    return model


def nan_batch(model: Any) -> Any:
    broken = images(1)[0].copy()
    broken[0, 0, 0] = np.nan
    return update(model, [broken])


def rounded_variances() -> Any:
    """Compute E[x²] − E[x]² in float32, of inputs far from 0."""
    model = sequential(layers.BatchNormalization(name="norm"), shape=(8, 8, 8))
    x = np.random.default_rng(0).normal(3000, 0.01, (32, 8, 8, 8)).astype(np.float32)
    norm, axes = model.get_layer("norm"), (0, 1, 2)
    norm.moving_mean.assign(x.mean(axes))
    norm.moving_variance.assign((x * x).mean(axes) - x.mean(axes) ** 2)
    assert (np.asarray(norm.moving_variance) < 0).any()
    return model


def dead_units(times: int = 10, **options: Any) -> Any:
    """A bias that went far below 0 in front of ReLU: what comes out is 0 everywhere."""
    options = {"momentum": 0.9, **options}
    model = sequential(
        conv(name="conv"), layers.ReLU(), layers.BatchNormalization(name="norm", **options)
    )
    bias = model.get_layer("conv").bias
    bias.assign(np.where(np.arange(8) < 4, -1000.0, 0.0))
    return update(model, images(), times)


def pruned() -> Any:
    """Prune half of the channels by the size of gamma."""
    model = healthy()
    gamma = model.get_layer("first").gamma
    value = np.array(keras.ops.convert_to_numpy(gamma))
    gamma.assign(np.where(np.abs(value) <= np.median(np.abs(value)), 0, value))
    return model


def decayed() -> Any:
    # Decay of the gradient's kind, on every variable.
    optimizer = keras.optimizers.SGD(0.1, weight_decay=5.0)
    return train(network(), 15, optimizer)


def two_epsilons(second: float) -> Any:
    model = healthy()
    model.get_layer("second").epsilon = second
    return model


def alone(times: float, plus: float) -> Any:
    """Return a norm right behind the input, whose statistics have moved."""
    inputs = [each.repeat(3, -1)[..., :8] * times + plus for each in images(shift=0.0)]
    norm = layers.BatchNormalization(name="norm", momentum=0.9)
    model = sequential(norm, shape=(8, 8, 8))
    return update(model, [each.astype(np.float32) for each in inputs], 10)


def skipping(broken: int) -> Any:
    model = update(network(BatchNormalization, zero_debias=True), images(), 4)
    for _ in range(broken):
        nan_batch(model)
    return model


def shared(norms: int) -> Any:
    """A convolution and a norm on two scales of an image, as in a detection head."""
    keras.utils.set_random_seed(0)
    parts = [layers.BatchNormalization(name=f"norm{at}") for at in range(norms)]
    x, filters = keras.Input((8, 8, 3)), conv(use_bias=False)
    one = parts[0](filters(x))
    other = parts[-1](filters(layers.AveragePooling2D(2)(x)))
    pooled = [layers.GlobalAveragePooling2D()(layers.ReLU()(each)) for each in (one, other)]
    return update(keras.Model(x, layers.Add()(pooled)), images(2))


def in_front(*parts: Any) -> Any:
    """Return a model with layers in front of its norm, whose statistics have moved."""
    norm = layers.BatchNormalization(name="norm", momentum=0.9)
    return update(sequential(*parts, norm, layers.ReLU()), images())


def dropout_behind() -> Any:
    norm = layers.BatchNormalization(name="norm")
    return sequential(conv(), norm, layers.Dropout(0.5))


def dense(*behind: Any) -> Any:
    parts = layers.Flatten(), layers.Dense(8), layers.BatchNormalization(name="norm")
    return update(sequential(*parts, *behind, tail=False), [each[:8] for each in images()])


def other_variance(translated: bool) -> Any:
    """Copy the weights of a PyTorch module, which keeps sample variances."""
    import torch

    norm = torch.nn.BatchNorm1d(32, momentum=0.02)
    pytorch.update(norm, pytorch.small_batches())
    model = sequential(
        layers.BatchNormalization(name="norm"), layers.Dense(4), shape=(32,), tail=False
    )
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    layer = model.get_layer("norm")
    layer.moving_mean.assign(mean.numpy())
    layer.moving_variance.assign(variance.numpy() * (7 / 8 if translated else 1))
    return model


def small_batches() -> list[Array]:
    return [each.numpy() for each in pytorch.small_batches(150)]


def mixed() -> Any:
    return update(network(dtype="mixed_float16", epsilon=1e-5), images())


BOTH = ("first", "second")

CASES: Mapping[str, Pair] = {
    "BN001": (lambda: Example(without_statistics(), BOTH, "error"), fine()),
    "BN002": (lambda: Example(nan_batch(healthy()), BOTH, "error"), fine()),
    "BN003": (lambda: Example(rounded_variances(), ("norm",), "error"), fine()),
    "BN004": (
        lambda: Example(dead_units(), ("norm",)),
        lambda: Example(in_front(conv(), layers.ReLU())),
    ),
    "BN005": (
        lambda: Example(alone(1.0, 5e4), ("norm",)), lambda: Example(alone(1.0, 50)),
    ),
    "BN010": (
        lambda: Example(train(network(), 4, keras.optimizers.SGD(1e30)), BOTH, "error"), fine(),
    ),
    "BN011": (lambda: Example(pruned(), ("first",)), fine()),
    "BN012": (lambda: Example(decayed(), BOTH), fine()),
    # Without momentum the statistics are those of the last batch: a constant has no variance.
    "BN013": (
        lambda: Example(dead_units(1, momentum=0.0, epsilon=0.0), ("norm",), "error"), fine(),
    ),
    "BN014": (lambda: Example(alone(1e-2, 0.0), ("norm",)), lambda: Example(alone(1.0, 0.0))),
    "BN015": (lambda: Example(two_epsilons(1e-5), ("second",), "info"), fine()),
    "BN020": (
        lambda: Example(train(network(momentum=0.9999), 10), BOTH),
        lambda: Example(train(network(momentum=0.9), 60)),
    ),
    "BN021": (lambda: Example(network(momentum=0.5), BOTH), fine()),
    "BN022": (lambda: Example(network(momentum=0.1), BOTH), fine()),
    "BN023": (lambda: Example(skipping(3), BOTH), lambda: Example(skipping(0))),
    "BN024": (
        lambda: Example(update(network(BatchNormalization, frozen_affine=True), images(2)), BOTH),
        lambda: Example(update(network(trainable=False), images(2))),
    ),
    "BN026": (
        lambda: Example(dense(layers.Dense(4)), ("norm",), batch_size=8),
        fine(batch_size=8),
    ),
    "BN030": (lambda: Example(in_front(conv()), ("norm",), "info"), fine()),
    "BN031": (lambda: Example(in_front(conv(activation="relu")), ("norm",), "info"), fine()),
    "BN032": (
        lambda: Example(in_front(layers.Dropout(0.5), conv()), ("norm",)),
        lambda: Example(dropout_behind()),
    ),
    "BN033": (
        lambda: Example(dense(layers.Softmax()), ("norm",), "info"),
        lambda: Example(dense(layers.Dense(4))),
    ),
    "BN034": (lambda: Example(shared(1), ("norm0",)), lambda: Example(shared(2))),
    "BN035": (
        lambda: Example(healthy(), (None,), "info"),
        lambda: Example(in_front(conv(), layers.ReLU())),
    ),
    "BN040": (
        lambda: Example(healthy(), ("first",), "error", batches(20, 6.0)), fine(data=batches()),
    ),
    "BN041": (
        lambda: Example(healthy(), ("first",), "error", batches(20, 8.0, 6.0)),
        fine(data=batches()),
    ),
    "BN042": (
        lambda: Example(other_variance(False), ("norm",), data=small_batches()),
        lambda: Example(other_variance(True), data=small_batches()),
    ),
    "BN043": (
        lambda: Example(healthy(), (None,), "error", batches(20, 6.0)), fine(data=batches()),
    ),
    "BN044": (
        lambda: Example(without_statistics(), (None,), "error", batches()), fine(data=batches()),
    ),
}  # fmt: skip
"""For each rule a model on which it speaks, and one on which it does not; BN027 in
`keras_replicas`, which needs a process of its own."""

MORE: Mapping[str, Callable[[], Example]] = {
    "BN002": lambda: Example(nan_batch(update(network(BatchNormalization), images()))),
    "BN013": lambda: Example(mixed(), BOTH, "info"),
    "BN020": lambda: Example(
        update(network(BatchNormalization, momentum=0.9999, zero_debias=True), images(10))
    ),
    "BN026": lambda: Example(healthy(), BOTH, batch_size=2),
}
"""Models beside these: those of Homeostat's layer that are spared, and other causes."""
