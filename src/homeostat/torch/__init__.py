"""The PyTorch front door: complete batch norm modules, drop-in for `torch.nn.BatchNorm*`.

Example:
    >>> import torch
    >>> from homeostat.torch import BatchNorm2d
    >>> bn = BatchNorm2d(16, activation="relu")
    >>> bn(torch.randn(8, 16, 4, 4)).shape
    torch.Size([8, 16, 4, 4])
"""

from homeostat.torch.convert import convert, revert
from homeostat.torch.frozen import FrozenBatchNorm
from homeostat.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from homeostat.torch.monitor import BatchNormMonitor
from homeostat.torch.records import ConversionReport, Converted, NormRecord
from homeostat.torch.synchronized import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormMonitor",
    "ConversionReport",
    "Converted",
    "FrozenBatchNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "NormRecord",
    "SyncBatchNorm",
    "convert",
    "revert",
]
