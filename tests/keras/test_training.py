"""`model.fit` and custom loops: compiled and not, in mixed precision, with ragged last batches."""

import keras
import numpy as np
import pytest

from homeostat import NonFiniteBatchError, reference
from homeostat.keras import BatchNormalization
from tests.keras.training import state

BACKEND = keras.backend.backend()


def classifier(**options):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            BatchNormalization(activation="relu", **options),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )


def stripes(rng, count):
    """Images with horizontal or vertical stripes, and noise."""
    labels = rng.integers(0, 2, count)
    wave = np.sign(np.sin(np.arange(8) * 2.0))[None, :] * np.ones((8, 1))
    images = np.where(labels[:, None, None] == 1, wave, wave.T)
    return (images + rng.normal(0, 0.5, (count, 8, 8)))[..., None].astype("float32"), labels


# With torch, jit_compile=True asks for torch.compile.
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "no jit"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_fit_learns_and_predicts(jit, policy, rng):
    if BACKEND == "torch" and jit and policy != "float32":
        pytest.skip("torch.compile takes a minute; float32 stands for it")
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier(momentum=0.9)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], jit_compile=jit)
        model.optimizer.learning_rate = 0.03
        x, labels = stripes(rng, 200)
        model.fit(x, labels, batch_size=32, epochs=12, verbose=0)
        _, accuracy = model.evaluate(x, labels, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert accuracy > 0.95
    norm = model.layers[1]
    np.testing.assert_array_equal(state(norm)["skipped_updates"], np.zeros(8))
    assert state(norm)["moving_variance"].dtype == np.float32


def test_the_cumulative_average_of_a_custom_loop_is_the_mean_of_the_batches(rng):
    layer = BatchNormalization(momentum=None)
    batches = [rng.normal(i, 1 + i, (16, 3)).astype("float32") for i in range(4)]
    for batch in batches:
        layer(batch, training=True)
    means = [reference.moments(batch).mean for batch in batches]
    variances = [reference.moments(batch).variance for batch in batches]
    np.testing.assert_allclose(state(layer)["moving_mean"], np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(state(layer)["moving_variance"], np.mean(variances, 0), rtol=1e-5)
    np.testing.assert_array_equal(state(layer)["updates"], np.full(3, 4.0))


def test_compiled_steps_count_what_they_skip(rng):
    x = rng.normal(size=(8, 3)).astype("float32")
    bad = x.copy()
    bad[0, 2] = np.inf
    layer = BatchNormalization()
    layer.build(x.shape)
    _compiled(layer, x)
    before = state(layer)
    _compiled(layer, bad)
    after = state(layer)
    np.testing.assert_array_equal(after["skipped_updates"], [0, 0, 1])
    assert after["moving_mean"][2] == before["moving_mean"][2]
    np.testing.assert_allclose(
        after["moving_mean"][:2], before["moving_mean"][:2] * 1.99, rtol=1e-4, atol=1e-7
    )


def test_raise_stops_a_step_and_leaves_the_statistics(rng):
    bad = rng.normal(size=(8, 3)).astype("float32")
    bad[0, 2] = np.nan
    layer = BatchNormalization(nonfinite="raise")
    with pytest.raises(NonFiniteBatchError, match="not finite"):
        layer(bad, training=True)
    assert np.isfinite(state(layer)["moving_mean"]).all()
    if BACKEND != "torch":
        with pytest.raises(Exception, match="not finite"):
            _compiled(layer, bad)


def _compiled(layer, x):
    """Run one compiled training call and keep the new state."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(lambda x: layer(x, training=True))(tf.constant(x))
    elif BACKEND == "jax":
        import jax

        values = [[v.value for v in layer.trainable_variables]]
        values.append([v.value for v in layer.non_trainable_variables])
        call = jax.jit(lambda values, x: layer.stateless_call(*values, x, training=True))
        y, new_state = call(values, x)
        jax.block_until_ready(y)
        jax.effects_barrier()
        for variable, value in zip(layer.non_trainable_variables, new_state, strict=True):
            variable.assign(value)
    else:
        import torch

        torch.compile(lambda x: layer(x, training=True), backend="eager")(torch.tensor(x))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="unknown sizes inside a step are TensorFlow's")
@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"virtual_batch_size": 2}], ids=str)
@pytest.mark.parametrize("shape", [(None, 3), (None, None, None, 3)], ids=str)
def test_unknown_sizes(options, shape, rng):
    import tensorflow as tf

    if options == {"axis": 1}:
        shape = (None, 3, *shape[2:])
    layer = BatchNormalization(momentum=0.0, **options)
    layer.build(shape)
    step = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(shape, tf.float32)]
    )
    for batch in (6, 2):
        x = rng.normal(size=[batch, *(n or 5 for n in shape[1:])]).astype("float32")
        exact = reference.train_step(x, reference.start((3,)), layer.spec)
        np.testing.assert_allclose(step(x), exact.y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state(layer)["moving_variance"], exact.state.variance, rtol=1e-5)
