"""Reader of TensorFlow's checkpoints and of the variables of a SavedModel, without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from homeostat.models.files.arrays import Array, Source, StoredArray, refusal
from homeostat.models.files.bundle import Bundle
from homeostat.models.files.tensors import (
    TENSORFLOW,
    count_parameters,
    find_norms,
    natural,
    read_count,
)
from homeostat.models.records import BatchNormRecord, ModelRecord

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_AVERAGE = "/ExponentialMovingAverage"
_PART = re.compile(r"(.*)/part_([0-9]{1,6})")
_NO_LAYER = re.compile(
    r"(?:.*/)?(?:global_step|beta[12]_power(?:_[0-9]+)?|save_counter|loss_scale"
    r"|biased|local_step)"
    r"|(?:_?optimizer|training|keras_api)/.*"
)
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"([^"\\]+)"', re.MULTILINE)
_ORDER = "A checkpoint keeps its names sorted: norms are in the order of their names."
_NO_GRAPH = "a checkpoint of variables does not tell what feeds what"


def prefix_of(path: Path) -> Path | None:
    """Return what the names of a checkpoint's files begin with; None if a path is of none.

    Args:
        path: a prefix, one of a checkpoint's files, a folder with a file ``checkpoint``, or a
            SavedModel.

    Raises:
        ModelFileError: the folder's file ``checkpoint`` names none that is in the folder.
    """
    if path.is_dir():
        return _inside(path)
    plain = re.sub(r"\.(?:index|meta|data-[0-9]+-of-[0-9]+)$", "", path.name)
    for name in (path.name, plain):
        if name and path.with_name(f"{name}.index").is_file():
            return path.with_name(name)
    return None


def _inside(folder: Path) -> Path | None:
    for home in (folder / "variables", folder):
        if (home / "variables.index").is_file():
            return home / "variables"
    if (folder / "checkpoint").is_file():
        return _newest(folder)
    found = sorted(folder.glob("*.index"))
    return found[0].with_suffix("") if len(found) == 1 else None


def _newest(folder: Path) -> Path:
    with Source(folder / "checkpoint") as source:
        text = source.read(0, min(source.size, 1 << 16)).decode(errors="replace")
    told = _NEWEST.search(text)
    # A folder that was moved still names where it was, and nothing outside is read.
    name = Path(told[1].replace("\\", "/")) if told else Path()
    name = Path(name.name) if name.is_absolute() or ".." in name.parts else name
    if not name.name or not (folder / name.parent / f"{name.name}.index").is_file():
        raise refusal(
            folder / "checkpoint",
            f"names {str(name)!r:.200}, which is not there",
            "the files of the newest checkpoint beside it",
            "Give one by its prefix, such as model.ckpt-1000.",
        )
    return folder / name


def read_tf_checkpoint(path: Path) -> ModelRecord:
    """Return the batch norms of a checkpoint or SavedModel by the names of its variables.

    Args:
        path: a prefix such as ``model.ckpt-1000``, one of its files, or a folder.

    Raises:
        ModelFileError: it is damaged, or there is none.
    """
    prefix = prefix_of(path)
    if prefix is None:
        raise refusal(
            path,
            "is no checkpoint of TensorFlow",
            "a prefix with its .index file, or a folder with one",
            "Copy all files of the checkpoint.",
        )
    bundle = Bundle(prefix)
    full_names = bundle.full_names()
    arrays = sorted(joined(bundle.arrays()), key=lambda array: natural(array.name))
    if full_names is not None:
        arrays, order = _objects(arrays, full_names), ()
    else:
        order = (_ORDER,)
    layers = without_slots(arrays)
    found = find_norms(path, layers, TENSORFLOW)
    norms = tuple(_with_steps(norm, arrays) for norm in found.norms)
    averages = sum(array.name.endswith(_AVERAGE) for array in arrays)
    saved = (path / "saved_model.pb").is_file() if path.is_dir() else False
    return ModelRecord(
        name=path.name if path.is_dir() else prefix.name,
        framework="tf1" if full_names is None else "keras",
        source="TensorFlow SavedModel" if saved else "TensorFlow checkpoint",
        norms=norms,
        why_no_graph=_NO_GRAPH,
        parameters=count_parameters(layers),
        notes=(*order, *found.notes, *_averaged(averages)),
    )


def joined(arrays: Iterable[StoredArray]) -> list[StoredArray]:
    """Return arrays with those in parts, ``gamma/part_0`` and ``gamma/part_1``, made one.

    Args:
        arrays: those of the file.
    """
    whole: list[StoredArray] = []
    parts: dict[str, dict[int, StoredArray]] = {}
    for array in arrays:
        found = _PART.fullmatch(array.name)
        # Only norms are joined, and they have one axis.
        if found and len(array.shape) == 1:
            parts.setdefault(found[1], {})[int(found[2])] = array
        else:
            whole.append(array)
    for name, numbered in parts.items():
        members = [numbered[number] for number in sorted(numbered)]
        complete = sorted(numbered) == list(range(len(numbered)))
        if not complete or len({each.dtype for each in members}) > 1:
            whole += members
            continue
        size = sum(each.shape[0] for each in members)
        whole.append(StoredArray(name, (size,), members[0].dtype, partial(_join, members)))
    return whole


def _join(parts: Sequence[StoredArray]) -> Array:
    return np.concatenate([part.read() for part in parts])


def without_slots(arrays: Sequence[StoredArray]) -> list[StoredArray]:
    """Return arrays without what optimizers and averages keep beside each variable.

    Args:
        arrays: all of a checkpoint; ``gamma/Adam`` is a slot of ``gamma``.
    """
    names = {array.name for array in arrays}
    return [
        array
        for array in arrays
        if array.name.rpartition("/")[0] not in names
        and not array.name.endswith(_AVERAGE)
        and not _NO_LAYER.fullmatch(array.name)
    ]


def _with_steps(norm: BatchNormRecord, arrays: Sequence[StoredArray]) -> BatchNormRecord:
    """Add how many updates a norm of slim with ``zero_debias_moving_mean`` has counted."""
    # TensorFlow puts the statistic's whole name behind the scope, once more.
    names = [f"{scope}/moving_mean/local_step" for scope in (norm.name, f"{norm.name}/{norm.name}")]
    counts = [read_count(array) for array in arrays if array.name in names]
    if not counts or counts[0] is None:
        return norm
    return norm.with_fields(updates=counts[0], unknown=norm.unknown - {"updates"})


def _objects(arrays: Sequence[StoredArray], full_names: Mapping[str, str]) -> list[StoredArray]:
    """Return the variables of an object-based checkpoint in its order, by readable names.

    Keys tell the place of an object, ``layer_with_weights-1/gamma``, and are unique; variables'
    own names, ``batch_normalization/gamma``, need not be. Where a SavedModel only numbers its
    variables, their own names are all there is.
    """
    kept = [each for each in arrays if each.name.endswith(_VALUE)]
    kept = [each for each in kept if "/.OPTIMIZER_SLOT/" not in each.name]
    keys = {each.name: each.name.removesuffix(_VALUE) for each in kept}
    own = {each.name: full_names.get(each.name, "") for each in kept}
    statistics = [n for n, key in keys.items() if _leaf(key).startswith(("moving_", "running_"))]
    if not statistics:
        # The list that begins with an underscore is in no order.
        first: dict[str, StoredArray] = {}
        for each in sorted(kept, key=lambda each: keys[each.name].startswith("_")):
            first.setdefault(own[each.name], each)
        return [replace(array, name=name) for name, array in first.items()]
    scopes = {_scope(keys[name]): _scope(own[name]) for name in statistics}
    readable = len(set(scopes.values())) == len(scopes) and all(scopes.values())
    return [
        replace(each, name=_renamed(keys[each.name], scopes if readable else {})) for each in kept
    ]


def _renamed(key: str, scopes: Mapping[str, str]) -> str:
    return f"{scopes.get(_scope(key), _scope(key))}/{_leaf(key)}".lstrip("/")


def _scope(name: str) -> str:
    return name.rpartition("/")[0]


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def _averaged(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"Exponential moving averages of {count} variables are in it and were not read.",)
