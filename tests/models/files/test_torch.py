"""What torch.save wrote, of state dicts and of everything around them."""

from __future__ import annotations

import argparse
import collections
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import homeostat.torch
from homeostat.errors import ModelFileError
from homeostat.models import ModelRecord
from homeostat.models.files import read_model_file
from tests.models.files.networks import Network, norms_of, trained

FIELDS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@pytest.fixture(scope="module")
def network() -> Network:
    return trained(Network())


def check(record: ModelRecord, network: nn.Module) -> None:
    """Every norm in the order of the network, with its arrays, dtypes and count, and no more."""
    expected = norms_of(network)
    assert [norm.name for norm in record.norms] == list(expected)
    for norm, module in zip(record.norms, expected.values(), strict=True):
        for field, name in FIELDS.items():
            found, tensor = getattr(norm, field), getattr(module, name)
            assert (found is None) == (tensor is None)
            if tensor is not None:
                exact = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor
                np.testing.assert_array_equal(found, exact.detach().numpy(), strict=True)
        assert norm.updates == int(module.num_batches_tracked)
        assert norm.stored_variance == "sample"
        assert norm.epsilon is norm.momentum is norm.training is None
        assert {"epsilon", "momentum", "training", "kind", "dtype"} <= norm.unknown
    assert record.framework == "torch"
    assert record.graph is None
    assert record.why_no_graph


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict(network: Network, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    record = read_model_file(path)
    check(record, network)
    floats = [value for value in network.state_dict().values() if value.is_floating_point()]
    assert record.parameters == sum(value.numel() for value in floats)
    assert record.distributed is None
    assert any("InstanceNorm" in note for note in record.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    network = trained(Network(blocks=1)).to(dtype)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    record = read_model_file(tmp_path / "a.pt")
    check(record, network)
    narrow = f"Moving statistics are stored in {str(dtype).removeprefix('torch.')}."
    assert (narrow in record.notes) == (dtype != torch.float64)


def around(state: Any) -> dict[str, Any]:
    """What training programs put around a state dict."""
    parameter = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([parameter])
    parameter.sum().backward()
    adam.step()
    return {
        "epoch": 7,
        "best": torch.tensor(0.5),
        "score": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
        "counts": collections.Counter(a=1),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "optimizer": adam.state_dict(),
        "flags": [True, None, 1.5, {3: "x"}, (1, 2), {"s"}, b"raw", 2**70],
        "state_dict": state,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint(network: Network, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "checkpoint.pth"
    content = around(network.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    check(read_model_file(path), network)


@pytest.mark.parametrize("key", ["model", "model_state_dict", "net", "whatever"])
def test_names_of_the_state_dict(network: Network, tmp_path: Path, key: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: network.state_dict(), "best": torch.tensor(1.0)}, path)
    check(read_model_file(path), network)


def test_an_average_beside_the_model_is_told(network: Network, tmp_path: Path) -> None:
    other = Network(blocks=1).state_dict()
    torch.save({"ema": other, "model": network.state_dict()}, tmp_path / "a.pt")
    record = read_model_file(tmp_path / "a.pt")
    check(record, network)
    assert "The state dict under 'model' was read, and not those under 'ema'." in record.notes


def test_two_networks_in_one_file(tmp_path: Path) -> None:
    pair = {name: trained(Network(blocks=1)) for name in ("generator", "discriminator")}
    torch.save({name: part.state_dict() for name, part in pair.items()}, tmp_path / "a.pt")
    check(read_model_file(tmp_path / "a.pt"), nn.ModuleDict(pair))


def test_parallel_and_compiled_names(network: Network, tmp_path: Path) -> None:
    parallel = nn.DataParallel(network).state_dict()
    torch.save({"state_dict": parallel}, tmp_path / "parallel.pt")
    record = read_model_file(tmp_path / "parallel.pt")
    check(record, network)
    assert record.distributed
    assert any("'module.'" in note for note in record.notes)
    torch.save(torch.compile(network).state_dict(), tmp_path / "compiled.pt")
    record = read_model_file(tmp_path / "compiled.pt")
    check(record, network)
    assert record.distributed is None


def test_averaged_weights_are_told(network: Network, tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network)
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    record = read_model_file(tmp_path / "swa.pt")
    check(record, network)
    assert record.distributed is None
    assert any("update_bn" in note for note in record.notes)


def test_our_own_modules(tmp_path: Path) -> None:
    norms = nn.ModuleList(
        [
            homeostat.torch.BatchNorm2d(3, renorm=True, zero_debias=True),
            homeostat.torch.BatchNorm2d(3),
        ]
    )
    for norm in norms:
        norm(torch.randn(4, 3, 2, 2))
        poisoned = torch.randn(4, 3, 2, 2)
        poisoned[0, 1] = torch.nan
        norm(poisoned)
    torch.save(norms.state_dict(), tmp_path / "a.pt")
    record = read_model_file(tmp_path / "a.pt")
    check(record, norms)
    # Without zero_debias the count of what was skipped is in no checkpoint.
    assert [norm.skipped for norm in record.norms] == [1, None]
    assert ["skipped" in norm.unknown for norm in record.norms] == [False, True]


def test_instance_norms_with_statistics_look_the_same(tmp_path: Path) -> None:
    module = nn.ModuleList([nn.InstanceNorm2d(3, affine=True, track_running_stats=True)])
    module[0](torch.randn(4, 3, 5, 5))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    record = read_model_file(tmp_path / "a.pt")
    assert [norm.name for norm in record.norms] == ["0"]
    assert "kind" in record.norms[0].unknown


def test_what_is_no_batch_norm(tmp_path: Path) -> None:
    tensors = {
        "layernorm.weight": torch.ones(3),
        "layernorm.bias": torch.ones(3),
        "half.running_mean": torch.ones(3),
        "observation.running_mean": torch.ones(3, 4),
        "observation.running_var": torch.ones(3, 5),
        "scalar.running_mean": torch.tensor(1.0),
        "scalar.running_var": torch.tensor(1.0),
        "none.running_mean": torch.ones(0),
        "none.running_var": torch.ones(0),
        "whole.running_mean": torch.ones(3, dtype=torch.int64),
        "whole.running_var": torch.ones(3, dtype=torch.int64),
    }
    torch.save(tensors, tmp_path / "a.pt")
    record = read_model_file(tmp_path / "a.pt")
    assert record.norms == ()
    notes = [note for note in record.notes if "not read as a batch norm" in note]
    refused = [note.split("'")[1] for note in notes]
    assert refused == ["half", "observation", "scalar", "none", "whole"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_views_shared_and_strange_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    tensors = {
        "a.running_mean": base[3:8],
        "a.running_var": base[::5],
        "a.weight": base[19:].clone(),
        "b.running_mean": base[:3],
        "b.running_var": base[:3],
        "c.weight": nn.Parameter(torch.ones(2).to_sparse()),
        "d.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "e.weight": torch.ones(2).to(torch.float8_e4m3fn),
        "f.weight": torch.ones(2, device="meta"),
    }
    tensors["e.weight"].note = "attributes make another way to save it"
    torch.save(tensors, tmp_path / "a.pt")
    record = read_model_file(tmp_path / "a.pt")
    a, b = record.norms
    np.testing.assert_array_equal(a.moving_mean, base[3:8])
    np.testing.assert_array_equal(a.moving_variance, base[::5])
    np.testing.assert_array_equal(a.gamma, base[19:])
    np.testing.assert_array_equal(b.moving_variance, base[:3])


def test_other_things_that_torch_saves(network: Network, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"wants 'tests.models.files.networks.Network'.*run"):
        read_model_file(tmp_path / "model.pt")
    torch.save(network, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelFileError, match=r"wants 'tests.models.files.networks.Network'.*run"):
        read_model_file(tmp_path / "model.pt")
    torch.save([1, {"a": 2}], tmp_path / "list.pt")
    with pytest.raises(ModelFileError, match=r"holds no state dict.*package.module:factory"):
        read_model_file(tmp_path / "list.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelFileError, match="holds no state dict"):
        read_model_file(tmp_path / "tensor.pt")
    example = torch.zeros(1, 3, 8, 8)
    torch.export.save(torch.export.export(network, (example,)), tmp_path / "model.pt2")
    with pytest.raises(ModelFileError, match=r"torch\.export"):
        read_model_file(tmp_path / "model.pt2")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(trained(Network(1)), torch.zeros(1, 3, 8, 8)), tmp_path / "a.pt")
    with pytest.raises(ModelFileError, match=r"TorchScript.*torch\.jit\.load"):
        read_model_file(tmp_path / "a.pt")
