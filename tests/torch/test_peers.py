"""Faults of PyTorch's own modules that these do not have, each shown on both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from homeostat import CONVENTIONS, reference
from homeostat.torch import BatchNorm1d, BatchNorm2d

pytestmark = pytest.mark.usefixtures("size")


def moved(bn: Any, *batches: Any, **options: Any) -> dict[str, np.ndarray]:
    """Return the buffers after training steps on batches."""
    for x in batches:
        bn(torch.tensor(x), **options)
    return {name: buffer.double().numpy() for name, buffer in bn.named_buffers()}


# P1: the variance of data with a large mean.


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("channels_last", [False, True])
def test_variance_of_data_far_from_zero(ratio: float, channels_last: bool, rng: Any) -> None:
    x = rng.normal(ratio, 1.0, (256, 3, 7, 7)).astype("float32")
    given = torch.tensor(x)
    if channels_last:
        given = given.contiguous(memory_format=torch.channels_last)
    exact = x.astype("float64").var((0, 2, 3), ddof=1)
    ours, theirs = BatchNorm2d(3, momentum=1.0), torch.nn.BatchNorm2d(3, momentum=1.0)
    y, _ = ours(given), theirs(given)
    tolerance = 1e-5 if ratio <= 1e3 else 1e-4
    np.testing.assert_allclose(ours.running_var.numpy(), exact, rtol=tolerance)
    np.testing.assert_allclose(y.detach().double().std((0, 2, 3)), 1.0, rtol=2e-3)
    if channels_last and ratio > 1e4:
        assert not np.allclose(theirs.running_var.numpy(), exact, rtol=1e-4)


# P3: NaN and infinity.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_does_not_poison_the_statistics(value: float, rng: Any) -> None:
    x = rng.normal(2.0, 1.0, (16, 3)).astype("float32")
    bad = x.copy()
    bad[5, 1] = value
    found = moved(BatchNorm1d(3), x, bad, x)
    theirs = moved(torch.nn.BatchNorm1d(3), x, bad, x)
    assert not np.isfinite(theirs["running_mean"][1])
    exact = reference.moments(x)
    weight = 1 - 0.9 ** np.array([3, 2, 3])
    np.testing.assert_allclose(found["running_mean"], exact.mean * weight, rtol=1e-5)
    variance = 1 + (exact.variance * 16 / 15 - 1) * weight
    np.testing.assert_allclose(found["running_var"], variance, rtol=1e-5)
    np.testing.assert_array_equal(found["skipped_updates"], [0, 1, 0])


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_a_skipped_batch_is_not_counted_in_averages(momentum: float | None, rng: Any) -> None:
    batches = [rng.normal(size=(16, 3)).astype("float32") for _ in range(3)]
    bad = batches[1].copy()
    bad[0, 2] = np.nan
    options = {"momentum": None} if momentum is None else {"zero_debias": True}
    found = moved(BatchNorm1d(3, **options), batches[0], bad, batches[2])
    clean = moved(BatchNorm1d(3, **options), batches[0], batches[2])
    np.testing.assert_allclose(found["running_mean"][2], clean["running_mean"][2], rtol=1e-6)
    np.testing.assert_allclose(found["running_var"][2], clean["running_var"][2], rtol=1e-6)


def test_values_whose_squares_overflow_are_skipped(rng: Any) -> None:
    x = rng.normal(size=(16, 3)).astype("float32")
    x[:, 0] *= 1e30
    found = moved(BatchNorm1d(3), x)
    np.testing.assert_array_equal(found["skipped_updates"], [1, 0, 0])
    assert found["running_var"][0] == 1.0


def test_propagate_does_what_native_does(rng: Any) -> None:
    bad = rng.normal(size=(16, 3)).astype("float32")
    bad[5, 1] = np.nan
    found = moved(BatchNorm1d(3, nonfinite="propagate"), bad)
    theirs = moved(torch.nn.BatchNorm1d(3), bad)
    for name, value in theirs.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_the_scaler_of_mixed_precision_skips_with_the_statistics_unharmed() -> None:
    """GradScaler leaves out a step whose gradients overflow; native statistics are lost by then."""
    bn, native = BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    for norm in (bn, native):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), norm, torch.nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        before = [p.detach().clone() for p in model.parameters()]
        for factor in (torch.inf, 1.0):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.randn(8, 4) * factor).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            now = [p.detach().clone() for p in model.parameters()]
            same = all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
            assert same == (factor != 1.0)
    assert bn.running_mean.isfinite().all()
    assert bn.running_var.isfinite().all()
    assert (bn.skipped_updates == 1).all()
    assert not native.running_mean.isfinite().any()


# P4 and P5: nothing to average.


def test_an_empty_batch_leaves_the_statistics() -> None:
    found = moved(BatchNorm1d(3), np.zeros((0, 3), "float32"))
    np.testing.assert_array_equal(found["running_mean"], np.zeros(3))
    np.testing.assert_array_equal(found["running_var"], np.ones(3))
    assert found["num_batches_tracked"] == 0


def test_a_fully_masked_batch_leaves_the_statistics(rng: Any) -> None:
    x = rng.normal(size=(4, 3, 5)).astype("float32")
    for momentum in (0.1, None):
        bn = BatchNorm1d(3, momentum=momentum)
        found = moved(bn, x, weights=torch.zeros(4, 5, dtype=torch.bool))
        np.testing.assert_array_equal(found["running_var"], np.ones(3))
        assert found["num_batches_tracked"] == 0
        found = moved(bn, x)
        weight = 0.1 if momentum else 1.0
        mean = x.astype("float64").mean((0, 2))
        np.testing.assert_allclose(found["running_mean"], mean * weight, rtol=1e-5)


# P7 and P8: the conventions.


def test_the_sample_variance_is_stored(rng: Any) -> None:
    x = rng.normal(size=(5, 3)).astype("float32")
    found = moved(BatchNorm1d(3, momentum=1.0), x)["running_var"]
    np.testing.assert_allclose(found, x.astype("float64").var(0, ddof=1), rtol=1e-5)
    factor = CONVENTIONS["keras"].variance_factor("sample", count=5)
    np.testing.assert_allclose(found * factor, x.astype("float64").var(0), rtol=1e-5)


def test_momentum_weighs_the_new_value(rng: Any) -> None:
    x = rng.normal(4.0, 1.0, (32, 2)).astype("float32")
    bn = BatchNorm1d(2, momentum=0.25)
    assert bn.spec.momentum == 0.75
    found = moved(bn, x)
    np.testing.assert_allclose(found["running_mean"], 0.25 * x.astype("float64").mean(0), rtol=1e-5)
