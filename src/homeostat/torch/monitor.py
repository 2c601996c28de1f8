"""What writes to TensorBoard how batch norms fare while a module trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from homeostat.drift import (
    Array,
    State,
    Warner,
    check_observe_every,
    drift_between,
    write_affine,
    write_step,
)
from homeostat.errors import SpecError
from homeostat.events import EventWriter
from homeostat.moments import Average
from homeostat.torch.state import TORCH
from homeostat.torch.state import State as Ours

_SKIPS = "homeostat.torch.BatchNorm2d"
_REMEDY = (
    "Call model.train() and have the layers run in every step, or call their own eval() if they "
    "are to stay."
)
# What wraps a module inside a model, and is no part of its name.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class _Seen(NamedTuple):
    """A norm's state at one time, and how many batches it had followed."""

    state: State
    batches: int


class BatchNormMonitor:
    """Writes each batch norm's drift, skipped updates, gamma and beta, and warns of what is wrong.

    A forward moves statistics by new - old = momentum * (batch - old). So the batch's own mean and
    variance follow from how far a step moved the statistics: nothing is added to the model, no
    hook and no operation, and steps that are not looked at cost nothing. Of every
    ``observe_every``-th step are written, under the norm's name,

    - ``mean_shift`` and ``mean_shift_max``: root mean square and largest over the channels of
      (batch mean - old running mean) / sqrt(old running variance + eps);
    - ``log_variance_ratio`` and ``log_variance_ratio_max``: the same of
      log((batch variance + eps) / (old running variance + eps)), of sample variances;
    - ``skipped_updates``: updates that batches with NaN or infinity cost the worst channel so far,
      of Homeostat's modules;

    and after each epoch histograms of ``gamma`` and ``beta``. One batch strays from any average:
    look at how drift moves over many steps. A norm that runs several times in a step, as with
    accumulated gradients or activation checkpointing, shows the average of its batches, in which
    late ones weigh more. Norms whose statistics do not move have no drift.

    Works for PyTorch's modules and Homeostat's, ``SyncBatchNorm`` too, compiled, under autocast,
    and inside ``DistributedDataParallel``, where one process need have a monitor.

    Args:
        model: any module with batch norms, with its checkpoint loaded.
        log_dir: folder of the event file, TensorBoard's ``--logdir`` or a folder in it; or a
            `torch.utils.tensorboard.SummaryWriter`, which stays open.
        observe_every: of how many steps the first is looked at.
        first_step: the number of the first step, where training goes on.

    Raises:
        SpecError: ``observe_every`` is no positive integer.
        MissingExtraError: a folder is given, and tensorboard is not installed.
        DataError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> with BatchNormMonitor(model, tempfile.mkdtemp(), observe_every=10) as monitor:
        ...     for _ in range(20):
        ...         model(torch.randn(8, 3)).square().mean().backward()
        ...         optimizer.step()
        ...         monitor.step()
        ...     monitor.end_epoch()
    """

    def __init__(
        self, model: nn.Module, log_dir: Any, observe_every: int = 100, first_step: int = 0
    ) -> None:
        self.observe_every = check_observe_every(observe_every)
        self._opened = isinstance(log_dir, str | Path)
        if not self._opened and not hasattr(log_dir, "add_histogram"):
            raise SpecError(
                f"log_dir is a {type(log_dir).__name__}: expected a folder, or a SummaryWriter of "
                "torch.utils.tensorboard. Pass one of them."
            )
        self._writer: Any = EventWriter(log_dir) if self._opened else log_dir
        self.model, self.steps, self.epochs = _bare(model), first_step, 0
        self._warner = Warner(_SKIPS, _REMEDY)
        self._before: Mapping[str, _Seen] = {}
        self._begin_epoch(_all_seen(self.model))

    def _begin_epoch(self, seen: Mapping[str, _Seen]) -> None:
        self._start, self._began = seen, self.steps
        self._before = seen if self.steps % self.observe_every == 0 else {}
        self._should: Mapping[str, bool] = {}

    def step(self) -> None:
        """Count a step, once its forward and backward are done; write what an observed one did."""
        if self._writer is None:
            return
        if self.steps == self._began:
            # Now, since the model may be in another mode when the epoch ends.
            training = self.model.training
            self._should = {name: _should_move(n, training) for name, n in _norms(self.model)}
        seen = _all_seen(self.model) if self._before else {}
        for name, after in seen.items():
            self._write(name, self._before.get(name), after)
        self.steps += 1
        if self.steps % self.observe_every == 0:
            self._before = seen or _all_seen(self.model)
        else:
            self._before = {}

    def _write(self, name: str, before: _Seen | None, after: _Seen) -> None:
        found: Mapping[str, Array] = {}
        # An average that was changed in between tells nothing of the batch.
        if before is not None and before.state.average == after.state.average:
            batches = after.batches - before.batches
            if batches > 0 and after.state.average.momentum != 1.0:
                found = drift_between(before.state, after.state, batches)
        write_step(self._writer, name, found, after.state, self.steps)

    def end_epoch(self) -> None:
        """Write gamma and beta; warn of statistics that did not move, and of what rules find."""
        if self._writer is None:
            return
        self.epochs += 1
        seen = _all_seen(self.model)
        states = {
            name: replace(each.state, moves=self._should.get(name, False))
            for name, each in seen.items()
        }
        start, moved = self._start, self.steps > self._began
        write_affine(self._writer, states, self.steps)
        self._begin_epoch(seen)
        self._warner.warn(
            states, {name: each.state for name, each in start.items()}, self.epochs, moved=moved
        )
        self._warner.warn_of_rules(self.model, self.epochs)

    def close(self) -> None:
        """Write what is left, and close the event file unless it was given."""
        if self._writer is not None:
            self._writer.flush()
            if self._opened:
                self._writer.close()
        self._writer, self._before, self._start = None, {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _bare(model: nn.Module) -> nn.Module:
    """Return the model inside what wraps it for several devices or was made by compiling it."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return _bare(model.module)
    inner = model._modules.get("_orig_mod")
    return model if inner is None else _bare(inner)


def _norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the batch norms with statistics, each once, with their names."""
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm):
            mean = part.running_mean
            if mean is not None and not is_lazy(mean) and not mean.is_meta:
                for wrapper in _WRAPPERS:
                    name = name.replace(wrapper, "")
                yield name or type(part).__name__, part


