"""`BatchNormMonitor`: what a model's batch norms do while it trains, for TensorBoard."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.errors import SpecError
from homeostat.ops.torch import moments
from homeostat.torch.state import State

Tensor = torch.Tensor


class BatchNormMonitor:
    """Write the drift of running against batch statistics while a model trains.

    At every n-th step, for each batch norm that took a batch's statistics in it, with the batch's
    mean and sample variance against the running ones from before the batch, by channel::

        shift = |mean - running_mean| / sqrt(running_var + eps)
        ratio = |log((variance + eps) / (running_var + eps))|

    Under ``batch_norm/NAME/`` come the scalars ``mean_shift`` and ``log_variance_ratio``, means of
    the channels with finite statistics, both also with ``_max`` behind; ``skipped_updates`` of
    Homeostat's norms, of the channel with most; and the histograms ``gamma`` and ``beta``. A norm
    that is called several times in a step has the worst of its channels. Between those steps the
    hooks do nothing. Attach it before compiling the model.

    Args:
        model: any module; it gets hooks until `close`.
        writer: a `torch.utils.tensorboard.SummaryWriter`, or what has its ``add_scalar`` and
            ``add_histogram``; it stays open.
        every: steps from one writing to the next, the first at step 0.

    Raises:
        SpecError: ``every`` is not a positive integer.

    Example:
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, round(value, 3))
        ...     def add_histogram(self, tag, values, step):
        ...         pass
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> with BatchNormMonitor(model, Printer(), every=2) as monitor:
        ...     for _ in range(2):
        ...         _ = model(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        ...         monitor.step()
        0 batch_norm/0/mean_shift 2.0
        0 batch_norm/0/mean_shift_max 2.0
        0 batch_norm/0/log_variance_ratio 6.103
        0 batch_norm/0/log_variance_ratio_max 11.513
    """

    def __init__(self, model: nn.Module, writer: Any, every: int = 100) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SpecError(
                f"every={every!r} is not valid: expected a positive number of steps. Use 100."
            )
        self.writer, self.every, self.steps = writer, every, 0
        self._drift: dict[str, tuple[Tensor, Tensor]] = {}
        self._norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self._handles = [
            norm.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, norm in self._norms.items()
        ]

    def _hook(self, name: str) -> Any:
        def note(norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.steps % self.every or not norm.training or norm.running_mean is None:
                return
            x = args[0] if args else kwargs["input"]
            if not x.numel():
                return
            with torch.no_grad():
                found = _drift(norm, x, kwargs.get("weights"))
                earlier = self._drift.get(name, found)
                pairs = zip(found, earlier, strict=True)
                self._drift[name] = tuple(torch.fmax(new, old) for new, old in pairs)

        return note

    def step(self) -> None:
        """Write what the step's forwards showed, if it is one of those, and count it."""
        if self.steps % self.every == 0:
            for name, (shift, ratio) in self._drift.items():
                self._write(name, {"mean_shift": shift, "log_variance_ratio": ratio})
        self._drift.clear()
        self.steps += 1

    def _write(self, name: str, drift: dict[str, Tensor]) -> None:
        norm, step = self._norms[name], self.steps
        tag = f"batch_norm/{name or type(norm).__name__}"
        for what, channels in drift.items():
            finite = channels[torch.isfinite(channels)]
            if finite.numel():
                self.writer.add_scalar(f"{tag}/{what}", finite.mean().item(), step)
                self.writer.add_scalar(f"{tag}/{what}_max", finite.max().item(), step)
        skipped = norm._buffers.get("skipped_updates")
        if skipped is not None:
            self.writer.add_scalar(f"{tag}/skipped_updates", int(skipped.max()), step)
        for what, parameter in (("gamma", norm.weight), ("beta", norm.bias)):
            if parameter is not None:
                self.writer.add_histogram(f"{tag}/{what}", parameter.detach().float().cpu(), step)

    def close(self) -> None:
        """Take the hooks out of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._drift.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _drift(norm: Any, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    batch = moments(x.detach(), 1, weights=weights)
    eps = norm.spec.epsilon if isinstance(norm, State) else norm.eps
    mean, variance = norm.running_mean.to(batch.mean.dtype), norm.running_var + eps
    shift = (batch.mean - mean).abs() / variance.sqrt()
    return shift, torch.log((batch.sample_variance(torch) + eps) / variance).abs()
