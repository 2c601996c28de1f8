"""The images that a study trains on, split into training, validation and test."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from homeostat.errors import DataError, MissingExtraError
from homeostat.idx import read_folder

CLASSES = 10
NAMES = ("digits", "mnist", "fashion_mnist")
"""The data that are known by name; anything else is a folder."""

# Of MNIST's arrays, so that a folder that holds MNIST is shown beside the published results.
_MNIST_FINGERPRINT = "1a97316c68ef04ed"
_SMALLEST = 120


@dataclass(frozen=True)
class Split:
    """Images, one flat row each with values in [0, 1], and their labels.

    Args:
        images: (N, pixels), float32.
        labels: (N,), int32, 0 to 9.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A named set of images in three splits, with the digest of its content."""

    name: str
    fingerprint: str
    train: Split
    validation: Split
    test: Split


def load_data(data: str) -> Dataset:
    """Load images by name or from a folder.

    Args:
        data: ``"digits"`` (1,797 images of 8 x 8 that come with scikit-learn), ``"mnist"`` or
            ``"fashion_mnist"`` (downloaded once by Keras and cached), or a folder with the four
            IDX files of MNIST, plain or gzip-compressed.

    Raises:
        DataError: the data cannot be found, downloaded or read, or are not what they claim to be.
        MissingExtraError: scikit-learn or Keras is not installed.
    """
    if data == "digits":
        return _load_digits()
    if data in NAMES:
        return _split_mnist(data, _download(data))
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{data!r} is neither a known name nor a folder: expected {', '.join(NAMES)}, or a "
            "folder with the four IDX files of MNIST. Check the spelling of the path."
        )
    return _split_mnist(folder.resolve().name, read_folder(folder))


def _load_digits() -> Dataset:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise MissingExtraError(
            "the digits come with scikit-learn, which is not installed: expected the extra "
            "'study'. Run: pip install 'homeostat[study]', or give --data mnist."
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    # The set is ordered by writer; without the shuffle the test images would be other writers'.
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order] / 16.0, labels[order]
    parts = (slice(597, None), slice(297, 597), slice(0, 297))
    return _dataset("digits", *(_split(images[part], labels[part]) for part in parts))


def _download(name: str) -> dict[str, npt.NDArray[np.uint8]]:
    try:
        loader: Any = importlib.import_module(f"keras.datasets.{name}")
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is loaded by Keras, which is not installed: expected a backend. Run: "
            "pip install 'homeostat[tensorflow]'"
        ) from error
    try:
        (train_images, train_labels), (test_images, test_labels) = loader.load_data()
    # Keras raises a bare Exception when a download fails, and whatever NumPy raises for a
    # damaged file in its cache.
    except Exception as error:
        raise DataError(
            f"{name} could not be loaded ({error}): expected to download it, or to find it whole "
            "in Keras's cache. Check the network; if a download was cut short, delete "
            f"~/.keras/datasets/{name.replace('_', '-')}*; or give --data FOLDER with the four IDX "
            "files, or --data digits, which needs no network."
        ) from error
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def _split_mnist(name: str, arrays: dict[str, npt.NDArray[np.uint8]]) -> Dataset:
    """Hold the first twelfth of the training images out: 5,000 of MNIST's 60,000."""
    total = len(arrays["train_labels"])
    if total < _SMALLEST or len(arrays["test_labels"]) == 0:
        raise DataError(
            f"{name} holds {total} training and {len(arrays['test_labels'])} test images: expected "
            f"at least {_SMALLEST} and 1. Use more data."
        )
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise DataError(
            f"{name}'s training images are {arrays['train_images'].shape[1:]} pixels and its test "
            f"images {arrays['test_images'].shape[1:]}: expected the same. The files come from "
            "different sets; download all four."
        )
    for part in ("train", "test"):
        largest = int(arrays[f"{part}_labels"].max())
        if largest >= CLASSES:
            raise DataError(
                f"{name}'s {part} labels go up to {largest}: expected 0 to {CLASSES - 1}. This "
                "study knows ten classes; choose data that have them."
            )
    held_out = round(total / 12)
    images, labels = arrays["train_images"] / np.float32(255), arrays["train_labels"]
    return _dataset(
        name,
        _split(images[held_out:], labels[held_out:]),
        _split(images[:held_out], labels[:held_out]),
        _split(arrays["test_images"] / np.float32(255), arrays["test_labels"]),
    )


def _split(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Split:
    flat = np.ascontiguousarray(images.reshape(len(images), -1), dtype=np.float32)
    return Split(flat, np.ascontiguousarray(labels, dtype=np.int32))


def _dataset(name: str, train: Split, validation: Split, test: Split) -> Dataset:
    digest = hashlib.blake2b(digest_size=8)
    for split in (train, validation, test):
        digest.update(split.images)
        digest.update(split.labels)
    fingerprint = digest.hexdigest()
    if fingerprint == _MNIST_FINGERPRINT:
        name = "mnist"
    return Dataset(name, fingerprint, train, validation, test)
