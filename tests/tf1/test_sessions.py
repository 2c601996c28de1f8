"""Long runs and several sessions: nothing leaks, nothing is shared that should not be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import homeostat.tf1 as tf
from homeostat.tf1.watch import watch_updates

# tf-keras says that its layers are old.
pytestmark = pytest.mark.filterwarnings("ignore:`tf.layers.dense` is deprecated")

ROWS, FEATURES = 32, 20


def training(flag: Any = True) -> tuple[Any, Any, Any]:
    """Build a small network in the default graph; return its input, its flag and its step."""
    x = tf.placeholder(tf.float32, [None, FEATURES])
    hidden = x
    for i in range(2):
        start = tf.random_normal_initializer(seed=i)
        hidden = tf.layers.dense(hidden, 16, use_bias=False, kernel_initializer=start)
        hidden = tf.nn.relu(tf.layers.batch_normalization(hidden, training=flag))
    loss = tf.reduce_mean(tf.square(tf.reduce_sum(hidden, 1) - x[:, 0]))
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        return x, flag, tf.train.GradientDescentOptimizer(0.01).minimize(loss)


def batches(seed: int, number: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(seed, 2, (ROWS, FEATURES)).astype(np.float32) for _ in range(number)]


def resident() -> float:
    """Return the memory that this process holds, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
def test_ten_thousand_steps_leak_nothing() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc")
    with tf.Graph().as_default() as graph, watch_updates("error"), tf.Session() as session:
        x, flag, step = training(tf.placeholder_with_default(False, ()))
        session.run(tf.global_variables_initializer())
        graph.finalize()
        operations, data, memory = len(graph.get_operations()), batches(0, 10), []
        for i in range(10_000):
            session.run(step, {x: data[i % 10], flag: True})
            if i >= 2_000 and i % 500 == 499:
                memory.append(resident())
        assert len(graph.get_operations()) == operations
    first, last = np.median(memory[:4]), np.median(memory[-4:])
    assert last - first < 4, f"grew from {first:.1f} to {last:.1f} MiB"


def one_core() -> Any:
    return tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)


def side_by_side(runs: list[Callable[[], list[np.ndarray]]]) -> list[list[np.ndarray]]:
    """Run each in a thread of its own, all at once."""
    results: list[Any] = [None] * len(runs)
    together = threading.Barrier(len(runs))

    def run(i: int) -> None:
        together.wait()
        results[i] = runs[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_threads_with_graphs_of_their_own_give_what_two_runs_in_turn_do() -> None:
    def trained(seed: int) -> list[np.ndarray]:
        with tf.Graph().as_default(), tf.Session(config=one_core()) as session:
            x, _, step = training()
            session.run(tf.global_variables_initializer())
            for batch in batches(seed, 300):
                session.run(step, {x: batch})
            return session.run(tf.global_variables())

    runs = [lambda: trained(1), lambda: trained(2)]
    in_turn = [run() for run in runs]
    assert not np.array_equal(in_turn[0][-1], in_turn[1][-1])
    with watch_updates("error"):
        at_once = side_by_side(runs)
    for alone, beside in zip(in_turn, at_once, strict=True):
        assert len(alone) == len(beside) == 2 * 5
        for a, b in zip(alone, beside, strict=True):
            np.testing.assert_array_equal(a, b)


def test_two_sessions_of_one_graph_keep_statistics_of_their_own() -> None:
    with tf.Graph().as_default() as graph:
        x, _, step = training()
        start = tf.global_variables_initializer()
        variables = tf.global_variables()

    def trained(seed: int) -> list[np.ndarray]:
        with tf.Session(graph=graph, config=one_core()) as session:
            session.run(start)
            for batch in batches(seed, 300):
                session.run(step, {x: batch})
            return session.run(variables)

    runs = [lambda: trained(1), lambda: trained(2)]
    in_turn, at_once = [run() for run in runs], side_by_side(runs)
    for alone, beside in zip(in_turn, at_once, strict=True):
        for a, b in zip(alone, beside, strict=True):
            np.testing.assert_array_equal(a, b)
