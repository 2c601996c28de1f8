"""Move a model's batch norms into another model, of the same framework or another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homeostat.convert.matching import Pair, match, read_mapping
from homeostat.convert.translation import difference, make_inputs, translate
from homeostat.errors import UnsupportedError
from homeostat.models import LiveModel, ModelRecord, adapt

__all__ = ["Conversion", "Moved", "convert", "match", "read_mapping", "translate"]

TOLERANCE = 1e-5
"""Largest error of a converted norm's outputs, relative to their size."""


@dataclass(frozen=True)
class Moved:
    """Where one batch norm went.

    Args:
        source: its name in the model it comes from.
        target: the name of the norm that took it.
        channels: how many it has.
        matched: ``"mapping"``, ``"name"``, ``"order"`` or ``"shape"``.
        error: the largest difference of the two norms' outputs on random inputs, relative to the
            size of the outputs.
        notes: what could not be taken as it was.
    """

    source: str
    target: str
    channels: int
    matched: str
    error: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: one line for each batch norm, in the order of the target.

    Args:
        moved: what went where.
        source: the model they came from, in words.
        target: the model they went to.
    """

    moved: tuple[Moved, ...]
    source: str
    target: str


def convert(
    source: Any,
    target: Any,
    *,
    mapping: Mapping[str, str] | None = None,
    count: float | None = None,
) -> Conversion:
    """Copy the batch norms of a model into the matching ones of another, in place.

    gamma, beta, the moving mean and variance, epsilon and momentum are taken over and translated
    between the frameworks' conventions: a momentum that weighs the new value becomes one that
    weighs the old, a sample variance becomes a population variance by (n - 1) / n. Channels are one
    axis in every framework, so the layout of images makes no difference to the arrays.

    Norms are matched by ``mapping``; else by name where all names agree; else by order where both
    models have the same numbers of channels one after the other; else by the number of channels
    where each is there once. Every norm that was written is then run beside the one it came from.
    If anything fails, the target is as it was.

    Args:
        source: a live model, its adapter, or the `ModelRecord` of a file.
        target: a live model or its adapter.
        mapping: names in the target by the names in the source; norms that are not named stay.
        count: elements per channel in each training batch, from which the factor between sample and
            population variance comes; None copies the variance as it is where they differ.

    Returns:
        What went where, and how far outputs differ.

    Raises:
        MatchError: it is not clear which norm belongs to which; the message shows the candidates.
        UnsupportedError: a norm cannot take another's arrays, such as a gamma without having one.

    Example:
        >>> from torch import nn
        >>> old, new = (nn.Sequential(nn.BatchNorm1d(2, eps=eps)) for eps in (0.1, 1e-5))
        >>> convert(old, new).moved[0].matched, new[0].eps
        ('name', 0.1)
    """
    live = adapt(target)
    origin = None if isinstance(source, ModelRecord) else adapt(source)
    given = source if origin is None else origin.record()
    taking = live.record()
    pairs = match(given, taking, mapping)
    with live.preserved():
        moved = [_move(pair, origin, live, count) for pair in pairs]
    return Conversion(tuple(moved), given.name, taking.name)


def _move(pair: Pair, origin: LiveModel | None, live: LiveModel, count: float | None) -> Moved:
    source, target, matched = pair
    translated, notes = translate(source, target, count)
    live.adopt(target.name, translated)
    inputs = make_inputs(translated)
    error = difference(live.normalize(target.name, inputs), translated, inputs)
    if origin is not None:
        # What its record says is also what it computes.
        theirs = origin.normalize(source.name, inputs)
        error = max(error, difference(theirs, source, inputs))
    if not error <= TOLERANCE:
        raise UnsupportedError(
            f"{target.name!r} computes something else than {source.name!r}: expected outputs alike "
            f"to {TOLERANCE:g} of their size, got {error:.2g}. The target was left as it was."
        )
    return Moved(source.name, target.name, source.channels or 0, matched, error, notes)
