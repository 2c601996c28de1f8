"""Members of a zip archive that are stored as they are, found without unpacking anything."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from homeostat.errors import ModelFileError
from homeostat.models.files.arrays import Source, checked_count, refusal

# Of the directory in all, which is read at once.
_MAX_DIRECTORY = 1 << 24
_LOCAL = struct.Struct("<4s22xHH")


class Member(NamedTuple):
    """A member of an archive.

    Args:
        header: where its own header begins.
        size: how many bytes it has unpacked.
        plain: whether it is stored as it is, neither compressed nor encrypted.
    """

    header: int
    size: int
    plain: bool


class _Careful(io.RawIOBase):
    """A source as a file that reads no more at once than a directory may have."""

    def __init__(self, source: Source) -> None:
        self.source, self.place = source, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        place = offset + {0: 0, 1: self.place, 2: self.source.size}[whence]
        if place < 0:
            raise OSError("negative seek")
        self.place = place
        return place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.source.size - self.place)
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory should have {size:,} bytes")
        found = self.source.read(self.place, size)
        self.place += size
        return found


def members_of(source: Source) -> Mapping[str, Member]:
    """Return the members of an archive by name.

    Raises:
        ModelFileError: its directory is damaged, or has a name twice.
    """
    try:
        with zipfile.ZipFile(cast("Any", _Careful(source))) as archive:
            entries = archive.infolist()
    except ModelFileError:
        raise
    except (
        *(zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError),
        *(OverflowError, IndexError),
    ) as error:
        raise _damaged(source, f"its directory cannot be read ({error!s:.200})") from error
    checked_count(source.path, len(entries))
    found = {
        entry.filename: Member(
            entry.header_offset, entry.file_size, _is_plain(entry) and _fits(entry)
        )
        for entry in entries
    }
    if len(found) != len(entries):
        raise _damaged(source, "a member's name is there twice")
    return found


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    return entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1


def _fits(entry: zipfile.ZipInfo) -> bool:
    return entry.compress_size == entry.file_size


def place_of(source: Source, name: str, member: Member) -> int:
    """Return where a member's bytes begin.

    Raises:
        ModelFileError: it is not stored as it is, or not all in the file.
    """
    if not member.plain:
        raise _damaged(source, f"its member {name!r:.200} is compressed or encrypted")
    signature, of_name, of_extra = _LOCAL.unpack(source.read(member.header, _LOCAL.size))
    start = member.header + _LOCAL.size + of_name + of_extra
    if signature != b"PK\x03\x04" or start + member.size > source.size:
        raise _damaged(source, f"its member {name!r:.200} is not where its directory says")
    return start


def _damaged(source: Source, what: str) -> ModelFileError:
    return refusal(
        source.path,
        f"is no archive that can be read, {what}",
        "a zip archive as torch.save writes it",
        "Download it or save it again.",
    )
