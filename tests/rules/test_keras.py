"""Audits of live Keras models, on TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from homeostat.audit import audit
from homeostat.errors import SpecError
from homeostat.models import adapt
from homeostat.rules import Settings
from tests.rules.networks import digits

keras: Any = pytest.importorskip("keras")
BATCH = 64


def built(**options: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    options = {"momentum": 0.9, **options}
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(name="first", **options),
            layers.ReLU(),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(name="second", **options),
            layers.ReLU(),
            layers.AveragePooling2D(4),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def images() -> tuple[np.ndarray, np.ndarray]:
    found, classes = digits()
    return np.moveaxis(found[:1600], 1, -1), classes[:1600]


def batches() -> Any:
    inputs, classes = images()
    return [(inputs[at : at + BATCH], classes[at : at + BATCH]) for at in range(0, 1600, BATCH)]


@pytest.fixture(scope="module")
def trained() -> Any:
    model = built()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 3e-3
    model.fit(*images(), batch_size=BATCH, epochs=6, verbose=0)
    model.optimizer.learning_rate = 3e-4
    model.fit(*images(), batch_size=BATCH, epochs=2, verbose=0)
    return model


def test_a_healthy_model_is_clean(trained: Any) -> None:
    found = audit(trained, batches(), settings=Settings(batch_size=BATCH))
    assert [one for one in found.findings if one.severity != "info"] == []
    assert {one.rule for one in found.findings} == {"BN035"}
    assert found.observation is not None
    assert found.observation.behaviour is not None
    assert (found.observation.behaviour.inference_accuracy or 0) > 0.9


def test_a_model_that_was_never_trained() -> None:
    found = audit(built())
    errors = [(one.rule, one.norm) for one in found.findings if one.severity == "error"]
    assert [rule for rule, _ in errors] == ["BN001", "BN001"]


def test_statistics_that_were_lost(trained: Any) -> None:
    lost = keras.models.clone_model(trained)
    lost.set_weights(trained.get_weights())
    layer = lost.get_layer("second")
    layer.moving_mean.assign(np.zeros(16))
    layer.moving_variance.assign(np.ones(16))
    found = audit(lost, batches(), settings=Settings(batch_size=BATCH))
    [start] = [one for one in found.findings if one.rule == "BN001"]
    assert "trained" in start.message
    assert {"BN041"} <= {one.rule for one in found.findings if one.norm == start.norm}


def test_a_model_with_the_other_frameworks_momentum() -> None:
    found = audit(built(momentum=0.1))
    assert {one.rule for one in found.findings} >= {"BN022"}
    assert "momentum=0.1 " in next(one.message for one in found.findings if one.rule == "BN022")


def test_one_norm_that_takes_the_batches_statistics(trained: Any) -> None:
    live = adapt(trained)
    x = images()[0][:BATCH] * 16
    before = [np.array(each) for each in trained.get_weights()]
    plain, alone = live.outputs(x), live.outputs(x, batch_statistics=["second"])
    # By hand: the other's statistics become those of the batch.
    layer = trained.get_layer("second")
    kept = layer.get_weights()
    seen = live.observe(x, batch_statistics=["second"])["second"]
    layer.moving_mean.assign(seen.mean)
    layer.moving_variance.assign(seen.variance)
    expected = live.outputs(x)
    layer.set_weights(kept)
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(alone - plain).max() > 1
    np.testing.assert_array_equal(live.outputs(x, batch_statistics=[]), plain)
    for ours, theirs in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(SpecError, match="no batch norm is called 'third'"):
        live.outputs(x, batch_statistics=["third"])
    both = audit(trained, [(x, images()[1][:BATCH])])
    assert {one.norm for one in both.findings if "changed" in one.figures} == {"first"}
