"""What the safetensors package wrote, and headers by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from homeostat.errors import ModelFileError
from homeostat.models.files import read_model_file
from tests.models.files.networks import Network, trained
from tests.models.files.test_torch import check


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_state_dict(tmp_path: Path, dtype: torch.dtype) -> None:
    network = trained(Network()).to(dtype)
    save_file(network.state_dict(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    record = read_model_file(tmp_path / "a.safetensors")
    # Sorted by name: what is behind the layers but called "last" comes first.
    last, *rest, norm = record.norms
    assert (last.name, norm.name) == ("last", "norm")
    norms = [norm, *rest, last]
    check(type(record)(record.name, "torch", "", tuple(norms), why_no_graph="x"), network)
    assert any("order of their names" in note for note in record.notes)


def test_names_of_keras(tmp_path: Path) -> None:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = {f"model/bn/{name}": np.full(3, i, np.float32) for i, name in enumerate(names)}
    save_arrays(arrays, tmp_path / "a.safetensors")
    record = read_model_file(tmp_path / "a.safetensors")
    assert record.framework == "keras"
    assert record.norms[0].name == "model/bn"
    assert record.norms[0].stored_variance is None
    assert record.norms[0].moving_variance is not None
    assert record.norms[0].moving_variance.tolist() == [3, 3, 3]


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MEAN, VARIANCE = "bn.running_mean", "bn.running_var"
BAD: dict[str, tuple[Any, str]] = {
    "overlap": ({MEAN: entry(0, 8, [2]), VARIANCE: entry(4, 12, [2])}, "does not begin where"),
    "hole": ({MEAN: entry(0, 4, [1]), VARIANCE: entry(8, 12, [1])}, "does not begin where"),
    "short": ({MEAN: entry(0, 8, [2])}, "end at byte"),
    "past the end": ({MEAN: entry(0, 16, [4])}, r"is at \[0, 16\]"),
    "negative": ({MEAN: entry(-4, 12, [4])}, "is at"),
    "reversed": ({MEAN: entry(12, 0, [3])}, "is at"),
    "not numbers": ({MEAN: entry("0", 12, [3])}, "is at"),
    "size": ({MEAN: entry(0, 12, [4])}, "12 bytes for float32 of shape"),
    "absurd": ({MEAN: entry(0, 12, [2**40, 2**40])}, "more elements than any file"),
    "negative shape": ({MEAN: entry(0, 12, [-3])}, "shape that is none"),
    "shape": ({MEAN: entry(0, 12, {"a": 3})}, "shape that is none"),
    "rank": ({MEAN: entry(0, 12, [1] * 70)}, "shape that is none"),
    "true": ({MEAN: entry(0, 4, [True])}, "shape that is none"),
    "no entry": ({MEAN: 3}, "shape that is none"),
    "array": ([MEAN], "no format that is known"),
    "json": (b'{"a"', "header cannot be read"),
    "text": (b'{"\xff": 1}', "header cannot be read"),
    "twice": (b'{"a":{},"a":{}}', "a name is there twice"),
    "deep": (b'{"a":' + b"[" * 10**6, "header cannot be read"),
    "long number": (b'{"a":' + b"1" * 10**5 + b"}", "header cannot be read"),
    "surrogate": (b'{"\\ud800": {}}', "valid text"),
    "long name": ({"x" * 3000: entry(0, 12, [3])}, "at most 2,000 characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_headers(tmp_path: Path, case: str) -> None:
    header, match = BAD[case]
    with pytest.raises(ModelFileError, match=match):
        read_model_file(write(tmp_path / "a.bin", header, bytes(12)))


def test_headers_that_are_too_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {}, length=2**63)
    with pytest.raises(ModelFileError, match="header should have"):
        read_model_file(path)
    with pytest.raises(ModelFileError, match="truncated"):
        read_model_file(write(path, {}, length=100))


def test_norms_that_are_too_large(tmp_path: Path) -> None:
    size = 4 * 2**21
    header = {MEAN: entry(0, size, [2**21]), VARIANCE: entry(size, 2 * size, [2**21])}
    path = write(tmp_path / "a.safetensors", header)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 2 * size)
    with pytest.raises(ModelFileError, match="declares a batch norm of 2,097,152 channels"):
        read_model_file(path)


def test_types_that_are_newer(tmp_path: Path) -> None:
    header = {"w": entry(0, 4, [8], "F4"), MEAN: entry(4, 8, [1]), VARIANCE: entry(8, 12, [1])}
    record = read_model_file(write(tmp_path / "a.safetensors", header, bytes(12)))
    assert [norm.name for norm in record.norms] == ["bn"]
