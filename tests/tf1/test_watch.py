from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import pytest

import homeostat.tf1 as tf
from homeostat.errors import MissingUpdatesError, MissingUpdatesWarning, SpecError
from homeostat.tf1.watch import watch_updates
from tests.messages import has_three_parts
from tests.tf1.steps import (
    BATCH,
    MOVED_MEAN,
    MOVED_VARIANCE,
    RECORDED_AT,
    batch_norm,
    loss_of,
    minimize,
)

Pair = namedtuple("Pair", "loss step")
Fields = attrs.make_class("Fields", ["step", "loss"])
RUN = tf.Session.run
MAKE_CALLABLE = tf.Session.make_callable


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph
    assert tf.Session.run is RUN
    assert tf.Session.make_callable is MAKE_CALLABLE


def build(*, updates: bool = False) -> tuple[Any, Any, Any]:
    x = tf.placeholder(tf.float32, [None, 2], name="x")
    loss = loss_of(batch_norm(x))
    return x, tf.identity(loss, name="loss"), minimize(loss, updates=updates)


def moving(session: Any) -> list[list[float]]:
    return [value.tolist() for value in session.run(["bn/moving_mean:0", "bn/moving_variance:0"])]


def started() -> Any:
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    return session


UNMOVED = [[0.0, 0.0], [0.0, 0.0]]
MOVED = [MOVED_MEAN.tolist(), MOVED_VARIANCE.tolist()]


def test_a_forgotten_update_is_told_once_for_all_fetches():
    x, loss, step = build()
    told = []
    with watch_updates(say=told.append), started() as session:
        for fetches in (loss, step, step, [step, loss], {"step": step}):
            session.run(fetches, {x: BATCH})
        assert moving(session) == UNMOVED
    (text,) = told
    assert text.startswith(f"The training step at {__file__}:")
    assert f"    bn, made at {RECORDED_AT}\n" in text
    assert "    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)\n" in text
    assert text.endswith("    with tf.control_dependencies(update_ops): train_op = ...")


def test_it_is_a_warning_at_the_users_line():
    x, _, step = build()
    with watch_updates(), started() as session:
        with pytest.warns(MissingUpdatesWarning, match="1 batch norm is not updated") as caught:
            session.run(step, {x: BATCH})
        session.run(step, {x: BATCH})
    assert [each.filename for each in caught] == [__file__]


def test_nothing_is_said_where_nothing_is_forgotten():
    x, loss, step = build(updates=True)
    told = []
    with watch_updates("error", say=told.append), started() as session:
        tf.train.Saver()
        session.run([step, loss], {x: BATCH})
        assert moving(session) == MOVED
    assert told == []


def test_an_error_comes_before_anything_runs():
    x, loss, step = build()
    with watch_updates("error"), started() as session:
        for _ in range(2):
            with pytest.raises(MissingUpdatesError, match="expected that it updates") as caught:
                session.run([step, loss], {x: BATCH})
        assert f"bn, made at {RECORDED_AT}" in str(caught.value)
        assert str(caught.value).endswith("\nNothing was run.")
        # What does not train may run.
        session.run(loss, {x: BATCH})
        assert session.run("bn/gamma:0").tolist() == [1.0, 1.0]
        assert moving(session) == UNMOVED


KINDS = {
    "operation": lambda loss, step: step,
    "list": lambda loss, step: [step, loss],
    "tuple": lambda loss, step: (loss, (step, [loss])),
    "namedtuple": lambda loss, step: Pair(loss, step),
    "dict": lambda loss, step: {"b": step, "a": {"loss": loss}},
    "ordered": lambda loss, step: OrderedDict(z=step, a=loss),
    "mixed keys": lambda loss, step: {1: step, "a": loss},
    "names": lambda loss, step: ["loss:0", step.name],
    "sparse": lambda loss, step: [tf.SparseTensor([[0, 1]], [loss], [2, 2]), step],
    "variable": lambda loss, step: [step, tf.Variable(7.0, trainable=False)],
    "empty parts": lambda loss, step: [[], step, {}],
    "attrs": lambda loss, step: Fields(step, loss),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fix_moves_the_statistics_and_returns_what_was_asked(kind):
    x, loss, step = build()
    fetches = KINDS[kind](loss, step)
    told = []
    with started() as session:
        expected = session.run(fetches, {x: BATCH})
        assert moving(session) == UNMOVED
    with watch_updates("error", fix=True, say=told.append), started() as session:
        found = session.run(fetches, feed_dict={x: BATCH})
        assert moving(session) == MOVED
        session.run(fetches, {x: BATCH}, tf.RunOptions(), tf.RunMetadata())
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)
    (text,) = told
    assert text.endswith("They are run with this step all the same, as you asked for a fix.")


