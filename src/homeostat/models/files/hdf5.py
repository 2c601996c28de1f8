"""Read Keras's HDF5 files: weights of Keras 3 (`.weights.h5`), and legacy `.h5` files."""

from __future__ import annotations

import json
from pathlib import Path

from homeostat.errors import ModelFileError
from homeostat.models.files.hdf5_tree import Tree, read_tree
from homeostat.models.files.keras_bare import bare_norms
from homeostat.models.files.keras_config import Network, read_network
from homeostat.models.files.keras_layers import Layer, parse
from homeostat.models.files.keras_norms import bare_record, record_of
from homeostat.models.files.keras_order import in_order
from homeostat.models.files.keras_weights import (
    count_by_group,
    count_parameters,
    legacy_arrays,
    legacy_groups,
    legacy_norms,
    norms_in,
)
from homeostat.models.records import Array, BatchNormRecord, ModelRecord

_NO_CONFIG = (
    "a file of weights does not tell what its layers take: read the .keras file, or the model"
)


def read_hdf5(path: Path) -> ModelRecord:
    """Return what an HDF5 file of Keras tells of its batch norms, without Keras.

    A legacy file of a whole model tells everything. A file of weights alone tells no options: the
    batch norms are found by names and shapes, and what is not told is in their ``unknown``.

    Args:
        path: the file, ``.weights.h5`` or a legacy ``.h5``.

    Raises:
        ModelFileError: it is no such file, is broken, or holds what could do harm.
        MissingExtraError: h5py is not installed.
    """
    tree = read_tree(path)
    try:
        legacy = legacy_groups(tree)
        if legacy is not None:
            return _read_legacy(path, tree, *legacy)
        if not any(group.rpartition("/")[2] == "vars" for group in tree.groups):
            raise ModelFileError(
                "no layers are in it: expected the weights of a Keras model. Save them with "
                "model.save_weights(...) or model.save(...)."
            )
        return ModelRecord(
            path.name,
            "keras",
            "Keras weights",
            tuple(bare_norms(tree)),
            None,
            _NO_CONFIG,
            count_parameters(tree),
        )
    except (ModelFileError, RecursionError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _read_legacy(path: Path, tree: Tree, base: str, names: list[str]) -> ModelRecord:
    version = (tree.text(base, "keras_version") or "2").partition(".")[0]
    found = {name: legacy_norms(base, name, tree) for name in names}
    text = tree.text("", "model_config")
    model = None if text is None else parse(_json(text))
    if model is None or model.layers is None:
        stored = "population" if version == "3" else None
        norms = [
            bare_record(_path(layer, prefix), arrays, stored_variance=stored, named=True)
            for layer, inside in found.items()
            for prefix, arrays in inside.items()
        ]
        network, source = Network(None, _NO_CONFIG), "legacy Keras weights"
    else:
        network, source = read_network(model, _parameters(model, base, tree)), "legacy Keras file"
        norms = _norms(model, network, found, 3 if version == "3" else 2)
    weights = {path: size for path, size in tree.sizes.items() if path.startswith(base)}
    return ModelRecord(
        path.name,
        "keras",
        source,
        in_order(norms, network.graph),
        network.graph,
        network.why_no_graph,
        count_parameters(Tree({}, weights, {})),
    )


def _norms(
    model: Layer, network: Network, found: dict[str, dict[str, dict[str, Array]]], version: int
) -> list[BatchNormRecord]:
    records: list[BatchNormRecord] = []
    for layer in model.layers or ():
        norms = norms_in(layer)
        arrays = legacy_arrays(norms, found.get(layer.name, {})) if norms else {}
        records += [
            record_of(
                norm,
                arrays[norm.path],
                keras=version,
                network=network,
            )
            for norm in norms
        ]
    return records


def _parameters(model: Layer, base: str, tree: Tree) -> dict[str, int]:
    """Return how many parameters each of the model's own layers has; of those inside, by name."""
    counts = count_by_group(tree)
    found: dict[str, int] = {}
    for layer in model.layers or ():
        group = f"{base}/{layer.name}".lstrip("/")
        for each in layer.walk():
            parts = each.path.split("/")
            inside = ["/".join(parts[start:]) for start in range(len(parts))]
            keys = [group] if each is layer else [f"{group}/{name}" for name in inside]
            found[each.path] = next((counts[key] for key in keys if key in counts), 0)
    return found


def _path(layer: str, prefix: str) -> str:
    """Return a norm's name from its layer's and the prefix of its variables' names."""
    outer, inner = layer.split("/"), prefix.split("/")
    if inner[: len(outer)] == outer:
        return prefix
    return f"{layer}/{prefix}" if prefix else layer


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"its model_config cannot be read, {str(error)[:200]}: expected JSON as Keras writes "
            "it. Save the model again."
        ) from error
