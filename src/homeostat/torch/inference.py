"""What a batch norm computes from its running statistics, and how `torch.fx` sees it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.fx import Proxy

from homeostat.ops.torch import normalize
from homeostat.spec import BatchNormSpec
from homeostat.torch.small import small_eval, takes_few_calls

Tensor = torch.Tensor


class Inference:
    """Normalization by running statistics, for modules that have them."""

    spec: BatchNormSpec
    running_mean: Any
    running_var: Any
    weight: Any
    bias: Any

    def _infer(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if takes_few_calls(self, x, residual, trains=False):
            y = small_eval(self, x, residual)
            if y is not None:
                return y
        if not torch.jit.is_tracing():
            return self._evaluate(x, residual)
        with warnings.catch_warnings():
            # The sizes that are read are checked and not part of the graph.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return self._evaluate(x, residual)

    def _evaluate(self, x: Tensor, residual: Tensor | None) -> Tensor:
        spec = self.spec
        return normalize(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            axis=1,
            epsilon=spec.epsilon,
            activation=spec.activation,
            residual=residual,
        )

    def _leaf(self, x: Proxy, residual: Any, weights: Any = None) -> Any:
        """Stay one node of a graph that torch.fx traces, as native modules do."""
        target = x.tracer.path_of_module(self)
        arguments = (x,) if residual is None else (x, residual)
        named = {} if weights is None else {"weights": weights}
        return x.tracer.create_proxy("call_module", target, arguments, named)
