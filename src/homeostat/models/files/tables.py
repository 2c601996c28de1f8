"""Reader of sorted tables in LevelDB's format, which TensorFlow keeps a checkpoint's index in.

https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

from collections.abc import Iterator

from homeostat.models.files.arrays import Source, checked_count
from homeostat.models.files.wire import read_varint

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
MAX_TABLE = 1 << 25
_MAX_KEY = 10_000
# Castagnoli's polynomial, bits turned round.
_POLYNOMIAL = 0x82F63B78


def _crc_table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of bytes, masked as TensorFlow and LevelDB store it.

    Example:
        >>> hex(masked_crc32c(b"123456789"))
        '0xc78ab0e5'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(source: Source) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table in their order.

    Raises:
        ModelFileError: the file ends too early, or holds too many entries.
        ValueError: it is no table, or damaged.
    """
    if source.size > MAX_TABLE:
        raise ValueError(f"it has {source.size:,} bytes, and tables have at most {MAX_TABLE:,}")
    footer = source.read(source.size - FOOTER, FOOTER)
    if not footer.endswith(MAGIC):
        raise ValueError("it does not end as a table")
    _, place = _handle(footer, 0)
    count, last = 0, None
    for _, handle in _entries(_block(source, _handle(footer, place)[0])):
        for key, value in _entries(_block(source, _handle(handle, 0)[0])):
            # Each key after the last: no block is read twice.
            if last is not None and key <= last:
                raise ValueError("its keys are not sorted")
            count, last = count + 1, key
            checked_count(source.path, count)
            yield key, value


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    offset, place = read_varint(data, place)
    size, place = read_varint(data, place)
    return (offset, size), place


def _block(source: Source, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    raw = source.read(offset, size + 5)
    if raw[size]:
        raise ValueError("a block is compressed, as TensorFlow's are not")
    if masked_crc32c(raw[: size + 1]) != int.from_bytes(raw[size + 1 :], "little"):
        raise ValueError("the checksum of a block is wrong")
    return raw[:size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    # What follows the entries, and how many there are of it, helps to search.
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block does not end")
    place, key = 0, b""
    while place < end:
        shared, place = read_varint(block, place)
        added, place = read_varint(block, place)
        size, place = read_varint(block, place)
        if shared > len(key) or shared + added > _MAX_KEY or place + added + size > end:
            raise ValueError("an entry does not fit into its block")
        key = key[:shared] + block[place : place + added]
        place += added
        yield key, block[place : place + size]
        place += size
