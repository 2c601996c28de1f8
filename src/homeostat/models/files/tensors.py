"""Batch norms among named arrays, by the names that frameworks give their statistics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from homeostat.models.files.arrays import (
    MAX_CHANNELS,
    MAX_STATISTICS,
    StoredArray,
    refusal,
)
from homeostat.models.records import ARRAYS, BatchNormRecord
from homeostat.spec import CONVENTIONS, StoredVariance

_NOT_IN_ARRAYS = frozenset(
    (
        *("kind", "epsilon", "momentum", "cumulative", "dtype", "trainable", "tracking"),
        *("training", "synchronized", "activation", "operations"),
    )
)
_NARROW = ("bfloat16", "float16")
_READABLE = (*_NARROW, "float32", "float64")


class Names(NamedTuple):
    """How a framework names the arrays of a batch norm.

    Args:
        separator: between the parts of a name.
        fields: the record's field for each last part of a name.
        kind: what to call such a norm.
        stored_variance: which variance the framework stores, or None where that differs.
    """

    separator: str
    fields: Mapping[str, str]
    kind: str
    stored_variance: StoredVariance | None


TORCH = Names(
    ".",
    {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
        "num_batches_tracked": "updates",
        "skipped_updates": "skipped",
    },
    "BatchNorm",
    CONVENTIONS["torch"].stored_variance,
)
# Those of tf.layers, slim, tf-keras and Keras, and what hand-written ones are often called.
TENSORFLOW = Names(
    "/",
    {
        "gamma": "gamma",
        "scale": "gamma",
        "beta": "beta",
        "offset": "beta",
        **{f"{how}_mean": "moving_mean" for how in ("moving", "running", "pop")},
        **{
            f"{how}_{what}": "moving_variance"
            for how in ("moving", "running", "pop")
            for what in ("variance", "var")
        },
        # Tensorpack's.
        "mean/EMA": "moving_mean",
        "variance/EMA": "moving_variance",
    },
    "BatchNormalization",
    None,
)


@dataclass(frozen=True)
class Found:
    """The batch norms of a file.

    Args:
        norms: in the order of the names.
        notes: what looked like a batch norm and is none, and why.
    """

    norms: tuple[BatchNormRecord, ...]
    notes: tuple[str, ...] = ()


def find_norms(path: Path, arrays: Iterable[StoredArray], names: Names) -> Found:
    """Return the batch norms among a file's arrays, and read theirs alone.

    Args:
        path: the file, for messages.
        arrays: all arrays of the file, in its order.
        names: how they are named.

    Raises:
        ModelFileError: a norm has more channels than any, or all have more bytes.

    Example:
        >>> mean = StoredArray("bn.running_mean", (2,), "float32", lambda: np.zeros(2))
        >>> variance = StoredArray("bn.running_var", (2,), "float32", lambda: np.ones(2))
        >>> found = find_norms(Path("model.pt"), [mean, variance], TORCH)
        >>> found.norms[0].name, found.norms[0].channels
        ('bn', 2)
    """
    scopes: dict[str, dict[str, StoredArray]] = {}
    for array in arrays:
        scope, field = _split(array.name, names)
        if field:
            scopes.setdefault(scope, {}).setdefault(field, array)
    norms, notes = {}, []
    for scope, members in scopes.items():
        if "moving_mean" not in members and "moving_variance" not in members:
            continue
        reason = _why_none(members)
        if reason:
            notes.append(f"{scope!r} is not read as a batch norm: {reason}.")
        else:
            norms[scope] = members
    _check_sizes(path, norms)
    narrow = {members["moving_mean"].dtype for members in norms.values()} & set(_NARROW)
    notes += [f"Moving statistics are stored in {dtype}." for dtype in sorted(narrow)]
    return Found(
        tuple(_record(scope, members, names) for scope, members in norms.items()), tuple(notes)
    )


def _split(name: str, names: Names) -> tuple[str, str]:
    """Return the scope of a name and the field that it is; "" for none."""
    parts = name.split(names.separator)
    for count in (1, 2):
        field = names.fields.get(names.separator.join(parts[-count:]))
        if field:
            return names.separator.join(parts[:-count]), field
    return "", ""


def _why_none(members: Mapping[str, StoredArray]) -> str:
    missing = [name for name in ("moving_mean", "moving_variance") if name not in members]
    if missing:
        return f"it has no {missing[0].replace('_', ' ')}"
    arrays = {name: array for name, array in members.items() if name in ARRAYS}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1:
        told = ", ".join(f"{array.name!r} has {array.shape}" for array in arrays.values())
        return f"the shapes of its arrays differ, {told}"
    if not next(iter(shapes)) or not next(iter(arrays.values())).size:
        return "its statistics are of no channels"
    others = {array.dtype for array in arrays.values()} - set(_READABLE)
    if others:
        return f"its arrays are {sorted(others)[0]}, not one of {', '.join(_READABLE)}"
    return ""


def _check_sizes(path: Path, norms: Mapping[str, Mapping[str, StoredArray]]) -> None:
    total = 0
    for scope, members in norms.items():
        size = members["moving_mean"].size
        total += 8 * size * len(members)
        if size > MAX_CHANNELS or total > MAX_STATISTICS:
            raise refusal(
                path,
                f"declares a batch norm of {size:,} channels, {scope!r:.200}, and {total:,} bytes "
                "of them up to there",
                f"at most {MAX_CHANNELS:,} channels and {MAX_STATISTICS:,} bytes",
                "It is damaged, or made to exhaust the memory.",
            )


def _record(scope: str, members: Mapping[str, StoredArray], names: Names) -> BatchNormRecord:
    # A norm over several axes has one channel for each element.
    arrays = {name: members[name].read().reshape(-1) for name in ARRAYS if name in members}
    counts: dict[str, Any] = {
        name: read_count(members[name]) for name in ("updates", "skipped") if name in members
    }
    if names is TORCH and counts.get("updates") and counts.get("skipped"):
        # PyTorch's counter counts all batches; those that every channel left out moved nothing.
        skipped = int(members["skipped"].read().min())
        counts["updates"] = max(0, counts["updates"] - max(0, skipped))
    unknown = set(_NOT_IN_ARRAYS)
    unknown |= {name for name in ("updates", "skipped") if counts.get(name) is None}
    if names.stored_variance is None:
        unknown.add("stored_variance")
    return BatchNormRecord(
        name=scope,
        kind=names.kind,
        stored_variance=names.stored_variance,
        unknown=frozenset(unknown),
        **arrays,
        **counts,
    )


def read_count(array: StoredArray) -> int | None:
    """Return a count that a file holds, the largest of each channel's; None if it is no count."""
    if not 0 < array.size <= MAX_CHANNELS or array.dtype not in (*_READABLE, "int32", "int64"):
        return None
    count = np.max(array.read())
    return int(count) if np.isfinite(count) and 0 <= count < 2**63 else None


def count_parameters(arrays: Iterable[StoredArray]) -> int:
    """Return how many floating-point numbers arrays hold, those under two names once."""
    sizes = {
        id(array) if array.identity is None else array.identity: array.size
        for array in arrays
        if array.is_floating
    }
    return sum(sizes.values())


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts names with their numbers as numbers.

    Example:
        >>> sorted(["layer10.bn", "layer2.bn"], key=natural)
        ['layer2.bn', 'layer10.bn']
    """
    # Longer digits are no number that anybody counts with.
    return tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() and len(part) < 19 else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
    )
