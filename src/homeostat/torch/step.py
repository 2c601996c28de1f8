"""One training step of a module: which statistics, which gamma and beta, what moves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from homeostat.errors import NonFiniteBatchError, SpecError, UnsupportedError
from homeostat.layout import Layout
from homeostat.moments import (
    Average,
    Moments,
    MovingStatistics,
    advance,
    average_groups,
    corrected,
    renorm_correction,
)
from homeostat.ops.torch import Moving, moments, normalize_and_move, normalize_batch
from homeostat.ops.torch.elements import transformed
from homeostat.torch.replicas import replica_sum
from homeostat.torch.small import small_train, takes_few_calls

Tensor = torch.Tensor


def train(bn: Any, x: Tensor, residual: Tensor | None, weights: Tensor | None) -> Tensor:
    """Normalize with the batch's statistics and let the module's running statistics follow.

    Args:
        bn: one of `homeostat.torch`'s modules.
        x: the input.
        residual: see the module.
        weights: see the module.
    """
    spec = bn.spec
    moves = bn.training and bn.track_running_stats and not bn.frozen_statistics
    reduce = replica_sum(bn.process_group) if spec.synchronized and bn.training else None
    if reduce is None:
        _refuse_one_element(x, spec.virtual_batch_size)
    again = moves and not torch.compiler.is_compiling() and _repeated()
    if bn.plain and weights is None and takes_few_calls(bn, x, residual, trains=True):
        y = small_train(bn, x, residual, moves=moves and not again)
        if y is not None:
            return y
    if spec.virtual_batch_size is not None:
        y, batch = _ghost_batches(bn, x, residual, weights, again)
    elif bn.plain and weights is None and moves and not again:
        y, batch = _normalize_and_move(bn, x, residual)
    else:
        y, batch = _normalize(bn, x, 1, bn.weight, bn.bias, residual, weights, reduce, again)
    if moves and not again and batch is not None:
        _move_statistics(bn, batch)
    return y


def _refuse_one_element(x: Tensor, virtual_batch_size: int | None) -> None:
    shape = x.shape
    size = shape[0] if virtual_batch_size is None else virtual_batch_size
    if size * math.prod(shape[2:]) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape}. Its "
            "variance is 0 and says nothing. Train on larger batches, or call eval() first."
        )


def _repeated() -> bool:
    """Return whether this forward repeats one for the backward, as activation checkpointing does.

    It then runs inside the backward, whose task autograd numbers.
    """
    return torch._C._current_graph_task_id() != -1


def _normalize(
    bn: Any,
    x: Tensor,
    axis: Any,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    weights: Tensor | None,
    reduce: Any,
    again: bool,
) -> tuple[Tensor, Moments]:
    """Normalize with the batch's statistics, renormalized if the options say so."""
    spec, batch = bn.spec, None
    if spec.renorm and bn.training:
        batch = moments(x, axis, weights=weights, all_reduce=reduce)
        gamma, beta = _renormed(bn, batch, gamma, beta, again)
    return normalize_batch(
        x,
        gamma,
        beta,
        axis=axis,
        epsilon=spec.epsilon,
        weights=weights,
        activation=spec.activation,
        residual=residual,
        batch=batch,
        all_reduce=reduce,
    )


def _normalize_and_move(bn: Any, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Any]:
    """Normalize with the batch's statistics; they are None where the running ones followed."""
    spec, buffers = bn.spec, bn._buffers
    moving = Moving(
        buffers.get("running_mean"),
        buffers.get("running_var"),
        buffers["num_batches_tracked"],
        spec.momentum,
        spec.stored_variance == "sample",
        # Only what skips in silence need not be looked at.
        buffers.get("skipped_updates") if spec.nonfinite == "skip" else None,
    )
    return normalize_and_move(
        x,
        bn.weight,
        bn.bias,
        moving,
        axis=1,
        epsilon=spec.epsilon,
        activation=spec.activation,
        residual=residual,
    )


class _Bounds(NamedTuple):
    """Bounds of renorm's r and d that a schedule gives: numbers or scalar tensors, or None."""

    rmin: Any = None
    rmax: Any = None
    dmax: Any = None


def _renormed(
    bn: Any, batch: Moments, gamma: Tensor | None, beta: Tensor | None, again: bool
) -> tuple[Tensor, Tensor]:
    """Return gamma and beta with renorm's r and d in them."""
    if again:
        raise UnsupportedError(
            "a batch norm with renorm=True was run again for activation checkpointing: expected it "
            "outside the checkpoint, since renorm's statistics have moved since and would give "
            "other activations. Checkpoint around it, or set frozen_statistics=True."
        )
    bounds = bn.spec.clipping
    if bn.renorm_schedule is not None:
        given = bn.renorm_schedule(bn.num_batches_tracked)
        if set(given) - set(_Bounds._fields):
            raise SpecError(
                f"renorm_clipping returned the keys {sorted(given)}: expected keys among 'rmin', "
                "'rmax' and 'dmax'. Return the others elsewhere."
            )
        bounds = _Bounds(**given)
    mean, std, epsilon = bn.renorm_mean, bn.renorm_std, bn.spec.epsilon
    correction = renorm_correction(batch, mean, std, epsilon, bounds, torch)
    dtype = correction.r.dtype
    gamma, beta = (None if c is None else c.to(dtype) for c in (gamma, beta))
    return corrected(gamma, beta, correction)


