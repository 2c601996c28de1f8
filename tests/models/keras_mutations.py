"""Ways to damage Keras's files in what their zip archives, JSON and HDF5 make of the bytes."""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.models.mutations import mutate_value

WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
_NAMES = ("..", "a/../b", "<img src=x onerror=alert(1)>", "x" * 3000, "\u202e", "0", "vars", " ")
_FIELDS = ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))
_TEXTS = ("layer_names", "weight_names", "name", "keras_version", "model_config", "backend")


def mutate_network(rng: random.Random, data: bytes) -> bytes:
    """Change the configuration or the metadata of a `.keras` archive, in any of its values."""
    member = rng.choice((CONFIG, CONFIG, CONFIG, METADATA))
    return _replace(rng, data, member, lambda content: mutate_json(rng, content))


def mutate_weights(rng: random.Random, data: bytes) -> bytes:
    """Change groups, datasets and attributes of the HDF5 file in a `.keras` archive."""
    return _replace(rng, data, WEIGHTS, lambda content: mutate_tree(rng, content))


def mutate_directory(rng: random.Random, data: bytes) -> bytes:
    """Change a field of an archive's directory: method, flags, sizes, names or places."""
    changed = bytearray(data)
    starts = [at for at in range(len(data) - 46) if data[at : at + 4] == b"PK\x01\x02"]
    if not starts:
        return data
    place, width = rng.choice(
        ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))
    )
    at = rng.choice(starts) + place
    old = int.from_bytes(changed[at : at + width], "little")
    new = rng.choice((0, 1, old ^ 1, old + 1, old - 1, old * 1000, 8, 12, 2**31, 2**32 - 1))
    changed[at : at + width] = (new % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(changed)


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Change something in a text of JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    for _ in range(rng.choice((1, 1, 3))):
        value = _mutate_deep(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = rng.choice(("[" * 10**5, '{"class_name":' * 5000, text[:-1], text + "}", "\ufeff"))
    return text.encode("utf-8", "replace")


def _mutate_deep(rng: random.Random, value: Any) -> Any:
    """Change a value, most often far down, where layers and their options are."""
    inner = [key for key, each in _items(value) if isinstance(each, dict | list) and each]
    if inner and rng.random() < 0.9:
        key = rng.choice(inner)
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[key] = _mutate_deep(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.3:
        return [*value, rng.choice(value)] if rng.random() < 0.5 else value[::-1]
    return mutate_value(rng, value)


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def mutate_tree(rng: random.Random, data: bytes) -> bytes:
    """Change groups, datasets and attributes of an HDF5 file, which stays one that opens.

    The library may crash on a file that is damaged already: give whole ones.
    """
    import h5py

    out = io.BytesIO(data)
    with h5py.File(out, "r+") as file, np.errstate(invalid="ignore"):
        for _ in range(rng.choice((1, 1, 2, 5))):
            entries: list[str] = []
            file.visit(entries.append)
            if not entries:
                break
            change = rng.choice(_CHANGES)
            # What one change made, such as a link to nowhere, may refuse the next.
            try:
                change(rng, file, rng.choice(entries))
            except (LookupError, ValueError, OSError, RuntimeError, TypeError):
                continue
    return out.getvalue()


def _drop(rng: random.Random, file: Any, path: str) -> None:
    del file[path]


def _rename(rng: random.Random, file: Any, path: str) -> None:
    name = rng.choice(_NAMES).encode()
    parent, _, old = path.rpartition("/")
    group = file[parent] if parent else file
    group.id.links.create_hard(name, group.id, old.encode())
    del group[old]


def _link(rng: random.Random, file: Any, path: str) -> None:
    import h5py

    parent, other = path.rpartition("/")[0], rng.choice(("/", path, "/nowhere"))
    target: Any = rng.choice(
        (h5py.SoftLink(other), h5py.ExternalLink("/etc/passwd", "/"), file[path], file)
    )
    (file[parent] if parent else file)[f"link{rng.randrange(9)}"] = target


def _replace_data(rng: random.Random, file: Any, path: str) -> None:
    import h5py

    datasets: list[str] = []
    file.visititems(lambda name, each: datasets.append(name) if hasattr(each, "shape") else None)
    path = rng.choice(datasets)
    old = file[path]
    plain = old.dtype.kind in "fiu" and old.size is not None and old.size < 100_000
    numbers = np.atleast_1d(old[()]) if plain else np.ones(3, "float32")
    options: dict[str, Any] = rng.choice(
        (
            {"data": h5py.Empty("f4")},
            {"data": 1.0},
            {"data": numbers.ravel()[:-1]},
            {"data": numbers[None]},
            {"data": numbers[:0]},
            {"data": np.full(3, b"text")},
            {"data": ["text", "\u202e"], "dtype": h5py.string_dtype()},
            {"data": numbers.astype(rng.choice(("float16", "float64", "int8", "uint64", ">f4")))},
            {"data": numbers.astype("complex64")},
            {"data": numbers.ravel() > 0},
            {"data": np.zeros(3, "V2")},
            {"data": np.zeros(3, [("a", "f4"), ("b", "i8")])},
            {"data": np.full(numbers.shape, rng.choice((np.nan, np.inf, -1.0, 3e38)), "float32")},
            {"shape": (1 << 60,), "dtype": "f4", "chunks": (1 << 20,)},
            {"shape": (1 << 26,), "dtype": "f8", "chunks": (1 << 20,), "compression": "gzip"},
            {"shape": (1 << 22,), "dtype": "f8", "chunks": (1 << 10,), "compression": "lzf"},
            {"shape": (0,) * 20, "dtype": "f4"},
        )
    )
    del file[path]
    file.create_dataset(path, **options)


def _retell(rng: random.Random, file: Any, path: str) -> None:
    places = [each for each in ("", "model_weights", path) if not each or each in file]
    entry: Any = file[rng.choice(places) or "/"]
    told = [name for name in _TEXTS if name in entry.attrs]
    name = rng.choice(told or _TEXTS)
    if name == "model_config" and name in entry.attrs and rng.random() < 0.8:
        content = entry.attrs[name]
        text = content if isinstance(content, bytes) else str(content).encode()
        entry.attrs[name] = mutate_json(rng, text)
        return
    old = np.atleast_1d(entry.attrs[name]).tolist() if name in entry.attrs else ["a"]
    value = rng.choice(
        (
            *(
                7,
                2.5,
                "",
                "x" * 3000,
                b"\xff\xfe",
                "9" * 400,
                "3.x",
                "..",
                [1, 2],
                [[b"a"], [b"b"]],
            ),
            *(old[::-1], old + old, old[1:] or [b""], old[:1], [b"\xff", b"<b>"]),
        )
    )
    if rng.random() < 0.2:
        del entry.attrs[name]
        name = f"{name}{rng.randrange(3)}"
    entry.attrs[name] = np.asarray(value, "S") if isinstance(value, list) else value


_CHANGES: tuple[Callable[[random.Random, Any, str], None], ...] = (
    *(_drop, _rename, _link, _replace_data, _replace_data, _retell, _retell),
)


def _replace(rng: random.Random, data: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """Write an archive again with one member changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members = [(each, old.read(each)) for each in old.namelist()]
        with zipfile.ZipFile(out, "w") as new:
            for each, content in members:
                kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
                new.writestr(each, change(content) if each == name else content, kind)
    return out.getvalue()


WHOLE = frozenset((mutate_network, mutate_weights, mutate_tree))
"""What needs a file that nothing has damaged yet but itself and others of these."""
