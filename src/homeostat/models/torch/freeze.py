"""Freeze the batch norms of a PyTorch model in place, and unfreeze them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from homeostat.errors import SpecError
from homeostat.models.records import Frozen
from homeostat.models.torch.norms import find_norms, is_frozen
from homeostat.torch.exchange import NATIVE, why_not_ours
from homeostat.torch.frozen import FrozenBatchNorm, become_frozen, become_trainable
from homeostat.torch.snapshot import Snapshot
from homeostat.torch.state import State


def freeze_norms(model: nn.Module, names: Collection[str] | None = None) -> tuple[Frozen, ...]:
    """Make batch norms `homeostat.torch.FrozenBatchNorm`, the same objects; see `homeostat.freeze`.

    Args:
        model: any module; as it was if anything fails.
        names: of the norms; None for all.

    Returns:
        What happened to each of them, in the order of definition.

    Raises:
        SpecError: a name is not known.
    """
    return _each(model, names, _why_not, become_frozen)


def unfreeze_norms(model: nn.Module, names: Collection[str] | None = None) -> tuple[Frozen, ...]:
    """Make what `freeze_norms` froze what it was, with parameters of its own.

    Args:
        model: any module; as it was if anything fails.
        names: of the norms; None for all that are frozen.

    Returns:
        What happened to each of them, in the order of definition.

    Raises:
        SpecError: a name is not known.
    """
    if names is None:
        names = [name for name, norm in find_norms(model).items() if is_frozen(norm)]
    return _each(model, names, _why_not_back, become_trainable)


def _each(
    model: nn.Module,
    names: Collection[str] | None,
    why_not: Callable[[nn.Module], str],
    change: Callable[[Any], None],
) -> tuple[Frozen, ...]:
    norms = find_norms(model)
    unknown = sorted(set(names or ()) - norms.keys())
    if unknown:
        raise SpecError(
            f"there are no batch norms {unknown}: expected names among {list(norms)}. Take them of "
            "the model's named_modules()."
        )
    before, done = Snapshot(model), []
    try:
        for name, norm in norms.items():
            if names is not None and name not in names:
                continue
            kind, reason = type(norm).__name__, why_not(norm)
            if not reason:
                change(norm)
            done.append(Frozen(name, kind, "" if reason else type(norm).__name__, reason))
    except BaseException:
        before.restore()
        raise
    return tuple(done)


def _why_not(norm: nn.Module) -> str:
    state: Any = norm
    if is_frozen(norm):
        return "it is frozen already"
    if state.running_mean is None or state.running_var is None:
        return "it keeps no running statistics to be frozen to"
    if not isinstance(norm, State):
        return why_not_ours(norm)
    return "" if type(norm) in NATIVE else f"class {type(norm).__name__} is not known"


def _why_not_back(norm: nn.Module) -> str:
    if isinstance(norm, FrozenBatchNorm) and "origin" in vars(norm):
        return ""
    return "it was not frozen by freeze" if is_frozen(norm) else "it is not frozen"
