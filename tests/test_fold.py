"""The maths of folding against the oracle, the plan on hand-made graphs, the check, the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat import reference
from homeostat.errors import SpecError, UnsupportedError
from homeostat.fold import FoldReport, NormFold, fold
from homeostat.fold.check import medians, relative_error
from homeostat.fold.maths import affine_of, fold_ahead, fold_behind
from homeostat.fold.plan import Plan, plan
from homeostat.models.foldable import Kernel, LinearOp, NormOp, Sites, map_arrays, randomize
from homeostat.models.graph import Graph, Operation
from homeostat.models.records import BatchNormRecord

SEEDS = st.integers(0, 2**32 - 1)


def norm_of(rng: np.random.Generator, channels: int, **changes: Any) -> BatchNormRecord:
    arrays = {
        "gamma": rng.normal(size=channels),
        "beta": rng.normal(size=channels),
        "moving_mean": rng.normal(size=channels) * 3,
        "moving_variance": rng.uniform(0, 4, channels),
    }
    return BatchNormRecord("bn", "BN", **(arrays | {"epsilon": 1e-3} | changes))


def normalized(x: np.ndarray, norm: BatchNormRecord, axis: int = -1) -> np.ndarray:
    mean, variance = norm.moving_mean, norm.moving_variance
    assert mean is not None
    assert variance is not None
    assert norm.epsilon is not None
    return reference.normalize(
        x, mean, variance, norm.gamma, norm.beta, axis=axis, epsilon=norm.epsilon
    )


def dense(kernel: np.ndarray, bias: np.ndarray | None = None) -> LinearOp:
    return LinearOp("dense", (Kernel(kernel, kernel.shape, (0,), (1,)),), bias, axis=1)


@given(
    SEEDS, st.integers(1, 5), st.integers(1, 5), st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)])
)
def test_folding_behind_is_the_oracles(
    seed: int, inputs: int, outputs: int, has: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    dropped = {name: None for name, kept in zip(("gamma", "beta"), has, strict=True) if not kept}
    norm = norm_of(rng, outputs, **dropped)
    kernel, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
    for given_bias in (bias, None):
        folded = fold_behind(dense(kernel, given_bias), affine_of(norm))
        expected = reference.fold(
            kernel, given_bias, norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta,
            epsilon=1e-3,
        )  # fmt: skip
        np.testing.assert_allclose(folded.kernels[0].values, expected.kernel, rtol=1e-12)
        np.testing.assert_allclose(folded.bias, expected.bias, rtol=1e-12, atol=1e-11)


def apply_grouped(x: np.ndarray, op: LinearOp, groups: int) -> np.ndarray:
    """Return what a convolution of size 2 gives on (N, L, C), written out for each channel."""
    kernel = op.kernels[0].values
    _, per_group, outputs = kernel.shape
    y = np.zeros((len(x), x.shape[1] - 1, outputs))
    for o in range(outputs):
        g = o // (outputs // groups)
        for i in range(per_group):
            c = g * per_group + i
            y[..., o] += x[:, :-1, c] * kernel[0, i, o] + x[:, 1:, c] * kernel[1, i, o]
    return y + (0 if op.bias is None else op.bias)


@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=50)
def test_both_directions_are_the_two_one_after_the_other(
    seed: int, groups: int, per_group: int, out_per_group: int, has_bias: bool
) -> None:
    """With groups, where the slower axis of the input channels lies behind the faster."""
    rng = np.random.default_rng(seed)
    inputs, outputs = groups * per_group, groups * out_per_group
    kernel = rng.normal(size=(2, per_group, outputs))
    view = (2, per_group, groups, out_per_group)
    op = LinearOp(
        "conv",
        (Kernel(kernel, view, (2, 1), (2, 3)),),
        rng.normal(size=outputs) if has_bias else None,
    )
    x = rng.normal(size=(3, 5, inputs))
    before, behind = norm_of(rng, inputs), norm_of(rng, outputs)
    expected = normalized(apply_grouped(normalized(x, before), op, groups), behind)
    folded = fold_behind(fold_ahead(op, affine_of(before)), affine_of(behind))
    np.testing.assert_allclose(apply_grouped(x, folded, groups), expected, rtol=1e-9, atol=1e-9)
    other = fold_ahead(fold_behind(op, affine_of(behind)), affine_of(before))
    np.testing.assert_allclose(other.kernels[0].values, folded.kernels[0].values, rtol=1e-12)
    np.testing.assert_allclose(other.bias, folded.bias, rtol=1e-9, atol=1e-11)


@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=30)
def test_two_kernels_one_after_the_other(seed: int, channels: int, multiplier: int) -> None:
    """A depthwise kernel of size 2 and a pointwise one, as in a separable convolution."""
    rng = np.random.default_rng(seed)
    depthwise = rng.normal(size=(2, channels, multiplier))
    pointwise = rng.normal(size=(channels * multiplier, 4))
    op = LinearOp(
        "separable",
        (
            Kernel(depthwise, depthwise.shape, (1,), (1, 2)),
            Kernel(pointwise, pointwise.shape, (0,), (1,)),
        ),
    )

    def run(x: np.ndarray, op: LinearOp) -> np.ndarray:
        first, second = (kernel.values for kernel in op.kernels)
        windows = np.stack([x[:, :-1], x[:, 1:]], axis=2)
        middle = np.einsum("nlkc,kcm->nlcm", windows, first).reshape(len(x), -1, second.shape[0])
        return middle @ second + (0 if op.bias is None else op.bias)

    x, norm = rng.normal(size=(2, 4, channels)), norm_of(rng, channels)
    expected = run(normalized(x, norm), op)
    np.testing.assert_allclose(
        run(x, fold_ahead(op, affine_of(norm))), expected, rtol=1e-9, atol=1e-9
    )


def test_a_norm_without_statistics_has_no_scale() -> None:
    norm = BatchNormRecord("bn", "BN", np.ones(2), epsilon=1e-3)
    with pytest.raises(SpecError, match="'bn' has no moving statistics"):
        affine_of(norm)


class Chain:
    """A graph of operations in a row: "dense", "norm" and kinds that let norms through."""

    def __init__(self, kinds: Sequence[str], *, offset: float = 1.0) -> None:
        self.operations = [Operation("x", "input")]
        self.norms: dict[str, NormOp] = {}
        self.linears: dict[str, LinearOp] = {}
        self.outputs: list[str] = []
        for number, kind in enumerate(kinds):
            name, before = f"{kind}{number}", self.operations[-1].name
            if kind == "norm":
                ones = np.ones(2)
                arrays = (2 * ones, offset * ones, 0 * ones, ones)
                record = BatchNormRecord(name, "BN", *arrays, epsilon=0.0)
                self.norms[name] = NormOp(record, axis=1, elements=2)
            if kind == "dense":
                self.linears[name] = replace(dense(np.eye(2)), layer=name, elements=2)
            word: Any = {"norm": "batch_norm", "relu": "activation"}.get(kind, kind)
            self.operations.append(Operation(name, word, (before,), name, kind.title()))
        self.outputs.append(self.operations[-1].name)

    def plan(self, **options: Any) -> Plan:
        graph = Graph(tuple(self.operations), tuple(self.outputs))
        return plan(Sites(graph, self.norms, self.linears), **options)

    def told(self, **options: Any) -> list[str]:
        return [
            f"{norm.side} {norm.into}" if norm.into else norm.reason
            for norm in self.plan(**options).report
        ]


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ("dense norm relu", ["before dense0"]),
        ("dense identity dropout norm", ["before dense0"]),
        ("dense norm norm dropout norm", ["before dense0"] * 3),
        ("norm norm dense", ["after dense2"] * 2),
        ("norm dense norm", ["after dense1", "before dense1"]),
        ("relu norm identity dense", ["after dense3"]),
        ("dense relu norm", ["Relu 'relu1' is before it; nothing is after it"]),
        ("dense relu norm relu", ["Relu 'relu1' is before it; Relu 'relu3' is after it"]),
        (
            "dense pad norm relu",
            ["Pad 'pad1' puts zeros around, which the norm would shift; Relu 'relu3' is after it"],
        ),
        (
            "norm pad dense",
            [
                "an input of the model is before it; Pad 'pad1' puts zeros around, which the norm "
                "would shift"
            ],
        ),
    ],
)
def test_what_is_folded_into_what(kinds: str, told: list[str]) -> None:
    assert Chain(kinds.split()).told() == told


def test_padding_lets_through_what_adds_nothing() -> None:
    assert Chain(["dense", "pad", "norm"], offset=0.0).told() == ["before dense0"]
    chain = Chain(["norm", "dense"], offset=0.0)
    chain.linears["dense1"] = replace(chain.linears["dense1"], padded=True)
    assert chain.told() == ["after dense1"]
    chain = Chain(["norm", "dense"])
    chain.linears["dense1"] = replace(chain.linears["dense1"], padded=True)
    assert "sees zeros around its input" in chain.told()[0]


def test_forward_may_be_turned_off() -> None:
    assert Chain(["norm", "dense"]).told(forward=False) == ["an input of the model is before it"]


def test_what_else_takes_the_result_stops_it() -> None:
    chain = Chain(["dense", "norm", "relu"])
    chain.operations.append(Operation("add", "add", ("dense0", "relu2"), "add", "Add"))
    assert "Add 'add' takes the result of Dense 'dense0' too" in chain.told()[0]
    chain = Chain(["dense", "norm", "relu"])
    chain.outputs.append("dense0")
    assert "the result of Dense 'dense0' is an output" in chain.told()[0]
    chain = Chain(["dense", "norm", "relu"])
    chain.operations[2] = replace(chain.operations[2], inputs=("dense0", "dense0"))
    assert "takes the result of Dense 'dense0' twice" in chain.told()[0]
    chain = Chain(["norm", "dense"])
    chain.operations[2] = replace(chain.operations[2], inputs=("norm0", "norm0"))
    assert "takes the result of Norm 'norm0' twice" in chain.told()[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gamma": np.array([1.0, np.nan])}, "not finite: gamma"),
        ({"moving_variance": np.array([np.inf, 1.0])}, "not finite: moving_variance"),
        ({"moving_variance": np.array([0.0, 1.0])}, "its variance + epsilon is not above 0"),
        ({"moving_variance": np.array([-1.0, 1.0])}, "its variance + epsilon is not above 0"),
        ({"moving_mean": None, "moving_variance": None}, "it has no moving statistics"),
    ],
)
def test_unusable_statistics(changes: dict[str, Any], reason: str) -> None:
    chain = Chain(["dense", "norm"])
    norm = chain.norms["norm1"]
    chain.norms["norm1"] = replace(norm, record=norm.record.with_fields(**changes))
    found = chain.plan()
    assert found.report[0].reason.startswith(reason)
    assert not found.linears
    assert not found.norms


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"why_not": "is called 2 times"}, "Dense 'dense0' is called 2 times"),
        ({"why_not_behind": "applies relu itself"}, "Dense 'dense0' applies relu itself"),
        ({"axis": 3}, "its channels are on axis 1, those of Dense 'dense0' on axis 3"),
        ({"axis": None}, "those of Dense 'dense0' on axis (not known)"),
        ({"largest": 1.5}, "the folded parameters of Dense 'dense0' would overflow"),
    ],
)
def test_unusable_linear_operations(changes: dict[str, Any], reason: str) -> None:
    chain = Chain(["dense", "norm"])
    chain.linears["dense0"] = replace(chain.linears["dense0"], **changes)
    assert reason in chain.told()[0]


def test_what_remains_stops_what_is_behind_it_alone() -> None:
    chain = Chain(["dense", "norm", "norm"])
    chain.norms["norm1"] = replace(chain.norms["norm1"], remains="relu")
    told = chain.told()
    assert told[0] == "before dense0"
    assert "Norm 'norm1' is before it" in told[1]
    chain = Chain(["norm", "dense"])
    chain.norms["norm0"] = replace(chain.norms["norm0"], remains="relu")
    assert "relu is fused behind it" in chain.told()[0]


def test_dtypes_must_be_the_same() -> None:
    chain = Chain(["dense", "norm"])
    norm = chain.norms["norm1"]
    chain.norms["norm1"] = replace(norm, record=norm.record.with_fields(dtype="float32"))
    chain.linears["dense0"] = replace(chain.linears["dense0"], dtype="float16")
    assert "it computes in float32, Dense 'dense0' in float16" in chain.told()[0]


def test_operations_saved() -> None:
    """A multiplication and an addition for each element, less the additions of a new bias."""
    chain = Chain(["dense", "norm", "norm"])
    assert [norm.operations for norm in chain.plan().report] == [2, 4]
    chain.norms["norm1"] = replace(chain.norms["norm1"], elements=None)
    assert [norm.operations for norm in chain.plan().report] == [None, 4]


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 5.0], [1.0, -4.0], 2.25),
        ([0.0, 1e-3], [0.0, 0.0], 1e-3),
        ([np.nan, np.inf, 2.0], [np.nan, np.inf, 2.0], 0.0),
        ([np.nan], [1.0], math.inf),
        ([1.0], [np.nan], math.inf),
        ([-np.inf], [np.inf], math.inf),
        ([1.0, 2.0], [1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(actual: list[float], expected: list[float], error: float) -> None:
    assert relative_error(actual, expected) == error


def test_medians_take_turns() -> None:
    order: list[str] = []
    times = medians(lambda: order.append("a"), lambda: order.append("b"), rounds=4)
    assert "".join(order) == "ab" + "abba" * 2
    assert len(times) == 2
    assert all(0 <= seconds < 1 for seconds in times)


def test_random_batches_are_like_the_given() -> None:
    rng = np.random.default_rng(0)
    given_batch = {"ids": np.arange(6).reshape(2, 3), "x": (rng.normal(5, 2, (40, 50)),)}
    random = map_arrays(lambda array: randomize(array, rng), given_batch)
    assert sorted(random["ids"].ravel()) == list(range(6))
    assert abs(random["x"][0].mean() - 5) < 0.2
    assert abs(random["x"][0].std() - 2) < 0.2
    assert not np.array_equal(random["x"][0], given_batch["x"][0])
    assert np.isfinite(randomize(np.array([np.nan, 1.0]), rng)).all()


def test_only_models_can_be_folded() -> None:
    with pytest.raises(UnsupportedError, match="cannot fold a dict: expected a Keras 3 model"):
        fold({"weights": np.ones(3)})
    with pytest.raises(SpecError, match="tolerance=-1"):
        fold(None, tolerance=-1)
    with pytest.raises(SpecError, match="tolerance=nan"):
        fold(None, tolerance=math.nan)


def test_a_report_obeys_nobody() -> None:
    """A name comes from a file, and may hold what a terminal would obey."""
    report = FoldReport((NormFold("\x1b[2Jbn\n", "BN", reason="x\x07 is before it"),))
    assert str(report).splitlines() == [
        "0 of 1 batch norms folded",
        r"\x1b[2Jbn\n  BN  not folded: x\x07 is before it",
    ]
    with pytest.raises(KeyError, match="no batch norm 'a'"):
        report["a"]
    with pytest.raises(AttributeError):
        report.norms[0].name = "other"


def test_a_report_tells_all() -> None:
    norms = (
        NormFold("bn", "BN", "conv", "before", "relu", 10),
        NormFold("bn2", "BN", "conv2", "after"),
    )
    report = FoldReport(norms, 1e-7, 2e-7, "float64", 100, 90, 0.004, 0.002, 8, ("more to know",))
    assert report.error == 2e-7
    assert str(report).splitlines()[1:] == [
        "bn   BN  into conv, before it; relu stays",
        "bn2  BN  into conv2, after it",
        "largest relative error, computed in float64: 1e-07 on random inputs, 2e-07 on the given "
        "ones",
        "saved: 10 of 100 parameters, 10 multiplications and additions for each example, not "
        "counting 1 of the norms, whose sizes vary",
        "inference of 8 examples: 4 ms before, 2 ms after (2.00 times as fast)",
        "more to know",
    ]
