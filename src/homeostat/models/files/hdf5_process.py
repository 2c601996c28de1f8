"""The process that opens HDF5 files: a script of its own, which ends with the file's tricks.

The HDF5 library crashes or never returns on some damaged files. This process is told to end after
some seconds of work, may take two gigabytes and can write no file; whatever happens to it, who
asked goes on. It writes one line of JSON (`describe`'s value, or what is wrong with the file), and
behind it the bytes of the vectors.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import sys
import zipfile
from typing import Any

SECONDS, MEMORY = 5, 2 << 30
"""What this process may take: seconds of work and bytes of memory."""

_OBJECTS, _DEPTH, _NAMES = 200_000, 64, 100_000
_VECTOR, _VECTORS, _TEXT, _CHUNK = 1 << 22, 1 << 26, 1 << 26, 1 << 26
# Deflate makes at most 1032 bytes of one.
_EXPANSION = 1032
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_TEXTS = re.compile(r"name|model_config|keras_version|backend|(layer|weight)_names\d*")

# Where Keras 3 keeps how many steps an optimizer took; one inside another counts first.
_STEPS = ("optimizer/inner_optimizer/vars/0", "optimizer/vars/0")


class Refused(Exception):  # noqa: N818
    """What is wrong with a file, in words that follow its name."""


class Window(io.RawIOBase):
    """A part of a file as a file, such as a stored member of a zip archive.

    Args:
        file: the whole file, open for reading.
        start: where the part begins, in bytes.
        size: its length in bytes.
    """

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position in the part."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """Return the position in the part."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on, up to the end of the part."""
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        content = self._file.read(wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def open_member(path: str, member: str) -> Any:
    """Open a member of a zip archive for reading, in place if it is stored as it is.

    Raises:
        Refused: it is encrypted, compressed in another way than Keras does, or too large.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise Refused(f"its member {member!r} is encrypted or compressed in an unusual way")
        if info.compress_type == zipfile.ZIP_DEFLATED:
            if info.file_size > MEMORY // 2:
                raise Refused(f"its member {member!r} would take {info.file_size} bytes of memory")
            with archive.open(info) as stream:
                return io.BytesIO(stream.read(info.file_size))
    file = open(path, "rb")  # noqa: SIM115, PTH123
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Refused(f"its member {member!r} is not where the archive says")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    return Window(file, start, info.file_size)


def describe(file: Any, size: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return what an open `h5py.File` holds, and the bytes of its vectors.

    Args:
        file: the file.
        size: its length in bytes.

    Returns:
        ``groups``: for each group its texts (attributes); ``sizes``: how many elements each
        dataset has; ``vectors``: path, dtype and length of each numeric dataset with one axis,
        in the order of the bytes; ``steps``: how many steps an optimizer has counted, or None.

    Raises:
        Refused: it has links, external or virtual data, cycles, or sizes that cannot be.
    """
    import h5py

    groups: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    steps: dict[str, int] = {}
    vectors: list[tuple[str, str, int]] = []
    contents: list[bytes] = []
    seen: set[Any] = set()
    stack: list[tuple[str, Any]] = [("", file)]
    while stack:
        path, entry = stack.pop()
        if len(groups) + len(sizes) > _OBJECTS or path.count("/") > _DEPTH:
            raise Refused("it holds more groups, or deeper ones, than any network")
        if isinstance(entry, h5py.Dataset):
            sizes[path] = _check_dataset(path, entry, size)
            if path in _STEPS and entry.shape == () and entry.dtype.kind in "iu":
                steps[path] = int(entry[()])
            content = _vector(path, entry)
            if content is not None:
                vectors.append((path, content.dtype.str, len(content)))
                contents.append(content.tobytes())
                if sum(map(len, contents)) > _VECTORS:
                    raise Refused("its vectors are larger than those of any network")
            continue
        if not isinstance(entry, h5py.Group):
            raise Refused(f"{path!r} is neither a group nor a dataset")
        # One group under two names may be a circle.
        address = h5py.h5o.get_info(entry.id).addr
        if address in seen:
            raise Refused(f"its group {path!r} is there under another name too")
        seen.add(address)
        groups[path] = _texts(entry)
        # The last comes off the stack first.
        stack.extend(
            reversed(
                [
                    (f"{path}/{name}".lstrip("/"), _child(entry, name, path))
                    for name in _names(entry)
                ]
            )
        )
    taken = next((steps[path] for path in _STEPS if steps.get(path, -1) >= 0), None)
    return {"groups": groups, "sizes": sizes, "vectors": vectors, "steps": taken}, contents


def _names(group: Any) -> list[str]:
    if len(group) > _OBJECTS:
        raise Refused("it holds more groups than any network")
    names = list(group)
    if any(name in ("", ".", "..") for name in names):
        raise Refused("it has a name that leads elsewhere")
    return names


def _child(group: Any, name: str, path: str) -> Any:
    import h5py

    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise Refused(f"its {name!r} in {path!r} is a {type(link).__name__} to elsewhere")
    return group[name]


def _check_dataset(path: str, dataset: Any, size: int) -> int:
    """Return how many elements a dataset has."""
    if dataset.external or dataset.is_virtual:
        raise Refused(f"the data of {path!r} lies in other files")
    if dataset.shape is None:
        return 0
    count = math.prod(dataset.shape)
    if count * dataset.dtype.itemsize > _EXPANSION * size:
        raise Refused(f"{path!r} has the shape {dataset.shape}, for which the file is too small")
    return count


def _vector(path: str, dataset: Any) -> Any:
    """Return the content of a numeric dataset with one axis; None for another."""
    import numpy as np

    if dataset.shape is None or len(dataset.shape) != 1 or len(dataset) > _VECTOR:
        return None
    brain = dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2
    if not brain and (dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8):
        return None
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    unknown = [str(number) for number in filters if number not in _FILTERS]
    if unknown or math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize > _CHUNK:
        raise Refused(f"{path!r} is packed in a way that Keras does not use")
    content = np.asarray(dataset[()])
    if brain:
        # bfloat16 is the upper half of float32.
        return (content.view("<u2").astype("<u4") << 16).view("<f4")
    return content.astype(content.dtype.newbyteorder("<"))


def _texts(group: Any) -> dict[str, Any]:
    """Return the attributes of a group that Keras writes, as text or lists of texts."""
    if len(group.attrs) > _NAMES:
        raise Refused("a group of it has more attributes than Keras writes")
    found: dict[str, Any] = {}
    for name in filter(_TEXTS.fullmatch, group.attrs):
        attribute = group.attrs.get_id(name)
        count = math.prod(attribute.shape or (1,))
        if count > _NAMES or count * attribute.dtype.itemsize > _TEXT:
            raise Refused(f"its attribute {name!r} is larger than any that Keras writes")
        value = group.attrs[name]
        found[name] = _text(value) if attribute.shape == () else [_text(each) for each in value]
    return found


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def limit() -> None:
    """Limit what this process may take, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (("CPU", SECONDS), ("AS", MEMORY), ("FSIZE", 0), ("CORE", 0)):
        number = getattr(resource, f"RLIMIT_{kind}")
        hard = resource.getrlimit(number)[1]
        if hard == resource.RLIM_INFINITY or most <= hard:
            resource.setrlimit(number, (most, most))


def main(path: str, member: str | None = None) -> None:
    """Write what the HDF5 file, or a zip archive's member, holds."""
    limit()
    contents: list[bytes] = []
    try:
        import h5py

        opened: Any = open(path, "rb") if member is None else open_member(path, member)  # noqa: SIM115, PTH123
        size = opened.seek(0, io.SEEK_END)
        with h5py.File(opened, "r") as file:
            found, contents = describe(file, size)
    except Refused as error:
        found = {"refused": str(error)}
    except Exception as error:
        # The library has many words for a broken file.
        found = {"refused": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
    for content in contents:
        sys.stdout.buffer.write(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
