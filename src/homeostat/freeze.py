"""Freeze a model's batch norms to fixed affine transforms, for fine-tuning on little data."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from homeostat.errors import UnsupportedError
from homeostat.models.records import Frozen

__all__ = ["FreezeReport", "Frozen", "freeze", "unfreeze"]


@dataclass(frozen=True)
class FreezeReport:
    """What happened to each batch norm that was asked for.

    Args:
        norms: one for each, in the model's order.
        advice: what is left to do.

    Example:
        >>> print(FreezeReport((Frozen("1", "BatchNorm2d", "FrozenBatchNorm"),)))
        1 of 1 batch norms changed
        1  BatchNorm2d -> FrozenBatchNorm
    """

    norms: tuple[Frozen, ...]
    advice: str = ""

    @property
    def changed(self) -> tuple[Frozen, ...]:
        """Those that are another thing now."""
        return tuple(norm for norm in self.norms if not norm.reason)

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} of {len(self.norms)} batch norms changed"]
        for norm in self.norms:
            told = f"as it was: {norm.reason}" if norm.reason else f"{norm.kind} -> {norm.now}"
            lines.append(f"{norm.name or '(model)'}  {told}")
        return "\n".join([*lines, self.advice] if self.advice else lines)


def freeze(model: Any, names: Collection[str] | None = None) -> FreezeReport:
    """Turn batch norms into fixed affine transforms, in place and in the framework's idiom.

    y = x * scale + shift with scale = gamma / sqrt(moving_variance + epsilon) and shift = beta -
    moving_mean * scale: nothing in it trains or moves, in training mode either, as detectors are
    fine-tuned on one or two images at a time (He et al. 2017, Mask R-CNN).

    - torch: each norm becomes a `homeostat.torch.FrozenBatchNorm`, the same object with the same
      hooks and names, whose gamma and beta are buffers. Make the optimizer after that.
    - Keras: ``trainable=False``, which Keras 3 takes to mean inference mode too. Compile the model
      after that.

    Args:
        model: a `torch.nn.Module` or Keras 3 model; as it was if anything fails.
        names: of the norms; None for all.

    Returns:
        What happened to each, and why what was left as it was.

    Raises:
        SpecError: a name is not known; the message shows those that are.
        UnsupportedError: it is no model.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> freeze(model).changed[0].now
        'FrozenBatchNorm'
        >>> model.train()[1]
        FrozenBatchNorm(8, eps=1e-05)
    """
    half, advice = _half_of(model)
    norms = half.freeze_norms(model, names)
    return FreezeReport(norms, advice if any(not norm.reason for norm in norms) else "")


def unfreeze(model: Any, names: Collection[str] | None = None) -> FreezeReport:
    """Turn what `freeze` froze back into batch norms that train, in place.

    Args:
        model: a `torch.nn.Module` or Keras 3 model; as it was if anything fails.
        names: of the norms; None for all that are frozen.

    Raises:
        SpecError: a name is not known.
        UnsupportedError: it is no model.
    """
    half, advice = _half_of(model)
    norms = half.unfreeze_norms(model, names)
    return FreezeReport(norms, advice if any(not norm.reason for norm in norms) else "")


def _half_of(model: Any) -> tuple[Any, str]:
    """Return the module that does it for a model's framework, and what is left to do then."""
    # A live model's framework is loaded, so nothing is imported for the others.
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Model):
        from homeostat.models.keras import freeze as half

        again = "Call compile() again before fit()." if getattr(model, "compiled", False) else ""
        return half, again
    if torch is not None and isinstance(model, torch.nn.Module):
        from homeostat.models.torch import freeze as half

        return half, "Make the optimizer after this: it would hold parameters that are gone."
    raise UnsupportedError(
        f"an object of type {type(model).__name__} has no batch norms to freeze: expected a Keras "
        "3 model or a torch.nn.Module. Pass the model itself."
    )
