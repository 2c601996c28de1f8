from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import homeostat.tf1 as tf
from homeostat.errors import SpecError
from homeostat.tf1.records import calls_in, record_call
from homeostat.tf1.updates import UpdateReport
from tests.messages import has_three_parts
from tests.tf1.steps import BATCH, RATE, RECORDED_AT, batch_norm, loss_of, minimize


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def names(calls) -> list[str]:
    return [call.name for call in calls]


@pytest.mark.parametrize("resource", [False, True])
def test_an_op_without_the_updates_misses_them(resource):
    y = batch_norm(batch_norm(tf.constant(BATCH), "a", resource), "b", resource)
    report = tf.check_updates(minimize(loss_of(y)))
    assert (names(report.missing), report.repeated, report.updated) == (["a", "b"], (), ())


@pytest.mark.parametrize("resource", [False, True])
def test_an_op_with_the_updates_is_fine(resource, graph):
    y = batch_norm(batch_norm(tf.constant(BATCH), "a", resource), "b", resource)
    report = tf.check_updates(minimize(loss_of(y), updates=True))
    assert report == UpdateReport(updated=tuple(calls_in(graph)))
    assert str(report) == "2 batch norms are updated once in a step."


def test_all_updates_of_a_call_must_run():
    loss = loss_of(batch_norm(tf.constant(BATCH)))
    first, second = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    train_op = minimize(loss)
    assert names(tf.check_updates([train_op, first]).missing) == ["bn"]
    assert names(tf.check_updates((train_op, second.op)).missing) == ["bn"]
    assert names(tf.check_updates([train_op, first, second]).updated) == ["bn"]


def test_the_report_names_the_line_and_the_remedy():
    with tf.variable_scope("tower"):
        y = batch_norm(tf.constant(BATCH))
    assert str(tf.check_updates(minimize(loss_of(y)))) == (
        "1 batch norm is not updated by the training op:\n"
        f"    tower/bn, made at {RECORDED_AT}\n"
        "Moving means and variances stay as they are, so what the network gives with\n"
        "training=False is wrong. Make the training op wait for the updates:\n"
        "    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)\n"
        "    with tf.control_dependencies(update_ops): train_op = ..."
    )


def test_a_layer_called_twice_is_repeated():
    y = batch_norm(batch_norm(tf.constant(BATCH), "shared") + 1.0, "shared")
    report = tf.check_updates(minimize(loss_of(batch_norm(y, "once")), updates=True))
    assert (names(report.repeated), names(report.updated)) == (["shared", "shared"], ["once"])
    assert "1 batch norm is updated once in a step." in str(report)
    assert "2 batch norms are updated more than once in a step" in str(report)


def test_of_two_calls_the_one_that_is_run_is_fine(graph):
    y = batch_norm(batch_norm(tf.constant(BATCH), "shared") + 1.0, "shared")
    first, second = calls_in(graph)
    report = tf.check_updates([minimize(loss_of(y)), *first.updates])
    assert report == UpdateReport(missing=(second,), updated=(first,))


def test_what_the_step_does_not_use_is_left_out():
    x = tf.placeholder(tf.float32, [2, 2])
    trunk = tf.tanh(x * tf.get_variable("w", [2]))
    batch_norm(trunk, "other_head")
    batch_norm(x, "other_input")
    report = tf.check_updates(minimize(loss_of(batch_norm(trunk)), only="bn"))
    assert names(report.missing) == ["bn"]


def test_the_step_of_a_discriminator_leaves_the_generator_alone():
    fake = batch_norm(tf.constant(BATCH), "generator")
    loss = loss_of(batch_norm(fake, "discriminator"))
    step = minimize(loss, only="discriminator")
    assert names(tf.check_updates(step).missing) == ["discriminator"]
    assert names(tf.check_updates(loss).missing) == ["generator", "discriminator"]


def test_initializing_and_restoring_train_nothing():
    batch_norm(tf.constant(BATCH))
    tf.train.Saver()
    restore = tf.get_default_graph().get_operation_by_name("save/restore_all")
    assert tf.check_updates([tf.global_variables_initializer(), restore]) == UpdateReport()


def test_conditions_and_loops_are_followed():
    y = batch_norm(tf.constant(BATCH))
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    train_op = minimize(loss_of(y))

    def run_them():
        # Operations of the outer graph that the branch waits for.
        with tf.control_dependencies(updates):
            return tf.constant(1)

    chosen = tf.cond(tf.placeholder(tf.bool), run_them, lambda: tf.constant(0))
    assert names(tf.check_updates([train_op, chosen]).updated) == ["bn"]
    looped = tf.while_loop(lambda i: i < 3, lambda i: i + run_them(), [tf.constant(0)])
    assert names(tf.check_updates([train_op, looped]).updated) == ["bn"]


def test_a_call_inside_a_function_is_found():
    mean = tf.get_variable("mean", [2], use_resource=True, trainable=False)

    @tf.function
    def normalize(x):
        now = tf.reduce_mean(x, 0)
        record_call("inside", (mean.assign_sub(RATE * (mean - now)),))
        return x - now

    w = tf.get_variable("w", [2])
    step = minimize(loss_of(normalize(tf.constant(BATCH) * w)))
    assert names(tf.check_updates(step).updated) == ["inside"]


def test_a_deep_graph_does_not_end_the_stack():
    y = tf.constant(BATCH)
    for _ in range(3000):
        y = tf.identity(y)
    assert names(tf.check_updates(minimize(loss_of(batch_norm(y)))).missing) == ["bn"]


@pytest.mark.parametrize("wrong", [None, "train", [], 3, [3], np.zeros(2)])
def test_what_is_no_operation_is_refused(wrong):
    with pytest.raises(SpecError, match="cannot be checked") as caught:
        tf.check_updates(wrong)
    assert has_three_parts(caught.value)


def test_operations_of_two_graphs_are_refused():
    here = tf.constant(1)
    with tf.Graph().as_default(), pytest.raises(SpecError, match="several graphs") as caught:
        tf.check_updates([here, tf.constant(2)])
    assert has_three_parts(caught.value)


def test_it_is_on_the_surface():
    assert "check_updates" in dir(tf)
