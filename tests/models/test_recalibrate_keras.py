"""Keras models get the population's statistics too, of their own kind of variance."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from homeostat.keras import BatchNormalization
from homeostat.recalibrate import recalibrate


def build(norm: Any, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((5, 5, 3)),
            norm(name="first", **options),
            keras.layers.Conv2D(4, 3),
            keras.layers.Dropout(0.5),
            norm(name="second", **options),
        ]
    )


def drifting() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(3.0 * i, 1.0 + i, (size, 5, 5, 3)).astype(np.float32)
        for i, size in enumerate((16, 16, 3, 1))
    ]


@pytest.mark.parametrize(
    ("norm", "options", "sample"),
    [
        (keras.layers.BatchNormalization, {}, False),
        (BatchNormalization, {}, False),
        (BatchNormalization, {"stored_variance": "sample"}, True),
        (BatchNormalization, {"momentum": None}, False),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_the_populations_statistics(
    norm: Any, options: dict[str, Any], sample: bool, order: tuple[int, ...]
) -> None:
    model, batches = build(norm, **options), [drifting()[i] for i in order]
    recalibrate(model, batches)
    everything = np.concatenate(batches).astype(np.float64).reshape(-1, 3)
    layer = model.get_layer("first")
    np.testing.assert_allclose(layer.moving_mean, everything.mean(0), rtol=1e-6)
    variance = everything.var(0, ddof=1 if sample else 0)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-6)


def test_in_order_the_second_norm_sees_what_inference_gives_it() -> None:
    model, batches = build(keras.layers.BatchNormalization), drifting()
    recalibrate(model, batches, method="in order")
    before = keras.Model(model.inputs[0], model.get_layer("second").input)
    seen = np.asarray(before(np.concatenate(batches), training=False), np.float64).reshape(-1, 4)
    layer = model.get_layer("second")
    np.testing.assert_allclose(layer.moving_mean, seen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, seen.var(0), rtol=1e-5)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = build(BatchNormalization, renorm=True)
    before = [np.array(weight) for weight in model.weights]

    def breaking() -> Any:
        yield from drifting()[:2]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        recalibrate(model, breaking())
    for array, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(array, weight)