def _should_move(norm: Any, training: bool) -> bool:
    """Return whether steps should move a norm's statistics.

    One in eval mode inside a model in training mode was put there on purpose, and so was one whose
    weight and bias do not train.
    """
    if getattr(norm, "frozen_statistics", False) or getattr(norm, "inference_mode", False):
        return False
    if not norm.track_running_stats or norm.momentum == 0.0:
        return False
    affine = [parameter for parameter in (norm.weight, norm.bias) if parameter is not None]
    trains = not affine or any(parameter.requires_grad for parameter in affine)
    return norm.training or (not training and trains)


def _all_seen(model: nn.Module) -> dict[str, _Seen]:
    return {name: _see(norm) for name, norm in _norms(model)}


def _see(norm: Any) -> _Seen:
    """Copy a norm's arrays; PyTorch's own lack what only ours has."""
    spec = norm.spec if isinstance(norm, Ours) else None
    average = Average(TORCH.to_old_weight(norm.momentum)) if spec is None else Average.of(spec)
    epsilon = norm.eps if spec is None else spec.epsilon
    variance = _copied(norm.running_var)
    tracked = 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
    skipped = _copy(norm._buffers.get("skipped_updates"))
    state = State(
        _copied(norm.running_mean),
        variance,
        epsilon,
        average,
        moves=True,
        gamma=_copy(norm.weight),
        beta=_copy(norm.bias),
        # Of renorm that is what is averaged; the variance follows from it.
        stddev=np.sqrt(variance + epsilon) if spec is not None and spec.renorm else None,
        updates=np.maximum(tracked - (0.0 if skipped is None else skipped), 0.0),
        skipped=skipped,
    )
    return _Seen(state, tracked)


def _copy(tensor: Any) -> Array | None:
    return None if tensor is None else _copied(tensor)


def _copied(tensor: Any) -> Array:
    # Of a tensor that is spread over processes, what this one has.
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return np.array(local.detach().cpu().double().numpy())
