"""Training on torch: the step, traced once into its operations, is replayed in a loop.

A step of a network this small is mostly Keras's and autograd's Python; the trace (`make_fx`) leaves
the operations alone, and needs no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from homeostat.studies.data import Split
from homeostat.studies.network import Network, Start
from homeostat.studies.trainer import Look

_State = tuple[list[Any], list[Any]]


class TorchTrainer:
    """A `Trainer` whose state is two lists of tensors."""

    def __init__(self, network: Network) -> None:
        # More threads only wait for each other in matrix products of this size.
        torch.set_num_threads(1)
        self._model = network.model
        self._kernels = network.kernel_positions
        self._device = self._model.trainable_variables[0].value.device
        self._traces: dict[int, Callable[..., Any]] = {}

    def load(self, start: Start) -> _State:
        """Put start values on the device."""
        trainable = [torch.tensor(value, device=self._device) for value in start.trainable]
        return trainable, [torch.tensor(v, device=self._device) for v in start.non_trainable]

    def put(self, split: Split) -> Any:
        """Put images and labels on the device."""
        images = torch.tensor(split.images, device=self._device)
        return images, torch.tensor(split.labels, dtype=torch.long, device=self._device)

    def train(
        self, state: _State, data: Any, rate: float, order: npt.NDArray[np.int32], count: int
    ) -> tuple[_State, float]:
        """Take the first ``count`` rows of ``order`` as steps."""
        batches = torch.tensor(order[:count], dtype=torch.long, device=self._device)
        step_size = torch.tensor(rate, device=self._device)
        total = torch.zeros((), device=self._device)
        step = self._traced(state, data, step_size, batches[0]) if count else None
        with torch.inference_mode():
            for chosen in batches:
                state, loss = step(state, data, step_size, chosen)
                total += loss
        # What inference mode makes, automatic differentiation refuses; copies it takes.
        trainable, non_trainable = ([value.clone() for value in values] for values in state)
        return (trainable, non_trainable), float(total) / max(count, 1)

    def predict(self, state: _State, data: Any) -> npt.NDArray[np.int64]:
        """Return the class of each image, by the moving statistics."""
        with torch.no_grad():
            return self._logits(state, data[0], training=False).argmax(-1).cpu().numpy()

    def predict_singly(
        self, state: _State, data: Any, batch_statistics: bool
    ) -> npt.NDArray[np.int64]:
        """Return the class of each image, seen alone."""

        def logits(image: Any) -> Any:
            return self._logits(state, image[None], training=batch_statistics)[0]

        with torch.no_grad():
            return torch.func.vmap(logits)(data[0]).argmax(-1).cpu().numpy()

    def look(self, state: _State, data: Any) -> Look:
        """Look inside, on these images as one batch."""
        gradients, _, _, before = self._gradients(state, *data)
        norms = torch.stack([torch.linalg.norm(gradients[i]) for i in self._kernels])
        return Look(norms.cpu().numpy(), before.detach().cpu().numpy())

    def _gradients(self, state: _State, images: Any, labels: Any) -> Any:
        trainable, non_trainable = state

        def loss_of(trainable: list[Any]) -> Any:
            (logits, before), updated = self._model.stateless_call(
                trainable, non_trainable, images, training=True
            )
            return torch.nn.functional.cross_entropy(logits, labels), (updated, before)

        differentiated = torch.func.grad_and_value(loss_of, has_aux=True)
        gradients, (loss, (updated, before)) = differentiated(trainable)
        return gradients, loss, updated, before

    def _step(self, state: _State, data: Any, rate: Any, chosen: Any) -> Any:
        images, labels = (array.index_select(0, chosen) for array in data)
        gradients, loss, updated, _ = self._gradients(state, images, labels)
        return (torch._foreach_sub(state[0], torch._foreach_mul(gradients, rate)), updated), loss

    def _logits(self, state: _State, images: Any, training: bool) -> Any:
        (logits, _), _ = self._model.stateless_call(*state, images, training=training)
        return logits

    def _traced(self, *arguments: Any) -> Callable[..., Any]:
        """Return the step as its operations, for batches of the last argument's size."""
        size = len(arguments[-1])
        if size not in self._traces:
            # Not the method itself: the tracer would count self as an argument to record.
            traced = make_fx(lambda *arguments: self._step(*arguments))(*arguments)
            for node in list(traced.graph.nodes):
                if node.target is torch.ops.aten.detach.default:
                    # What is traced is not differentiated again.
                    node.replace_all_uses_with(node.args[0])
                    traced.graph.erase_node(node)
                elif isinstance(node.target, torch._ops.OpOverload):
                    # The same operation by its function in torch, which is called faster.
                    name = node.target.name().removeprefix("aten::").partition(".")[0]
                    node.target = getattr(torch, name, node.target)
            traced.recompile()
            self._traces[size] = traced
        return self._traces[size]
