"""The PyTorch front door: complete batch norm modules, drop-in for `torch.nn.BatchNorm*`.

Example:
    >>> import torch
    >>> from homeostat.torch import BatchNorm2d
    >>> bn = BatchNorm2d(16, activation="relu")
    >>> bn(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
"""

from homeostat.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
]