def test_updates_may_run_apart_before_the_step():
    x, _, step = build()
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with watch_updates("error"), started() as session:
        # Half of them are not enough.
        session.run(updates[:1], {x: BATCH})
        with pytest.raises(MissingUpdatesError, match=r"Session\.run of their own"):
            session.run(step, {x: BATCH})
        session.run(updates, {x: BATCH})
        session.run(step, {x: BATCH})


def test_updates_that_another_step_runs_do_not_count_as_run_apart():
    x, _, step = build()
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with watch_updates("error"), started() as session:
        session.run([step, updates], {x: BATCH})
        with pytest.raises(MissingUpdatesError):
            session.run(step, {x: BATCH})


@pytest.mark.parametrize("fed", [False, True])
def test_callables_are_watched_and_mended(fed):
    x, loss, step = build()
    data = tf.constant(BATCH)
    if not fed:
        tf.get_variable_scope().reuse_variables()
        loss = loss_of(batch_norm(data))
        step = minimize(loss)
    feeds, values = ([x], (BATCH,)) if fed else (None, ())
    with watch_updates("error"), started() as session, pytest.raises(MissingUpdatesError):
        session.make_callable([step, loss], feeds)
    told = []
    with watch_updates(fix=True, say=told.append), started() as session:
        run = session.make_callable([step, loss], feeds)
        result = run(*values)
        assert result[0] is None
        assert result[1].shape == ()
        assert moving(session) == MOVED
        assert isinstance(session.make_callable(loss, feeds)(*values), np.floating)
    assert len(told) == 1


def test_a_fix_moves_them_as_the_two_lines_do():
    moved = []
    for updates in (True, False):
        with tf.Graph().as_default():
            x, _, step = build(updates=updates)
            with watch_updates("off", fix=not updates, say=lambda _: None), started() as session:
                for factor in (1, 2, 3):
                    session.run(step, {x: BATCH * factor})
                moved.append([*moving(session), session.run("bn/gamma:0").tolist()])
    assert moved[0] == moved[1]


def test_a_monitored_session_is_watched():
    x, loss, step = build()
    told = []
    with watch_updates(fix=True, say=told.append), tf.train.MonitoredSession() as session:
        results = session.run([loss, step], {x: BATCH})
        assert moving(session) == MOVED
    assert len(results) == 2
    assert results[1] is None
    assert told[0].startswith(f"The training step at {__file__}:")


def test_operations_run_by_themselves_are_watched():
    x, _, step = build()
    with watch_updates("error"), started():
        session = tf.InteractiveSession()
        session.run(tf.global_variables_initializer())
        with pytest.raises(MissingUpdatesError):
            step.run({x: BATCH})
        session.close()


def test_a_layer_that_joins_later_is_told_too():
    x, loss, step = build()
    told = []
    with watch_updates(say=told.append), tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(step, {x: BATCH})
        second = minimize(loss_of(batch_norm(x, "later")) + loss)
        session.run(tf.global_variables_initializer())
        session.run(second, {x: BATCH})
    assert len(told) == 2
    assert "    later, made at" in told[1]


def test_mistakes_in_fetches_are_told_by_the_session():
    build()
    with watch_updates("error"), started() as session:
        for wrong, error in ((None, TypeError), ("nowhere:0", ValueError), (3, TypeError)):
            with pytest.raises(error, match=r"[Ff]etch"):
                session.run(wrong)


def test_the_watch_ends_with_its_block_even_after_an_error():
    x, _, step = build()
    with pytest.raises(MissingUpdatesError), watch_updates("error"), started() as session:
        session.run(step, {x: BATCH})
    assert tf.Session.run is RUN
    assert tf.Session.make_callable is MAKE_CALLABLE
    with started() as session:
        session.run(step, {x: BATCH})


def test_off_watches_nothing():
    with watch_updates("off"):
        assert tf.Session.run is RUN
    assert tf.Session.make_callable is MAKE_CALLABLE


def test_a_watched_graph_can_go():
    with watch_updates(say=lambda _: None):
        with tf.Graph().as_default() as graph:
            x, _, step = build()
            with started() as session:
                session.run(step, {x: BATCH})
        gone = weakref.ref(graph)
        del graph, x, step, session, _
        gc.collect()
        assert gone() is None


def test_an_unknown_check_is_refused():
    with (
        pytest.raises(SpecError, match="check='loud' is not known") as caught,
        watch_updates("loud"),
    ):
        pass
    assert has_three_parts(caught.value)
