"""Read a `.keras` archive: its configuration, and of its weights the vectors of batch norms."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from homeostat.errors import ModelFileError
from homeostat.models.files.hdf5_tree import Tree, read_tree
from homeostat.models.files.keras_bare import bare_norms
from homeostat.models.files.keras_config import read_network
from homeostat.models.files.keras_layers import Layer, parse
from homeostat.models.files.keras_norms import record_of
from homeostat.models.files.keras_order import in_order
from homeostat.models.files.keras_weights import (
    arrays_of,
    count_by_group,
    count_parameters,
    groups_of,
    norms_in,
)
from homeostat.models.records import BatchNormRecord, ModelRecord

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_TEXT = 1 << 26


def read_keras_archive(path: Path) -> ModelRecord:
    """Return what a `.keras` file tells of its batch norms, without Keras and without running it.

    Args:
        path: the file: a zip archive with ``config.json``, ``metadata.json`` and
            ``model.weights.h5``.

    Raises:
        ModelFileError: it is no such file, is broken, or holds what could do harm.
        MissingExtraError: h5py is not installed.
    """
    config, metadata = _texts(path)
    try:
        model, version = parse(_json(config, CONFIG)), _version(_json(metadata, METADATA))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    tree = read_tree(path, WEIGHTS)
    try:
        return _record(path, model, version, tree)
    except (ModelFileError, RecursionError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _record(path: Path, model: Layer, version: int, tree: Tree) -> ModelRecord:
    groups, counts = groups_of(model, tree), count_by_group(tree)
    parameters = {layer: counts.get(group, 0) for layer, group in groups.items()}
    network = read_network(model, parameters)
    known = {
        norm.path: record_of(
            norm,
            arrays_of(norm, groups.get(norm.path), tree),
            keras=version,
            network=network,
        )
        for norm in norms_in(model)
    }
    taken = {groups[name] for name in known}
    hidden = [norm for norm in bare_norms(tree, taken) if norm.name not in known]
    return ModelRecord(
        path.name,
        "keras",
        "Keras archive",
        in_order([*known.values(), *hidden], network.graph),
        network.graph,
        network.why_no_graph,
        count_parameters(tree),
        notes=_notes(hidden),
        steps=tree.steps,
    )


def _notes(hidden: list[BatchNormRecord]) -> tuple[str, ...]:
    if not hidden:
        return ()
    names = ", ".join(norm.name for norm in hidden)
    return (
        f"{len(hidden)} batch norms are inside layers whose options the file does not tell, and "
        f"were found by their arrays: {names}",
    )


def _texts(path: Path) -> tuple[bytes, bytes]:
    """Return the archive's configuration and metadata."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                parts = PurePosixPath(name.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts:
                    raise _not_one(path, f"its member {name!r} leads out of the archive")
            missing = {CONFIG, METADATA, WEIGHTS} - set(archive.namelist())
            if missing:
                raise _not_one(path, f"it lacks {', '.join(sorted(missing))}")
            return _member(path, archive, CONFIG), _member(path, archive, METADATA)
    except ModelFileError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError) as error:
        raise _not_one(path, str(error) or type(error).__name__) from error
    except (ValueError, NotImplementedError, RuntimeError, OverflowError) as error:
        # zipfile's words for encryption, unknown compression and sizes that cannot be.
        raise _not_one(path, str(error) or type(error).__name__) from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _not_one(path, f"its member {name} is compressed in a way that Keras does not use")
    with archive.open(info) as stream:
        content = stream.read(_TEXT + 1)
    if len(content) > _TEXT:
        raise _not_one(path, f"its member {name} is larger than {_TEXT} bytes")
    return content


def _json(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"its {name} cannot be read, {str(error)[:200]}: expected JSON as Keras writes it. "
            "Save the model again."
        ) from error


def _version(metadata: Any) -> int:
    """Return the major version of the Keras that wrote the file; 3 where that is not told."""
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    head = str(version).partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() and len(head) < 4 else 3


def _not_one(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path} cannot be read, {what}: expected a zip archive as Keras writes it, with "
        f"{CONFIG}, {METADATA} and {WEIGHTS}. Save the model again with model.save(...)."
    )
