"""What is TensorFlow's alone: its ways through a call, unknown sizes, second gradients, files."""

import numpy as np
import pytest

from homeostat import Layout, reference

tf = pytest.importorskip("tensorflow")

from homeostat.ops import tensorflow as ops  # noqa: E402
from homeostat.ops.tensorflow import fused  # noqa: E402
from homeostat.ops.tensorflow.elements import Elements, _dot_rows  # noqa: E402


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def variance_error(x, function):
    exact = reference.moments(x)
    found = function(tf.constant(x))
    assert (found.numpy() >= 0).all()
    return np.abs(found.numpy() / exact.variance - 1).max()


COMPILED = [False, True]
LARGE = [(32, 56, 56, 64), (100352, 16), (401408, 3), (32, 28, 28, 64), (6272, 8)]


@pytest.mark.parametrize("jit", COMPILED, ids=["graph", "xla"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("ratio", [0.0, 1.0, 30.0, 1e3])
def test_variance_is_good_to_one_in_a_hundred_thousand(ratio, shape, jit, rng):
    x = rng.normal(ratio, 1.0, shape).astype("float32")
    for norm in (
        lambda x: ops.normalize_batch(x)[1].variance,
        lambda x: ops.moments(x).variance,
    ):
        assert variance_error(x, tf.function(norm, jit_compile=jit)) <= 1e-5


@pytest.mark.parametrize("jit", COMPILED, ids=["graph", "xla"])
@pytest.mark.parametrize("ratio", [1e4, 1e5, 1e6])
def test_variance_is_good_to_a_tenth_as_far_as_float32_holds_the_data(ratio, jit, rng):
    x = rng.normal(ratio, 1.0, (32, 56, 56, 8)).astype("float32")
    norm = tf.function(lambda x: ops.normalize_batch(x)[1].variance, jit_compile=jit)
    assert variance_error(x, norm) <= 0.01


def test_the_fused_op_takes_what_it_can():
    def takes(shape, axis=-1, dtype=tf.float32, weights=None):
        x = tf.zeros(shape, dtype)
        layout = Layout.of(shape, axis)
        return fused.takes(Elements.of(x, layout, weights, None), x)

    assert takes((4, 5, 6))
    assert takes((4, 5, 6), axis=1)
    assert takes((4, 5, 6), axis=(1, 2))
    assert takes((4, 6), dtype=tf.bfloat16)
    assert not takes((4, 5, 6, 7), axis=(1, 3))
    assert not takes((4, 6), dtype=tf.float64)
    assert not takes((0, 6))
    assert not takes((4, 6), weights=tf.ones(4))
    seen = []
    tf.function(lambda: seen.append(takes((4, 6))) or tf.zeros(()), jit_compile=True)()
    assert seen == [False]


SIGNATURES = [
    ((None, 6), (9, 6), -1),
    ((None, None, None, 3), (4, 5, 6, 3), -1),
    ((None, 3, None, None), (4, 3, 5, 6), 1),
    ((None, 4, None, 3), (2, 4, 5, 3), (1, 3)),
    ((None, 56, 56, 8), (20, 56, 56, 8), -1),
]


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize(("signature", "shape", "axis"), SIGNATURES, ids=str)
def test_unknown_sizes(signature, shape, axis, weighted, rng):
    x, dy = (rng.normal(1.0, 2.0, shape).astype("float32") for _ in range(2))
    weights = rng.random(shape[:1]).astype("float32") if weighted else None

    @tf.function(input_signature=[tf.TensorSpec(signature, tf.float32)] * 2)
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, batch = ops.normalize_batch(x, axis=axis, weights=weights, activation="relu")
        return y, tape.gradient(y, x, output_gradients=dy), batch.count, batch.variance

    y, dx, count, variance = step(x, dy)
    options = {"axis": axis, "weights": weights, "activation": "relu"}
    exact_y, exact = reference.normalize_batch(x, **options)
    near = np.abs(reference.normalize_batch(x, axis=axis, weights=weights)[0]) < 1e-5
    assert near.sum() < 10
    np.testing.assert_allclose(y, exact_y, rtol=1e-5, atol=1e-5)
    wanted = reference.backward(dy, x, **options).x
    np.testing.assert_allclose(np.where(near, wanted, dx), wanted, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(count, exact.count.flat[0], rtol=1e-6)
    np.testing.assert_allclose(variance, exact.variance, rtol=1e-5)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_gradients_equal_finite_differences(dtype, weighted, graph, rng):
    x, gamma = rng.normal(size=(5, 3)), np.array([1.0, 2.0, 3.0])
    weights = rng.random(5) if weighted else None

    def penalty(x, gamma):
        with tf.GradientTape() as tape:
            tape.watch((x, gamma))
            y, _ = ops.normalize_batch(x, gamma, weights=weights, activation="leaky_relu")
            loss = tf.reduce_sum(tf.sin(y))
        dx, dgamma = tape.gradient(loss, (x, gamma))
        return tf.reduce_sum(dx * tf.cos(x)) + tf.reduce_sum(dgamma**2)

    function = tf.function(penalty) if graph else penalty
    inputs = tf.constant(x, dtype), tf.constant(gamma, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
    found = tape.gradient(value, inputs)
    step = 1e-6
    for position, (array, gradient) in enumerate(zip((x, gamma), found, strict=True)):
        expected = np.zeros_like(array)
        for index in np.ndindex(*array.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy(), gamma.copy()]
                moved[position][index] += sign * step
                sides.append(float(penalty(*(tf.constant(m, tf.float64) for m in moved))))
            expected[index] = (sides[0] - sides[1]) / (2 * step)
        scale = np.abs(expected).max()
        tolerance = 1e-6 if dtype == "float64" else 1e-3
        np.testing.assert_allclose(gradient, expected, atol=tolerance * scale)


def test_only_x_and_the_output_are_kept_for_the_backward(rng):
    shape = (64, 28, 28, 16)

    @tf.function
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, _ = ops.normalize_batch(x, activation="relu")
        return tape.gradient(y, x, output_gradients=dy)

    x = tf.constant(rng.normal(size=shape).astype("float32"))
    outer = step.get_concrete_function(x, x)
    grad = next(op for op in outer.graph.get_operations() if op.type == "FusedBatchNormGradV3")
    seen, waiting = set(), [grad.inputs[0], grad.inputs[1]]
    while waiting:
        tensor = waiting.pop()
        if tensor.op.type in ("Placeholder", "If", "StatelessIf", "ReluGrad"):
            seen.add((tensor.op.type, tensor.name.split(":")[1]))
        if tensor.op.type in ("Reshape", "ReluGrad", "Identity", "StatelessIf", "If"):
            waiting += [t for t in tensor.op.inputs if t.shape.rank and t.shape.rank >= 2]
    assert {kind for kind, _ in seen} <= {"Placeholder", "If", "StatelessIf", "ReluGrad"}
    assert ("Placeholder", "0") in seen


def test_a_saved_model_needs_nothing_of_ours(tmp_path, rng):
    module = tf.Module()
    module.step = tf.function(
        lambda x: ops.normalize_batch(x, activation="relu")[0],
        input_signature=[tf.TensorSpec((None, 5), tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path))
    x = rng.normal(size=(8, 5)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path))
    exact, _ = reference.normalize_batch(x, activation="relu")
    np.testing.assert_allclose(loaded.step(x), exact, atol=1e-5)


def test_in_a_tf1_graph(rng):
    x = rng.normal(3.0, 2.0, (8, 4)).astype("float32")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        placeholder = tf.compat.v1.placeholder(tf.float32, (None, 4))
        y, batch = ops.normalize_batch(placeholder, activation="relu")
        (dx,) = tf.gradients(tf.reduce_sum(y * y), placeholder)
        found = session.run((y, batch.mean, dx), {placeholder: x})
    exact, moments = reference.normalize_batch(x, activation="relu")
    gradient = reference.backward(2 * exact, x, activation="relu").x
    for ours, wanted in zip(found, (exact, moments.mean, gradient), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_over_no_rows_is_zero_whatever_memory_held(dtype):
    """TensorFlow's op leaves its output as it finds it where there are no rows to sum."""
    empty = tf.zeros((0, 512), dtype)
    sum_of_products = tf.function(
        lambda rows: _dot_rows(rows, rows),
        input_signature=[tf.TensorSpec((None, 512), dtype)],
    )
    for _ in range(50):
        poison = [tf.fill((1, 1, 512, 1), np.array(np.nan, dtype)) for _ in range(8)]
        del poison
        np.testing.assert_array_equal(np.ravel(sum_of_products(empty)), np.zeros(512))


@pytest.mark.parametrize("rows", [1, 16, 63, 64, 65, 200])
def test_sums_of_an_unknown_number_of_rows(rows, rng):
    x = rng.normal(size=(rows, 6))
    norm = tf.function(
        lambda x: ops.moments(x).variance, input_signature=[tf.TensorSpec((None, 6), tf.float64)]
    )
    np.testing.assert_allclose(norm(x), x.var(0), rtol=1e-12, atol=1e-15)
