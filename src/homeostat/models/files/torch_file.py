"""Reader of `.pt` and `.pth` files as `torch.save` writes them, without PyTorch."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.errors import ModelFileError
from homeostat.models.files.arrays import Source, checked_count, checked_name, refusal
from homeostat.models.files.checkpoint import state_dict_in
from homeostat.models.files.pickles import RefusedError, read_pickle
from homeostat.models.files.state_dict import describe_state_dict
from homeostat.models.files.torch_tensors import MAKERS, Storage, array_of, storage_of
from homeostat.models.files.zips import Member, members_of, place_of
from homeostat.models.records import ModelRecord

MAX_PICKLE = 1 << 24
MAGIC = 0x1950A86A20F9469CFC6C
"""What a file of PyTorch before 1.6 begins with, as a pickle."""
_SAFE = (
    "Where you trust it, save its weights alone from the code that made it, "
    "torch.save(model.state_dict(), path), or what torch.load(path, weights_only=True) returns; "
    "or give package.module:factory and such weights."
)


@dataclass(frozen=True)
class _Content:
    """What a file holds: its data, where each storage begins, and the order of bytes."""

    data: Any
    starts: Mapping[str, int]
    big_endian: bool


def read_torch(path: Path) -> ModelRecord:
    """Return the batch norms of a state dict or checkpoint of `torch.save`; run none of it.

    Args:
        path: the file.

    Raises:
        ModelFileError: it is damaged, is a program, or its pickle wants to call something.
    """
    with Source(path) as source:
        legacy = source.read(0, min(2, source.size)) != b"PK"
        content = _legacy(source) if legacy else _archive(source)
        found, notes = state_dict_in(content.data)
        if not found:
            raise refusal(
                path,
                "holds no state dict",
                "a dictionary of tensors, or one under a key such as 'state_dict'",
                "Save model.state_dict(), or give package.module:factory and the weights.",
            )
        checked_count(path, len(found))
        arrays = [
            array_of(
                source,
                checked_name(path, name),
                tensor,
                content.starts[tensor.storage.key],
                content.big_endian,
            )
            for name, tensor in found
        ]
        return describe_state_dict(path, "PyTorch checkpoint", arrays, notes=notes)


def _archive(source: Source) -> _Content:
    members = members_of(source)
    root = _root(source, members)
    order = _small(source, members, f"{root}byteorder") or b"little"
    starts: dict[str, int] = {}

    def persistent(identifier: Any) -> Storage:
        storage = storage_of(identifier)
        name = f"{root}data/{storage.key}"
        member = members.get(name)
        if member is None or storage.nbytes not in (None, member.size):
            size = "nothing" if member is None else f"{member.size:,} bytes"
            raise ValueError(f"its storage {storage.key!r:.40} has {size} in the archive")
        if storage.key not in starts:
            starts[storage.key] = place_of(source, name, member)
        return storage

    pickle = members[f"{root}data.pkl"]
    if pickle.size > MAX_PICKLE:
        raise _damaged(source.path, f"its data.pkl has {pickle.size:,} bytes")
    raw = source.read(place_of(source, f"{root}data.pkl", pickle), pickle.size)
    data = _unpickled(source.path, io.BytesIO(raw), persistent)
    return _Content(data, starts, order == b"big")


def _root(source: Source, members: Mapping[str, Member]) -> str:
    """Return the folder inside the archive where everything is, with its slash."""
    found = [
        name.removesuffix("data.pkl")
        for name in members
        if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)
    ]
    if len(found) != 1:
        raise refusal(
            source.path,
            f"is an archive with {len(found)} members called data.pkl",
            "one, as torch.save writes it",
            "A program of torch.export holds its weights elsewhere: save its state_dict.",
        )
    if f"{found[0]}constants.pkl" in members:
        raise refusal(
            source.path,
            "is a TorchScript program",
            "a state dict",
            "Where you trust it: torch.save(torch.jit.load(path).state_dict(), new_path).",
        )
    return found[0]


def _small(source: Source, members: Mapping[str, Member], name: str) -> bytes:
    if name not in members or members[name].size > 64:
        return b""
    return source.read(place_of(source, name, members[name]), members[name].size).strip()


def _legacy(source: Source) -> _Content:
    """Read the format before PyTorch 1.6: five pickles, then the storages."""
    stream = io.BytesIO(source.read(0, min(source.size, MAX_PICKLE)))
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Storage:
        storage = storage_of(identifier)
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"it tells two storages {storage.key!r:.40}")
        return storage

    def take() -> Any:
        return _unpickled(source.path, stream, persistent)

    if take() != MAGIC:
        raise refusal(
            source.path,
            "is a pickle, but not one of torch.save",
            "a state dict saved by torch.save",
            _SAFE,
        )
    version, system, data, keys = take(), take(), take(), take()
    if version != 1001 or not isinstance(system, dict) or not isinstance(keys, list):
        raise _damaged(source.path, "its parts are not those of torch.save")
    big_endian = system.get("little_endian") is False
    starts, place = {}, stream.tell()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        count = int.from_bytes(source.read(place, 8), "big" if big_endian else "little")
        if storage is None or storage.nbytes is None or count != storage.count or key in starts:
            raise _damaged(source.path, f"it has the storage {key!r:.40} that nothing needs so")
        starts[key], place = place + 8, place + 8 + storage.nbytes
    if place > source.size or len(starts) != len(storages):
        raise source.truncated(f"storages up to byte {place:,}")
    return _Content(data, starts, big_endian)


def _unpickled(path: Path, stream: io.BytesIO, persistent: Callable[[Any], Any]) -> Any:
    try:
        return read_pickle(stream, MAKERS, persistent)
    except RefusedError as error:
        raise refusal(
            path,
            f"is a pickle that wants {str(error)!r:.200}, which would run code of its choice; "
            "nothing was run",
            "tensors, and plain data around them",
            _SAFE,
        ) from error
    except ValueError as error:
        raise _damaged(path, f"its pickle cannot be read, {error!s:.200}") from error


def _damaged(path: Path, what: str) -> ModelFileError:
    return refusal(
        path,
        f"is damaged, {what}",
        "a file as torch.save writes it",
        "Download it or save it again.",
    )
