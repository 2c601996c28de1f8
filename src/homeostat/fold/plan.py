"""Which batch norms of a graph can be folded, into what, and why the others cannot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from homeostat.fold.maths import Affine, affine_of, fold_ahead, fold_behind
from homeostat.fold.report import NormFold
from homeostat.models.foldable import LinearOp, NormOp, Sites
from homeostat.models.graph import Operation


class _Stays(Exception):  # noqa: N818
    """A norm is not folded; the message says why."""


@dataclass
class Plan:
    """What becomes of a model's norms.

    Args:
        sites: the model's graph.
        linears: the changed linear operations, by the name of the operation.
        norms: the operations of the norms that are folded.
        folds: what the report tells of each norm, by the name of its operation.
    """

    sites: Sites
    linears: dict[str, LinearOp] = field(default_factory=dict[str, LinearOp])
    norms: list[str] = field(default_factory=list[str])
    folds: dict[str, NormFold] = field(default_factory=dict[str, NormFold])

    @property
    def report(self) -> tuple[NormFold, ...]:
        """What becomes of each norm, in the order of the network, then of the hidden ones."""
        hidden = [_left(norm, norm.why_not) for norm in self.sites.hidden]
        return (*(self.folds[name] for name in self.sites.norms), *hidden)


def plan(sites: Sites, *, forward: bool = True) -> Plan:
    """Decide for each norm whether it is folded, and into what.

    Args:
        sites: the model's graph.
        forward: whether a norm may be folded into the linear operation after it where it cannot
            be folded into the one before it.
    """
    found = Plan(sites)
    names = [operation.name for operation in sites.graph.operations]
    names = [name for name in names if name in sites.norms]
    left: dict[str, str] = {}
    for name in names:
        reason = _unusable(sites.norms[name])
        if reason:
            found.folds[name] = _left(sites.norms[name], reason)
            continue
        try:
            _behind(found, name)
        except _Stays as stays:
            left[name] = str(stays)
    # The last of several norms before a linear operation is the next to it.
    for name, reason in reversed(left.items()):
        found.folds[name] = _left(sites.norms[name], reason)
        if not forward:
            continue
        try:
            _ahead(found, name)
        except _Stays as stays:
            found.folds[name] = _left(sites.norms[name], f"{reason}; {stays}")
    return found


def _left(norm: NormOp, reason: str) -> NormFold:
    return NormFold(norm.record.name, norm.record.kind, reason=reason)


def _unusable(norm: NormOp) -> str:
    """Return why a norm cannot be folded by what it is itself; "" where it can."""
    if norm.why_not:
        return norm.why_not
    record = norm.record
    if record.moving_mean is None or record.moving_variance is None:
        return "it has no moving statistics, so that inference takes the batch's"
    broken = [name for name, array in record.arrays.items() if not np.all(np.isfinite(array))]
    if broken:
        return f"not finite: {', '.join(broken)}"
    affine = affine_of(record)
    if not np.all(np.isfinite(affine.scale)) or not np.all(np.isfinite(affine.offset)):
        return "its variance + epsilon is not above 0"
    return ""


def _behind(found: Plan, name: str) -> None:
    """Fold a norm into the linear operation before it, or raise."""
    sites, norm = found.sites, found.sites.norms[name]
    graph, affine = sites.graph, affine_of(norm.record)
    before = graph[graph[name].inputs[0]]
    consumer = graph[name]
    while True:
        _check_alone(found, before, consumer)
        if before.name in sites.linears:
            break
        if not _lets_through(found, before, norm, affine):
            raise _Stays(f"{_told(before)} is before it")
        before, consumer = graph[before.inputs[0]], before
    linear = found.linears.get(before.name, sites.linears[before.name])
    if linear.why_not or linear.why_not_behind:
        raise _Stays(f"{_told(before)} {linear.why_not or linear.why_not_behind}")
    _check_pair(before, linear, norm)
    _take(found, name, before, linear, fold_behind(linear, affine), "before")


def _ahead(found: Plan, name: str) -> None:
    """Fold a norm into the linear operation after it, or raise."""
    sites, norm = found.sites, found.sites.norms[name]
    graph, affine = sites.graph, affine_of(norm.record)
    here = graph[name]
    if norm.remains:
        raise _Stays(f"{norm.remains} is fused behind it")
    while True:
        consumers = graph.consumers(here.name)
        if not consumers:
            raise _Stays("nothing is after it")
        following = consumers[0]
        _check_alone(found, here, following)
        if following.name in sites.linears:
            break
        if not _lets_through(found, following, norm, affine):
            raise _Stays(f"{_told(following)} is after it")
        here = following
    linear = found.linears.get(following.name, sites.linears[following.name])
    if linear.why_not:
        raise _Stays(f"{_told(following)} {linear.why_not}")
    if linear.padded and np.any(affine.offset):
        raise _Stays(
            f"{_told(following)} after it sees zeros around its input, which it would shift"
        )
    _check_pair(following, linear, norm)
    _take(found, name, following, linear, fold_ahead(linear, affine), "after")


def _check_alone(found: Plan, operation: Operation, consumer: Operation) -> None:
    """Raise unless an operation's result goes to one consumer, once, and nowhere else."""
    graph = found.sites.graph
    others = [other for other in graph.consumers(operation.name) if other.name != consumer.name]
    if graph.is_output(operation.name):
        raise _Stays(f"the result of {_told(operation)} is an output")
    if others:
        raise _Stays(f"{_told(others[0])} takes the result of {_told(operation)} too")
    if consumer.inputs.count(operation.name) > 1:
        raise _Stays(f"{_told(consumer)} takes the result of {_told(operation)} twice")


