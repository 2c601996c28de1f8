"""`slim.batch_norm` against tf_slim's own, where that one is right, and the oracle elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import homeostat.tf1 as tf
from homeostat import reference
from homeostat.errors import HomeostatError, ShapeError, SpecError
from tests.messages import has_three_parts
from tests.tf1.slim import as_layer, original_layers, slim
from tests.tf1.test_against_legacy import adjustment, assert_close
from tests.tf1.training import train

SHAPES = [(8, 5), (8, 4, 6, 3), (8, 6, 3), (8, 2, 3, 2, 3)]
UPDATE_OPS = tf.GraphKeys.UPDATE_OPS


def draw_options(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """Draw options that TF1 allows together, and does right together."""
    options: dict[str, Any] = {
        "decay": float(rng.choice([0.0, 0.5, 0.9])),
        "epsilon": float(rng.choice([1e-4, 1e-3, 0.1])),
        "center": bool(rng.random() < 0.8),
        "scale": bool(rng.random() < 0.5),
        "fused": [None, True, False][rng.integers(3)],
        "data_format": str(rng.choice(["NHWC", "NCHW"])),
        "param_initializers": {
            "beta": tf.constant_initializer(0.3),
            "gamma": tf.constant_initializer(-1.2),
            "moving_mean": tf.constant_initializer(0.1),
            "moving_variance": tf.constant_initializer(2.0),
        },
    }
    kind = rng.choice(["plain", "weights", "renorm", "adjustment", "in place", "debias", "both"])
    if kind == "weights":
        options["batch_weights"] = rng.uniform(0.1, 2, shape[0]).astype(np.float32)
        options["updates_collections"] = UPDATE_OPS if rng.random() < 0.5 else None
    elif kind == "renorm":
        options |= {"renorm": True, "renorm_decay": 0.8}
        options["renorm_clipping"] = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}
    elif kind == "adjustment":
        options["adjustment"] = adjustment
    if kind in ("in place", "both"):
        options["updates_collections"] = None
    if kind in ("debias", "both"):
        options["zero_debias_moving_mean"] = True
    return options


@pytest.mark.parametrize("seed", range(64))
def test_every_option_gives_the_same_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    options = draw_options(rng, shape)
    batches = [rng.normal(0.5, 2, shape).astype(np.float32) for _ in range(3)]
    training = "placeholder" if rng.random() < 0.5 else True
    seen = (None, *shape[1:]) if training == "placeholder" and rng.random() < 0.5 else shape
    dy = rng.normal(size=shape)
    runs = [
        train(as_layer(each), batches, dy, dict(options), training=training, shape=seen)
        for each in (slim.batch_norm, original_layers().batch_norm)
    ]
    assert_close(*runs)


COLLECTIONS = ("variables", "model_variables", "trainable_variables", UPDATE_OPS, "kept")


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_variables_are_named_and_collected_as_tf1_did(
    shape: tuple[int, ...], debias: bool, fused: bool | None, is_training: bool
) -> None:
    found = []
    for batch_norm in (slim.batch_norm, original_layers().batch_norm):
        with tf.Graph().as_default() as graph, tf.variable_scope("net"):
            for scope in (None, "named"):
                batch_norm(
                    tf.zeros(shape), scale=True, fused=fused, zero_debias_moving_mean=debias,
                    is_training=is_training, variables_collections={"moving_mean": ["kept"]},
                    scope=scope,
                )  # fmt: skip
            collections = {key: graph.get_collection(key) for key in COLLECTIONS}
        collections[UPDATE_OPS] = [None for _ in collections[UPDATE_OPS]]
        found.append({k: [getattr(v, "name", v) for v in vs] for k, vs in collections.items()})
    assert found[0] == found[1]
    assert found[0]["kept"] == ["net/BatchNorm/moving_mean:0", "net/named/moving_mean:0"]


@pytest.mark.parametrize("theirs_first", [True, False])
def test_zero_debiased_checkpoints_go_both_ways(tmp_path: Any, theirs_first: bool) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, (8, 5)).astype(np.float32) for _ in range(4)]
    both = [slim.batch_norm, original_layers().batch_norm]
    for i, batch_norm in enumerate(reversed(both) if theirs_first else both):
        with tf.Graph().as_default(), tf.Session() as session:
            x = tf.placeholder(tf.float32, (8, 5))
            batch_norm(x, 0.9, zero_debias_moving_mean=True, scope="bn")
            saver = tf.train.Saver()
            if i:
                saver.restore(session, str(tmp_path / "model"))
            else:
                session.run(tf.global_variables_initializer())
            for batch in batches[2 * i : 2 * i + 2]:
                session.run(tf.get_collection(UPDATE_OPS), {x: batch})
            saver.save(session, str(tmp_path / "model"))
            mean, steps = (
                session.run(slim.get_variables_by_name(name)[0])
                for name in ("moving_mean", "local_step")
            )
    weights = 0.9 ** np.arange(3, -1, -1)
    expected = np.average([b.mean(0, dtype=np.float64) for b in batches], 0, weights)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert steps == 4


def test_weighted_statistics_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1e3, 1, (16, 5)).astype(np.float32)
    weights = rng.uniform(0, 2, 16).astype(np.float32)
    dy = rng.normal(size=x.shape)
    options = {"decay": 0.0, "scale": True, "batch_weights": weights}
    found = train(as_layer(slim.batch_norm), [x], dy, options)
    y, batch = reference.normalize_batch(x, weights=weights)
    np.testing.assert_allclose(found.outputs[0], y, atol=2e-4)
    np.testing.assert_allclose(found.variables["bn/moving_mean"], batch.mean, rtol=1e-6)
    np.testing.assert_allclose(found.variables["bn/moving_variance"], batch.variance, rtol=1e-5)
    wanted = reference.backward(dy, x, weights=weights)
    np.testing.assert_allclose(found.gradients[0]["x"], wanted.x, atol=2e-4)


# From here on, what tf_slim gets wrong.


def test_the_debiased_mean_is_exact_from_the_start() -> None:
    # tf_slim divides by 1 - 0.999 in float32, which is 1e-5 off.
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    found = train(
        as_layer(slim.batch_norm), [x], 0 * x, {"decay": 0.999, "zero_debias_moving_mean": True}
    )
    np.testing.assert_allclose(found.variables["bn/moving_mean"], x.mean(0), rtol=5e-7)
    biased = found.variables["bn/bn/moving_mean/biased"]
    np.testing.assert_allclose(biased, 0.001 * x.mean(0, dtype=np.float64), rtol=5e-7)


def test_weights_of_zero_and_bad_channels_move_nothing() -> None:
    # tf_slim's go towards 0 without weights, and are NaN for good after one.
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    options = {"decay": 0.5, "zero_debias_moving_mean": True}
    none = train(as_layer(slim.batch_norm), [x], 0 * x, options | {"batch_weights": 0 * x[:, 0]})
    assert none.variables["bn/moving_mean"].tolist() == [0] * 5
    assert none.variables["bn/moving_variance"].tolist() == [1] * 5
    assert none.variables["bn/bn/moving_mean/local_step"] == 0
    bad = x.copy()
    bad[2, 1] = np.nan
    some = train(as_layer(slim.batch_norm), [x, bad], 0 * x, options)
    np.testing.assert_allclose(some.variables["bn/moving_mean"], x.mean(0), rtol=1e-6)
    assert some.variables["bn/bn/moving_mean/local_step"] == 2


def test_regularizers_and_adjustments_are_never_left_out() -> None:
    # tf_slim forgets both where it writes the moments out.
    with tf.Graph().as_default(), tf.Session() as session:
        x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
        y = slim.batch_norm(
            tf.constant(x), epsilon=0.0, updates_collections=None, fused=False, scale=True,
            adjustment=adjustment, param_regularizers={"gamma": lambda v: tf.reduce_sum(v)},
        )  # fmt: skip
        losses = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
        session.run(tf.global_variables_initializer())
        out = session.run(y)
        assert session.run(losses) == [5.0]
    np.testing.assert_allclose(out, 1.5 * (x - x.mean(0)) / x.std(0) - 0.3, atol=1e-5)


def test_renorm_goes_with_updates_in_place() -> None:
    # tf_slim refuses it.
    rng = np.random.default_rng(0)
    batches = [rng.normal(0.5, 2, (8, 4, 6, 3)).astype(np.float32) for _ in range(3)]
    options = {"renorm": True, "decay": 0.9}
    delayed, inside = (
        train(as_layer(slim.batch_norm), batches, batches[0], options | more)
        for more in ({}, {"updates_collections": None})
    )
    for name, value in inside.variables.items():
        np.testing.assert_allclose(value, delayed.variables[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inside.outputs[-1], delayed.outputs[-1], atol=1e-5)


# What holds of the function itself.


def test_arg_scope_and_normalizer_fn() -> None:
    with tf.Graph().as_default():
        x = tf.zeros((8, 4, 4, 3))
        with (
            slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm),
            slim.arg_scope([slim.batch_norm], decay=0.5, scale=True, activation_fn=tf.nn.elu),
        ):
            inner = slim.conv2d(x, 4, 3, scope="inner")
            with slim.arg_scope([slim.batch_norm], scale=False, is_training=False):
                slim.conv2d(inner, 4, 3, scope="outer")
        names = [v.op.name for v in slim.get_model_variables()]
        moving = ["BatchNorm/moving_mean", "BatchNorm/moving_variance"]
        assert sorted(names) == sorted(
            [f"inner/{n}" for n in ("weights", "BatchNorm/gamma", "BatchNorm/beta", *moving)]
            + [f"outer/{n}" for n in ("weights", "BatchNorm/beta", *moving)]
        )
        assert [u.name.split("/")[0] for u in tf.get_collection(UPDATE_OPS)] == ["inner"] * 2
        assert slim.has_arg_scope(slim.batch_norm)
        assert "zero_debias_moving_mean" in slim.arg_scoped_arguments(slim.batch_norm)


def test_updates_are_checked_wherever_they_are() -> None:
    for collections, kept in ((None, "updated"), ("mine", "missing"), (UPDATE_OPS, "missing")):
        with tf.Graph().as_default():
            x = tf.constant(np.ones((8, 5), np.float32))
            y = slim.fully_connected(
                x, 4, normalizer_fn=slim.batch_norm,
                normalizer_params={"updates_collections": collections},
            )  # fmt: skip
            step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(y**2))
            report = tf.check_updates(step)
            calls = getattr(report, kept)
            assert [call.name for call in calls] == ["fully_connected/BatchNorm"]
            assert __file__ in calls[0].made_at
            run = [step, tf.get_collection(collections)] if collections else [step]
            assert tf.check_updates(tf.group(*run)).missing == ()


@pytest.mark.parametrize("fused", [None, False])
def test_a_step_that_needs_no_output_updates_all_the_same(fused: bool | None) -> None:
    # tf_slim leaves the statistics where they were.
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        y = slim.batch_norm(tf.constant(x), 0.5, updates_collections=None, fused=fused)
        step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(y))
        assert len(tf.check_updates(step).updated) == 1
        session.run(tf.global_variables_initializer())
        session.run(step)
        mean = session.run(slim.get_variables("BatchNorm/moving_mean")[0])
    np.testing.assert_allclose(mean, 0.5 * x.mean(0), rtol=1e-6)


def test_is_training_is_a_variable() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        flag = tf.Variable(True, trainable=False)
        y = slim.batch_norm(tf.constant(x), 0.5, is_training=flag, updates_collections=None)
        session.run(tf.global_variables_initializer())
        session.run(y)
        mean = slim.get_variables("BatchNorm/moving_mean")[0]
        np.testing.assert_allclose(session.run(mean), 0.5 * x.mean(0), rtol=1e-6)
        session.run(flag.assign(False))
        session.run(y)
        np.testing.assert_allclose(session.run(mean), 0.5 * x.mean(0), rtol=1e-6)


def test_outputs_and_reuse() -> None:
    with tf.Graph().as_default():
        x = tf.zeros((8, 5))
        y = slim.batch_norm(x, scope="bn", outputs_collections="ends", activation_fn=tf.nn.relu)
        assert tf.get_collection("ends") == [y]
        assert slim.utils.convert_collection_to_dict("ends") == {"bn": y}
        assert y.op.type == "Relu"
        slim.batch_norm(x, scope="bn", reuse=True, trainable=False)
        assert len(tf.global_variables()) == 3
        slim.batch_norm(x, scope="still", trainable=False)
        assert [v.op.name for v in tf.trainable_variables()] == ["bn/beta"]


def test_float16_keeps_float32_variables() -> None:
    # tf_slim makes float16 variables where it writes the moments out.
    with tf.Graph().as_default():
        x = tf.zeros((8, 5), tf.float16)
        for options in ({}, {"fused": False, "updates_collections": None}):
            assert slim.batch_norm(x, **options).dtype == tf.float16
        assert {v.dtype.base_dtype for v in tf.global_variables()} == {tf.float32}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"data_format": "CHWN"}, SpecError),
        ({"decay": 1.5}, SpecError),
        ({"inputs": "unknown"}, ShapeError),
        ({"inputs": "channels"}, ShapeError),
        ({"batch_weights": [1.0, 2.0]}, ShapeError),
    ],
)
def test_wrong_arguments(options: dict[str, Any], kind: type[HomeostatError]) -> None:
    with tf.Graph().as_default():
        shapes = {"unknown": None, "channels": (8, None)}
        shape = shapes.get(options.pop("inputs", ""), (8, 5))
        with pytest.raises(kind) as caught:
            slim.batch_norm(tf.placeholder(tf.float32, shape), **options)
    assert has_three_parts(caught.value)
