"""`input_data.read_data_sets`: MNIST in the batches that TF1's tutorials train on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from homeostat.errors import DataError, SpecError
from homeostat.idx import read_folder

CLASSES = 10


class DataSet:
    """Images and labels, handed out in batches.

    Args:
        images: (N, rows, columns, 1) or (N, pixels): float32 in [0, 1], or uint8 up to 255.
        labels: (N,) uint8, or (N, 10) one-hot.
        seed: of the order of the batches, or None for another one each time.
    """

    def __init__(self, images: Any, labels: Any, seed: int | None = None) -> None:
        self.images, self.labels = images, labels
        self.num_examples = len(images)
        self.epochs_completed = 0
        self._random = np.random.default_rng(seed)
        self._next = 0
        self._order = np.arange(self.num_examples)

    def next_batch(
        self, batch_size: int, fake_data: bool = False, shuffle: bool = True
    ) -> tuple[Any, Any]:
        """Return the next images and labels; a batch may end one epoch and begin the next.

        Args:
            batch_size: how many, at most all there are.
            fake_data: TF1's test switch, which is not provided.
            shuffle: whether an epoch that begins takes a new order.

        Raises:
            SpecError: batch_size is not from 1 to all there are, or fake data are asked for.
        """
        if fake_data:
            raise _no_fake_data()
        if not 1 <= batch_size <= self.num_examples:
            raise SpecError(
                f"batch_size={batch_size} is out of range: expected 1 <= batch_size <= "
                f"{self.num_examples}, the examples of this set. Take smaller batches."
            )
        if self._next == 0 and self.epochs_completed == 0 and shuffle:
            self._order = self._random.permutation(self.num_examples)
        chosen = self._order[self._next : self._next + batch_size]
        self._next += batch_size
        if self._next > self.num_examples:
            self.epochs_completed += 1
            self._next -= self.num_examples
            if shuffle:
                self._order = self._random.permutation(self.num_examples)
            chosen = np.concatenate([chosen, self._order[: self._next]])
        return self.images[chosen], self.labels[chosen]


class Datasets(NamedTuple):
    """The three sets of `read_data_sets`."""

    train: DataSet
    validation: DataSet
    test: DataSet


def read_data_sets(
    train_dir: str,
    fake_data: bool = False,
    one_hot: bool = False,
    dtype: Any = tf.float32,
    reshape: bool = True,
    validation_size: int = 5000,
    seed: int | None = None,
    source_url: str | None = None,
) -> Datasets:
    """Read MNIST from a folder, or download it where the folder does not hold it.

    Args:
        train_dir: the folder with the four IDX files, plain or .gz; without them MNIST is
            downloaded by tf-keras, which keeps it in a cache of its own.
        fake_data: TF1's test switch, which is not provided.
        one_hot: whether labels are rows of ten instead of numbers.
        dtype: float32 for pixels in [0, 1], uint8 for 0 to 255.
        reshape: whether an image is a flat row instead of (rows, columns, 1).
        validation_size: how many of the training images, the first ones, are for validation.
        seed: of the order of the training batches.
        source_url: where TF1 downloaded from; it is not asked any more.

    Raises:
        DataError: a file is damaged, or there is neither a file nor a network.
        SpecError: validation_size or dtype is not valid.
    """
    if fake_data:
        raise _no_fake_data()
    if tf.as_dtype(dtype) not in (tf.float32, tf.uint8):
        raise SpecError(
            f"dtype={dtype!r} is not valid: expected tf.float32 (pixels in [0, 1]) or tf.uint8 "
            "(pixels up to 255). Choose one of them."
        )
    arrays = _read(Path(train_dir))
    count = len(arrays["train_images"])
    if not 0 <= validation_size <= count:
        raise SpecError(
            f"validation_size={validation_size} is out of range: expected 0 <= validation_size <= "
            f"{count}, the training images. Choose a smaller one."
        )

    def prepared(part: str, rows: slice, seed: int | None = None) -> DataSet:
        images = arrays[f"{part}_images"][rows]
        flat = (len(images), math.prod(images.shape[1:]))
        images = images.reshape(flat) if reshape else images[..., None]
        if tf.as_dtype(dtype) == tf.float32:
            images = images.astype(np.float32) * np.float32(1 / 255)
        labels = arrays[f"{part}_labels"][rows]
        return DataSet(images, np.eye(CLASSES)[labels] if one_hot else labels, seed)

    return Datasets(
        train=prepared("train", slice(validation_size, None), seed),
        validation=prepared("train", slice(validation_size)),
        test=prepared("test", slice(None)),
    )


def _read(folder: Path) -> Mapping[str, Any]:
    if folder.is_dir() and any("ubyte" in file.name for file in folder.iterdir()):
        return read_folder(folder)
    import tf_keras

    try:
        (train, train_labels), (test, test_labels) = tf_keras.datasets.mnist.load_data()
    except Exception as error:
        raise DataError(
            f"{folder} holds no MNIST, and it cannot be downloaded ({error}): expected the four "
            "IDX files of MNIST in that folder, plain or .gz, or a network. Put them there."
        ) from error
    return {
        "train_images": train, "train_labels": train_labels,
        "test_images": test, "test_labels": test_labels,
    }  # fmt: skip


def _no_fake_data() -> SpecError:
    return SpecError(
        "fake_data is not provided: expected fake_data=False. Make arrays of your own with NumPy."
    )
