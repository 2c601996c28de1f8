"""`observe` and `outputs` against NumPy in float64, and that they change nothing."""

import gc

import keras
import numpy as np
import pytest

from homeostat.errors import ShapeError, SpecError
from homeostat.keras import BatchNormalization
from homeostat.models import LiveModel, adapt
from homeostat.models.keras import KerasModel
from homeostat.moments import merge_all
from tests.models.keras_backends.models import (
    Subclassed,
    agrees,
    numpy,
    randomized,
    stack,
    state,
    truth,
    unchanged,
)

NORMS = [keras.layers.BatchNormalization, BatchNormalization]
L = keras.layers


def one(norm, shape, **options):
    return keras.Sequential([keras.Input(shape), norm(name="norm", **options)])


def test_adapt_returns_the_adapter():
    adapter: LiveModel = adapt(stack())
    assert isinstance(adapter, KerasModel)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (1e3, 1.0), (-1e3, 1.0), (1.0, 1e-3), (1e4, 1e2), (0.0, 1e-20)]
)
def test_moments_are_exact(rng, norm, mean, std):
    x = (mean + std * rng.normal(size=(37, 3, 5, 2))).astype("float32")
    found = KerasModel(one(norm, (3, 5, 2))).observe(x)
    assert list(found) == ["norm"]
    assert agrees(found["norm"], truth(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("axis", "shape"), [(1, (7, 4, 5, 6)), (-1, (9, 4)), (2, (5, 3, 4))])
def test_any_axis(rng, norm, axis, shape):
    x = rng.normal(2, 3, shape).astype("float32")
    adapter = KerasModel(one(norm, shape[1:], axis=axis))
    assert agrees(adapter.observe(x)["norm"], truth(x, axis=axis))


def test_several_axes_are_channels_in_their_order(rng):
    x = rng.normal(2, 3, (9, 2, 5, 3)).astype("float32")
    adapter = KerasModel(one(BatchNormalization, (2, 5, 3), axis=[1, 3]))
    moments = adapter.observe(x)["norm"]
    np.testing.assert_allclose(moments.mean, x.astype("float64").mean((0, 2)).reshape(-1))
    assert moments.count == 45
    adapter.write("norm", moments)
    assert numpy(adapter.norms["norm"].moving_mean).shape == (2, 3)
    np.testing.assert_allclose(
        adapter.record().norms[0].moving_variance, moments.variance, rtol=1e-6
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16", "float16"])
def test_the_norms_own_inputs_are_what_counts(rng, policy):
    """The first norm's output, with the batch's statistics, is what the second one sees."""
    x = rng.normal(3, 2, (16, 4)).astype("float32")
    inputs = keras.Input((4,))
    first = L.BatchNormalization(name="first", dtype=policy)
    model = keras.Model(inputs, L.BatchNormalization(name="second", dtype=policy)(first(inputs)))
    found = KerasModel(randomized(model, rng)).observe(x)
    seen = numpy(keras.ops.cast(keras.ops.cast(x, first.compute_dtype), "float32"))
    agrees(found["first"], truth(seen))
    np.testing.assert_allclose(found["second"].mean, numpy(first.beta), atol=4e-3)
    np.testing.assert_allclose(found["second"].variance, numpy(first.gamma) ** 2.0, rtol=0.03)


@pytest.mark.parametrize("norm", NORMS)
def test_who_takes_the_batchs_statistics(rng, norm):
    adapter = KerasModel(randomized(stack(norm), rng))
    model = adapter.model
    x = rng.normal(3, 2, (16, 6, 5, 3)).astype("float32")
    first, conv, second = (model.get_layer(name) for name in ("first", "conv", "second"))

    def expected(batch):
        mean, variance = (
            numpy(v).astype("float64") for v in (first.moving_mean, first.moving_variance)
        )
        if batch:
            _, mean, variance = truth(x)
        y = (x - mean) / np.sqrt(variance + first.epsilon) * numpy(first.gamma) + numpy(first.beta)
        return numpy(conv(y.astype("float32")))

    for chosen, batch in ((True, True), (False, False), (["first"], True), (["second"], False)):
        before = state(model)
        found = adapter.observe(x, batch_statistics=chosen)
        assert unchanged(before, model)
        agrees(found["first"], truth(x))
        agrees(found["second"], truth(expected(batch)), rtol=2e-5)
    assert second.moving_mean is not None


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_changes_and_dropout_is_off(rng, norm):
    model = randomized(stack(norm), rng)
    model.compile("adam", "mse")
    x = rng.normal(0, 1, (8, 6, 5, 3)).astype("float32")
    model.fit(x, np.zeros((8, 2)), epochs=1, verbose=0)
    predicted = model.predict(x, verbose=0)
    adapter, before = KerasModel(model), state(model)
    functions = model.train_function, model.predict_function
    twice = [adapter.observe(x) for _ in range(2)]
    assert np.array_equal(twice[0]["second"].mean, twice[1]["second"].mean)
    assert unchanged(before, model)
    assert (model.train_function, model.predict_function) == functions
    np.testing.assert_array_equal(model.predict(x, verbose=0), predicted)
    # It still trains.
    model.fit(x, np.zeros((8, 2)), epochs=1, verbose=0)
    assert not np.array_equal(state(model)[0][2], before[0][2])


class Counting(keras.layers.Layer):
    """A layer that counts its calls, in inference too, and draws random numbers."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_what_other_layers_count_and_draw_does_not_change(rng):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.BatchNormalization()(Counting()(inputs)))
    x, before = rng.normal(size=(4, 3)).astype("float32"), state(model)
    adapter = KerasModel(model)
    assert np.array_equal(adapter.outputs(x), adapter.outputs(x))
    adapter.observe(x)
    assert unchanged(before, model)


class Failing(keras.layers.Layer):
    def call(self, x):
        raise ArithmeticError("on purpose")


def test_nothing_changes_when_the_model_fails(rng):
    inputs = keras.Input((3,))
    norm = L.BatchNormalization(name="norm")
    model = keras.Model(inputs, norm(inputs))
    # Not a part of the graph, so that building does not call it.
    failing = Failing()
    call = norm.call
    object.__setattr__(norm, "call", lambda *a, **k: failing(call(*a, **k)))
    mine, before = vars(norm)["call"], state(model)
    with pytest.raises(ArithmeticError):
        KerasModel(model).observe(rng.normal(size=(4, 3)).astype("float32"))
    assert vars(norm)["call"] is mine
    assert unchanged(before, model)


def test_two_uses_are_merged_and_hidden_norms_are_seen(rng):
    x = rng.normal(1, 2, (6, 5, 4)).astype("float32")
    model = Subclassed()
    model(x)
    randomized(model, rng)
    adapter, before = KerasModel(model), state(model)
    found = adapter.observe(x, batch_statistics=False)
    assert unchanged(before, model)
    # Keras numbers the second, which has no name.
    first, deep, step = found
    assert (deep, step) == ("deep", "steps/step")
    assert [float(found[name].count) for name in (first, deep, step)] == [30, 60, 30]
    h = model.blocks[1](model.blocks[0](x), training=False)
    again = model.more["deep"][0](h, training=False) * 2
    agrees(found["deep"], truth(np.concatenate([numpy(h), numpy(again)])), rtol=1e-5)
    record = adapter.record()
    assert record.graph is None
    assert "subclassed" in record.why_no_graph


def test_masked_elements_do_not_count(rng):
    x = rng.normal(5, 2, (6, 7, 3)).astype("float32")
    kept = rng.random((6, 7)) < 0.7
    x[~kept] = 0
    inputs = keras.Input((7, 3))
    model = keras.Model(inputs, L.BatchNormalization(name="norm")(L.Masking()(inputs)))
    adapter = KerasModel(model)
    assert agrees(adapter.observe(x)["norm"], truth(x, kept))
    weights = np.array([0, 1, 2, 0, 1, 0.5])
    both = adapter.observe(x, weights=weights)["norm"]
    assert agrees(both, truth(x, kept * weights[:, None]))


def test_weights_of_examples(rng):
    x = rng.normal(5, 2, (6, 4, 3)).astype("float32")
    adapter = KerasModel(one(L.BatchNormalization, (4, 3)))
    x[3] = np.nan
    weights = [1, 2, 1, 0, 0, 3]
    assert agrees(adapter.observe(x, weights=weights)["norm"], truth(x, weights))
    none = adapter.observe(x, weights=np.zeros(6))["norm"]
    assert (float(none.count), none.mean.tolist()) == (0.0, [0.0, 0.0, 0.0])
    for wrong in ([1.0], np.ones((6, 1))):
        with pytest.raises(ShapeError, match="weights"):
            adapter.observe(x, weights=wrong)
    with pytest.raises(SpecError, match="negative"):
        adapter.observe(x, weights=[-1, 1, 1, 1, 1, 1])


def test_infinite_inputs_are_told(rng):
    x = rng.normal(size=(6, 2)).astype("float32")
    x[0, 1] = np.inf
    found = KerasModel(one(L.BatchNormalization, (2,))).observe(x)["norm"]
    assert np.isfinite(found.mean[0])
    assert not np.isfinite(found.mean[1])


def test_ragged_batches_merge_to_the_whole(rng):
    x = rng.normal(1e3, 1, (29, 4, 4, 2)).astype("float32")
    adapter = KerasModel(one(L.BatchNormalization, (4, 4, 2)))
    parts = [adapter.observe(part)["norm"] for part in np.split(x, [3, 4, 20])]
    assert agrees(merge_all(parts, np), truth(x))


@pytest.mark.parametrize("form", [tuple, list])
def test_several_inputs(rng, form):
    inputs = [keras.Input((3,), name="a"), keras.Input((3,), name="b")]
    added = L.Add()([L.BatchNormalization(name="norm")(inputs[0]), inputs[1]])
    adapter = KerasModel(keras.Model(inputs, [added, inputs[1]]))
    a, b = (rng.normal(size=(5, 3)).astype("float32") for _ in range(2))
    assert agrees(adapter.observe(form([a, b]))["norm"], truth(a))
    named = keras.Model(dict(zip("ab", inputs, strict=True)), added)
    assert agrees(KerasModel(named).observe({"a": a, "b": b})["norm"], truth(a))
    total, second = adapter.outputs(form([a, b]))
    assert total.dtype == np.float64
    np.testing.assert_allclose(second, b, rtol=1e-6)


def test_outputs(rng):
    model = randomized(stack(), rng)
    adapter, x = KerasModel(model), rng.normal(2, 3, (8, 6, 5, 3)).astype("float32")
    plain = numpy(model(x, training=False))
    before = state(model)
    np.testing.assert_allclose(adapter.outputs(x), plain, rtol=1e-5, atol=1e-5)
    batch = adapter.outputs(x, batch_statistics=True)
    assert unchanged(before, model)
    for name in ("first", "second"):
        adapter.write(name, adapter.observe(x)[name])
    np.testing.assert_allclose(adapter.outputs(x), batch, rtol=1e-3, atol=1e-3)


def test_names_that_are_not_there():
    adapter = KerasModel(stack())
    with pytest.raises(SpecError, match="second"):
        adapter.observe(np.zeros((2, 6, 5, 3), "float32"), batch_statistics=["third"])


class Cell(keras.layers.Layer):
    """A recurrent cell with a norm: JAX compiles the loop over time."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm, self.state_size = L.BatchNormalization(name="norm"), 3

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, states, training=None):
        y = self.norm(x, training=training)
        return y, [y]


def test_norms_in_a_loop(rng):
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, L.RNN(Cell(name="cell"), name="loop")(inputs))
    x = rng.normal(2, 1, (6, 5, 3)).astype("float32")
    moments = KerasModel(model).observe(x)["loop/cell/norm"]
    # Keras may take the first step twice, to see what comes out of it.
    steps = moments.count / 6
    assert steps in (5, 6)
    seen = x if steps == 5 else np.concatenate([x[:, :1], x], axis=1)
    assert agrees(moments, truth(seen))


class Compiled(keras.layers.Layer):
    """A layer that compiles what it calls, as the backend does that."""

    def __init__(self):
        super().__init__(name="compiled")
        self.norm = L.BatchNormalization(name="norm")
        self.function = self.apply
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self.function = tf.function(self.apply)
        elif keras.backend.backend() == "jax":
            import jax

            self.function = jax.jit(self.apply)

    def apply(self, x):
        return self.norm(x, training=False)

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.function(x)


def test_norms_in_a_compiled_function(rng):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Compiled()(inputs))
    x = rng.normal(2, 1, (6, 3)).astype("float32")
    for _ in range(2):
        plain = numpy(model(x, training=False))
        assert agrees(KerasModel(model).observe(x)["compiled/norm"], truth(x))
    np.testing.assert_array_equal(numpy(model(x, training=False)), plain)


def test_memory_does_not_grow(rng):
    adapter = KerasModel(stack())
    batches = [rng.normal(size=(n, 6, 5, 3)).astype("float32") for n in (4, 8, 5)]
    for batch in batches:
        adapter.observe(batch)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5):
        for batch in batches:
            adapter.observe(batch)
    gc.collect()
    assert len(gc.get_objects()) - before < 200
