"""Replace a PyTorch model's batch norms by Homeostat's, fuse what follows them, and go back."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.errors import SpecError, UnsupportedError
from homeostat.torch.exchange import (
    become_native,
    become_ours,
    is_native,
    why_not_native,
    why_not_ours,
)
from homeostat.torch.fusion import Fusion, Outcome, unfuse
from homeostat.torch.records import ConversionReport, Converted, NormRecord
from homeostat.torch.snapshot import Snapshot
from homeostat.torch.state import State


def convert(model: nn.Module, fuse_activations: bool = True) -> Converted:
    """Make every native batch norm in a model Homeostat's, in place.

    Each norm stays the same object with the same parameters, statistics, options and hooks, so that
    optimizers, shared modules and checkpoints go on as they were. ReLU, LeakyReLU and residual adds
    that follow a norm move into it where a graph of the code around it tells all that this code
    does; the module around it stays the same object too, in a class derived from its own. What a
    fused norm returns is behind the activation. Where anything fails the model is as it was.

    Args:
        model: any module, a batch norm itself as well. For a converted copy give a
            ``copy.deepcopy``.
        fuse_activations: whether activations and residual adds move into the norms.

    Returns:
        The model that was given, and a report with a record for each of its batch norms.

    Raises:
        UnsupportedError: the model is scripted or compiled, or wrapped for distributed training.

    Example:
        >>> from torch import nn
        >>> model, report = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
        >>> model[1].activation
        'relu'
        >>> print(report)
        1 of 1 batch norms replaced, 1 fused
        name  was          now        fused  not fused because
        1     BatchNorm2d  homeostat  relu
    """
    refuse_wrapped(model, "convert")
    before = Snapshot(model)
    try:
        reasons = _replace(model)
        norms = {id(m): m for m in model.modules() if isinstance(m, State)}
        outcomes = {norm: Outcome() for norm in norms}
        if fuse_activations:
            Fusion(model, outcomes).run()
        report = _report(model, reasons, outcomes)
    except BaseException:
        before.restore()
        raise
    return Converted(model, report)


def revert(model: nn.Module) -> nn.Module:
    """Make every Homeostat batch norm in a model PyTorch's own, in place.

    What `convert` moved into the norms is where it was again, so that the outputs are the same.

    Args:
        model: any module.

    Returns:
        The model that was given.

    Raises:
        UnsupportedError: a norm uses an option that PyTorch's own does not have, or the model is
            wrapped; the model is as it was.

    Example:
        >>> from torch import nn
        >>> model, report = convert(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()))
        >>> type(revert(model)[0]), model[1]
        (<class 'torch.nn.modules.batchnorm.BatchNorm1d'>, ReLU())
    """
    refuse_wrapped(model, "revert")
    before = Snapshot(model)
    try:
        for _ in unfuse(model):
            pass
        norms = {name: m for name, m in model.named_modules() if isinstance(m, State)}
        used = {name: why for name, norm in norms.items() if (why := why_not_native(norm))}
        if used:
            told = "; ".join(f"{name or 'the model'} {why}" for name, why in used.items())
            raise UnsupportedError(
                f"cannot revert: {told}: expected only classes and options that torch.nn has. Turn "
                "them off, apply an activation in the model's code, or keep the norms."
            )
        for norm in norms.values():
            become_native(norm)
    except BaseException:
        before.restore()
        raise
    return model


def refuse_wrapped(model: nn.Module, doing: str) -> None:
    """Raise if a model is scripted, compiled or wrapped for distributed training.

    Args:
        model: any module.
        doing: what was asked for, such as ``"convert"``.

    Raises:
        UnsupportedError: it is, or it is no module.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError(
            f"cannot {doing} a {type(model).__name__}: expected a torch.nn.Module. Pass the model."
        )
    for part in model.modules():
        for kind, (cls, verb) in _wrappers().items():
            if isinstance(part, cls) and (part is model or _has_norms(part)):
                raise UnsupportedError(
                    f"cannot {doing} a {kind}: expected a model that is not wrapped yet. "
                    f"Run {doing}(model) first, and {verb} then."
                )


def _has_norms(module: nn.Module) -> bool:
    # A scripted module knows its class by name alone.
    return any(
        isinstance(part, _BatchNorm) or "BatchNorm" in getattr(part, "original_name", "")
        for part in module.modules()
    )


def _wrappers() -> dict[str, tuple[type, str]]:
    """Return the wrappers that have taken the model's insides down, and how they are made."""
    found = {"ScriptModule": (torch.jit.ScriptModule, "script it")}
    # Where nothing was imported that makes a wrapper, nothing is wrapped.
    for module, name, verb in (
        ("torch._dynamo.eval_frame", "OptimizedModule", "compile it"),
        ("torch.nn.parallel.distributed", "DistributedDataParallel", "wrap it"),
        ("torch.distributed.fsdp", "FullyShardedDataParallel", "wrap it"),
        ("torch.distributed.fsdp", "FSDPModule", "shard it"),
    ):
        cls = getattr(sys.modules.get(module), name, None)
        if cls is not None:
            found[name] = (cls, verb)
    return found


def _replace(model: nn.Module) -> dict[int, tuple[str, str]]:
    """Make norms Homeostat's; return what each was, and why it is not ours, by its id."""
    found: dict[int, tuple[str, str]] = {}
    for part in model.modules():
        if isinstance(part, State):
            found[id(part)] = type(part).__name__, ""
        if not is_native(part):
            continue
        kind, reason = type(part).__name__, why_not_ours(part)
        if not reason:
            before = Snapshot(part)
            try:
                become_ours(part)
            except SpecError as error:
                before.restore()
                reason = str(error)
        found[id(part)] = kind, reason
    return found


def _report(
    model: nn.Module, reasons: dict[int, tuple[str, str]], outcomes: dict[int, Outcome]
) -> ConversionReport:
    records = []
    for name, part in model.named_modules():
        if id(part) not in reasons:
            continue
        kind, reason = reasons[id(part)]
        outcome: Any = outcomes.get(id(part), Outcome())
        records.append(
            NormRecord(
                name,
                kind,
                not reason,
                reason,
                outcome.activation,
                outcome.residual,
                outcome.reason,
            )
        )
    return ConversionReport(tuple(records))