def _ghost_batches(
    bn: Any, x: Tensor, residual: Tensor | None, weights: Tensor | None, again: bool
) -> tuple[Tensor, Moments]:
    """Normalize each ghost batch by its own statistics (Hoffer et al. 2017)."""
    if weights is not None:
        raise UnsupportedError(
            "weights came to a batch norm with virtual_batch_size: expected none, since ghost "
            "batches with unequal counts have no common statistics. Drop one of the two."
        )
    view, parted = Layout.of(x.shape, 1).ghost(bn.spec.virtual_batch_size)
    groups = parted.channel_shape

    def grouped(channels: Tensor | None) -> Tensor | None:
        return None if channels is None else channels.expand(groups)

    y, batch = _normalize(
        bn,
        x.reshape(view),
        parted.channel_axes,
        grouped(bn.weight),
        grouped(bn.bias),
        None if residual is None else residual.reshape(view),
        None,
        None,
        again,
    )
    return y.reshape(x.shape), average_groups(batch, 0, torch)


def _refuse_shared_statistics(mean: Tensor, batch: Moments) -> None:
    functorch = torch._C._functorch
    if functorch.is_batchedtensor(batch.mean) and not functorch.is_batchedtensor(mean):
        raise UnsupportedError(
            "torch.func.vmap maps over the input of a batch norm but not over its running "
            "statistics, which cannot follow many batches at once: expected statistics for each. "
            "Stack the models with torch.func.stack_module_state and pass the buffers mapped too, "
            "or set frozen_statistics=True or call eval()."
        )


def _move_statistics(bn: Any, batch: Moments) -> None:
    spec, buffers = bn.spec, bn._buffers
    mean, tracked, skipped = bn.running_mean, buffers["num_batches_tracked"], bn.skipped_updates
    if not torch.compiler.is_compiling() and transformed():
        _refuse_shared_statistics(mean, batch)
    if batch.mean.dtype != mean.dtype:
        batch = Moments(batch.count, batch.mean.to(mean.dtype), batch.variance.to(mean.dtype))
    known = _known_finite(batch)
    if known and bn.plain and batch.count > 1:
        _move_in_place(bn, batch)
        return
    counts = Average.of(spec).counts
    old = MovingStatistics(
        mean=mean,
        variance=bn.running_var,
        updates=(tracked - skipped).clamp_min(0).to(mean.dtype) if counts else None,
        skipped=None if spec.nonfinite == "propagate" else skipped,
        renorm_mean=buffers.get("renorm_mean"),
        renorm_stddev=buffers.get("renorm_std"),
    )
    new = advance(old, batch, spec, torch, finite=known)
    if isinstance(batch.count, Tensor):
        tracked.add_(batch.count > 0)
    elif batch.count > 0:
        tracked.add_(1)
    bad = None
    if spec.nonfinite == "raise" and not known and not torch.compiler.is_compiling():
        bad = (new.skipped > skipped).nonzero().flatten().tolist()
    for buffer, value in (
        (mean, new.mean),
        (bn.running_var, new.variance),
        (skipped, new.skipped),
        (old.renorm_mean, new.renorm_mean),
        (old.renorm_stddev, new.renorm_stddev),
    ):
        if buffer is not None and value is not None and value is not buffer:
            buffer.copy_(value)
    if bad:
        raise NonFiniteBatchError(
            f"the batch statistics of {bn} are not finite in channels {_some(bad)}: expected "
            "finite inputs. Find the layer before it that makes NaN or infinity, or use "
            "nonfinite='skip'. The running statistics are unharmed."
        )


def _move_in_place(bn: Any, batch: Moments) -> None:
    """Do what `advance` does of finite statistics without options, in few calls."""
    spec, n = bn.spec, batch.count
    weight = 1.0 - spec.momentum
    bn.running_mean.mul_(spec.momentum).add_(batch.mean, alpha=weight)
    sample = n / (n - 1) if spec.stored_variance == "sample" else 1.0
    bn.running_var.mul_(spec.momentum).add_(batch.variance, alpha=weight * sample)
    bn.num_batches_tracked.add_(1)


def _some(channels: list[int]) -> str:
    return ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")


def _known_finite(batch: Moments) -> bool:
    """Return whether all statistics are known to be finite, asking only where that is quick."""
    if torch.compiler.is_compiling() or not isinstance(batch.count, int) or batch.count == 0:
        return False
    if batch.mean.device.type != "cpu" or transformed():
        return False
    # NaN and infinity survive every product and sum.
    return math.isfinite(torch.dot(batch.mean, batch.variance).item())
