"""The MNIST tutorial's reader."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

import homeostat.tf1 as tf
from homeostat.errors import DataError, SpecError
from tests.messages import has_three_parts

input_data = tf.examples.tutorials.mnist.input_data


def write(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    for name, count in (("train", 20), ("t10k", 7)):
        # Every image is filled with its number, so that labels tell images.
        images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
        write(folder / f"{name}-images-idx3-ubyte.gz", images)
        write(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_splits_shapes_and_scales(folder: Path) -> None:
    data = input_data.read_data_sets(str(folder), one_hot=True, validation_size=5)
    assert [d.num_examples for d in data] == [15, 5, 7]
    assert data.train.images.shape == (15, 12)
    assert data.train.images.dtype == np.float32
    np.testing.assert_allclose(data.validation.images[:, 0], np.arange(5) / 255, rtol=1e-6)
    assert data.test.labels.tolist() == np.eye(10)[:7].tolist()
    raw = input_data.read_data_sets(
        str(folder), dtype=tf.uint8, reshape=False, validation_size=0
    ).train
    assert raw.images.shape == (20, 4, 3, 1)
    assert raw.images[19].max() == 19
    assert raw.labels.tolist() == [*range(10), *range(10)]


def test_batches_take_every_example_once_an_epoch(folder: Path) -> None:
    train = input_data.read_data_sets(str(folder), validation_size=0, seed=1).train
    taken = [train.next_batch(8) for _ in range(5)]
    images = np.concatenate([np.rint(batch[0][:, 0] * 255).astype(int) for batch in taken])
    assert train.epochs_completed == 1
    for epoch in (images[:20], images[20:]):
        assert sorted(epoch) == list(range(20))
    assert list(images[:20]) != list(images[20:])
    for x, labels in taken:
        np.testing.assert_array_equal(np.rint(x[:, 0] * 255).astype(int) % 10, labels)
    again = input_data.read_data_sets(str(folder), validation_size=0, seed=1).train
    np.testing.assert_array_equal(again.next_batch(8)[1], taken[0][1])


def test_unshuffled_batches_come_in_order(folder: Path) -> None:
    train = input_data.read_data_sets(str(folder), validation_size=0).train
    labels = [train.next_batch(15, shuffle=False)[1].tolist() for _ in range(2)]
    assert labels == [[*range(10), *range(5)], [*range(5, 10), *range(10)]]


@pytest.mark.skipif("HOMEOSTAT_MNIST" not in os.environ, reason="HOMEOSTAT_MNIST is not set")
def test_the_real_mnist() -> None:
    data = input_data.read_data_sets(os.environ["HOMEOSTAT_MNIST"], one_hot=True)
    assert [d.num_examples for d in data] == [55_000, 5_000, 10_000]
    assert data.test.labels[:4].argmax(1).tolist() == [7, 2, 1, 0]
    x, y = data.train.next_batch(100)
    assert x.shape == (100, 784)
    assert y.shape == (100, 10)


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as wrong:
        input_data.read_data_sets(str(folder), validation_size=21)
    assert has_three_parts(str(wrong.value))
    train = input_data.read_data_sets(str(folder), validation_size=0).train
    with pytest.raises(SpecError) as wrong:
        train.next_batch(21)
    assert has_three_parts(str(wrong.value))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError) as wrong:
        input_data.read_data_sets(str(tmp_path))
    assert has_three_parts(str(wrong.value))
