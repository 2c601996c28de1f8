"""`TorchModel`: the tools' view of a live `torch.nn.Module`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from homeostat.errors import SpecError, UnsupportedError
from homeostat.models.graph import Graph
from homeostat.models.live import Batch, count_examples
from homeostat.models.records import BatchNormRecord, ModelRecord
from homeostat.models.torch.adopt import adopt, normalize_alone
from homeostat.models.torch.batches import call, to_arrays, to_tensors, weigh
from homeostat.models.torch.files import save_weights
from homeostat.models.torch.graph import read_graph
from homeostat.models.torch.norms import find_norms, is_uninitialized, record_of
from homeostat.models.torch.observe import observe
from homeostat.models.torch.statistics import write_statistics
from homeostat.models.torch.undisturbed import Kept, undisturbed
from homeostat.moments import Moments
from homeostat.torch.trace import Refused


class TorchModel:
    """A live `torch.nn.Module`, whose batch norms can be read, observed and written.

    Names are those of `named_modules`, the first where a norm is shared. A model that is compiled
    or wrapped for data parallelism is looked at inside its wrapper.

    Args:
        module: any module. Its classes, modes, hooks and statistics stay as they are, but for
            `write`.

    Raises:
        UnsupportedError: it is scripted, or sharded over processes.

    Example:
        >>> model = TorchModel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
        >>> [norm.name for norm in model.record().norms]
        ['1']
        >>> model.observe(torch.randn(8, 3))["1"].count
        8.0
    """

    def __init__(self, module: nn.Module) -> None:
        self._model = module
        self._inner, self._parallel = _unwrapped(module)
        for part in self._inner.modules():
            kind = _sealed(part)
            if kind:
                raise UnsupportedError(
                    f"a {kind} does not show its batch norms: expected a torch.nn.Module of Python "
                    "code. Pass the model as it was before."
                )

    @property
    def model(self) -> nn.Module:
        """The module that was given."""
        return self._model

    def record(self) -> ModelRecord:
        """Return what is known of the model now, in the order of the network where it is known."""
        model, norms = self._inner, find_norms(self._inner)
        graph, why = self._graph()
        applied: dict[str, tuple[str, ...]] = {}
        for operation in graph.operations if graph else ():
            if operation.kind == "batch_norm":
                layer = operation.layer
                applied[layer] = (*applied.get(layer, ()), operation.name)
        names = sorted(norms, key=list(applied).index) if norms.keys() <= applied.keys() else norms
        return ModelRecord(
            name=type(model).__name__,
            framework="torch",
            source="PyTorch module",
            norms=tuple(
                record_of(
                    name,
                    norms[name],
                    model_trains=model.training,
                    operations=applied.get(name, ()),
                )
                for name in names
            ),
            graph=graph,
            why_no_graph=why,
            parameters=_size(model),
            distributed=True if self._parallel or _replicas() > 1 else None,
            notes=self._notes(),
        )

    def _graph(self) -> tuple[Graph | None, str]:
        try:
            return read_graph(self._inner), ""
        except Refused as refused:
            return None, str(refused)

    def _notes(self) -> tuple[str, ...]:
        waiting = _uninitialized(self._inner)
        notes = []
        if waiting:
            notes.append(
                f"{', '.join(waiting)} wait for a first input to know their shapes; call the "
                "model with one batch to see them."
            )
        if self._inner.training:
            notes.append("The model is in training mode; call eval() before inference.")
        return tuple(notes)

    def observe(
        self,
        batch: Batch,
        *,
        batch_statistics: bool | Sequence[str] = True,
        weights: Any = None,
    ) -> Mapping[str, Moments]:
        """Run one batch and return the moments of every norm's inputs; change nothing.

        A norm that takes the batch's statistics takes these very moments, exact and weighted, over
        all elements of the batch that came to it: in ghost batches, renorm and replicas, what it
        would do in training, is another question.

        Args:
            batch: a tensor or array, a tuple of positional or a mapping of named arguments.
            batch_statistics: whether norms take the batch's statistics, or names of those that do.
                A norm without running statistics always does.
            weights: a weight for each example, shape (examples,), or None; 0 leaves one out of the
                whole forward.

        Returns:
            Float64 moments of each norm that the batch came to, in the order of the first calls.

        Raises:
            SpecError: a norm's name is not known, or a weight is negative or not finite.
            ShapeError: there are not as many weights as examples.
            UnsupportedError: the model waits for its first input, or a norm's first axis is not
                that of the examples and their weights differ.
        """
        moments, _ = self._run(batch, batch_statistics, weights)
        return moments

    def outputs(self, batch: Batch, *, batch_statistics: bool | Sequence[str] = False) -> Any:
        """Return the model's outputs for a batch as float64 NumPy arrays; change nothing.

        Args:
            batch: see `observe`.
            batch_statistics: whether norms take the batch's statistics, or names of those that do.

        Returns:
            An array, or a tuple or dict of them as the model returns it.

        Raises:
            SpecError: a norm's name is not known.
        """
        if batch_statistics:
            return to_arrays(self._run(batch, batch_statistics, None)[1])
        self._refuse_uninitialized()
        with undisturbed(self._inner):
            return to_arrays(call(self._inner, to_tensors(batch, self._inner)))

    def _run(
        self, batch: Batch, batch_statistics: bool | Sequence[str], weights: Any
    ) -> tuple[dict[str, Moments], Any]:
        self._refuse_uninitialized()
        norms = find_norms(self._inner)
        if isinstance(batch_statistics, bool):
            chosen = tuple(norms) if batch_statistics else ()
        else:
            chosen = tuple(batch_statistics)
            for name in chosen:
                _known(name, norms)
        batch, left = to_tensors(batch, self._inner), None
        if weights is not None:
            batch, left = weigh(batch, weights)
            if not count_examples(batch):
                return {}, None
        return observe(self._inner, batch, norms, chosen, left)

    def _refuse_uninitialized(self) -> None:
        waiting = _uninitialized(self._inner)
        if waiting:
            raise UnsupportedError(
                f"{', '.join(waiting)} wait for a first input to know their shapes: expected a "
                "model whose shapes are known. Call the model with one batch first."
            )

    def write(self, name: str, statistics: Moments) -> None:
        """Make these a norm's running statistics, in its own dtype.

        PyTorch stores sample variances. The count that translates the population variance is that
        of the statistics, all elements that were pooled: n / (n - 1) then makes the variance an
        unbiased estimate, which is what the average of sample variances of training batches is too,
        whatever their size.

        Args:
            name: of the norm.
            statistics: mean and population variance of each channel, and how many elements they
                are of.

        Raises:
            SpecError: there is no such norm, or the statistics are not finite.
            ShapeError: they are not of shape (channels,).
            UnsupportedError: the norm has no running statistics.
        """
        norms = find_norms(self._inner)
        _known(name, norms)
        write_statistics(name, norms[name], statistics)

    def adopt(self, name: str, record: BatchNormRecord) -> None:
        """Give a norm another's arrays and options; see `homeostat.models.live.LiveModel`."""
        norms = find_norms(self._inner)
        _known(name, norms)
        adopt(name, norms[name], record)

    def normalize(self, name: str, inputs: Any) -> Any:
        """Return one norm's inference of inputs (examples, channels), without its activation."""
        norms = find_norms(self._inner)
        _known(name, norms)
        return normalize_alone(norms[name], inputs)

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore every norm's parameters and statistics, all modes and hooks if the body raises.

        What else the model is made of comes back too: its classes, attributes and submodules.
        """
        kept = Kept(self._inner)
        try:
            yield
        except BaseException:
            kept.restore()
            raise

    def save(self, path: Path) -> None:
        """Write the model's state dict to a file that does not exist yet.

        Args:
            path: .pt or .pth, read back with ``torch.load(path, weights_only=True)``, or
                .safetensors.

        Raises:
            ModelFileError: the suffix is another, the file is there, or a value is no tensor, which
                .safetensors cannot hold.
            MissingExtraError: safetensors is not installed.
        """
        save_weights(self._inner, path)


def _unwrapped(module: nn.Module) -> tuple[nn.Module, bool]:
    """Return the module inside wrappers, and whether one was for data parallelism."""
    dynamo = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    parallel = False
    while True:
        if dynamo and isinstance(module, dynamo):
            module = module._orig_mod
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module, parallel = module.module, True
        else:
            return module, parallel


def _sealed(part: nn.Module) -> str:
    if isinstance(part, torch.jit.ScriptModule):
        return "ScriptModule"
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for name in ("FullyShardedDataParallel", "FSDPModule"):
        cls = getattr(fsdp, name, None)
        if cls is not None and isinstance(part, cls):
            return name
    return ""


def _replicas() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _uninitialized(model: nn.Module) -> list[str]:
    return [name or type(m).__name__ for name, m in model.named_modules() if is_uninitialized(m)]


def _size(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(t.numel() for t in tensors if not nn.parameter.is_lazy(t))


def _known(name: str, norms: Mapping[str, nn.Module]) -> None:
    if name not in norms:
        raise SpecError(
            f"there is no batch norm {name!r}: expected one of {list(norms)}. Take a name of "
            "record().norms."
        )
