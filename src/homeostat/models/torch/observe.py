"""Watch what comes to a model's batch norms, and have them normalize by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.models.live import Batch
from homeostat.models.torch.batches import call
from homeostat.models.torch.moments import moments_of
from homeostat.models.torch.undisturbed import undisturbed
from homeostat.moments import Moments, merge

Tensor = torch.Tensor


class Watch:
    """Hooks before every batch norm that take the moments of its inputs.

    A norm that normalizes by them gets them as its running statistics for the call: so it does all
    else that it does in inference, of whatever class it is, with weights and with one element too.

    Args:
        norms: by name.
        chosen: names of those that normalize by the batch's moments.
        weights: a weight for each example in float64, or None.
    """

    def __init__(
        self, norms: Mapping[str, nn.Module], chosen: Collection[str], weights: Tensor | None
    ) -> None:
        self.norms, self.chosen, self.weights = norms, set(chosen), weights
        self.found: dict[str, Moments] = {}

    def start(self) -> None:
        """Put the hooks in; whoever starts takes them out, with all else that a call leaves."""
        for name, norm in self.norms.items():
            norm.register_forward_pre_hook(self._hook(name), with_kwargs=True)

    def _hook(self, name: str) -> Any:
        def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs[next(iter({"input", "x"} & kwargs.keys()))]
            weights = None if self.weights is None else self.weights.to(x.device)
            moments = moments_of(x, weights)
            earlier = self.found.get(name)
            self.found[name] = moments if earlier is None else merge(earlier, moments, torch)
            # Without running statistics it takes the batch's anyway.
            if name in self.chosen or norm.running_mean is None:
                _give(norm, moments, x)

        return hook

    def moments(self) -> dict[str, Moments]:
        """Return what was found, in the order in which the norms were called, as arrays."""
        return {
            name: Moments(found.count, *(_array(each) for each in (found.mean, found.variance)))
            for name, found in self.found.items()
        }


def _give(norm: Any, moments: Moments, x: Tensor) -> None:
    like = next((t for t in (norm.running_mean, norm.weight) if t is not None), None)
    dtype = x.dtype if like is None else like.dtype
    for name, value in (("running_mean", moments.mean), ("running_var", moments.variance)):
        # The registered tensor stays as it is, and comes back at the end.
        norm._buffers[name] = value.to(x.device, dtype)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.cpu().numpy()


def observe(
    model: nn.Module,
    batch: Batch,
    norms: Mapping[str, nn.Module],
    chosen: Collection[str],
    weights: Tensor | None,
) -> tuple[dict[str, Moments], Any]:
    """Run a batch and return the moments of every norm's inputs and the outputs; change nothing.

    Args:
        model: whose norms they are.
        batch: tensors.
        norms: those to watch, by name.
        chosen: names of those that normalize by the batch's moments.
        weights: a weight for each example, or None.
    """
    watch = Watch(norms, chosen, weights)
    with undisturbed(model):
        watch.start()
        outputs = call(model, batch)
    return watch.moments(), outputs
