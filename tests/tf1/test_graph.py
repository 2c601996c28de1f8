"""What `describe_graph` sees in a graph that lives, and in the same graph stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tf_keras.api._v1.keras.__internal__.legacy.layers import (
    batch_normalization as legacy_batch_normalization,
)

import homeostat.tf1 as tf
from homeostat.errors import DataError, SpecError
from homeostat.tf1.graph.describe import describe_graph
from homeostat.tf1.graph.records import GraphReport
from homeostat.tf1.graph.steps import step_of
from tests.messages import has_three_parts

pytestmark = pytest.mark.filterwarnings("ignore:`tf.layers:UserWarning")
LINE = f"{__file__}:"
LAYERS = {"ours": tf.layers.batch_normalization, "legacy": legacy_batch_normalization}


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def alive() -> GraphReport:
    return describe_graph()


def with_collections() -> GraphReport:
    return describe_graph(tf.train.export_meta_graph())


def nodes_only() -> GraphReport:
    return describe_graph(tf.get_default_graph().as_graph_def(add_shapes=True))


@pytest.fixture(params=[alive, with_collections, nodes_only], ids=lambda each: each.__name__)
def describe(request: pytest.FixtureRequest) -> Any:
    return request.param


def network(batch_norm: Any = tf.layers.batch_normalization, training: Any = True) -> Any:
    x = tf.placeholder(tf.float32, [None, 8, 8, 3])
    h = tf.layers.conv2d(x, 4, 3, name="conv")
    h = tf.layers.max_pooling2d(tf.nn.relu(batch_norm(h, training=training, name="bn")), 2, 2)
    h = tf.layers.dropout(tf.layers.flatten(h), 0.5, training=True)
    return tf.reduce_mean(tf.layers.dense(h, 10, tf.nn.elu, name="outputs"))


def minimize(loss: Any, *, updates: bool = False, only: str | None = None, **options: Any) -> Any:
    run = tf.get_collection(tf.GraphKeys.UPDATE_OPS, only) if updates else []
    with tf.control_dependencies(run):
        variables = tf.trainable_variables(only)
        return tf.train.AdamOptimizer(**options).minimize(loss, var_list=variables)


def verdicts(report: GraphReport) -> dict[str, tuple[int, str]]:
    return {
        layer.name: (len(layer.updates), layer.verdict)
        for layer in report.layers
        if layer.is_batch_norm
    }


@pytest.mark.parametrize("batch_norm", LAYERS)
@pytest.mark.parametrize("training", ["true", "placeholder"])
@pytest.mark.parametrize("resource", [False, True])
def test_all_layers_are_told_with_shapes_and_parameters(describe, batch_norm, training, resource):
    flag = True if training == "true" else tf.placeholder_with_default(False, ())
    with tf.variable_scope("", use_resource=resource):
        loss = network(LAYERS[batch_norm], flag)
    minimize(loss)
    tf.train.Saver()
    tf.global_variables_initializer()
    report = describe()
    told = [(each.name, each.kind, each.output, each.parameters) for each in report.layers]
    assert told == [
        ("conv", "conv2d", (None, 6, 6, 4), 3 * 3 * 3 * 4 + 4),
        ("bn", "batch norm", (None, 6, 6, 4), 16),
        ("max_pooling2d", "max pooling", (None, 3, 3, 4), 0),
        ("dropout", "dropout", (None, 36), 0),
        ("outputs", "dense", (None, 10), 370),
    ]
    assert report.steps == ("Adam",)
    assert verdicts(report) == {"bn": (2, "not run")}
    assert report.forgotten
    (finding,) = report.findings
    assert finding.startswith("Training op Adam:\n1 batch norm is not updated by the training op:")
    assert finding.endswith("    with tf.control_dependencies(update_ops): train_op = ...")


@pytest.mark.parametrize("batch_norm", LAYERS)
@pytest.mark.parametrize("resource", [False, True])
def test_a_training_op_with_the_updates_is_fine(describe, batch_norm, resource):
    with tf.variable_scope("", use_resource=resource):
        loss = network(LAYERS[batch_norm])
    minimize(loss, updates=True)
    report = describe()
    assert verdicts(report) == {"bn": (2, "run")}
    assert (report.findings, report.notes, report.forgotten) == ((), (), False)


def test_lines_are_known_while_the_graph_lives():
    network()
    lines = {layer.name: layer.made_at for layer in alive().layers}
    assert all(line.startswith(LINE) for line in lines.values())
    assert len(set(lines.values())) == 4
    assert {layer.made_at for layer in with_collections().layers} == {""}


def test_without_a_training_op(describe):
    network()
    report = describe()
    assert verdicts(report) == {"bn": (2, "no training op")}
    assert (report.steps, report.forgotten) == ((), False)
    assert report.notes == ("No training op: nothing in this graph applies gradients.",)


def test_training_false_is_said(describe):
    minimize(network(training=False), updates=True)
    report = describe()
    assert verdicts(report) == {"bn": (0, "")}
    assert report.notes[0].startswith("Nothing updates the statistics of bn: made with training=")
    assert not report.forgotten


@pytest.mark.parametrize("updates", [False, True])
def test_the_steps_of_a_gan(describe, updates):
    with tf.variable_scope("generator"):
        h = tf.layers.dense(tf.placeholder(tf.float32, [None, 3]), 4)
        fake = tf.layers.dense(tf.layers.batch_normalization(h, training=True, name="bn"), 2)
    with tf.variable_scope("discriminator"):
        h = tf.layers.batch_normalization(tf.layers.dense(fake, 4), training=True, name="bn")
        loss = tf.reduce_mean(tf.layers.dense(h, 1))
    minimize(loss, updates=True, only="discriminator", name="D")
    minimize(-loss, updates=updates, only="generator", name="G")
    report = describe()
    assert report.steps == ("D", "G")
    # What the discriminator's step forgets of the generator is none of its business.
    wanted = "run" if updates else "not run"
    assert verdicts(report) == {"generator/bn": (2, wanted), "discriminator/bn": (2, "run")}
    assert [each.splitlines()[0] for each in report.findings] == ["Training op G:"][updates:]


@pytest.mark.parametrize("first", [False, True])
def test_of_two_training_ops_the_worse_is_told(describe, first):
    loss = network()
    for updates in (first, not first):
        minimize(loss, updates=updates, name=f"with_{updates}")
    report = describe()
    assert verdicts(report) == {"bn": (2, "not run")}
    assert [each.splitlines()[0] for each in report.findings] == ["Training op with_False:"]


def test_the_output_is_the_features_not_what_is_said_of_them(describe):
    x = tf.placeholder(tf.float32, [4, 3])
    flag = tf.placeholder_with_default(True, ())
    y = tf.layers.batch_normalization(x, training=flag, name="bn")
    update, _ = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    tf.summary.histogram("change", getattr(update, "op", update).inputs[1])
    tf.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_mean(y))
    assert [layer.output for layer in describe().layers] == [(4, 3)]


def test_a_layer_that_is_called_twice(describe):
    y = tf.layers.dense(tf.placeholder(tf.float32, [None, 3]), 4)
    for _ in range(2):
        y = tf.layers.batch_normalization(y, training=True, name="bn", reuse=tf.AUTO_REUSE)
    minimize(tf.reduce_mean(y), updates=True)
    report = describe()
    assert verdicts(report) == {"bn": (4, "repeated")}
    assert not report.forgotten


def test_conditions_and_loops_are_followed(describe):
    loss = network()
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)

    def run(i: Any) -> Any:
        with tf.control_dependencies(updates):
            return i + 1

    chosen = tf.cond(tf.placeholder(tf.bool), lambda: run(0), lambda: tf.constant(0))
    looped = tf.while_loop(lambda i: i < 3, run, [chosen])
    tf.group(minimize(loss), looped, name="step")
    report = describe()
    assert report.steps == ("step",)
    assert verdicts(report) == {"bn": (2, "run")}


def test_a_batch_norm_by_hand(describe):
    x = tf.placeholder(tf.float32, [None, 3])
    y = tf.matmul(x, tf.Variable(tf.ones([3, 4]), name="w"))
    mean = tf.Variable(tf.zeros([4]), trainable=False, name="pop_mean")
    variance = tf.Variable(tf.ones([4]), trainable=False, name="pop_var")

    def train() -> Any:
        now = tf.nn.moments(y, [0])
        moved = [
            tf.assign(a, a * 0.9 + b * 0.1) for a, b in zip((mean, variance), now, strict=True)
        ]
        with tf.control_dependencies(moved):
            return tf.nn.batch_normalization(y, *now, None, None, 1e-3)

    def infer() -> Any:
        return tf.nn.batch_normalization(y, mean, variance, None, None, 1e-3)

    minimize(tf.reduce_mean(tf.cond(tf.placeholder(tf.bool), train, infer)))
    report = describe()
    assert [(each.name, each.kind) for each in report.layers] == [
        ("w", "dense"),
        ("pop_mean", "batch norm"),
    ]
    assert verdicts(report) == {"pop_mean": (2, "run")}


def test_initializing_restoring_and_copying_are_no_training(graph, describe):
    minimize(network(), updates=True)
    with tf.variable_scope("target"):
        network()
    pairs = zip(tf.global_variables("bn"), tf.global_variables("target/bn"), strict=False)
    copy = tf.group(*(tf.assign(b, a) for a, b in pairs if "Adam" not in a.name), name="copy")
    tf.train.Saver()
    for each in (tf.global_variables_initializer(), copy):
        assert step_of(graph, [each], "") is None
    assert step_of(graph, [graph.get_operation_by_name("save/restore_all")], "") is None
    report = describe()
    assert report.steps == ("Adam",)
    assert verdicts(report)["target/bn"] == (2, "not trained")


def test_a_step_that_was_taken_counts_as_it_was_taken(graph):
    train_op = minimize(network())
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    step = step_of(graph, [train_op, *updates], "train.py:3")
    report = describe_graph(graph, steps=[step])
    assert report.steps == ("Adam",)
    assert verdicts(report) == {"bn": (2, "run")}
    forgetful = step_of(graph, [train_op], "train.py:4")
    (finding,) = describe_graph(graph, steps=[forgetful]).findings
    assert finding.startswith("Training op Adam, run at train.py:4:\n")


def test_updates_that_were_run_apart_are_not_forgotten(graph):
    minimize(network())
    mean, variance = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    report = describe_graph(graph, apart={mean, variance})
    assert (verdicts(report), report.forgotten) == ({"bn": (2, "run apart")}, False)
    assert report.findings == ()
    assert describe_graph(graph, apart={mean}).forgotten


def test_other_kinds_of_layers(describe):
    tf.layers.conv1d(tf.zeros([2, 8, 3]), 4, 3, name="a")
    tf.layers.separable_conv2d(tf.zeros([2, 8, 8, 3]), 4, 3, name="b")
    tf.layers.conv2d_transpose(tf.zeros([2, 8, 8, 3]), 4, 3, name="c")
    tf.layers.conv3d(tf.zeros([2, 8, 8, 8, 3]), 4, 3, name="d")
    tf.layers.dense(tf.zeros([2, 5, 3]), 4, name="e")
    table = tf.get_variable("f/embeddings", [10, 4])
    tf.nn.embedding_lookup(table, [1, 2])
    told = {layer.name: (layer.kind, layer.output) for layer in describe().layers}
    assert told == {
        "a": ("conv1d", (2, 6, 4)),
        "b": ("depthwise conv2d + conv2d", (2, 6, 6, 4)),
        "c": ("conv2d transpose", (2, 10, 10, 4)),
        "d": ("conv3d", (2, 6, 6, 6, 4)),
        "e": ("dense", (2, 5, 4)),
        "f": ("embedding", (2, 4)),
    }


def test_an_operation_that_nobody_knows_is_no_obstacle():
    minimize(network(), updates=True)
    graph_def = tf.get_default_graph().as_graph_def(add_shapes=True)
    next(node for node in graph_def.node if node.op == "Relu").op = "OfAnotherAge"
    assert verdicts(describe_graph(graph_def)) == {"bn": (2, "run")}


def test_exporting_says_nothing(caplog):
    minimize(network())
    with caplog.at_level(logging.DEBUG, "tensorflow"):
        meta = tf.train.export_meta_graph()
    assert caplog.records == []
    assert not [name for name in meta.collection_def if "homeostat" in name]


def broken(**changes: Any) -> Any:
    graph_def = tf.GraphDef()
    graph_def.node.add(name="a", op="Identity", **changes)
    return graph_def


BROKEN = {
    "empty": tf.GraphDef,
    "dangling": lambda: broken(input=["b"]),
    "no index": lambda: broken(input=["a:b"]),
    "twice": lambda: tf.GraphDef(node=[*broken().node, *broken().node]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_graphs_are_refused(kind):
    with pytest.raises(DataError, match="is broken") as caught:
        describe_graph(BROKEN[kind]())
    assert has_three_parts(caught.value)


def test_a_circle_ends():
    graph_def = broken(input=["b"])
    graph_def.node.add(name="b", op="Identity", input=["a"])
    graph_def.node.add(name="c", op="ApplyGradientDescent", input=["a", "b"])
    assert describe_graph(graph_def).layers == ()


@pytest.mark.parametrize("wrong", ["graph", 3, np.zeros(2)])
def test_what_is_no_graph_is_refused(wrong):
    with pytest.raises(SpecError, match="cannot be described") as caught:
        describe_graph(wrong)
    assert has_three_parts(caught.value)


def test_an_empty_graph_has_no_layers():
    assert describe_graph().notes == (
        "No layers: no variable, pooling or dropout is in this graph.",
    )
