"""Arrays that a file holds, not read yet, and how much of a file is read at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from homeostat.errors import ModelFileError
from homeostat.models.records import Array

MAX_ARRAYS = 200_000
"""How many arrays a file may hold."""
MAX_CHANNELS = 1 << 20
"""How many channels a batch norm of a file may have."""
MAX_STATISTICS = 1 << 26
"""How many bytes of batch norms are read from one file."""
_MAX_NAME, _MAX_RANK, _MAX_SIZE = 2_000, 64, 1 << 62

ITEM_SIZES: Mapping[str, int] = {
    **{name: np.dtype(name).itemsize for name in ("bool", "complex64", "complex128")},
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
    "bfloat16": 2,
}
"""Bytes for each element, of the dtypes that can be read."""


def refusal(path: Path, what: str, expected: str, remedy: str) -> ModelFileError:
    """Return the error that a file is refused with."""
    return ModelFileError(f"{path} {what}: expected {expected}. {remedy}")


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a file.

    Args:
        name: as the file has it.
        shape: its shape.
        dtype: the name of its dtype, such as ``"bfloat16"``.
        read: returns it; bfloat16 as float32, which holds it exactly.
        identity: the same for two names of one array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array] = field(repr=False)
    identity: Any = None

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether it holds floating-point numbers."""
        return "float" in self.dtype


class Source:
    """A file that is read in pieces, never past its end.

    Args:
        path: the file.

    Raises:
        ModelFileError: it is no file that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # What is no plain file may never end, or wait for ever.
            if not path.is_file():
                raise refusal(path, "is not a file", "a plain file", "Check the path.")
            self.file: BinaryIO = path.open("rb")
        except OSError as error:
            raise refusal(
                path,
                f"cannot be read ({error.strerror})",
                "a file that you may read",
                "Check its name and permissions.",
            ) from error
        self.size = self.file.seek(0, 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, offset: int, count: int) -> bytes:
        """Return a piece of the file.

        Raises:
            ModelFileError: the file ends before the piece does.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.truncated(f"bytes {offset:,} to {offset + count:,}")
        self.file.seek(offset)
        found = self.file.read(count)
        if len(found) != count:
            raise self.truncated(f"bytes {offset:,} to {offset + count:,}")
        return found

    def truncated(self, wanted: str) -> ModelFileError:
        """Return the error that what is wanted is not in the file."""
        return refusal(
            self.path,
            f"is truncated or damaged, of {self.size:,} bytes it should have {wanted}",
            "a whole file",
            "Download it or save it again.",
        )


def checked_shape(path: Path, name: str, shape: Any) -> tuple[int, ...]:
    """Return a shape that a file tells, as a tuple.

    Raises:
        ModelFileError: it is no shape that an array can have.
    """
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    plain = all(type(size) is int and 0 <= size < _MAX_SIZE for size in sizes)
    if not isinstance(shape, list | tuple) or len(sizes) > _MAX_RANK or not plain:
        raise _bad(path, name, "has a shape that is none")
    if math.prod(sizes) >= _MAX_SIZE:
        raise _bad(path, name, "has more elements than any file")
    return sizes


def checked_name(path: Path, name: Any) -> str:
    """Return a name that a file tells.

    Raises:
        ModelFileError: it is no text, or longer than names are.
    """
    if not isinstance(name, str):
        raise refusal(path, f"has an array called {name!r:.80}", "text", "Save it again.")
    # Lone surrogates cannot be written anywhere.
    unwritable = any("\ud800" <= character <= "\udfff" for character in name)
    if len(name) > _MAX_NAME or unwritable:
        raise refusal(
            path,
            f"has a name of {len(name):,} characters, {name[:40]!r}...",
            f"at most {_MAX_NAME:,} characters of valid text",
            "Name the layer differently and save it again.",
        )
    return name


def checked_count(path: Path, count: int) -> None:
    """Refuse a file with more arrays than any model.

    Raises:
        ModelFileError: there are more than `MAX_ARRAYS`.
    """
    if count > MAX_ARRAYS:
        raise refusal(
            path,
            f"holds {count:,} arrays",
            f"at most {MAX_ARRAYS:,}",
            "Save the model's weights alone.",
        )


def _bad(path: Path, name: str, what: str) -> ModelFileError:
    return refusal(
        path, f"is damaged, {name!r:.200} {what}", "arrays as saved", "Save the file again."
    )


def decode(raw: bytes, dtype: str, *, big_endian: bool = False) -> Array:
    """Return an array of one dimension from its bytes.

    Args:
        raw: the bytes.
        dtype: one of `ITEM_SIZES`.
        big_endian: whether its elements begin with their highest byte.

    Example:
        >>> decode(bytes([0x80, 0x3F]), "bfloat16")
        array([1.], dtype=float32)
    """
    order = ">" if big_endian else "<"
    if dtype == "bfloat16":
        upper = np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16
        return upper.view(np.float32)
    stored = np.frombuffer(raw, np.dtype(dtype).newbyteorder(order))
    return stored.astype(stored.dtype.newbyteorder("="))
