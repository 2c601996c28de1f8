"""Reader of IDX files, the format of MNIST (plain or gzip-compressed)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from homeostat.errors import DataError

_UNSIGNED_BYTES = 0x08
_NAMES = {
    "train_images": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_labels": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_images": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "test_labels": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}


def read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed.
        rank: how many axes its array must have: 3 for images, 1 for labels.

    Raises:
        DataError: the file cannot be read, is not IDX, or does not have the size in its header.
    """
    content = _read_bytes(path)
    header = 4 + 4 * rank
    magic = (_UNSIGNED_BYTES << 8) | rank
    found = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and found != magic:
        raise DataError(
            f"{path} starts with the magic number {found:#010x}: expected {magic:#010x}, an IDX "
            f"file of unsigned bytes with {rank} axes. It may be another file under this name, or "
            "compressed without '.gz' in its name; download it again."
        )
    if len(content) < header:
        raise DataError(
            f"{path} is truncated: it holds {len(content)} bytes, expected a header of {header}. "
            "Download it again."
        )
    shape = struct.unpack(f">{rank}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "too long"
        raise DataError(
            f"{path} is {what}: it holds {len(content):,} bytes, expected {expected:,} for an "
            f"array of shape {shape}. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} cannot be decompressed ({error}): expected a complete gzip file. Download it "
            "again, or take '.gz' off its name if it is not compressed."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): expected a file that you may read. Check "
            "the path and its permissions."
        ) from error


def read_folder(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Read the four files of an MNIST-like folder.

    Returns:
        ``train_images`` (N, rows, columns) and ``train_labels`` (N,), and the same for test.

    Raises:
        DataError: a file is missing or damaged, or images and labels do not fit each other.
    """
    found = {key: _find(folder, key) for key in _NAMES}
    missing = [names[0] for key, names in _NAMES.items() if found[key] is None]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}: expected the four IDX files of MNIST, plain or "
            "with '.gz'. Give the folder that holds them, or --data mnist to download them."
        )
    arrays = {
        key: read_idx(path, 3 if key.endswith("images") else 1)
        for key, path in found.items()
        if path is not None
    }
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if len(images) != len(labels):
            raise DataError(
                f"{folder} holds {len(images):,} {part} images but {len(labels):,} {part} labels: "
                "expected as many of each. The files come from different sets; download all four."
            )
    return arrays


def _find(folder: Path, key: str) -> Path | None:
    candidates = (folder / f"{name}{end}" for name in _NAMES[key] for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)
