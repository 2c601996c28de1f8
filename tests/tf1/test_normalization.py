"""The TF1 layer in a graph: variables, collections, reuse, control flow, checkpoints, exactness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tf_keras.api._v1.keras.__internal__.legacy.layers import batch_normalization as legacy

import homeostat.tf1 as tf
from homeostat import reference
from homeostat.errors import ShapeError, SpecError
from homeostat.tf1 import records
from tests.messages import has_three_parts

# The legacy layer says that it is one.
pytestmark = pytest.mark.filterwarnings("ignore:`tf.layers.batch_normalization` is deprecated")

NAMES = ["gamma", "beta", "moving_mean", "moving_variance"]


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 2, shape).astype(np.float32)


def session_of() -> Any:
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    return session


def updates() -> list[Any]:
    return tf.get_collection(tf.GraphKeys.UPDATE_OPS)


def test_variables_are_named_and_ordered_as_tf1_did() -> None:
    x = tf.constant(draw(8, 5))
    tf.layers.batch_normalization(x, training=True)
    with tf.variable_scope("block"):
        tf.layers.batch_normalization(x, training=True, renorm=True)
        tf.layers.batch_normalization(x, name="named", center=False)
    renorm = ["moving_stddev", "renorm_mean", "renorm_stddev"]
    assert [v.op.name for v in tf.global_variables()] == [
        *(f"batch_normalization/{n}" for n in NAMES),
        *(f"block/batch_normalization/{n}" for n in NAMES + renorm),
        *(f"block/named/{n}" for n in NAMES if n != "beta"),
    ]
    assert [v.op.name for v in tf.trainable_variables()] == [
        "batch_normalization/gamma", "batch_normalization/beta",
        "block/batch_normalization/gamma", "block/batch_normalization/beta",
        "block/named/gamma",
    ]  # fmt: skip
    assert len(updates()) == 4


def test_reuse_shares_variables_and_adds_updates_of_its_own() -> None:
    first, second = draw(8, 5), draw(8, 5, seed=1)
    for x, reuse in ((first, None), (second, True)):
        tf.layers.batch_normalization(x, training=True, name="bn", reuse=reuse, momentum=0.5)
    assert len(tf.global_variables()) == 4
    assert len(updates()) == 4
    with session_of() as session:
        session.run(updates()[:2])
        session.run(updates()[2:])
        mean = session.run(tf.global_variables()[2])
    np.testing.assert_allclose(mean, 0.25 * first.mean(0) + 0.5 * second.mean(0), rtol=1e-5)


def test_the_class_is_called_again_with_the_same_variables() -> None:
    layer = tf.layers.BatchNormalization(momentum=0.5, name="bn")
    y = layer(tf.constant(draw(8, 5)), training=True)
    z = layer.apply(tf.constant(draw(4, 5)))
    assert layer.built
    assert y.shape.as_list() == [8, 5]
    assert z.shape.as_list() == [4, 5]
    assert [v.op.name for v in layer.trainable_variables] == ["bn/gamma", "bn/beta"]
    assert [v.op.name for v in layer.non_trainable_variables] == [
        "bn/moving_mean", "bn/moving_variance",
    ]  # fmt: skip
    assert len(layer.updates) == 2 == len(updates())


def test_make_template_shares() -> None:
    shared = tf.make_template(
        "shared", lambda x: tf.layers.batch_normalization(x, training=True, name="bn")
    )
    shared(tf.constant(draw(8, 5)))
    shared(tf.constant(draw(8, 5)))
    assert len(tf.global_variables()) == 4


def test_regularizers_and_constraints() -> None:
    tf.layers.batch_normalization(
        tf.constant(draw(8, 5)),
        training=True,
        gamma_regularizer=lambda v: 0.5 * tf.reduce_sum(v**2),
        beta_constraint=lambda v: tf.clip_by_value(v, -1.0, 1.0),
    )
    (loss,) = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    with session_of() as session:
        assert session.run(loss) == 2.5
    assert tf.trainable_variables()[1].constraint is not None


def test_partitioned_and_custom_variables() -> None:
    made: list[str] = []

    def make(getter: Any, name: str, *arguments: Any, **options: Any) -> Any:
        made.append(name)
        return getter(name, *arguments, **options)

    x = draw(8, 6)
    partitioner = tf.fixed_size_partitioner(2)
    with tf.variable_scope("parts", partitioner=partitioner, custom_getter=make):
        y = tf.layers.batch_normalization(tf.constant(x), training=True, name="bn")
    names = [v.op.name for v in tf.global_variables()]
    assert "parts/bn/gamma/part_0" in names
    assert "parts/bn/moving_mean" in names
    assert "parts/bn/gamma" in made
    expected, _ = reference.normalize_batch(x)
    with session_of() as session:
        np.testing.assert_allclose(session.run(y), expected, atol=1e-5)


def test_inside_of_cond_and_while_loop() -> None:
    x = tf.constant(draw(8, 5))
    layer = tf.layers.BatchNormalization(momentum=0.5, name="bn")
    layer.build(x.shape)
    taken = tf.placeholder_with_default(True, ())
    y = tf.cond(taken, lambda: layer(x, training=True), lambda: x)
    looped = tf.while_loop(
        lambda i, v: i < 3, lambda i, v: (i + 1, layer(v, training=True) * 2 + 3), [0, x]
    )[1]
    gradient = tf.gradients(tf.reduce_sum(y**3), x)[0]
    with session_of() as session:
        out, dx = session.run([y, gradient])
        expected, _ = reference.normalize_batch(draw(8, 5))
        np.testing.assert_allclose(out, expected, atol=1e-5)
        wanted = reference.backward(3 * expected**2, draw(8, 5))
        np.testing.assert_allclose(dx, wanted.x, atol=1e-4)
        np.testing.assert_allclose(session.run(looped).mean(0), 3, atol=1e-5)


@pytest.mark.parametrize("there", [True, False], ids=["ours to legacy", "legacy to ours"])
def test_checkpoints_go_both_ways(tmp_path: Path, there: bool) -> None:
    x = draw(8, 4, 4, 3)
    first, second = tf.layers.batch_normalization, legacy
    if not there:
        first, second = second, first
    first(tf.constant(x), training=True, name="bn", momentum=0.5)
    with session_of() as session:
        session.run(updates())
        kept = {v.op.name: session.run(v) for v in tf.global_variables()}
        path = tf.train.Saver().save(session, str(tmp_path / "model"))
    with tf.Graph().as_default():
        y = second(tf.constant(x), name="bn")
        with tf.Session() as session:
            tf.train.Saver().restore(session, path)
            for variable in tf.global_variables():
                np.testing.assert_array_equal(session.run(variable), kept[variable.op.name])
            expected = reference.normalize(
                x, kept["bn/moving_mean"], kept["bn/moving_variance"], epsilon=1e-3
            )
            np.testing.assert_allclose(session.run(y), expected, atol=1e-5)


def test_renorm_takes_tensors_as_bounds() -> None:
    x = draw(8, 5)
    rmax = tf.placeholder_with_default(np.float32(1.0), ())
    y = tf.layers.batch_normalization(
        tf.constant(x), training=True, renorm=True,
        renorm_clipping={"rmax": rmax, "rmin": 1.0 / rmax, "dmax": 0.0},
    )  # fmt: skip
    expected, batch = reference.normalize_batch(x)
    with session_of() as session:
        np.testing.assert_allclose(session.run(y), expected, atol=1e-5)
        r = np.clip(np.sqrt(batch.variance + 1e-3), 0.25, 4.0)
        np.testing.assert_allclose(session.run(y, {rmax: 4.0}), expected * r, atol=1e-4)


def test_data_far_from_zero_and_a_batch_that_is_not_finite() -> None:
    x = draw(64, 6, 6, 2) + np.float32([1e4, 0])
    feed = tf.placeholder(tf.float32, x.shape)
    y = tf.layers.batch_normalization(feed, training=True, momentum=0.0, fused=False)
    expected, batch = reference.normalize_batch(x)
    with session_of() as session:
        out, _ = session.run([y, updates()], {feed: x})
        np.testing.assert_allclose(out, expected, atol=2e-3)
        before = session.run(tf.global_variables()[2:])
        np.testing.assert_allclose(before[1], batch.variance, rtol=1e-5)
        x[0, 0, 0, 1] = np.nan
        session.run(updates(), {feed: x + np.float32([1, 1])})
        mean, _ = session.run(tf.global_variables()[2:])
        np.testing.assert_allclose(mean[0], before[0][0] + 1, rtol=1e-6)
        assert mean[1] == before[0][1]


def test_an_empty_batch_moves_nothing() -> None:
    feed = tf.placeholder(tf.float32, (None, 3))
    y = tf.layers.batch_normalization(feed, training=True, momentum=0.5)
    with session_of() as session:
        out, _ = session.run([y, updates()], {feed: np.zeros((0, 3))})
        assert out.shape == (0, 3)
        assert session.run(tf.global_variables()[2:])[1].tolist() == [1.0] * 3


def test_calls_are_recorded_with_the_line_that_made_them() -> None:
    tf.layers.batch_normalization(tf.constant(draw(8, 5)), training=True, name="bn")
    tf.layers.batch_normalization(tf.constant(draw(8, 5)), training=False, name="still")
    (call,) = records.calls_in(tf.get_default_graph())
    assert call.name == "bn"
    assert call.updates == tuple(updates())
    file, _, line = call.made_at.rpartition(":")
    assert file == __file__
    assert 'name="bn"' in Path(file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"axis": 4}, ShapeError),
        ({"axis": [1, 1]}, SpecError),
        ({"epsilon": -1.0}, SpecError),
        ({"momentum": 1.5}, SpecError),
        ({"renorm": True, "renorm_clipping": {"rmean": 1}}, SpecError),
        ({"virtual_batch_size": 0}, SpecError),
        ({"virtual_batch_size": 3}, ShapeError),
        ({"virtual_batch_size": 4, "adjustment": lambda s: (s, s)}, SpecError),
    ],
    ids=str,
)
def test_bad_options_say_what_to_do(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        tf.layers.batch_normalization(tf.constant(draw(8, 5)), training=True, **options)
    assert has_three_parts(str(raised.value))


def test_a_name_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"tf\.place_holder .* tf\.placeholder"):
        _ = tf.place_holder
