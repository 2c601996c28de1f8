"""One run of a PyTorch model: how it is called, and what comes to its modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.errors import DataError, UnsupportedError
from homeostat.models.foldable import map_arrays
from homeostat.models.live import Batch
from homeostat.models.torch.inference import Arguments
from homeostat.models.torch.linear import linear_class


class Seen(NamedTuple):
    """The shape of a module's input, and how many elements its output has for one example."""

    shape: tuple[int, ...]
    elements: int


def call(model: nn.Module, batch: Batch, *, float64: bool = False) -> Any:
    """Call a model with a batch: one tensor, a tuple of positional ones, or a mapping of named.

    Args:
        model: any module.
        batch: of tensors or arrays; they go to the model's device.
        float64: whether floating ones become float64.
    """
    device = next((p.device for p in [*model.parameters(), *model.buffers()]), None)

    def given(array: Any) -> torch.Tensor:
        tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))
        tensor = tensor.detach().to(device)
        return tensor.double() if float64 and tensor.is_floating_point() else tensor

    batch = map_arrays(given, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


class Observed(NamedTuple):
    """What came to a model's norms and linear modules, and what the others were called with."""

    seen: dict[str, Seen]
    arguments: dict[str, Arguments]


def observe(model: nn.Module, batch: Batch) -> Observed:
    """Run a copy of a model in eval mode, and return what came to its modules.

    Raises:
        DataError: the model fails.
    """
    model = copy.deepcopy(model).eval()
    seen: dict[str, Seen] = {}
    arguments: dict[str, Arguments] = {}

    def remember(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            arguments.setdefault(name, Arguments(given, named))

        module.register_forward_pre_hook(note, with_kwargs=True)

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(output, torch.Tensor) and output.ndim:
                elements = output.numel() // max(len(output), 1)
                seen.setdefault(name, Seen(tuple(inputs[0].shape), elements))

        module.register_forward_hook(note)

    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm) or linear_class(part) is not None:
            watch(name, part)
        elif any(isinstance(inner, _BatchNorm) for inner in part.modules()):
            remember(name, part)
    try:
        with torch.inference_mode():
            call(model, batch)
    except Exception as error:
        # Whatever the model's own code raises.
        raise DataError(
            f"the model fails on the inputs: {error}. Expected what it is called with: a tensor, "
            "a tuple of tensors, or a mapping by the names of its arguments."
        ) from error
    return Observed(seen, arguments)


def first_guess(model: nn.Module) -> torch.Tensor:
    """Return a batch of 2 examples that the model accepts, by what its first module takes.

    Raises:
        UnsupportedError: it accepts none of those tried.
    """
    problem = "it has no module that says what it takes"
    for batch in _guesses(model):
        try:
            observe(model, batch)
        except DataError as error:
            problem = str(error.__cause__).partition("\n")[0]
        else:
            return batch
    raise UnsupportedError(
        f"nothing tells what the model is called with, and one guess failed: {problem}. Give a "
        "batch as inputs."
    )


def _guesses(model: nn.Module) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for part in model.modules():
        first: Any = part
        cls = linear_class(part)
        if isinstance(part, nn.Embedding):
            yield torch.randint(first.num_embeddings, (2, 16), generator=generator)
            return
        if cls is None and not isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            continue
        if cls is nn.Linear:
            shapes = [(2, first.in_features), (2, 16, first.in_features)]
        elif cls is None:
            ranks = {nn.BatchNorm1d: (0, 1), nn.BatchNorm2d: (2,), nn.BatchNorm3d: (3,)}
            found = next(ranks[base] for base in ranks if isinstance(part, base))
            shapes = [(2, first.num_features, *[64 if n < 3 else 16] * n) for n in found]
        else:
            n = len(first.kernel_size)
            sizes = (16, 32) if n == 3 else (64, 224, 32)
            shapes = [(2, first.in_channels, *[size] * n) for size in sizes]
        for shape in shapes:
            yield torch.randn(shape, generator=generator).to(dtype)
        return
