"""What lives on of `tf.contrib`: data through every group of `tf.contrib.data`, cells, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import homeostat.tf1 as tf

data = tf.contrib.data


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


def drain(dataset: Any, initialize: bool = False) -> list[Any]:
    """Return all elements of a data set."""
    make = tf.data.make_initializable_iterator if initialize else tf.data.make_one_shot_iterator
    iterator = make(dataset)
    following, found = iterator.get_next(), []
    with tf.Session() as session:
        if initialize:
            session.run(iterator.initializer)
        while True:
            try:
                found.append(session.run(following))
            except tf.errors.OutOfRangeError:
                break
    return [x.tolist() if isinstance(x, np.ndarray | np.generic) else x for x in found]


def numbers(n: int) -> Any:
    return data.Dataset.range(n)


def test_batches_are_of_one_size() -> None:
    batches = numbers(7).apply(data.batch_and_drop_remainder(3))
    assert batches.output_shapes.as_list() == [3]
    assert drain(batches) == [[0, 1, 2], [3, 4, 5]]
    ragged = numbers(5).map(lambda n: tf.fill([n], n))
    padded = ragged.apply(data.padded_batch_and_drop_remainder(2, [4], np.int64(-1)))
    assert drain(padded) == [[[-1] * 4, [1, -1, -1, -1]], [[2, 2, -1, -1], [3, 3, 3, -1]]]
    both = data.map_and_batch(lambda n: n * n, 2, drop_remainder=True)
    assert drain(numbers(5).apply(both)) == [[0, 1], [4, 9]]


def test_order_and_repetition() -> None:
    found = drain(numbers(5).apply(data.shuffle_and_repeat(5, 2, seed=0)))
    assert sorted(found[:5]) == sorted(found[5:]) == [0, 1, 2, 3, 4]
    spread = data.parallel_interleave(lambda n: numbers(3).map(lambda m: 10 * n + m), 2)
    assert sorted(drain(numbers(2).apply(spread))) == [0, 1, 2, 10, 11, 12]
    assert drain(numbers(2).apply(data.enumerate_dataset(5))) == [(5, 0), (6, 1)]
    assert drain(data.Counter(3, 2).take(3)) == [3, 5, 7]


def test_groups_and_elements() -> None:
    assert drain(numbers(4).batch(2).apply(data.unbatch())) == [0, 1, 2, 3]
    even = data.group_by_window(lambda n: n % 2, lambda _, window: window.batch(4), 4)
    assert drain(numbers(6).apply(even)) == [[0, 2, 4], [1, 3, 5]]
    summed = data.scan(np.int64(0), lambda total, n: (total + n, total + n))
    assert drain(numbers(4).apply(summed)) == [0, 1, 3, 6]
    assert drain(numbers(6).map(lambda n: n % 3).apply(data.unique())) == [0, 1, 2]
    lengths = data.bucket_by_sequence_length(tf.size, [3], [2, 2])
    ragged = numbers(4).map(lambda n: tf.fill([n + 1], n))
    assert [np.shape(x) for x in drain(ragged.apply(lengths))] == [(2, 2), (2, 4)]
    with tf.Session() as session:
        assert session.run(data.get_single_element(numbers(1))) == 0


def test_choice_between_data_sets() -> None:
    two = [numbers(3), numbers(3).map(lambda n: n + 10)]
    chosen = data.choose_from_datasets(two, data.Dataset.from_tensor_slices(np.int64([1, 0, 1])))
    assert drain(chosen) == [10, 0, 11]
    sampled = drain(data.sample_from_datasets(two, [0.5, 0.5], seed=1))
    assert sorted(sampled) == [0, 1, 2, 10, 11, 12]


def test_bad_elements_are_left_out() -> None:
    checked = numbers(4).map(lambda n: tf.check_numerics(1 / tf.cast(n - 2, tf.float32), "bad"))
    assert drain(checked.apply(data.ignore_errors())) == [-0.5, -1, 1]


def test_files(tmp_path: Path) -> None:
    text, table, records = (str(tmp_path / name) for name in ("a.txt", "a.csv", "a.tfrecord"))
    Path(text).write_text("one\ntwo\n")
    Path(table).write_text("x,y\n1,0.5\n2,1.5\n")
    with tf.python_io.TFRecordWriter(records) as writer:
        writer.write(b"abc")
    assert drain(data.TextLineDataset(text)) == [b"one", b"two"]
    assert drain(data.TFRecordDataset(records)) == [b"abc"]
    assert drain(data.FixedLengthRecordDataset(text, 4)) == [b"one\n", b"two\n"]
    assert drain(data.CsvDataset(table, [1, 0.0], header=True), initialize=True) == [
        (1, 0.5), (2, 1.5),
    ]  # fmt: skip
    rows = data.make_csv_dataset(table, 2, num_epochs=1, shuffle=False, label_name="y")
    ((features, labels),) = drain(rows, initialize=True)
    assert (features["x"].tolist(), labels.tolist()) == ([1, 2], [0.5, 1.5])


def test_devices_and_checkpoints_of_the_input(tmp_path: Path) -> None:
    assert drain(numbers(3).apply(data.prefetch_to_device("/cpu:0")), initialize=True) == [0, 1, 2]
    iterator = tf.data.make_initializable_iterator(numbers(5))
    assert isinstance(iterator, data.Iterator)
    following = iterator.get_next()
    saver = tf.train.Saver({"iterator": data.make_saveable_from_iterator(iterator)})
    with tf.Session() as session:
        session.run(iterator.initializer)
        assert [session.run(following) for _ in range(2)] == [0, 1]
        path = saver.save(session, str(tmp_path / "model"))
        assert session.run(following) == 2
        saver.restore(session, path)
        assert session.run(following) == 2


@pytest.mark.filterwarnings("ignore:`tf.nn.rnn_cell.* is deprecated")
def test_cells_are_unrolled() -> None:
    rnn = tf.contrib.rnn
    cell = rnn.MultiRNNCell([rnn.DropoutWrapper(rnn.GRUCell(4), 1.0), rnn.BasicLSTMCell(3)])
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    outputs, _ = tf.nn.dynamic_rnn(cell, tf.constant(x), dtype=tf.float32)
    with tf.variable_scope("rnn", reuse=True):
        steps, _ = rnn.static_rnn(cell, tf.unstack(tf.constant(x), axis=1), dtype=tf.float32)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        dynamic, static = session.run([outputs, tf.stack(steps, 1)])
    assert dynamic.shape == (2, 5, 3)
    np.testing.assert_allclose(dynamic, static, rtol=1e-5)


def test_framework_names_what_tensorflow_has() -> None:
    framework = tf.contrib.framework
    assert framework.nest.flatten({"b": 1, "a": [2, 3]}) == [2, 3, 1]
    assert framework.is_tensor(tf.constant(1))
    with tf.name_scope("here"):
        assert framework.get_name_scope() == "here"


@pytest.mark.parametrize("module", ["data", "framework", "rnn"])
def test_every_name_is_there(module: str) -> None:
    found = getattr(tf.contrib, module)
    names = dir(found)
    assert len(names) > 10
    for name in names:
        assert getattr(found, name) is not None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("contrub", "tf.contrib"),
        ("contrib.dat", "tf.contrib.data"),
        ("contrib.data.Datset", "tf.contrib.data.Dataset"),
        ("contrib.data.get_single_elements", "tf.contrib.data.get_single_element"),
        ("contrib.rnn.GRUcell", "tf.contrib.rnn.GRUCell"),
        ("contrib.framework.arg_scop", "tf.contrib.framework.arg_scope"),
    ],
)
def test_the_nearest_name_is_told(name: str, nearest: str) -> None:
    found: Any = tf
    *path, last = name.split(".")
    for part in path:
        found = getattr(found, part)
    with pytest.raises(AttributeError, match=f"tf.{name} is n.*: .* exists is {nearest}\\.$"):
        getattr(found, last)
    with pytest.raises(AttributeError, match="no name is near it"):
        _ = tf.contrib.zzzzz
