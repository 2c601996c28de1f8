"""`FrozenBatchNorm`: a batch norm as the fixed affine transform that it is in inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Proxy
from torch.nn import functional

from homeostat.spec import BatchNormSpec
from homeostat.torch.inference import Inference
from homeostat.torch.state import TORCH, State, WideStatistics

Tensor = torch.Tensor

_AFFINE = ("weight", "bias")
# What checkpoints of norms that train hold besides.
_OTHERS = ("num_batches_tracked", "skipped_updates", "renorm_mean", "renorm_std")


class FrozenBatchNorm(Inference, WideStatistics):
    """A fixed affine transform of each channel, for fine-tuning; inputs of any rank.

    y = activation(weight * (x - running_mean) / sqrt(running_var + eps) + bias + residual), where
    all four are buffers: nothing trains and nothing moves, in training mode too, while gradients go
    through to the input. The names are those of `torch.nn.BatchNorm2d`, whose checkpoints it loads.

    Args:
        num_features: C of an input (N, C, ...).
        eps: added to the variance.
        activation: None, "relu", "leaky_relu" or {"name": "leaky_relu", "negative_slope": 0.2}.
        device: of the buffers.
        dtype: of weight and bias; 16-bit ones have statistics in float32.

    Raises:
        SpecError: eps or the activation is not valid.

    Example:
        >>> frozen = FrozenBatchNorm(4)
        >>> sorted(frozen.state_dict()), list(frozen.parameters())
        (['bias', 'running_mean', 'running_var', 'weight'], [])
        >>> _ = frozen.load_state_dict(torch.nn.BatchNorm3d(4).state_dict())
    """

    # Whether PyTorch's own function computes it, to the last bit as it did before.
    native = False

    def __init__(
        self,
        num_features: int,
        eps: float = TORCH.epsilon,
        *,
        activation: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.spec = BatchNormSpec(
            axis=1, epsilon=eps, activation=activation, stored_variance=TORCH.stored_variance
        )
        ones = torch.ones(num_features, device=device, dtype=dtype)
        wide = torch.promote_types(ones.dtype, torch.float32)
        self.register_buffer("weight", ones)
        self.register_buffer("bias", torch.zeros_like(ones))
        self.register_buffer("running_mean", torch.zeros_like(ones, dtype=wide))
        self.register_buffer("running_var", torch.ones_like(ones, dtype=wide))

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self.spec.epsilon

    @property
    def activation(self) -> Any:
        """The activation behind it, or None."""
        fused = self.spec.fused_activation
        return None if fused is None else fused.config()

    @activation.setter
    def activation(self, value: Any) -> None:
        """Set the activation behind it."""
        self.spec = replace(self.spec, activation=value)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        """Transform the input.

        Args:
            input: (N, C, ...), floating.
            residual: of the input's shape, added before the activation, or None.

        Returns:
            Tensor of the input's shape and dtype.

        Raises:
            ShapeError: a shape does not fit.
        """
        if isinstance(input, Proxy):
            return self._leaf(input, residual)
        if self.native and residual is None and self.spec.activation is None:
            mean, variance, eps = self.running_mean, self.running_var, self.spec.epsilon
            return functional.batch_norm(
                input, mean, variance, self.weight, self.bias, False, 0.0, eps
            )
        return self._infer(input, residual)

    def extra_repr(self) -> str:
        """Return the number of channels and the options."""
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return f"{self.num_features}, eps={self.eps}{activation}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if self.native:
            # PyTorch's own function wants all four alike.
            return torch.nn.Module._apply(self, fn, recurse)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for name in _OTHERS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class Origin(NamedTuple):
    """What a frozen norm was: its class, what trained, and the buffers that it does not need."""

    cls: type
    trained: dict[str, bool]
    buffers: dict[str, Tensor | None]
    hidden: set[str]


def become_frozen(norm: nn.Module) -> None:
    """Make a batch norm a `FrozenBatchNorm`, the same object with the same hooks.

    Args:
        norm: native or Homeostat's, with running statistics.
    """
    state: Any = norm
    parameters, buffers = norm._parameters, norm._buffers
    affine = {name: parameters[name] for name in _AFFINE}
    trained = {name: p is not None and p.requires_grad for name, p in affine.items()}
    spec = (
        state.spec
        if isinstance(norm, State)
        else BatchNormSpec(axis=1, epsilon=state.eps, stored_variance=TORCH.stored_variance)
    )
    statistics = {name: buffers[name] for name in ("running_mean", "running_var")}
    rest = {name: buffer for name, buffer in buffers.items() if name not in statistics}
    origin = Origin(type(norm), trained, rest, set(norm._non_persistent_buffers_set))
    parameters.clear()
    buffers.clear()
    # An optimizer that holds a parameter still could write into it.
    buffers.update({k: None if p is None else p.detach().clone() for k, p in affine.items()})
    buffers.update(statistics)
    norm._non_persistent_buffers_set.clear()
    native = not isinstance(norm, State)
    norm.__class__ = FrozenBatchNorm
    norm.__dict__.update(spec=spec, native=native, origin=origin)


def become_trainable(norm: FrozenBatchNorm) -> None:
    """Make what `become_frozen` froze the norm that it was, with new parameters.

    Args:
        norm: one that has an ``origin``.
    """
    origin: Origin = norm.__dict__.pop("origin")
    buffers, native = norm._buffers, norm.__dict__.pop("native")
    for name in _AFFINE:
        value = buffers.pop(name)
        trains = origin.trained[name]
        norm._parameters[name] = None if value is None else nn.Parameter(value, trains)
    device: Any = buffers["running_mean"].device  # type: ignore[union-attr]
    for name, buffer in origin.buffers.items():
        buffers[name] = None if buffer is None else buffer.to(device)
    norm._non_persistent_buffers_set.update(origin.hidden)
    if native:
        del norm.__dict__["spec"]
    norm.__class__ = origin.cls
