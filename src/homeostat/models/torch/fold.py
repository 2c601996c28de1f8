"""A PyTorch model for folding its batch norms away: its classes and its code stay the user's."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from homeostat.errors import UnsupportedError
from homeostat.models.foldable import LinearOp, NormOp, Sites, map_arrays, randomize
from homeostat.models.graph import Graph
from homeostat.models.live import Batch
from homeostat.models.records import BatchNormRecord
from homeostat.models.torch.graphs import Call, Graphs
from homeostat.models.torch.linear import linear_class, linear_of, numpy_of
from homeostat.models.torch.probe import Seen, call, first_guess, observe
from homeostat.spec import Activation
from homeostat.torch.convert import refuse_wrapped
from homeostat.torch.fusion import unfuse
from homeostat.torch.modules import Complete
from homeostat.torch.patterns import has_hooks
from homeostat.torch.state import State

_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward, Complete.forward}
_FUNCTIONS = {functional.batch_norm, torch.batch_norm}


class TorchFold:
    """A PyTorch model whose batch norms may be folded; see `homeostat.models.foldable.Foldable`.

    Args:
        model: in eval mode; what of it is in training mode is left as it is.
        inputs: what the model is called with: an array or tensor, or a tuple or mapping of them;
            None to try what its first module takes.

    Raises:
        UnsupportedError: the model is wrapped, or not initialized, or cannot be copied, or nothing
            tells what it is called with.
    """

    def __init__(self, model: nn.Module, inputs: Batch | None) -> None:
        refuse_wrapped(model, "fold")
        tensors = [*model.parameters(), *model.buffers()]
        if any(is_lazy(tensor) or tensor.is_meta for tensor in tensors):
            raise UnsupportedError(
                "cannot fold a model whose parameters have no values yet: expected it initialized. "
                "Run a batch through it, or load its checkpoint."
            )
        try:
            self._copy = copy.deepcopy(model)
        except Exception as error:
            # Whatever a module's own code raises.
            raise UnsupportedError(
                f"the model cannot be copied: {error}. Expected copy.deepcopy to work. Fold a "
                "model that holds no results of earlier computations."
            ) from error
        for _ in unfuse(self._copy):
            pass
        self._names: dict[str, str] = {}
        self.probe = first_guess(self._copy) if inputs is None else inputs

    def sites(self) -> Sites:
        """Return the graphs of the model, or of those parts that have one."""
        seen, arguments = observe(self._copy, self.probe)
        graphs = Graphs(self._copy, arguments)
        owners = Counter(
            id(parameter)
            for part in self._copy.modules()
            for parameter in part._parameters.values()
            if parameter is not None
        )
        norms: dict[str, NormOp] = {}
        linears: dict[str, LinearOp] = {}
        known: set[int] = set()
        for name, found in graphs.calls.items():
            module = found.module
            if found.node.target in _FUNCTIONS:
                norms[name] = _function(found)
            elif isinstance(module, _BatchNorm) and id(module) not in known:
                known.add(id(module))
                norms[name] = _norm(found, graphs, seen.get(graphs.names[id(module)]))
            elif module is not None and linear_class(module) is not None:
                shared = any(owners[id(p)] > 1 for p in module.parameters(recurse=False))
                linears[name] = _linear(module, graphs, seen, shared=shared)
        hidden = [
            NormOp(
                BatchNormRecord(name, type(part).__name__),
                why_not=graphs.why_no_call(name),
            )
            for name, part in self._copy.named_modules()
            if isinstance(part, _BatchNorm) and id(part) not in known
        ]
        self._names = {operation.name: operation.layer for operation in graphs.operations}
        graph = Graph(tuple(graphs.operations), tuple(graphs.outputs))
        sized = ", ".join(sorted(graphs.sized))
        note = f"followed for inputs of the sizes given, on which their code depends: {sized}"
        return Sites(graph, norms, linears, hidden=tuple(hidden), notes=(note,) if sized else ())

    def rewrite(self, linears: Mapping[str, LinearOp], norms: Collection[str]) -> nn.Module:
        """Return a copy with other weights and biases, and nothing where some norms were."""
        model = copy.deepcopy(self._copy)
        for linear in linears.values():
            _write(model.get_submodule(linear.layer), linear)
        gone = [model.get_submodule(self._names[name]) for name in norms]
        instead = {id(norm): _remainder(norm) for norm in gone}
        for part in list(model.modules()):
            for key, child in part._modules.items():
                part._modules[key] = instead.get(id(child), child)
        return model

    def outputs(
        self, model: nn.Module, batches: Sequence[Batch], *, float64: bool
    ) -> list[list[np.ndarray[Any, Any]]]:
        """Return the arrays that a copy of a model gives in eval mode for each batch."""
        twin = copy.deepcopy(model).eval()
        if float64:
            twin = twin.cpu().double()
        with torch.inference_mode():
            return [
                [numpy_of(t) for t in _tensors(call(twin, batch, float64=float64))]
                for batch in batches
            ]

    def runner(self, model: nn.Module, batch: Batch) -> Callable[[], object]:
        """Return a function that runs a copy of a model, and waits for its results."""
        twin = copy.deepcopy(model).eval()

        def run() -> None:
            with torch.inference_mode():
                for tensor in _tensors(call(twin, batch)):
                    if tensor.is_cuda:
                        torch.cuda.synchronize(tensor.device)

        return run

    def parameters(self, model: nn.Module) -> int:
        """Return how many numbers a model holds, without those that count batches."""
        tensors = [*model.parameters(), *model.buffers()]
        return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())

    def random_batch(self, like: Batch | None, rng: np.random.Generator) -> Batch:
        """Return a random batch: like another, or like what the model's first module takes."""

        def random(array: Any) -> Any:
            if not isinstance(array, torch.Tensor):
                return randomize(array, rng)
            values = numpy_of(array) if array.is_floating_point() else array.cpu().numpy()
            return torch.from_numpy(randomize(values, rng)).to(array)

        return map_arrays(random, self.probe if like is None else like)


