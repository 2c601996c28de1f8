"""The oracle, checked against finite differences, formulas written out and another's layer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from homeostat import BatchNormSpec, Moments, RenormClipping, ShapeError
from homeostat import reference as oracle
from tests.cases import LEAKY
from tests.messages import has_three_parts

RNG = np.random.default_rng(3)


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return RNG.standard_normal(shape) * std + mean


def test_moments_are_numpys() -> None:
    x = normal(7, 4, 3, 5, mean=2.0)
    for axis, averaged in ((-1, (0, 1, 2)), (1, (0, 2, 3)), ((1, 3), (0, 2))):
        count, mean, variance = oracle.moments(x, axis)
        np.testing.assert_array_equal(count, x.size // mean.size)
        np.testing.assert_allclose(mean, x.mean(averaged), rtol=1e-14)
        np.testing.assert_allclose(variance, x.var(averaged), rtol=1e-14)


def test_weighted_moments_are_numpys() -> None:
    x, weights = normal(20, 3), RNG.uniform(0.1, 2.0, 20)
    count, mean, variance = oracle.moments(x, weights=weights)
    np.testing.assert_allclose(count, weights.sum())
    np.testing.assert_allclose(mean, np.average(x, axis=0, weights=weights), rtol=1e-13)
    expected = np.average((x - mean) ** 2, axis=0, weights=weights)
    np.testing.assert_allclose(variance, expected, rtol=1e-13)


def test_variance_keeps_its_digits_beside_a_large_mean() -> None:
    deviations = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    for mean in (1e3, 1e6, 1e12):
        assert oracle.moments(deviations + mean).variance.tolist() == [1.0]


def test_one_element_has_variance_0_and_gives_beta() -> None:
    y, batch = oracle.normalize_batch([[5.0, -7.0]], gamma=[2.0, 2.0], beta=[0.5, 1.5])
    assert y.tolist() == [[0.5, 1.5]]
    assert batch.variance.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("weights", [None, np.zeros(4)])
def test_nothing_to_average(weights: Any) -> None:
    x = np.zeros((0, 3)) if weights is None else normal(4, 3)
    y, batch = oracle.normalize_batch(x, weights=weights, epsilon=0.25)
    for part in batch:
        assert part.tolist() == [0.0] * 3
    np.testing.assert_allclose(y, x * 2.0)


def test_forward_written_out() -> None:
    x, gamma, beta, residual = normal(6, 3, mean=4), normal(3), normal(3), normal(6, 3)
    y, _ = oracle.normalize_batch(x, gamma, beta, epsilon=0.01, residual=residual, activation=LEAKY)
    for i in range(6):
        for c in range(3):
            column = x[:, c]
            variance = sum((v - column.mean()) ** 2 for v in column) / 6
            z = gamma[c] * (x[i, c] - column.mean()) / (variance + 0.01) ** 0.5
            z += beta[c] + residual[i, c]
            assert y[i, c] == pytest.approx(z if z > 0 else 0.1 * z, rel=1e-12)


DIFFERENTIABLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "first": {"axis": 1},
    "axes": {"axis": (0, 2)},
    "relu": {"activation": "relu"},
    "leaky-residual": {"activation": LEAKY, "residual": True},
    "mask": {"weights": np.array([1, 0, 1, 1, 0], bool)},
    "fractions": {"weights": RNG.uniform(0.0, 2.0, (5, 4))},
    "fully-masked": {"weights": np.zeros(5)},
    "weighted-relu": {"weights": np.array([1, 0, 0.5, 2, 1]), "activation": "relu", "axis": 1},
    "no-gamma": {"gamma": None},
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_equal_central_differences(name: str) -> None:
    options = {"epsilon": 0.01, **DIFFERENTIABLE[name]}
    x, dy = normal(5, 4, 3, mean=0.5, std=2.0), normal(5, 4, 3)
    layout = oracle.Layout.of(x.shape, options.get("axis", -1))
    channels = layout.known_channel_shape
    arrays = {"x": x, "gamma": normal(*channels), "beta": normal(*channels)}
    if options.pop("residual", False):
        arrays["residual"] = normal(5, 4, 3)
    if "gamma" in options:
        del arrays["gamma"], options["gamma"]
    gradients = oracle.backward(dy, **arrays, **options)

    def loss(**changed: Any) -> float:
        y, _ = oracle.normalize_batch(**{**arrays, **changed}, **options)
        return float(np.sum(y * dy))

    step = 1e-6
    for argument, array in arrays.items():
        differences = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            bump = np.zeros_like(array)
            bump[at] = step
            above, below = loss(**{argument: array + bump}), loss(**{argument: array - bump})
            differences[at] = (above - below) / (2 * step)
        np.testing.assert_allclose(
            getattr(gradients, argument), differences, rtol=1e-6, atol=1e-7, err_msg=argument
        )


def test_gradients_that_are_there_without_their_arrays() -> None:
    x, dy = normal(5, 3), normal(5, 3)
    gradients = oracle.backward(dy, x)
    np.testing.assert_allclose(gradients.beta, dy.sum(0))
    np.testing.assert_array_equal(gradients.residual, dy)


def test_nan_under_a_mask_reaches_no_neighbour() -> None:
    x, dy, weights = normal(5, 3), normal(5, 3), np.array([1, 1, 0, 1, 0])
    dy[weights == 0] = 0.0
    expected = oracle.backward(dy, x, weights=weights)
    x[2] = np.nan
    for actual, same in zip(oracle.backward(dy, x, weights=weights), expected, strict=True):
        np.testing.assert_array_equal(actual, same)


def test_nan_under_a_mask_shows_where_a_gradient_comes_in() -> None:
    x, weights = normal(5, 3), np.array([1, 1, 0, 1, 0])
    x[2] = np.nan
    assert np.isnan(oracle.backward(np.ones((5, 3)), x, weights=weights).gamma).all()


finite = hnp.arrays(np.float64, (6, 3), elements=st.floats(-100, 100, width=32))


@given(x=finite, shift=st.floats(-1e3, 1e3), scale=st.floats(0.1, 10.0))
def test_outputs_do_not_see_shift_and_scale(x: np.ndarray, shift: float, scale: float) -> None:
    y, _ = oracle.normalize_batch(x, epsilon=1e-3)
    moved, _ = oracle.normalize_batch(x * scale + shift, epsilon=1e-3 * scale**2)
    np.testing.assert_allclose(moved, y, atol=1e-8)


@given(x=finite, dy=finite)
def test_gradients_are_orthogonal_to_what_normalization_removes(
    x: np.ndarray, dy: np.ndarray
) -> None:
    """A shift of x changes nothing, so dx sums to 0; without epsilon nor does a scale."""
    dx = oracle.backward(dy, x).x
    largest = np.abs(dy).max() + 1e-30
    np.testing.assert_allclose(dx.sum(0) / largest, 0, atol=1e-9)
    if x.std(0).min() > 1e-3:
        dx = oracle.backward(dy, x, epsilon=0.0).x
        np.testing.assert_allclose((dx * (x - x.mean(0))).sum(0) / largest, 0, atol=1e-6)


@given(x=finite, order=st.permutations(range(6)))
def test_outputs_follow_the_order_of_the_batch(x: np.ndarray, order: list[int]) -> None:
    y, _ = oracle.normalize_batch(x)
    shuffled, _ = oracle.normalize_batch(x[order])
    np.testing.assert_allclose(shuffled, y[order], atol=1e-9)


def test_normalize_batch_is_normalize_with_the_batchs_moments() -> None:
    x = normal(4, 3, 5)
    y, batch = oracle.normalize_batch(x, axis=1, epsilon=0.1)
    np.testing.assert_array_equal(
        y, oracle.normalize(x, batch.mean, batch.variance, axis=1, epsilon=0.1)
    )


def train(spec: BatchNormSpec, batches: Any, **arguments: Any) -> oracle.Step:
    state = oracle.start(oracle.Layout.of(batches[0].shape, spec.axes).known_channel_shape)
    for x in batches:
        step = oracle.train_step(x, state, spec, **arguments)
        state = step.state
    return step


@pytest.mark.parametrize("stored", ["population", "sample"])
def test_statistics_after_k_updates(stored: Any) -> None:
    batches = [normal(4, 3, mean=k) for k in range(5)]
    state = train(BatchNormSpec(momentum=0.9, stored_variance=stored), batches).state
    ddof = 1 if stored == "sample" else 0
    share = [0.1 * 0.9 ** (4 - k) for k in range(5)]
    mean = sum(w * b.mean(0) for w, b in zip(share, batches, strict=True))
    variance = sum(w * b.var(0, ddof=ddof) for w, b in zip(share, batches, strict=True))
    np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(state.variance, variance + 0.9**5, rtol=1e-12)
    assert state.updates.tolist() == [5] * 3


def test_cumulative_statistics_after_k_updates() -> None:
    batches = [normal(4, 3, mean=k) for k in range(5)]
    state = train(BatchNormSpec(momentum=None), batches).state
    np.testing.assert_allclose(state.mean, np.mean([b.mean(0) for b in batches], 0), rtol=1e-12)
    np.testing.assert_allclose(state.variance, np.mean([b.var(0) for b in batches], 0), rtol=1e-12)


def test_one_element_stores_no_sample_correction() -> None:
    state = train(BatchNormSpec(momentum=0.5, stored_variance="sample"), [np.ones((1, 3))]).state
    assert state.mean.tolist() == [0.5] * 3
    assert state.variance.tolist() == [0.5] * 3


def test_non_finite_channels_are_skipped_and_counted() -> None:
    good, bad = normal(4, 3), normal(4, 3)
    bad[2, 1] = np.nan
    bad[0, 2] = np.inf
    state = train(BatchNormSpec(momentum=0.9), [bad, good, bad]).state
    alone = train(BatchNormSpec(momentum=0.9), [good]).state
    np.testing.assert_array_equal(state.mean[1:], alone.mean[1:])
    np.testing.assert_array_equal(state.variance[1:], alone.variance[1:])
    assert state.skipped.tolist() == [0, 2, 2]
    assert state.updates.tolist() == [3, 1, 1]


def test_empty_and_fully_masked_batches_change_nothing() -> None:
    for options in ({}, {"renorm": True}, {"momentum": None}):
        spec = BatchNormSpec(**options)
        before = train(spec, [normal(4, 3)]).state
        after = oracle.train_step(np.zeros((0, 3)), before, spec).state
        masked = oracle.train_step(normal(4, 3), before, spec, weights=np.zeros(4)).state
        for name, *parts in zip(before._fields, before, after, masked, strict=True):
            for part in parts[1:]:
                np.testing.assert_allclose(part, parts[0], rtol=1e-15, err_msg=name)


def test_ghost_batches_equal_a_loop_over_groups() -> None:
    x, gamma, beta, residual = normal(12, 5, 3, mean=2), normal(3), normal(3), normal(12, 5, 3)
    spec = BatchNormSpec(momentum=0.9, virtual_batch_size=4, activation="relu")
    step = oracle.train_step(x, oracle.start((3,)), spec, gamma, beta, residual=residual)
    means, variances = [], []
    for group in range(3):
        mine = slice(group, None, 3)
        y, batch = oracle.normalize_batch(
            x[mine], gamma, beta, residual=residual[mine], activation="relu"
        )
        np.testing.assert_allclose(step.y[mine], y, rtol=1e-13, atol=1e-13)
        means.append(batch.mean)
        variances.append(batch.variance)
    np.testing.assert_allclose(step.state.mean, 0.1 * np.mean(means, 0), rtol=1e-13)
    np.testing.assert_allclose(step.state.variance, 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-13)
    assert step.batch.count.tolist() == [20.0] * 3


def test_renorm_corrects_each_ghost_batch() -> None:
    x, options = normal(6, 3, mean=2), {"renorm": True, "renorm_clipping": {"rmax": 1.2, "dmax": 1}}
    spec = BatchNormSpec(virtual_batch_size=3, **options)
    y = oracle.train_step(x, oracle.start((3,)), spec).y
    for group in range(2):
        alone = oracle.train_step(x[group::2], oracle.start((3,)), BatchNormSpec(**options))
        np.testing.assert_allclose(y[group::2], alone.y, rtol=1e-13)


def test_ghost_batches_refuse_weights() -> None:
    spec = BatchNormSpec(virtual_batch_size=2)
    with pytest.raises(ShapeError) as caught:
        oracle.train_step(normal(4, 3), oracle.start((3,)), spec, weights=np.ones(4))
    assert has_three_parts(caught.value)


def test_renorm_is_ioffes_algorithm() -> None:
    """Ioffe 2017, Algorithm 1, with r_max = 1.5 and d_max = 0.7, by scalar arithmetic."""
    gamma, beta, epsilon = 1.5, 0.25, 1e-3
    spec = BatchNormSpec(
        momentum=0.9,
        epsilon=epsilon,
        renorm=True,
        renorm_clipping=RenormClipping(rmin=1 / 1.5, rmax=1.5, dmax=0.7),
        renorm_momentum=0.8,
    )
    state, mu, sigma = oracle.start((1,)), 0.0, 1.0
    for k in range(4):
        x = normal(8, 1, mean=0.4 * k, std=1 + k)
        step = oracle.train_step(x, state, spec, [gamma], [beta])
        state = step.state
        mu_batch = float(x.mean())
        sigma_batch = float(np.sqrt(x.var() + epsilon))
        r = min(max(sigma_batch / sigma, 1 / 1.5), 1.5)
        d = min(max((mu_batch - mu) / sigma, -0.7), 0.7)
        expected = gamma * ((x - mu_batch) / sigma_batch * r + d) + beta
        np.testing.assert_allclose(step.y, expected, rtol=1e-12)
        mu += 0.2 * (mu_batch - mu)
        sigma += 0.2 * (sigma_batch - sigma)
    assert state.renorm_mean[0] == pytest.approx(mu, rel=1e-12)
    assert state.renorm_stddev[0] == pytest.approx(sigma, rel=1e-12)


def test_renorm_without_bounds_is_inference() -> None:
    """With r and d unclipped the outputs are those of the statistics that renorm corrects to."""
    x, spec = normal(8, 3, mean=1), BatchNormSpec(renorm=True)
    state = oracle.start((3,))._replace(
        renorm_mean=np.array([0.5, 1.0, 2.0]), renorm_stddev=np.array([0.7, 1.1, 2.0])
    )
    y = oracle.train_step(x, state, spec).y
    np.testing.assert_allclose(y, (x - state.renorm_mean) / state.renorm_stddev, rtol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_is_unfolded(bias: bool, affine: bool) -> None:
    x, kernel = normal(9, 4), normal(4, 3)
    offset = normal(3) if bias else None
    gamma, beta = (normal(3), normal(3)) if affine else (None, None)
    mean, variance = normal(3), RNG.uniform(0.1, 3.0, 3)
    z = x @ kernel + (0.0 if offset is None else offset)
    expected = oracle.normalize(z, mean, variance, gamma, beta)
    folded = oracle.fold(kernel, offset, mean, variance, gamma, beta)
    np.testing.assert_allclose(x @ folded.kernel + folded.bias, expected, rtol=1e-12, atol=1e-13)


# Momenta that float32 holds exactly: the layer keeps 1 - momentum in float32.
LEGACY: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.875},
    "first": {"momentum": 0.875, "axis": 1},
    "axes": {"momentum": 0.875, "axis": [1, 3]},
    "no-scale": {"momentum": 0.75, "epsilon": 0.01, "scale": False},
    "renorm": {"momentum": 0.875, "renorm": True, "renorm_momentum": 0.75},
    "renorm-clipped": {
        "momentum": 0.875,
        "renorm": True,
        "renorm_momentum": 0.75,
        "renorm_clipping": {"rmin": 0.9, "rmax": 1.1, "dmax": 0.2},
    },
    "virtual": {"momentum": 0.875, "virtual_batch_size": 2},
    "virtual-first": {"momentum": 0.875, "virtual_batch_size": 3, "axis": 1},
    "virtual-renorm": {"momentum": 0.875, "virtual_batch_size": 3, "renorm": True},
}


@pytest.fixture(scope="module")
def legacy() -> dict[str, Any]:
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("tf-keras is not installed")
    rng = np.random.default_rng(12)
    shape = (6, 4, 5, 3)
    batches = [rng.standard_normal(shape) * (1 + k) + k for k in range(3)]
    dy = rng.standard_normal(shape)
    cases = [
        {"options": options, "batches": [b.tolist() for b in batches], "dy": dy.tolist()}
        for options in LEGACY.values()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.legacy_layer"],
        cwd=Path(__file__).parent.parent,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = dict(zip(LEGACY, json.loads(done.stdout), strict=True))
    return {"batches": batches, "dy": dy, "outcomes": outcomes}


@pytest.mark.parametrize("name", LEGACY)
def test_the_legacy_layer_agrees(legacy: dict[str, Any], name: str) -> None:
    theirs, options = legacy["outcomes"][name], LEGACY[name]
    step = train(BatchNormSpec(**options), legacy["batches"])
    # Its renorm runs in float32.
    tolerance = 1e-5 if options.get("renorm") else 1e-12
    # Its virtual batches share one r and d, those of their average; ours have their own, which is
    # Ioffe's algorithm for each of them. The statistics are the same.
    if name != "virtual-renorm":
        np.testing.assert_allclose(step.y, theirs["y"], rtol=tolerance, atol=tolerance)
    names = {
        "moving_mean": "mean",
        "moving_variance": "variance",
        "moving_stddev": "stddev",
        "renorm_mean": "renorm_mean",
        "renorm_stddev": "renorm_stddev",
    }
    compared = 0
    for their_name, ours in names.items():
        if their_name in theirs["state"]:
            np.testing.assert_allclose(
                getattr(step.state, ours).ravel(), theirs["state"][their_name], rtol=tolerance,
                atol=tolerance, err_msg=their_name,
            )  # fmt: skip
            compared += 1
    assert compared == (5 if options.get("renorm") else 2)


@pytest.mark.parametrize("name", ["plain", "first", "axes", "no-scale"])
def test_the_legacy_layers_gradients_agree(legacy: dict[str, Any], name: str) -> None:
    options = LEGACY[name]
    axis = tuple(np.atleast_1d(options.get("axis", -1)))
    gradients = oracle.backward(
        legacy["dy"], legacy["batches"][-1], axis=axis, epsilon=options.get("epsilon", 1e-3)
    )
    np.testing.assert_allclose(gradients.x, legacy["outcomes"][name]["dx"], rtol=1e-7, atol=1e-9)


def test_start() -> None:
    state = oracle.start((2, 3))
    for name, part in zip(state._fields, state, strict=True):
        assert part.shape == (2, 3)
        assert (part == (1 if name in ("variance", "stddev", "renorm_stddev") else 0)).all(), name
    assert isinstance(oracle.moments(np.ones((2, 3))), Moments)


STEPS = {
    "plain": {},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 1.2, "dmax": 0.5}},
    "ghost": {"virtual_batch_size": 3},
    "ghost renorm relu": {"virtual_batch_size": 3, "renorm": True, "activation": "relu"},
}


@pytest.mark.parametrize("name", STEPS)
def test_step_gradients_equal_central_differences_with_r_and_d_held(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    spec = BatchNormSpec(**STEPS[name])
    state = oracle.start((2,))._replace(
        renorm_mean=np.array([0.3, -0.2]), renorm_stddev=np.array([0.8, 1.7])
    )
    arrays = {
        "x": rng.normal(size=(6, 2)),
        "gamma": rng.normal(size=2),
        "beta": rng.normal(size=2),
        "residual": rng.normal(size=(6, 2)),
    }
    dy = rng.normal(size=(6, 2))
    exact = oracle.step_gradients(dy, state=state, spec=spec, **arrays)
    view = (3, 2, 2) if spec.virtual_batch_size else (6, 2)
    axes = (1, 2) if spec.virtual_batch_size else (1,)
    held = oracle.moments(arrays["x"].reshape(view), axes)
    constant = oracle._renorm(held, state, spec)
    monkeypatch.setattr(oracle, "_renorm", lambda *_: constant)

    def loss(name: str, index: tuple[int, ...], step: float) -> float:
        moved = {**arrays, name: arrays[name].copy()}
        moved[name][index] += step
        return float(np.sum(dy * oracle.train_step(state=state, spec=spec, **moved).y))

    for array, gradient in zip(arrays, exact, strict=True):
        for index in np.ndindex(*arrays[array].shape):
            slope = (loss(array, index, 1e-6) - loss(array, index, -1e-6)) / 2e-6
            assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-7)
