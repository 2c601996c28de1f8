"""What a pickle of `torch.save` may name, and what is put in the place of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.errors import ModelFileError
from homeostat.models.files.arrays import (
    ITEM_SIZES,
    Array,
    Source,
    StoredArray,
    checked_shape,
    decode,
    refusal,
)
from homeostat.models.files.pickles import Inert, Named

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    **{f"Q{kind}": f"q{kind.lower()}" for kind in ("UInt8", "Int8", "Int32")},
}
_DTYPES = (
    *ITEM_SIZES,
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "complex32"),
)
# A view of every sixteenth element is odd; wider ones could make a small file read for hours.
_MAX_STRETCH = 16


@dataclass(frozen=True)
class Storage:
    """The buffer behind tensors.

    Args:
        key: its name in the file.
        dtype: of its elements; "" for one of bytes.
        count: how many elements, or bytes.
    """

    key: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int | None:
        """How many bytes it has; None for a dtype of unknown size."""
        size = ITEM_SIZES.get(self.dtype, 0) if self.dtype else 1
        return self.count * size if size else None


@dataclass(frozen=True)
class Tensor:
    """A tensor over a storage, as the pickle tells it; nothing is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: str


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, Storage):
        return Inert("tensor")
    return Tensor(storage, offset, shape, stride, storage.dtype or "uint8")


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    if not isinstance(storage, Storage) or not isinstance(dtype, Named):
        return Inert("tensor")
    return Tensor(storage, offset, shape, stride, dtype.name.removeprefix("torch."))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, Named) or function.name not in _REBUILD:
        return Inert("tensor")
    return _REBUILD[function.name](*arguments)


def _ordered(items: Any = (), *_: Any) -> dict[str, Any]:
    return {key: value for key, value in items if isinstance(key, str)}


def _inert(name: str, *_: Any) -> Inert:
    return Inert(name)


_REBUILD: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# Named beside tensors in checkpoints, and put aside: tensors of other kinds, and plain settings.
_ASIDE = (
    *(f"torch.{name}Storage" for name in _STORAGES),
    *(f"torch.{name}" for name in (*_DTYPES, "double", "float", "half", "long", "int", "short")),
    *("torch.storage.UntypedStorage", "torch.storage.TypedStorage", "torch.UntypedStorage"),
    *("torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *("torch.per_tensor_affine", "torch.per_channel_affine", "torch.strided", "torch.sparse_coo"),
    *("torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor"),
    *("torch._utils._rebuild_meta_tensor_no_storage", "torch.serialization._get_layout"),
    *("collections.defaultdict", "collections.Counter", "argparse.Namespace", "_codecs.encode"),
    *(f"{m}.{n}" for m in ("__builtin__", "builtins") for n in ("set", "bytearray", "complex")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{c}.multiarray.{n}" for c in ("core", "_core") for n in ("scalar", "_reconstruct")),
    *(f"pathlib.{name}Path" for name in ("Posix", "Windows", "PurePosix", "PureWindows")),
)
MAKERS: Mapping[str, Callable[..., Any]] = {
    **{name: partial(_inert, name) for name in _ASIDE},
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "collections.OrderedDict": _ordered,
}
"""For each name that a pickle may use, what is put in the place of a call."""


def storage_of(identifier: Any) -> Storage:
    """Return the storage that a persistent identifier stands for.

    Raises:
        ValueError: it is none of `torch.save`.
    """
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
        raise ValueError("it refers to no storage")
    what, kind, key, _, count, *view = identifier
    typed = isinstance(kind, Named) and kind.name.endswith("Storage")
    if what != "storage" or not typed or not isinstance(key, str) or (view and view[0] is not None):
        raise ValueError("it refers to no storage")
    if type(count) is not int or not 0 <= count < 1 << 50:
        raise ValueError(f"it has a storage of {count!r:.40} elements")
    # A storage of bytes has no dtype of its own.
    name = kind.name.rpartition(".")[2].removesuffix("Storage")
    return Storage(key, _STORAGES.get(name, ""), count)


def array_of(
    source: Source, name: str, tensor: Tensor, start: int, big_endian: bool
) -> StoredArray:
    """Return a tensor as an array of the file, checked against its storage.

    Args:
        source: the file.
        name: the tensor's.
        tensor: what the pickle tells of it.
        start: where its storage begins in the file.
        big_endian: whether elements begin with their highest byte.

    Raises:
        ModelFileError: it does not fit into its storage.
    """
    path, storage = source.path, tensor.storage
    shape = checked_shape(path, name, tensor.shape)
    stride = checked_shape(path, name, tensor.stride)
    item = ITEM_SIZES.get(tensor.dtype, 0)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=False))
    span = 0 if 0 in shape else span
    plain = type(tensor.offset) is int and tensor.offset >= 0 and len(shape) == len(stride)
    if not plain or (item and (tensor.offset + span) * item > (storage.nbytes or 0)):
        raise _damaged(path, name, f"of shape {shape} does not fit into its storage")
    begin = start + tensor.offset * item

    def read() -> Array:
        if span > _MAX_STRETCH * max(1, len(shape) and int(np.prod(shape))):
            raise _damaged(path, name, "is a view with steps that are too wide")
        flat = decode(source.read(begin, span * item), tensor.dtype, big_endian=big_endian)
        steps = tuple(step * flat.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()

    identity = (storage.key, tensor.offset, shape, stride)
    return StoredArray(name, shape, tensor.dtype, read, identity)


def _damaged(path: Path, name: str, what: str) -> ModelFileError:
    return refusal(
        path,
        f"is damaged, {name!r:.200} {what}",
        "a file as torch.save writes it",
        "Download it or save it again.",
    )
