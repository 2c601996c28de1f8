"""What native modules do not have, against the float64 oracle over several steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from homeostat import (
    BatchNormSpec,
    HomeostatError,
    NonFiniteBatchError,
    ShapeError,
    SpecError,
    UnsupportedError,
    reference,
)
from homeostat.torch import BatchNorm1d, BatchNorm2d, LazyBatchNorm2d
from tests.messages import has_three_parts
from tests.torch.conftest import named

LEAKY = {"name": "leaky_relu", "negative_slope": 0.3}
CLIPPING = {"rmin": 0.9, "rmax": 1.2, "dmax": 0.1}
OPTIONS: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": LEAKY, "momentum": 0.5},
    {"renorm": True},
    {"renorm": True, "renorm_clipping": CLIPPING, "renorm_momentum": 0.3},
    {"renorm": True, "momentum": None},
    {"virtual_batch_size": 4},
    {"virtual_batch_size": 4, "renorm": True, "activation": "relu"},
    {"momentum": None, "activation": "relu"},
    {"zero_debias": True},
    {"zero_debias": True, "renorm": True},
    {"nonfinite": "propagate"},
    {"nonfinite": "raise"},
]
SHAPE = (8, 3, 2, 5)


def spec_of(options: dict[str, Any]) -> BatchNormSpec:
    """Return the options in the words of the oracle, translated by hand."""
    given = {"momentum": 0.1, "renorm_momentum": 0.01, "eps": 1e-5, **options}
    momentum, epsilon = given.pop("momentum"), given.pop("eps")
    given["renorm_momentum"] = 1 - given["renorm_momentum"]
    return BatchNormSpec(
        axis=1,
        momentum=None if momentum is None else 1 - momentum,
        epsilon=epsilon,
        stored_variance="sample",
        **given,
    )


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * 2 + 1).astype(np.float32)


def affine(bn: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    gamma = rng.normal(1.0, 0.3, bn.num_features).astype(np.float32)
    beta = rng.standard_normal(bn.num_features).astype(np.float32)
    with torch.no_grad():
        bn.weight.copy_(torch.tensor(gamma))
        bn.bias.copy_(torch.tensor(beta))
    return gamma, beta


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_oracle_after_three_steps(options: Any, residual: bool, rng: Any) -> None:
    spec, bn = spec_of(options), BatchNorm2d(3, **options)
    gamma, beta = affine(bn, rng)
    expected = reference.start((3,))
    for _ in range(3):
        x, dy = draw(rng, *SHAPE), draw(rng, *SHAPE)
        r = draw(rng, *SHAPE) if residual else None
        step = reference.train_step(x, expected, spec, gamma, beta, residual=r)
        gradients = reference.step_gradients(dy, x, expected, spec, gamma, beta, residual=r)
        inputs = [torch.tensor(a, requires_grad=True) for a in (x, r) if a is not None]
        y = bn(*inputs)
        found = torch.autograd.grad(
            y, [inputs[0], bn.weight, bn.bias, *inputs[1:]], torch.tensor(dy)
        )
        np.testing.assert_allclose(y.detach(), step.y, rtol=1e-5, atol=1e-5)
        for actual, name in zip(found, ("x", "gamma", "beta", "residual"), strict=False):
            wanted = getattr(gradients, name)
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=2e-4, err_msg=name)
        expected = step.state
    names = {
        "running_mean": "mean",
        "running_var": "variance",
        "skipped_updates": "skipped",
        "renorm_mean": "renorm_mean",
        "renorm_std": "renorm_stddev",
    }
    buffers = dict(bn.named_buffers())
    assert set(buffers) - {"num_batches_tracked"} == set(names) - (
        set() if bn.renorm else {"renorm_mean", "renorm_std"}
    )
    for name, buffer in buffers.items():
        if name in names:
            wanted = getattr(expected, names[name])
            np.testing.assert_allclose(buffer, wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    assert int(bn.num_batches_tracked) == 3
    plain = reference.normalize(
        x, expected.mean, expected.variance, gamma, beta, axis=1, epsilon=1e-5,
        activation=spec.activation, residual=r,
    )  # fmt: skip
    np.testing.assert_allclose(bn.eval()(*inputs).detach(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("covers", [(8,), (8, 2), (8, 2, 5), (8, 1, 2, 5)], ids=str)
@pytest.mark.parametrize("boolean", [False, True])
def test_weights_choose_what_is_averaged(covers: Any, boolean: bool, rng: Any) -> None:
    bn = BatchNorm2d(3, activation="relu")
    gamma, beta = affine(bn, rng)
    x, dy = draw(rng, *SHAPE), draw(rng, *SHAPE)
    weights = rng.random(covers) < 0.6 if boolean else rng.random(covers).astype(np.float32)
    spec = spec_of({"activation": "relu"})
    arrays = (x, reference.start((3,)), spec, gamma, beta)
    step = reference.train_step(*arrays, weights=weights)
    gradients = reference.step_gradients(dy, *arrays, weights=weights)
    given = torch.tensor(x, requires_grad=True)
    y = bn(given, weights=torch.tensor(weights))
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.detach(), step.y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(given.grad, gradients.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.running_mean, step.state.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.running_var, step.state.variance, rtol=1e-5)


def test_a_schedule_bounds_renorm(rng: Any) -> None:
    """Ioffe 2017 starts with plain batch norm and opens the bounds; here over 4 batches."""
    seen = []

    def ramp(batches: Any) -> dict[str, Any]:
        seen.append(int(batches))
        share = (batches / 4).clamp(max=1.0)
        return {"rmax": 1 + 2 * share, "rmin": 1 / (1 + 2 * share), "dmax": 5 * share}

    bn = BatchNorm2d(3, renorm=True, renorm_clipping=ramp)
    expected = reference.start((3,))
    for batches in range(6):
        share = min(batches / 4, 1.0)
        clipping = {"rmax": 1 + 2 * share, "rmin": 1 / (1 + 2 * share), "dmax": 5 * share}
        x = draw(rng, *SHAPE) * 3
        step = reference.train_step(
            x, expected, spec_of({"renorm": True, "renorm_clipping": clipping})
        )
        np.testing.assert_allclose(bn(torch.tensor(x)).detach(), step.y, rtol=1e-5, atol=1e-5)
        if batches == 0:
            native = torch.nn.BatchNorm2d(3)(torch.tensor(x))
            np.testing.assert_allclose(step.y, native.detach(), rtol=1e-5, atol=1e-5)
        expected = step.state
    assert seen == list(range(6))
    bn.renorm_clipping = lambda batches: {"smax": batches}
    with pytest.raises(SpecError, match="smax"):
        bn(torch.tensor(x))


def test_three_ways_to_freeze(rng: Any) -> None:
    x = torch.tensor(rng.normal(5.0, 3.0, (64, 4)).astype(np.float32))
    normalized = torch.nn.BatchNorm1d(4)(x).detach()

    bn = BatchNorm1d(4, frozen_affine=True)
    y = bn(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, normalized)
    assert bn.running_mean.max() > 0.3
    bn.frozen_affine = False
    bn(x).sum().backward()
    assert bn.weight.grad is not None

    bn = BatchNorm1d(4, frozen_statistics=True)
    y = bn(x)
    torch.testing.assert_close(y, normalized)
    assert y.requires_grad
    assert (bn.running_mean.tolist(), int(bn.num_batches_tracked)) == ([0.0] * 4, 0)
    bn.frozen_statistics = False
    bn(x)
    assert bn.running_mean.max() > 0.3

    bn = BatchNorm1d(4, inference_mode=True)
    y = bn(x)
    torch.testing.assert_close(y, x / (1 + 1e-5) ** 0.5)
    y.sum().backward()
    torch.testing.assert_close(bn.bias.grad, torch.full((4,), 64.0))
    assert bn.running_mean.tolist() == [0.0] * 4
    bn.inference_mode = False
    torch.testing.assert_close(bn(x), normalized)


def test_frozen_statistics_count_nothing_and_raise_nothing() -> None:
    bn = BatchNorm1d(3, frozen_statistics=True, nonfinite="raise")
    assert bn(torch.full((4, 3), torch.nan)).isnan().all()
    assert bn.skipped_updates.tolist() == [0, 0, 0]


@pytest.mark.usefixtures("size")
def test_raise_names_the_channels_and_harms_nothing() -> None:
    bn = BatchNorm1d(4, nonfinite="raise", momentum=1.0)
    x = torch.randn(8, 4)
    x[3, 1] = torch.nan
    x[4, 3] = torch.inf
    with pytest.raises(NonFiniteBatchError, match=r"in channels 1, 3: expected finite") as caught:
        bn(x)
    assert has_three_parts(caught.value)
    assert bn.running_mean.isfinite().all()
    assert bn.skipped_updates.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(bn.running_mean[2], x[:, 2].mean())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"momentum": 1.5}, "0 <= momentum <= 1"),
    ({"eps": -1.0}, "epsilon"),
    ({"virtual_batch_size": 0}, "positive"),
    ({"virtual_batch_size": 2, "synchronized": True}, "exclude"),
    ({"renorm_clipping": {"rmax": 2.0}}, "renorm=True"),
    ({"renorm_clipping": lambda t: {}}, "renorm=True"),
    ({"renorm": True, "renorm_clipping": {"smax": 2.0}}, "unknown keys"),
    ({"renorm": True, "renorm_clipping": {"rmin": 3, "rmax": 2}}, "rmin"),
    ({"renorm": True, "track_running_stats": False}, "running statistics"),
    ({"inference_mode": True, "track_running_stats": False}, "running statistics"),
    ({"activation": "gelu"}, "cannot be fused"),
    ({"nonfinite": "ignore"}, "nonfinite"),
    ({"zero_debias": True, "momentum": None}, "zero_debias"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=named)
def test_bad_options_say_what_was_expected(options: dict[str, Any], words: str) -> None:
    for make in (lambda: BatchNorm2d(4, **options), lambda: LazyBatchNorm2d(**options)):
        with pytest.raises(SpecError, match=words) as caught:
            make()
        assert isinstance(caught.value, HomeostatError)
        assert "xpected" in str(caught.value)


def test_a_bad_change_leaves_the_option_as_it_was() -> None:
    bn = BatchNorm2d(4, activation="relu")
    for name, value in (("momentum", 7), ("activation", "gelu"), ("nonfinite", "no"), ("eps", -1)):
        with pytest.raises(SpecError, match="expected"):
            setattr(bn, name, value)
    assert (bn.momentum, bn.activation, bn.spec.epsilon) == (0.1, "relu", 1e-5)
    for name in ("renorm", "zero_debias"):
        with pytest.raises(UnsupportedError) as caught:
            setattr(bn, name, True)
        assert has_three_parts(caught.value)


def test_shapes_that_do_not_fit() -> None:
    bn, x = BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    with pytest.raises(ShapeError, match=r"residual has shape \(4, 3, 5\)"):
        bn(x, x[..., 0])
    with pytest.raises(ShapeError, match=r"expected \(4, 5, 5\)"):
        bn(x, weights=torch.ones(4, 3))
    bn.virtual_batch_size = 3
    with pytest.raises(ShapeError, match="does not divide"):
        bn(x)
    bn.virtual_batch_size = 2
    with pytest.raises(UnsupportedError, match="weights") as caught:
        bn(x, weights=torch.ones(4))
    assert has_three_parts(caught.value)
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm1d(3, virtual_batch_size=1)(torch.randn(4, 3))
    assert bn.running_mean.tolist() == [0.0, 0.0, 0.0]
