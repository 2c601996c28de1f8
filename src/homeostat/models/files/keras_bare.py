"""Batch norms in a weights file of Keras 3 that tells no classes: found by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from homeostat.models.files.hdf5_tree import Tree
from homeostat.models.files.keras_norms import OURS, bare_record
from homeostat.models.files.keras_order import unused
from homeostat.models.files.keras_weights import names_of_groups, vectors_in
from homeostat.models.records import ARRAYS, Array, BatchNormRecord

# A class's name that Keras made a group's or a layer's name of, or what people call norms.
_CLASS = re.compile(r"(sync_)?batch_normalization(_\d+)?")
_CALLED = re.compile(r"(^|[^a-z])bn([^a-z]|$)|bn\d*$|batch_?norm", re.IGNORECASE)


def bare_norms(tree: Tree, known: Collection[str] = ()) -> list[BatchNormRecord]:
    """Return the batch norms of a weights file, by what the file tells of itself.

    A layer is taken for one if its variables are vectors of one length and there are four of them
    (gamma, beta, mean and variance), or fewer and its class or name says batch norm.

    Args:
        tree: what the file holds.
        known: groups of layers that are known, which are passed over.
    """
    names = names_of_groups(tree)
    found: list[BatchNormRecord] = []
    taken: dict[str, int] = {}
    passed = {"", "optimizer", "metrics", *known}
    for group in sorted(tree.groups, key=_counted):
        # A group comes behind the one that it is in.
        if group in passed or (group.rpartition("/")[0] or None) in passed:
            passed.add(group)
            continue
        arrays = _arrays(group, names.get(group) or _path(group), tree)
        if arrays is None:
            continue
        name = unused(names.get(group) or _path(group), taken)
        counts = "skipped_updates" in arrays
        # Keras 3 writes names, and stores the population variance.
        stored = "population" if group in names and not counts else None
        kind = f"{OURS}.keras.BatchNormalization" if counts else "BatchNormalization"
        found.append(bare_record(name, arrays, stored_variance=stored, kind=kind))
    return found


def _counted(group: str) -> list[tuple[str, int]]:
    """Return a key that puts batch_normalization_2 before batch_normalization_10."""
    parts = re.findall(r"(\D*)(\d*)", group)
    return [(text, int(number[:9] or 0)) for text, number in parts]


def _path(group: str) -> str:
    """Return a name for a layer without one: its group's, without the containers."""
    return "/".join(part for part in group.split("/") if part != "layers") or group


def _arrays(group: str, name: str, tree: Tree) -> dict[str, Array] | None:
    """Return a batch norm's variables by name; None for a layer that is none."""
    vectors = vectors_in(group, tree)
    if not vectors:
        return None
    # Homeostat's layer counts what it skipped, in integers.
    counts = {"skipped_updates": vectors.pop()} if vectors[-1].dtype.kind in "iu" else {}
    lengths = {len(vector) for vector in vectors}
    if len(lengths) != 1 or any(vector.dtype.kind != "f" for vector in vectors):
        return None
    said = _CLASS.fullmatch(group.rpartition("/")[2]) or _CALLED.search(name.rpartition("/")[2])
    if len(vectors) == 4 and (said or not np.any(vectors[3] < 0)):
        return counts | dict(zip(ARRAYS, vectors, strict=True))
    if said and len(vectors) in (2, 3):
        # Whether the first of three is gamma or beta is not told.
        return counts | dict(zip(ARRAYS[2:], vectors[-2:], strict=True))
    return None
