"""Batch norms that go from Keras to PyTorch and back, and from a TF1 checkpoint."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

from homeostat import keras as ours
from homeostat import torch as ours_torch
from homeostat.convert import convert
from homeostat.errors import UnsupportedError


def keras_model(norm: Any, **options: Any) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(4, 3),
            norm(name="first", **options),
            keras.layers.ReLU(),
            keras.layers.Conv2D(4, 3),
            norm(name="second", **options),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name in ("first", "second"):
            for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
                if variable is not None:
                    variable.assign(rng.uniform(0.5, 2, variable.shape))
    return model


def torch_model(norm: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4))
    for layer in (model[1], model[4]):
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
    return model.eval()


KERAS = (keras.layers.BatchNormalization, ours.BatchNormalization)
TORCH = (nn.BatchNorm2d, ours_torch.BatchNorm2d)


@pytest.mark.parametrize("here", KERAS)
@pytest.mark.parametrize("there", TORCH)
def test_to_torch_and_back(here: Any, there: Any) -> None:
    source, target = keras_model(here, momentum=0.9, epsilon=0.02), torch_model(there)
    done = convert(source, target)
    assert [(m.source, m.target, m.matched) for m in done.moved] == [
        ("first", "1", "order"),
        ("second", "4", "order"),
    ]
    assert max(m.error for m in done.moved) < 1e-5
    assert target[1].momentum == pytest.approx(0.1, abs=1e-12)
    assert target[1].eps == 0.02
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 4)).astype(np.float32)
    with torch.no_grad():
        found = target[4](torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    expected = keras.ops.convert_to_numpy(source.get_layer("second")(x, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    again = keras_model(here)
    convert(target, again)
    for name in ("first", "second"):
        for a, b in zip(
            source.get_layer(name).weights[:4], again.get_layer(name).weights[:4], strict=True
        ):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
            )
        assert again.get_layer(name).momentum == pytest.approx(0.9, abs=1e-12)
        assert again.get_layer(name).epsilon == 0.02


def test_the_sample_variance_is_translated() -> None:
    source, target = torch_model(nn.BatchNorm2d), keras_model(ours.BatchNormalization)
    done = convert(source, target, count=10)
    assert "variance times 0.9, from sample to population" in done.moved[0].notes
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(target.get_layer("first").moving_variance),
        source[1].running_var.numpy() * 0.9,
        rtol=1e-6,
    )


def test_renorm_corrects_towards_what_came() -> None:
    source, target = torch_model(nn.BatchNorm2d), keras_model(ours.BatchNormalization, renorm=True)
    convert(source, target)
    layer = target.get_layer("second")
    np.testing.assert_allclose(layer.renorm_mean, source[4].running_mean, rtol=1e-6)
    np.testing.assert_allclose(
        np.square(layer.moving_stddev), source[4].running_var.numpy() + layer.epsilon, rtol=1e-5
    )


def test_an_average_of_all_needs_a_norm_that_has_it() -> None:
    source = torch_model(nn.BatchNorm2d)
    source[1].momentum = source[4].momentum = None
    target = keras_model(keras.layers.BatchNormalization)
    before = [keras.ops.convert_to_numpy(w) for w in target.weights]
    with pytest.raises(UnsupportedError, match="average of all batches"):
        convert(source, target)
    for a, b in zip(before, target.weights, strict=True):
        np.testing.assert_array_equal(a, keras.ops.convert_to_numpy(b))
    target = keras_model(ours.BatchNormalization)
    convert(source, target)
    assert target.get_layer("first").momentum is None


def test_norms_with_an_activation() -> None:
    source = torch_model(nn.BatchNorm2d)
    target = keras_model(ours.BatchNormalization, activation="relu")
    assert max(m.error for m in convert(source, target).moved) < 1e-5
    assert target.get_layer("first").spec.fused_activation.name == "relu"