def _lets_through(found: Plan, operation: Operation, norm: NormOp, affine: Affine) -> bool:
    """Return whether an operation gives the same before a norm as behind it."""
    if operation.name in found.norms:
        return not found.sites.norms[operation.name].remains
    if len(operation.inputs) != 1 or operation.name in found.sites.norms:
        return False
    if found.sites.axes.get(operation.name, norm.axis) != norm.axis:
        return False
    if operation.kind == "pad" and np.any(affine.offset):
        raise _Stays(f"{_told(operation)} puts zeros around, which the norm would shift")
    return operation.kind in ("identity", "dropout", "pad")


def _check_pair(operation: Operation, linear: LinearOp, norm: NormOp) -> None:
    if linear.axis is None or norm.axis is None or linear.axis != norm.axis:
        raise _Stays(
            f"its channels are on axis {_or_unknown(norm.axis)}, those of {_told(operation)} on "
            f"axis {_or_unknown(linear.axis)}"
        )
    if linear.dtype != (norm.record.dtype or "") and linear.dtype and norm.record.dtype:
        raise _Stays(f"it computes in {norm.record.dtype}, {_told(operation)} in {linear.dtype}")


def _take(
    found: Plan, name: str, operation: Operation, old: LinearOp, new: LinearOp, side: str
) -> None:
    """Note that a linear operation takes a norm in, or raise if its parameters cannot hold it."""
    values = [kernel.values for kernel in new.kernels] + ([] if new.bias is None else [new.bias])
    if any(np.max(np.abs(array), initial=0.0) > new.largest for array in values):
        raise _Stays(f"the folded parameters of {_told(operation)} would overflow")
    norm = found.sites.norms[name]
    found.linears[operation.name] = new
    found.norms.append(name)
    added = old.bias is None and new.bias is not None
    operations = None
    if norm.elements is not None and (new.elements is not None or not added):
        # A multiplication and an addition for each element.
        operations = 2 * norm.elements - (new.elements or 0) * added
    found.folds[name] = replace(
        _left(norm, ""),
        into=new.layer,
        side=side,
        remains=norm.remains,
        operations=operations,
    )


def _told(operation: Operation) -> str:
    if operation.kind == "input":
        return "an input of the model"
    kind, name = operation.type or operation.kind, operation.layer or operation.name
    return kind if kind == name else f"{kind} {name!r}"


def _or_unknown(axis: int | None) -> str:
    return "(not known)" if axis is None else str(axis)
