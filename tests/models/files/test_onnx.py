"""What torch.onnx.export wrote, and graphs by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from homeostat.errors import MissingExtraError, ModelFileError
from homeostat.models import ModelRecord
from homeostat.models.files import read_model_file
from tests.command import run_python
from tests.models.files.networks import Network, norms_of, trained


def export(network: nn.Module, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        # The exporters' own, of several kinds.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 8, 8),),
            path,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            **options,
        )
    return path


def check(record: ModelRecord, network: nn.Module, *, names: bool) -> None:
    """Every norm that the file has, its arrays and options, and what is around it."""
    expected = norms_of(network)
    for norm in record.norms:
        module = expected[norm.name]
        np.testing.assert_array_equal(norm.moving_mean, module.running_mean)
        np.testing.assert_array_equal(norm.moving_variance, module.running_var)
        assert norm.epsilon == module.eps
        assert norm.momentum == 1 - module.momentum
        assert norm.training is False
        assert "stored_variance" in norm.unknown
        assert record.graph is not None
        assert [record.graph[name].kind for name in norm.operations] == ["batch_norm"]
    assert not names or [norm.name for norm in record.norms] == list(expected)


def test_scripted_export(tmp_path: Path) -> None:
    network = trained(Network(blocks=2))
    record = read_model_file(export(network, tmp_path / "a.onnx", dynamo=False))
    assert record.framework == "onnx"
    check(record, network, names=True)
    graph = record.graph
    assert graph is not None
    kinds = [operation.kind for operation in graph.operations if operation.kind != "other"]
    block = ["conv", "batch_norm", "activation", "depthwise_conv", "batch_norm", "add"]
    block += ["activation"]
    head = ["conv_transpose", "dense", "batch_norm"]
    assert kinds == ["input", "conv", "batch_norm", *block, *block, *head]
    by_layer = {operation.layer: operation for operation in graph.operations}
    assert by_layer["stem"].bias
    assert not by_layer["stem"].padded
    assert by_layer["layers.0.conv1"].padded
    assert not by_layer["layers.0.conv1"].bias
    assert by_layer["head"].parameters == 4 * 5 + 5
    assert by_layer["up"].padded is None
    assert graph.operations[0].shape == (2, 3, 8, 8)
    (last,) = graph.outputs
    assert graph[last].layer == "last"
    parameters = sum(part.numel() for part in network.parameters())
    # Norms without gamma and beta get them, and all have statistics; equal ones are merged.
    assert 0 < record.parameters - parameters <= sum(4 * 2 * 2 + 4 for _ in record.norms)


@pytest.mark.parametrize("external", [False, True])
def test_captured_export(tmp_path: Path, external: bool) -> None:
    network = trained(Network(blocks=2))
    # What follows a convolution is folded into it; the norm behind the addition is not.
    network.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), network.norm)
    network.norm = nn.Identity()
    path = export(network, tmp_path / "a.onnx", dynamo=True, external_data=external)
    assert (tmp_path / "a.onnx.data").exists() == external
    record = read_model_file(path)
    assert [norm.name for norm in record.norms] == ["stem.2"]
    check(record, network, names=False)
    assert record.graph is not None
    producer = record.graph.producer(record.norms[0].operations[0])
    assert producer is not None
    assert producer.type == "Relu"
    assert producer.shape == (2, 4, 6, 6)


def test_a_norm_that_is_used_twice_and_norms_with_equal_arrays(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(3)
    parts = (nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm, nn.ReLU(), nn.BatchNorm2d(3))
    network = nn.Sequential(*parts)
    record = read_model_file(export(network.eval(), tmp_path / "a.onnx", dynamo=False))
    assert [len(norm.operations) for norm in record.norms] == [2, 1]
    graph = record.graph
    assert graph is not None
    first, second = (graph[name] for name in record.norms[0].operations)
    assert first.layer == second.layer


def test_dropout_and_training_mode(tmp_path: Path) -> None:
    network = trained(Network(blocks=1)).train()
    record = read_model_file(export(network, tmp_path / "a.onnx", dynamo=False))
    assert all(norm.training for norm in record.norms)
    assert record.graph is not None
    assert [each.rate for each in record.graph.operations if each.kind == "dropout"] == [0.25]


def tensor(name: str, values: Any = (1.0, 2.0), dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor(name, dtype, [len(values)], values)


def model(nodes: list[Any], initializers: list[Any], inputs: tuple[str, ...] = ("x",)) -> Any:
    values = [helper.make_tensor_value_info(name, 1, ["n", 2]) for name in inputs]
    out = [helper.make_tensor_value_info("y", 1, None)]
    return helper.make_model(helper.make_graph(nodes, "g", values, out, initializers))


FOUR = ["s", "b", "m", "v"]
NORM = helper.make_node("BatchNormalization", ["x", *FOUR], ["y"], name="bn")


def read(path: Path, proto: Any) -> ModelRecord:
    path.write_bytes(proto.SerializeToString())
    return read_model_file(path)


@pytest.mark.parametrize(
    "dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16]
)
@pytest.mark.parametrize("raw", [False, True])
def test_dtypes(tmp_path: Path, dtype: int, raw: bool) -> None:
    arrays = [tensor(name, dtype=dtype) for name in FOUR]
    if raw:
        arrays = [numpy_helper.from_array(numpy_helper.to_array(a), a.name) for a in arrays]
    (norm,) = read(tmp_path / "a.onnx", model([NORM], arrays)).norms
    for array in norm.arrays.values():
        assert array.tolist() == [1.0, 2.0]
    assert len(norm.arrays) == 4
    assert (norm.epsilon, norm.momentum) == (1e-5, 0.9)


def test_a_dense_layer_of_two_nodes(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", 1, [2, 2], [1.0] * 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "bias"], ["z"]),
        helper.make_node("BatchNormalization", ["z", *FOUR], ["y"]),
    ]
    record = read(tmp_path / "a.onnx", model(nodes, [weight, *map(tensor, [*FOUR, "bias"])]))
    assert record.graph is not None
    dense = record.graph.producer(record.norms[0].operations[0])
    assert dense is not None
    assert (dense.kind, dense.bias, dense.parameters) == ("dense", True, 6)


def test_arrays_that_are_computed_are_unknown(tmp_path: Path) -> None:
    proto = model([NORM], [tensor("s"), tensor("b")], ("x", "m", "v"))
    (norm,) = read(tmp_path / "a.onnx", proto).norms
    assert norm.moving_mean is None
    assert {"moving_mean", "moving_variance"} <= norm.unknown


def external(location: str, **more: str) -> Any:
    found = tensor("m")
    found.ClearField("float_data")
    found.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = found.external_data.add()
        entry.key, entry.value = key, value
    return found


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../a.bin", "sub/../../a.bin", "..\\a.bin", "", ".", "link.bin"]
)
def test_data_in_other_folders_is_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(8))
    home = tmp_path / "home"
    home.mkdir()
    (home / "link.bin").symlink_to(tmp_path / "a.bin")
    proto = model([NORM], [tensor("s"), tensor("b"), external(location), tensor("v")])
    with pytest.raises(ModelFileError, match="the model's own folder"):
        read(home / "a.onnx", proto)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"offset": "4"}, "truncated"),
        ({"offset": "-4"}, "is at -4"),
        ({"offset": "9" * 30}, "is at 999"),
        ({"length": "80000000"}, "of 80000000 bytes"),
    ],
)
def test_data_beside_the_file(tmp_path: Path, more: dict[str, str], match: str) -> None:
    (tmp_path / "a.bin").write_bytes(np.array([5, 6], "<f4").tobytes())
    arrays = [tensor("s"), tensor("b"), external("a.bin"), tensor("v")]
    (norm,) = read(tmp_path / "a.onnx", model([NORM], arrays)).norms
    assert norm.moving_mean is not None
    assert norm.moving_mean.tolist() == [5, 6]
    arrays[2] = external("a.bin", **more)
    with pytest.raises(ModelFileError, match=match):
        read(tmp_path / "a.onnx", model([NORM], arrays))


def test_bad_graphs(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.onnx", [tensor(name) for name in FOUR]
    later = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Relu", ["x"], ["h"])]
    with pytest.raises(ModelFileError, match="comes from nowhere"):
        read(path, model(later, []))
    with pytest.raises(ModelFileError, match=r"shapes \[\(3,\)"):
        read(path, model([NORM], [tensor("s", [1.0] * 3), *whole[1:]]))
    with pytest.raises(ModelFileError, match="has the type 7"):
        read(path, model([NORM], [*whole[:3], tensor("v", [1, 2], TensorProto.INT64)]))
    huge = TensorProto(name="v", data_type=1, dims=[1 << 60])
    with pytest.raises(ModelFileError, match="arrays of the shapes"):
        read(path, model([NORM], [*whole[:3], huge]))
    huge = TensorProto(name="v", data_type=1, dims=[2], raw_data=b"abc")
    with pytest.raises(ModelFileError, match="has not the 2 elements"):
        read(path, model([NORM], [*whole[:3], huge]))
    few = helper.make_node("BatchNormalization", ["x", "s"], ["y"])
    with pytest.raises(ModelFileError, match="arrays of the shapes"):
        read(path, model([few], whole))
    for content, match in ((b"hello world", "cannot be decoded"), (b"\x08\x07", "has no graph")):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=match):
            read_model_file(path)


def test_names_that_are_there_twice(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="x"),
        helper.make_node("Relu", ["h"], ["y"], name="x"),
    ]
    record = read(tmp_path / "a.onnx", model(nodes, []))
    assert record.graph is not None
    assert [operation.name for operation in record.graph.operations] == ["x", "x#2", "x#3"]
    assert record.graph.outputs == ("x#3",)


def test_what_is_inside_of_branches_is_told(tmp_path: Path) -> None:
    inner = helper.make_graph([], "then", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    record = read(tmp_path / "a.onnx", model([node], []))
    assert "What is inside of If nodes was not looked at." in record.notes


def test_without_the_package(tmp_path: Path) -> None:
    onnx.save(model([NORM], [tensor(name) for name in FOUR]), tmp_path / "a.onnx")
    done = run_python(
        "-c",
        "import sys; sys.modules['onnx'] = None\n"
        "from homeostat import MissingExtraError\n"
        "from homeostat.models.files import read_model_file\n"
        f"try: read_model_file({str(tmp_path / 'a.onnx')!r})\n"
        "except MissingExtraError as error: print(error)",
    )
    assert MissingExtraError.__name__ not in done.stderr, done.stderr
    assert "pip install 'homeostat[audit]'" in done.stdout