class Remainder(nn.Module):
    """Stands where a batch norm was that is folded, and does what else it did.

    Args:
        activation: what was fused into it, or None.
    """

    def __init__(self, activation: Activation | None) -> None:
        super().__init__()
        self.activation = activation

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002
        residual: torch.Tensor | None = None,
        *,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add the residual and apply the activation; weights are for training."""
        y = input if residual is None else input + residual
        if self.activation is None:
            return y
        return functional.leaky_relu(y, self.activation.negative_slope)


def _remainder(norm: Any) -> nn.Module:
    if not isinstance(norm, State):
        return nn.Identity().train(norm.training)
    return Remainder(norm.spec.fused_activation).train(norm.training)


def _linear(
    module: nn.Module, graphs: Graphs, seen: Mapping[str, Seen], *, shared: bool
) -> LinearOp:
    name = graphs.names[id(module)]
    at = seen.get(name)
    why_not = "shares its parameters with another module" if shared else ""
    why_not = why_not or graphs.why_not_alone(module)
    if not why_not and at is None:
        why_not = "is not reached by the inputs, so that folding could not be checked"
    if why_not or at is None:
        return LinearOp(name, why_not=why_not)
    return linear_of(module, name, at.shape, at.elements)


def _norm(found: Call, graphs: Graphs, seen: Seen | None) -> NormOp:
    norm: Any = found.module
    name = graphs.names[id(norm)]
    residual = isinstance(_argument(found, "residual", 1), torch.fx.Node)
    activation = norm.spec.fused_activation if isinstance(norm, State) else None
    parts = (["add"] if residual else []) + ([] if activation is None else [activation.name])
    return NormOp(
        _record(norm, name),
        axis=1,
        elements=None if seen is None else seen.elements,
        remains=" + ".join(parts),
        why_not=_why_not(norm, graphs, seen),
    )


def _why_not(norm: Any, graphs: Graphs, seen: Seen | None) -> str:
    cls = type(norm)
    if cls.forward not in _FORWARDS or "forward" in vars(norm):
        return f"what the forward of {cls.__name__} does is not known"
    if norm.training and not getattr(norm, "inference_mode", False):
        return "it is in training mode, so that it takes the batch's statistics: call eval() first"
    alone = graphs.why_not_alone(norm)
    if alone:
        return f"it {alone}"
    if has_hooks(norm):
        return "it has hooks"
    if seen is None:
        return "the inputs do not come to it, so that folding could not be checked"
    return ""


def _function(found: Call) -> NormOp:
    record = BatchNormRecord(found.node.name, "function batch_norm")
    return NormOp(record, why_not="it is a call of a function, which no module stands for")


def _record(norm: Any, name: str) -> BatchNormRecord:
    tensors = {
        "gamma": norm.weight,
        "beta": norm.bias,
        "moving_mean": norm.running_mean,
        "moving_variance": norm.running_var,
    }
    return BatchNormRecord(
        name,
        type(norm).__name__,
        **{key: numpy_of(tensor) for key, tensor in tensors.items() if tensor is not None},
        epsilon=norm.spec.epsilon if isinstance(norm, State) else norm.eps,
    )


def _argument(found: Call, name: str, position: int) -> Any:
    given = found.node.args
    return found.node.kwargs.get(name, given[position] if len(given) > position else None)


def _write(module: Any, linear: LinearOp) -> None:
    weight = module.weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(linear.kernels[0].values))
        if linear.bias is None:
            return
        bias = torch.from_numpy(linear.bias).to(weight)
        if module.bias is None:
            module.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
        else:
            module.bias.copy_(bias)


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for part in outputs.values():
            yield from _tensors(part)
    elif isinstance(outputs, tuple | list):
        for part in outputs:
            yield from _tensors(part)
