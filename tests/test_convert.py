"""Which norm belongs to which, and what becomes of its arrays and options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from homeostat.convert import convert, match, read_mapping, translate
from homeostat.errors import DataError, MatchError, UnsupportedError
from homeostat.models import BatchNormRecord, Graph, ModelRecord, adapt
from homeostat.torch import BatchNorm2d


def model(graph: Graph | None = None, **norms: int) -> ModelRecord:
    return ModelRecord(
        "model",
        "torch",
        "test",
        tuple(
            BatchNormRecord(name.replace("__", "."), "norm", gamma=np.ones(channels))
            for name, channels in norms.items()
        ),
        graph=graph,
    )


def names(source: ModelRecord, target: ModelRecord, mapping: Any = None) -> list[tuple[str, ...]]:
    return [(a.name, b.name, how) for a, b, how in match(source, target, mapping)]


def test_same_names_belong_together() -> None:
    found = names(model(module__a=4, module__b=4), model(b=4, a=4))
    assert found == [("module.a", "a", "name"), ("module.b", "b", "name")]


def test_the_same_channels_in_order() -> None:
    found = names(model(a=4, b=8, c=4), model(x=4, y=8, z=4))
    assert found == [("a", "x", "order"), ("b", "y", "order"), ("c", "z", "order")]


def test_channels_that_are_there_once() -> None:
    found = names(model(a=4, b=8), model(x=8, y=4))
    assert found == [("a", "y", "shape"), ("b", "x", "shape")]


def test_an_order_of_names_is_no_order_of_the_network() -> None:
    scrambled = {"bn": 4, "bn_1": 4, "bn_10": 4, "bn_2": 4}
    target = model(x=4, y=4, z=4, w=4)
    with pytest.raises(MatchError, match=r"bn_10 \(4 channels\): x, y, z, w"):
        match(model(**scrambled), target)
    assert len(match(model(Graph(()), **scrambled), target)) == 4


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (model(a=4, b=8, c=4), model(x=8, y=4, z=4)),
        (model(a=4), model(x=4, y=4)),
        (model(), model()),
        (model(a=4), model(x=8)),
    ],
)
def test_unclear_matches_show_the_candidates(source: ModelRecord, target: ModelRecord) -> None:
    with pytest.raises(MatchError, match="Candidates in the target"):
        match(source, target)


def test_a_mapping_decides() -> None:
    assert names(model(a=4, b=4), model(x=4, y=4), {"a": "y"}) == [("a", "y", "mapping")]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"typo": "x"}, "'typo', which the source"),
        ({"a": "typo"}, "'typo', which the target"),
        ({"a": "x", "b": "x"}, "two norms of the source"),
        ({"a": "z"}, "has 4 channels and 'z' has 8"),
    ],
)
def test_bad_mappings(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(MatchError, match=message):
        match(model(a=4, b=4), model(x=4, y=4, z=8), mapping)


@pytest.mark.parametrize("text", ["no json", "[1]", '{"a": 1}', "[" * 100_000])
def test_bad_mapping_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(DataError, match="mapping"):
        read_mapping(path)
    path.write_text(json.dumps({"a": "b"}))
    assert read_mapping(path) == {"a": "b"}


def norm(name: str = "a", **fields: Any) -> BatchNormRecord:
    arrays = {key: np.full(3, 2.0) for key in ("gamma", "beta", "moving_mean", "moving_variance")}
    options = {"epsilon": 1e-3, "momentum": 0.9, "stored_variance": "population"}
    return BatchNormRecord(name, "norm", **{**arrays, **options, **fields})


def test_sample_variance_becomes_population_variance() -> None:
    source, target = norm(stored_variance="sample"), norm()
    found, notes = translate(source, target, 5)
    np.testing.assert_allclose(found.moving_variance, 2 * 4 / 5)
    assert notes == ("variance times 0.8, from sample to population",)
    found, notes = translate(source, target)
    np.testing.assert_array_equal(found.moving_variance, 2)
    assert "as it is" in notes[0]
    found, notes = translate(target, source, 5)
    np.testing.assert_allclose(found.moving_variance, 2 * 5 / 4)


def test_what_the_source_does_not_have_is_filled_in() -> None:
    found, notes = translate(norm(gamma=None, epsilon=None), norm(epsilon=0.5))
    np.testing.assert_array_equal(found.gamma, 1)
    assert found.epsilon == 0.5
    assert len(notes) == 2


def test_what_the_target_cannot_take_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="has no beta"):
        translate(norm(), norm(beta=None))
    assert translate(norm(beta=np.zeros(3)), norm(beta=None))[0].beta is None
    with pytest.raises(UnsupportedError, match="no moving statistics"):
        translate(norm(moving_mean=None), norm())


def filled(*sizes: int) -> nn.Sequential:
    layers = []
    for i, size in enumerate(sizes):
        layer = nn.BatchNorm1d(size, eps=0.01 * (i + 1), momentum=0.3)
        for j, array in enumerate(
            (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        ):
            nn.init.uniform_(array, 1 + i + j, 2 + i + j)
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def test_between_two_torch_models() -> None:
    source, target = filled(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)).eval()
    done = convert(source, target)
    x = torch.randn(5, 4)
    torch.testing.assert_close(target(x), source(x))
    assert (target[0].eps, target[1].momentum) == (0.01, pytest.approx(0.3))
    assert [(m.source, m.target, m.matched, m.notes) for m in done.moved] == [
        ("0", "0", "name", ()),
        ("1", "1", "name", ()),
    ]
    assert max(m.error for m in done.moved) < 1e-6


def test_a_failure_leaves_the_target_as_it_was() -> None:
    source = filled(4, 4)
    target = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UnsupportedError, match="has no gamma"):
        convert(source, target)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    assert target[0].eps == 1e-5


def test_from_a_record() -> None:
    source = filled(4, 8)
    target = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(8)).eval()
    convert(adapt(source).record(), target)
    x = torch.randn(5, 4)
    torch.testing.assert_close(target[0](x), source[0](x))


@pytest.mark.parametrize("norm", [BatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.BatchNorm3d])
def test_into_norms_of_other_kinds(norm: Any) -> None:
    source, target = filled(4), nn.Sequential(norm(4)).eval()
    convert(source, target)
    x = torch.randn(5, 4)
    ones = (1, 1, 1) if norm is nn.BatchNorm3d else (1, 1)
    torch.testing.assert_close(target(x.reshape(5, 4, *ones)).reshape(5, 4), source(x))


def test_an_activation_stays_behind_its_norm() -> None:
    source, target = filled(4), nn.Sequential(BatchNorm2d(4, activation="relu")).eval()
    convert(source, target)
    assert target[0].activation == "relu"
    x = torch.randn(5, 4)
    torch.testing.assert_close(target(x[..., None, None])[..., 0, 0], source(x).relu())


def test_momentum_none_is_the_average_of_all() -> None:
    source = filled(4)
    source[0].momentum = None
    target = nn.Sequential(nn.BatchNorm1d(4))
    convert(source, target)
    assert target[0].momentum is None
