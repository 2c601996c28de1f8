"""How many bytes PyTorch keeps for the backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def saved_bytes(forward: Callable[[], Any], parameters: Iterable[torch.Tensor] = ()) -> int:
    """Return the bytes that autograd keeps from a forward, each storage once.

    Args:
        forward: what is called; the results live on until the count is done.
        parameters: tensors that are there anyway and do not count.
    """
    anyway = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in anyway:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        # Alive until here, so that no storage's place is taken by another.
        _results = forward()
    return sum(kept.values())
