"""Reader of TensorFlow's tensor bundles: an index of what is where, and files of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from homeostat.errors import ModelFileError
from homeostat.models.files.arrays import (
    ITEM_SIZES,
    Array,
    Source,
    StoredArray,
    checked_name,
    checked_shape,
    decode,
    refusal,
)
from homeostat.models.files.tables import masked_crc32c, read_table
from homeostat.models.files.wire import fields, read_varint, slice_key

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_STRING = 7
_DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_MAX_SHARDS, _MAX_SLICES, _MAX_GRAPH = 100_000, 10_000, 1 << 25
# Python takes a tenth of a second for the checksum of this many bytes.
_CHECKED_BYTES = 1 << 20


@dataclass
class _Entry:
    """What the index tells of an array, as `BundleEntryProto` has it."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    slices: list[list[tuple[int, int]]] = field(default_factory=list)


class Bundle:
    """The arrays of a checkpoint.

    Args:
        prefix: what the names of its files begin with.

    Raises:
        ModelFileError: its index is damaged.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = prefix.with_name(f"{prefix.name}.index")
        self._unchecked = _CHECKED_BYTES
        self._entries: dict[bytes, _Entry] = {}
        with Source(self.index) as source:
            try:
                for key, value in read_table(source):
                    if key:
                        self._entries[key] = _entry(self.index, key, value)
                    else:
                        self._read_header(value)
            except ValueError as error:
                if isinstance(error, ModelFileError):
                    raise
                raise self.damaged(f"its index cannot be read, {error!s:.200}") from error

    def _read_header(self, value: bytes) -> None:
        header = dict(fields(value))
        self.shards, self.big_endian = _whole(header.get(1, 0)), header.get(2, 0) == 1
        if not 0 < self.shards <= _MAX_SHARDS:
            raise ValueError(f"it tells {self.shards} files")

    def damaged(self, what: str) -> ModelFileError:
        """Return the error that it cannot be read."""
        return refusal(
            self.index,
            f"is damaged, {what}",
            "the index of a checkpoint as TensorFlow writes it",
            "Copy all files of the checkpoint again.",
        )

    def arrays(self) -> list[StoredArray]:
        """Return its arrays, sorted by name; those of strings are left out.

        Raises:
            ModelFileError: one has a name or size that is none.
        """
        found = []
        for key, entry in self._entries.items():
            # Parts of partitioned variables begin with a zero.
            if key.startswith(b"\x00") or entry.dtype == _STRING:
                continue
            try:
                name = checked_name(self.index, key.decode())
            except UnicodeDecodeError as error:
                raise self.damaged(f"it has the name {key!r:.80}") from error
            dtype = _DTYPES.get(entry.dtype, f"type {entry.dtype}")
            read = self._read_parts if entry.slices else self._read
            found.append(StoredArray(name, entry.shape, dtype, partial(read, name, entry)))
        return found

    def _read(self, name: str, entry: _Entry) -> Array:
        dtype = _DTYPES[entry.dtype]
        size = int(np.prod(entry.shape, dtype=object)) * ITEM_SIZES[dtype]
        if entry.size != size:
            raise self.damaged(f"{name!r:.200} has {entry.size:,} bytes and not {size:,}")
        raw = self._bytes(entry)
        self._unchecked -= len(raw)
        if self._unchecked >= 0 and masked_crc32c(raw) != entry.checksum:
            raise self.damaged(f"the checksum of {name!r:.200} is wrong")
        return decode(raw, dtype, big_endian=self.big_endian).reshape(entry.shape)

    def _read_parts(self, name: str, entry: _Entry) -> Array:
        if len(entry.shape) != 1 or len(entry.slices) > _MAX_SLICES:
            raise self.damaged(f"{name!r:.200} is in parts that do not fit")
        parts, end = [], 0
        for extents in sorted(entry.slices):
            part = self._entries.get(slice_key(name, extents))
            if part is None or part.slices or part.dtype != entry.dtype or extents[0][0] != end:
                raise self.damaged(f"{name!r:.200} lacks its part from {end:,} on")
            parts.append(self._read(name, part).reshape(-1))
            end += len(parts[-1])
            if end > entry.shape[0]:
                break
        if end != entry.shape[0]:
            raise self.damaged(f"{name!r:.200} is in parts of {end:,} elements in all")
        return np.concatenate(parts)

    def _bytes(self, entry: _Entry) -> bytes:
        if not 0 <= entry.shard < self.shards:
            raise self.damaged(f"it tells of file {entry.shard} of {self.shards}")
        name = f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}"
        with Source(self.prefix.with_name(name)) as source:
            return source.read(entry.offset, entry.size)

    def full_names(self) -> Mapping[str, str] | None:
        """Return what variables are called in an object-based checkpoint; None for another.

        Returns:
            For each key of the checkpoint the variable's own name, as `TrackableObjectGraph` has
            it.

        Raises:
            ModelFileError: the graph of objects cannot be read.
        """
        entry = self._entries.get(OBJECT_GRAPH.encode())
        if entry is None:
            return None
        if entry.dtype != _STRING or entry.shape or entry.size > _MAX_GRAPH:
            raise self.damaged("its graph of objects is none")
        raw = self._bytes(entry)
        try:
            size, place = read_varint(raw, 0)
            # The text's length, that length's checksum, the text.
            return dict(_attributes(raw[place + 4 : place + 4 + size]))
        except ValueError as error:
            raise self.damaged(f"its graph of objects cannot be read, {error}") from error


def _attributes(graph: bytes) -> Iterator[tuple[str, str]]:
    for node in _messages(graph, 1):
        for attribute in _messages(node, 2):
            told = dict(fields(attribute))
            full, key = told.get(2, b""), told.get(3, b"")
            if isinstance(full, bytes) and isinstance(key, bytes):
                yield key.decode(), full.decode()


def _messages(data: bytes, wanted: int) -> list[bytes]:
    return [value for number, value in fields(data) if number == wanted and type(value) is bytes]


def _whole(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a number is none")
    return value


def _entry(path: Path, key: bytes, value: bytes) -> _Entry:
    entry = _Entry()
    names = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
    for number, told in fields(value):
        if number in names:
            setattr(entry, names[number], _whole(told))
        elif number == 2:
            sizes = [_whole(dict(fields(each)).get(1, 0)) for each in _messages(_raw(told), 2)]
            entry.shape = checked_shape(path, key.decode(errors="replace"), sizes)
        elif number == 7:
            extents = [dict(fields(each)) for each in _messages(_raw(told), 1)]
            entry.slices.append(
                [(_whole(each.get(1, 0)), _whole(each.get(2, -1))) for each in extents]
            )
    return entry


def _raw(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a message is none")
    return cast("bytes", value)
