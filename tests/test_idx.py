from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from homeostat.errors import DataError
from homeostat.idx import read_folder, read_idx
from homeostat.studies.data import load_data

TRAIN, TEST = 240, 24


def idx_bytes(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_folder(folder: Path, end: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (TRAIN, 5, 4), np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, TRAIN, np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (TEST, 5, 4), np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, TEST, np.uint8),
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    return arrays


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_folder_is_read_and_split(tmp_path, end):
    arrays = write_folder(tmp_path, end)
    data = load_data(str(tmp_path))
    assert data.name == tmp_path.name
    assert [len(part) for part in (data.train, data.validation, data.test)] == [220, 20, 24]
    images = arrays["train-images-idx3-ubyte"].reshape(TRAIN, 20) / np.float32(255)
    np.testing.assert_array_equal(data.validation.images, images[:20])
    np.testing.assert_array_equal(data.train.images, images[20:])
    np.testing.assert_array_equal(data.train.labels, arrays["train-labels-idx1-ubyte"][20:])
    np.testing.assert_array_equal(data.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert data.train.images.dtype == np.float32
    assert data.train.labels.dtype == np.int32


def test_plain_and_compressed_files_have_one_fingerprint(tmp_path):
    for end in ("", ".gz"):
        folder = tmp_path / f"folder{end}"
        folder.mkdir()
        write_folder(folder, end)
    plain, compressed = (load_data(str(tmp_path / f"folder{end}")) for end in ("", ".gz"))
    assert plain.fingerprint == compressed.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: it holds 0 bytes"),
        (b"\0\0\x08\x01\0\0", "expected a header of 8"),
        (idx_bytes(np.zeros(7, np.uint8))[:-1], "truncated: it holds 14 bytes, expected 15"),
        (idx_bytes(np.zeros(7, np.uint8)) + b"x", "too long: it holds 16 bytes, expected 15"),
        (idx_bytes(np.zeros(7, np.uint8), 0x0D01), "magic number 0x00000d01: expected 0x00000801"),
        (idx_bytes(np.zeros((2, 3, 3), np.uint8)), "magic number 0x00000803"),
        (b"<!DOCTYPE html>", "magic number 0x3c21444f"),
        (gzip.compress(idx_bytes(np.zeros(7, np.uint8)), mtime=0), "compressed without '.gz'"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match="labels") as caught:
        read_idx(path, 1)
    assert message in str(caught.value)
    assert "ownload it again" in str(caught.value)


@pytest.mark.parametrize("cut", [5, -4, -40])
def test_a_truncated_gzip_file_is_refused(tmp_path, cut):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.arange(256, dtype=np.uint8)))[:cut])
    with pytest.raises(DataError, match="cannot be decompressed"):
        read_idx(path, 1)


def test_a_plain_file_named_gz_is_refused(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(idx_bytes(np.zeros(7, np.uint8)))
    with pytest.raises(DataError, match=r"take '\.gz' off its name"):
        read_idx(path, 1)


def test_a_missing_file_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte: expected the four"):
        read_folder(tmp_path)


def test_as_many_images_as_labels(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(TRAIN - 1, np.uint8)))
    with pytest.raises(DataError, match="240 train images but 239 train labels"):
        read_folder(tmp_path)


def test_labels_beyond_nine_are_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(TEST, 10, np.uint8)))
    with pytest.raises(DataError, match="test labels go up to 10: expected 0 to 9"):
        load_data(str(tmp_path))


def test_images_of_two_sizes_are_refused(tmp_path):
    write_folder(tmp_path)
    images = np.zeros((TEST, 6, 4), np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
    with pytest.raises(DataError, match=r"\(5, 4\) pixels and its test images \(6, 4\)"):
        load_data(str(tmp_path))


def test_too_few_images_are_refused(tmp_path):
    write_folder(tmp_path)
    for name, shape in (("images-idx3", (60, 5, 4)), ("labels-idx1", (60,))):
        (tmp_path / f"train-{name}-ubyte").write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    with pytest.raises(DataError, match="60 training and 24 test images: expected at least 120"):
        load_data(str(tmp_path))
