"""`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d` and their lazy forms."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy

from homeostat.torch.inference import Inference
from homeostat.torch.state import OPTIONS, TORCH, State
from homeostat.torch.step import train

Tensor = torch.Tensor


class Complete(Inference, State):
    """What `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` share."""

    def __init__(
        self,
        num_features: int,
        eps: float = TORCH.epsilon,
        momentum: float | None = TORCH.momentum,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Any = None,
        renorm: bool = False,
        renorm_clipping: Any = None,
        renorm_momentum: float = OPTIONS["renorm_momentum"],
        virtual_batch_size: int | None = None,
        zero_debias: bool = False,
        nonfinite: str = "skip",
        synchronized: bool = False,
        process_group: Any = None,
        frozen_affine: bool = False,
        frozen_statistics: bool = False,
        inference_mode: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.bias = None
        given = locals()
        self._take({name: given[name] for name in OPTIONS})

    def forward(
        self,
        input: Tensor,  # noqa: A002
        residual: Tensor | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Normalize the input.

        Args:
            input: of the class's ranks, with the channels on axis 1, floating.
            residual: of the input's shape, added before the activation, or None.
            weights: booleans or weights of what the statistics average: (N,), or (N, ...) without
                the channel axis, or the input's rank with 1 at that axis; None for all alike.

        Returns:
            Tensor of the input's shape and dtype.

        Raises:
            ValueError: the input has another rank, or one element per channel in training.
            ShapeError: another shape does not fit.
            NonFiniteBatchError: with ``nonfinite="raise"``.
        """
        if isinstance(input, Proxy):
            return self._leaf(input, residual, weights)
        self._check_input_dim(input)
        if (self.training and not self.inference_mode) or self.running_mean is None:
            return train(self, input, residual, weights)
        return self._infer(input, residual)


class BatchNorm1d(Complete, torch.nn.BatchNorm1d):
    """Complete batch norm over (N, C) or (N, C, L); see `BatchNorm2d`.

    Example:
        >>> bn = BatchNorm1d(4, momentum=0.5)
        >>> _ = bn(torch.tensor([[1.0, 2, 3, 4], [3.0, 2, 3, 4]]))
        >>> bn.running_mean.tolist()
        [1.0, 1.0, 1.5, 2.0]
    """


class BatchNorm2d(Complete, torch.nn.BatchNorm2d):
    """Batch normalization (Ioffe & Szegedy 2015) with every option, exact and guarded.

    In training y = activation(weight * (x - mean) / sqrt(variance + eps) + bias + residual) with
    the batch's mean and population variance over (N, H, W), and the running statistics follow:
    running = (1 - momentum) * running + momentum * batch, with the sample variance. In eval mode
    the running statistics take the batch's place. The arguments that `torch.nn.BatchNorm2d` has
    mean what they mean there and have the same defaults.

    Statistics are kept in float32 or wider, also by ``half()``, the variance is centred, and a
    batch with NaN or infinity leaves the running statistics of the channels concerned as they were
    and is counted in ``skipped_updates``. A forward that activation checkpointing repeats in the
    backward moves nothing.

    Args:
        num_features: C of an input (N, C, H, W).
        eps: added to the variance.
        momentum: weight of the NEW value, 0 to 1; None for the cumulative average.
        affine: whether there are a weight (gamma) and a bias (beta).
        track_running_stats: whether there are running statistics; without, eval normalizes with
            the batch's own too.
        device: of parameters and buffers.
        dtype: of parameters; 16-bit ones have statistics in float32.
        bias: False for a weight alone.
        activation: None, "relu", "leaky_relu" or {"name": "leaky_relu", "negative_slope": 0.2}.
        renorm: batch renormalization (Ioffe 2017).
        renorm_clipping: mapping with keys among rmin, rmax, dmax that bounds renorm's r and d, or
            a function from num_batches_tracked, a scalar tensor, to such a mapping.
        renorm_momentum: weight of the NEW value for the statistics that renorm corrects towards.
        virtual_batch_size: size of ghost batches; of G groups, example i is in group i mod G.
        zero_debias: give the start of the running statistics no weight.
        nonfinite: what NaN or infinity in a batch does to the running statistics: "skip" them,
            "propagate" them, or "raise".
        synchronized: statistics over all replicas of torch.distributed, where it is initialized.
        process_group: the replicas; None for all.
        frozen_affine: weight and bias do not train (they require no gradients).
        frozen_statistics: the running statistics stay as they are; training still normalizes with
            the batch's own.
        inference_mode: training too normalizes with the running statistics, which stay as they
            are; weight and bias still train.

    Raises:
        SpecError: an option, or a combination of options, is not valid.

    Example:
        >>> bn = BatchNorm2d(3, activation="relu", momentum=None)
        >>> x = torch.randn(8, 3, 4, 4)
        >>> bn(x, residual=x).min() >= 0
        tensor(True)
    """


class BatchNorm3d(Complete, torch.nn.BatchNorm3d):
    """Complete batch norm over (N, C, D, H, W); see `BatchNorm2d`.

    Example:
        >>> BatchNorm3d(4, virtual_batch_size=2)(torch.randn(8, 4, 2, 3, 3)).shape
        torch.Size([8, 4, 2, 3, 3])
    """


class LazyComplete(Complete):
    """What the lazy modules share."""

    def __init__(
        self,
        eps: float = TORCH.epsilon,
        momentum: float | None = TORCH.momentum,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise TypeError(f"{type(self).__name__} got unexpected arguments {unknown}")
        # The constructor behind `Complete`'s, which is that of the native lazy module.
        super(Complete, self).__init__(eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.bias = None
        self._take(options)

    def initialize_parameters(self, x: Tensor, *_: Any, **__: Any) -> None:
        """Make parameters and buffers for the channels of an input."""
        super().initialize_parameters(x)
        self.num_features = x.shape[1]
        self._add_buffers(self.num_features)


class LazyBatchNorm1d(LazyComplete, torch.nn.LazyBatchNorm1d):
    """`BatchNorm1d` whose num_features comes from its first input.

    Example:
        >>> LazyBatchNorm1d(activation="relu")(torch.randn(8, 4)).shape
        torch.Size([8, 4])
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(LazyComplete, torch.nn.LazyBatchNorm2d):
    """`BatchNorm2d` whose num_features comes from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(LazyComplete, torch.nn.LazyBatchNorm3d):
    """`BatchNorm3d` whose num_features comes from its first input."""

    cls_to_become = BatchNorm3d
