"""The encoding of protocol buffers and of TensorFlow's checkpoint keys, checked at every step."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return an integer of seven bits a byte, and where it ends.

    Raises:
        ValueError: it does not end.

    Example:
        >>> read_varint(bytes([0xAC, 0x02]), 0)
        (300, 2)
    """
    found = 0
    for count, byte in enumerate(data[place : place + 10]):
        found |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return found, place + count + 1
    raise ValueError("a number does not end")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: their numbers, and integers or bytes.

    Raises:
        ValueError: it is no message.

    Example:
        >>> list(fields(bytes([0x08, 0x01, 0x12, 0x02]) + b"ab"))
        [(1, 1), (2, b'ab')]
    """
    place = 0
    while place < len(data):
        tag, place = read_varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = read_varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, place = read_varint(data, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field has the type {kind}")
        found = data[place : place + size]
        if len(found) != size:
            raise ValueError("a field does not end")
        place += size
        yield number, found if kind == _BYTES else int.from_bytes(found, "little")


def slice_key(name: str, extents: list[tuple[int, int]]) -> bytes:
    """Return the key under which a checkpoint holds one part of a partitioned variable.

    `tensorflow::checkpoint::EncodeTensorNameSlice`: everything so that keys sort as what they
    stand for.

    Args:
        name: the variable's.
        extents: for each axis the part's start, and its length or -1 for all.
    """
    text = name.encode().replace(b"\xff", b"\xff\x00").replace(b"\x00", b"\x00\xff")
    key = _ordered(0) + text + b"\x00\x01" + _ordered(len(extents))
    return key + b"".join(_ordered_signed(each) for extent in extents for each in extent)


def _ordered(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(raw)]) + raw


def _ordered_signed(value: int) -> bytes:
    # The bytes that follow are told by ones in front; all are turned for negative numbers.
    bits = (value if value >= 0 else ~value).bit_length() + 1
    length = max(1, -(-bits // 7))
    ones = ((1 << length) - 1) << (8 * length - length)
    return ((value & ((1 << 8 * length) - 1)) ^ ones).to_bytes(length, "big")
