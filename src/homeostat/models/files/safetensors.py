"""Reader of `.safetensors` files: a JSON header, then the arrays' bytes one after the other.

The format is that of https://huggingface.co/docs/safetensors; the header alone is read, and of the
arrays those of batch norms. (The package's own NumPy reader cannot return bfloat16.)
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

from homeostat.errors import ModelFileError
from homeostat.models.files.arrays import (
    ITEM_SIZES,
    Array,
    Source,
    StoredArray,
    checked_count,
    checked_name,
    checked_shape,
    decode,
    refusal,
)
from homeostat.models.files.state_dict import describe_state_dict
from homeostat.models.records import ModelRecord

MAX_HEADER = 1 << 24
_DTYPES = {
    **{
        f"{letter}{bits}": f"{kind}{bits}"
        for letter, kind in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BOOL": "bool",
    "BF16": "bfloat16",
    "C64": "complex64",
}
_ORDER = "The format keeps arrays by type and name: norms are in the order of their names."


def read_safetensors(path: Path) -> ModelRecord:
    """Return the batch norms of a `.safetensors` file.

    Args:
        path: the file.

    Raises:
        ModelFileError: it is damaged.
    """
    with Source(path) as source:
        arrays = _arrays(source)
        return describe_state_dict(
            path, "safetensors file", arrays, in_order=False, notes=(_ORDER,)
        )


def header_of(source: Source) -> tuple[dict[str, Any], int]:
    """Return the header of a file and where the arrays begin.

    Raises:
        ModelFileError: there is none.
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise _damaged(source.path, f"its header should have {length:,} bytes")
    try:
        header = json.loads(source.read(8, length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(source.path, f"its header cannot be read ({error!s:.200})") from error
    if not isinstance(header, dict):
        raise _damaged(source.path, "its header is no JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _arrays(source: Source) -> list[StoredArray]:
    header, start = header_of(source)
    header.pop("__metadata__", None)
    checked_count(source.path, len(header))
    found = [_array(source, start, name, entry) for name, entry in header.items()]
    end = start
    # Without holes and overlaps the arrays are as large as the file, whatever it says.
    for begin, array, stop in sorted(found, key=lambda each: (each[0], each[2])):
        if begin != end:
            raise _damaged(source.path, f"{array.name!r:.200} does not begin where the last ended")
        end = stop
    if end != source.size:
        raise _damaged(source.path, f"its arrays end at byte {end:,} of {source.size:,}")
    return [array for _, array, _ in found]


def _array(source: Source, start: int, name: str, entry: Any) -> tuple[int, StoredArray, int]:
    """Return an array with where it begins and ends in the file."""
    entry = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    offsets, kind = entry.get("data_offsets"), entry.get("dtype")
    dtype = _DTYPES.get(kind, "") if isinstance(kind, str) else ""
    shape = checked_shape(source.path, checked_name(source.path, name), entry.get("shape"))
    plain = isinstance(offsets, list) and [type(each) for each in offsets] == [int, int]
    if not plain or not 0 <= offsets[0] <= offsets[1] <= source.size - start:
        raise _damaged(source.path, f"{name!r:.200} is at {offsets!r:.80}")
    begin, stop = start + offsets[0], start + offsets[1]
    array = StoredArray(
        name, shape, dtype or f"{kind!s:.20}", partial(_read, source, begin, stop, dtype)
    )
    # Of a type that is newer than this reader, the size is not known; norms have none of those.
    if dtype and array.size * ITEM_SIZES[dtype] != stop - begin:
        raise _damaged(
            source.path, f"{name!r:.200} has {stop - begin:,} bytes for {dtype} of shape {shape}"
        )
    return begin, array, stop


def _read(source: Source, begin: int, stop: int, dtype: str) -> Array:
    return decode(source.read(begin, stop - begin), dtype)


def _damaged(path: Path, what: str) -> ModelFileError:
    return refusal(
        path,
        f"is damaged, {what}",
        "a file as safetensors writes it",
        "Download it or save it again.",
    )
