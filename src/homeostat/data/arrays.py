"""Batches from NumPy's files, read part by part."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.data.batches import Examples
from homeostat.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

INPUTS = ("x", "inputs", "images", "arr_0")
LABELS = ("y", "labels", "arr_1")
WEIGHTS = ("weights", "sample_weight")


def npy_batches(path: Path, batch_size: int) -> Iterator[Examples]:
    """Yield the batches of a .npy file.

    Raises:
        DataError: it is no such file, or holds Python objects or a single number.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _not_read(path, error) from error
    _check_examples(array.shape, str(path))
    for start in range(0, len(array), batch_size):
        yield Examples(np.array(array[start : start + batch_size]))


def npz_batches(path: Path, batch_size: int) -> Iterator[Examples]:
    """Yield the batches of a .npz file: its arrays for inputs, labels and weights.

    Raises:
        DataError: it is no such file, does not tell which array is the inputs, or the arrays do not
            have as many examples.
    """
    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as stack:
            members = [
                None if name is None else _Member(archive, stack, name, path)
                for name in _choose(archive, path)
            ]
            lengths = {len(member) for member in members if member is not None}
            if len(lengths) != 1:
                raise DataError(
                    f"{path} has arrays of {sorted(lengths)} examples: expected as many labels and "
                    "weights as inputs. Save them again."
                )
            for _ in range(0, lengths.pop(), batch_size):
                yield Examples(*(None if m is None else m.read(batch_size) for m in members))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise _not_read(path, error) from error


def _choose(archive: zipfile.ZipFile, path: Path) -> list[str | None]:
    names = {name.removesuffix(".npy"): name for name in archive.namelist()}
    found = [
        next((names[wanted] for wanted in fitting if wanted in names), None)
        for fitting in (INPUTS, LABELS, WEIGHTS)
    ]
    if found[0] is None and len(names) == 1:
        found[0] = next(iter(names.values()))
    if found[0] is None:
        raise DataError(
            f"{path} has the arrays {sorted(names)}: expected the inputs under one of {INPUTS}. "
            "Save it as np.savez(path, x=inputs, y=labels)."
        )
    return found


class _Member:
    """An array inside a .npz file, read from its start on."""

    def __init__(self, archive: zipfile.ZipFile, stack: ExitStack, name: str, path: Path) -> None:
        self._file = stack.enter_context(archive.open(name))
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format
        header = read.read_array_header_1_0 if version == (1, 0) else read.read_array_header_2_0
        self._shape, transposed, self._dtype = header(self._file)
        _check_examples(self._shape, f"{name} in {path}")
        if self._dtype.hasobject or (transposed and len(self._shape) > 1):
            kind = "Python objects" if self._dtype.hasobject else "examples last in memory"
            raise DataError(
                f"{name} in {path} has {kind}: expected numbers in C order. Save "
                "np.ascontiguousarray of it."
            )
        self._left = self._shape[0]

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, examples: int) -> Array:
        """Return the next examples, at most so many."""
        count = min(examples, self._left)
        shape = (count, *self._shape[1:])
        size = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("it ends too early")
        self._left -= count
        return np.frombuffer(data, self._dtype).reshape(shape)


def _check_examples(shape: tuple[int, ...], name: str) -> None:
    if not shape:
        raise DataError(
            f"{name} is a single number: expected an array with the examples first. Save the "
            "inputs themselves."
        )


def _not_read(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read ({error}): expected a whole file of numbers as np.save or np.savez "
        "writes it. Save it again, without Python objects."
    )
