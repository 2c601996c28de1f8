"""Which batch norm of one model belongs to which of another."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.errors import DataError, MatchError
from homeostat.models import BatchNormRecord, ModelRecord

Pair = tuple[BatchNormRecord, BatchNormRecord, str]
"""A norm of the source, one of the target, and how they were matched."""


def read_mapping(path: Path) -> dict[str, str]:
    """Read a mapping of names from a JSON file: ``{"name in the source": "name in the target"}``.

    Raises:
        DataError: it is no such file.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a mapping ({error}): expected JSON such as "
            '{"bn1": "batch_normalization"}. Write one entry for each norm.'
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise DataError(
            f"{path} is no mapping of names to names: expected JSON such as "
            '{"bn1": "batch_normalization"}. Write one entry for each norm.'
        )
    return found


def match(
    source: ModelRecord, target: ModelRecord, mapping: Mapping[str, str] | None = None
) -> list[Pair]:
    """Pair the norms of two models; see `convert`.

    Raises:
        MatchError: it is not clear which belongs to which.
    """
    theirs, ours = source.norms, target.norms
    if not theirs or not ours:
        raise _unclear(theirs, ours)
    if mapping is not None:
        return _by_mapping(theirs, ours, mapping)
    by_name = {_bare(norm.name): norm for norm in ours}
    if (
        len(by_name) == len(ours) == len(theirs)
        and {_bare(norm.name) for norm in theirs} == set(by_name)
        and all(norm.channels == by_name[_bare(norm.name)].channels for norm in theirs)
    ):
        return [(norm, by_name[_bare(norm.name)], "name") for norm in theirs]
    channels = [norm.channels for norm in theirs]
    if channels == [norm.channels for norm in ours]:
        if all(_order_is_known(model) for model in (source, target)):
            return [(a, b, "order") for a, b in zip(theirs, ours, strict=True)]
    elif len(set(channels)) == len(channels) and sorted(map(str, channels)) == sorted(
        str(norm.channels) for norm in ours
    ):
        by_channels = {norm.channels: norm for norm in ours}
        return [(norm, by_channels[norm.channels], "shape") for norm in theirs]
    raise _unclear(theirs, ours)


def _bare(name: str) -> str:
    """Return a name without what frameworks put around it."""
    return re.sub(r"^(module|model)\.|^model/|(/batchnorm|/BatchNorm)$", "", name)


def _order_is_known(model: ModelRecord) -> bool:
    """Return whether the norms are in the network's order, not in that of a file's names.

    Without a graph, numbers in the names tell: bn_10 in front of bn_2 is the order of names.
    """
    if model.graph is not None:
        return True
    names = [norm.name for norm in model.norms]
    return names == sorted(names, key=_natural) or names != sorted(names)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _by_mapping(
    theirs: Sequence[BatchNormRecord], ours: Sequence[BatchNormRecord], mapping: Mapping[str, str]
) -> list[Pair]:
    sources, targets = ({norm.name: norm for norm in norms} for norms in (theirs, ours))
    for names, known, side in ((mapping, sources, "source"), (mapping.values(), targets, "target")):
        missing = [name for name in names if name not in known]
        if missing:
            raise MatchError(
                f"the mapping names {missing[0]!r}, which the {side} does not have: expected one "
                f"of {sorted(known)}. Correct the name."
            )
    if len(set(mapping.values())) != len(mapping):
        raise MatchError(
            "the mapping gives two norms of the source to one of the target: expected each name of "
            "the target once. Correct the mapping."
        )
    for name, into in mapping.items():
        if sources[name].channels != targets[into].channels:
            raise MatchError(
                f"{name!r} has {sources[name].channels} channels and {into!r} has "
                f"{targets[into].channels}: expected as many. Correct the mapping."
            )
    return [(sources[name], targets[into], "mapping") for name, into in mapping.items()]


def _unclear(theirs: Sequence[BatchNormRecord], ours: Sequence[BatchNormRecord]) -> MatchError:
    lines = [
        f"  {norm.name} ({norm.channels} channels): "
        + (", ".join(o.name for o in ours if o.channels == norm.channels) or "none")
        for norm in theirs
    ]
    return MatchError(
        f"it is not clear which of the source's {len(theirs)} batch norms belongs to which of the "
        f"target's {len(ours)}: expected the same names, or the same numbers of channels in the "
        "same order. Give a mapping. Candidates in the target:\n" + "\n".join(lines)
    )
