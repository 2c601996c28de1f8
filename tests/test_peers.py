"""Faults of other batch norms, each one a check that theirs fails and ours passes.

The peer itself runs where it is installed; a formula stands for it elsewhere. The Keras layer is
compared with its peers in tests/keras.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from homeostat import CONVENTIONS, BatchNormSpec, Moments
from homeostat import reference as oracle
from homeostat.moments import MovingStatistics, advance
from tests.ops.adapters import LIBRARIES, adapter

RNG = np.random.default_rng(4)


def ours(library: str, x: np.ndarray, **options: Any) -> tuple[np.ndarray, Moments]:
    """Return y and the moments of a library's `normalize_batch`, in float64."""
    lib = adapter(library)
    weights = options.pop("weights", None)
    if weights is not None:
        weights = lib.array(weights, "bool")
    y, batch = lib.ops.normalize_batch(lib.array(x, "float32"), weights=weights, **options)
    return lib.values(y), Moments(*(lib.values(part) for part in batch))


def advanced(batch: Moments, **options: Any) -> MovingStatistics:
    """Return moving statistics that started at 0 and 1 after one batch."""
    return advance(oracle.start(batch.mean.shape), batch, BatchNormSpec(**options), np)


def flax_layer(features: int, **options: Any) -> Any:
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    return nnx.BatchNorm(features, rngs=nnx.Rngs(0), **options)


def flax_step(layer: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    jnp = pytest.importorskip("jax.numpy")
    return np.asarray(layer(jnp.asarray(x), use_running_average=False, **options))


def torch_layer(features: int, **options: Any) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch, torch.nn.BatchNorm1d(features, **options)


# P1, P2: the variance as E[x**2] - E[x]**2.


def far(ratio: float) -> np.ndarray:
    return (RNG.standard_normal((4096, 3)) + ratio).astype(np.float32)


def check_far(x: np.ndarray, y: np.ndarray, variance: np.ndarray) -> None:
    """The promise: never negative, NaN or 10 % off, 1e-5 up to mean / std = 1e3."""
    expected = x.astype(np.float64).var(0)
    limit = 1e-5 if np.abs(x.mean()) < 2e3 else 0.1
    np.testing.assert_allclose(variance, expected, rtol=limit)
    np.testing.assert_allclose(y.astype(np.float64).std(0), 1.0, rtol=0.06)


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e6])
def test_peer_mean_of_squares_minus_square_of_mean(ratio: float) -> None:
    x = far(ratio)
    variance = np.mean(x * x, 0) - np.mean(x, 0) ** 2
    with np.errstate(invalid="ignore"):
        y = (x - x.mean(0)) / np.sqrt(variance + np.float32(1e-3))
    with pytest.raises(AssertionError):
        check_far(x, y, variance)


@pytest.mark.parametrize("ratio", [1e4, 1e6])
def test_peer_flax_fast_variance(ratio: float) -> None:
    x, layer = far(ratio), flax_layer(3, momentum=0.0)
    y = flax_step(layer, x)
    with pytest.raises(AssertionError):
        check_far(x, y, np.asarray(layer.var[...]))


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("library", LIBRARIES)
def test_our_variance_beside_a_large_mean(library: str, ratio: float) -> None:
    x = far(ratio)
    y, batch = ours(library, x)
    check_far(x, y, batch.variance)


# P3: one NaN or infinity.


def poisoned(value: float) -> np.ndarray:
    x = RNG.standard_normal((8, 3)).astype(np.float32)
    x[2, 1] = value
    return x


def check_unpoisoned(mean: Any, variance: Any) -> None:
    assert np.isfinite(mean).all()
    assert np.isfinite(variance).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_peer_torch_is_poisoned_for_ever(value: float) -> None:
    torch, layer = torch_layer(3)
    layer(torch.tensor(poisoned(value)))
    for _ in range(10):
        layer(torch.zeros(8, 3))
    with pytest.raises(AssertionError):
        check_unpoisoned(layer.running_mean.numpy(), layer.running_var.numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_peer_flax_is_poisoned_for_ever(value: float) -> None:
    layer = flax_layer(3)
    flax_step(layer, poisoned(value))
    flax_step(layer, np.zeros((8, 3), np.float32))
    with pytest.raises(AssertionError):
        check_unpoisoned(np.asarray(layer.mean[...]), np.asarray(layer.var[...]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("library", LIBRARIES)
def test_ours_skips_and_counts(library: str, value: float) -> None:
    x = poisoned(value)
    state = advanced(ours(library, x)[1], momentum=0.5)
    check_unpoisoned(state.mean, state.variance)
    assert state.skipped.tolist() == [0, 1, 0]
    assert (state.mean[1], state.variance[1]) == (0.0, 1.0)
    np.testing.assert_allclose(state.mean[[0, 2]], x[:, [0, 2]].mean(0) / 2, rtol=1e-5)


# P4: an empty batch.


def test_peer_flax_turns_nan_on_an_empty_batch() -> None:
    layer = flax_layer(3)
    flax_step(layer, np.zeros((0, 3), np.float32))
    with pytest.raises(AssertionError):
        check_unpoisoned(np.asarray(layer.mean[...]), np.asarray(layer.var[...]))


@pytest.mark.parametrize("policy", ["skip", "propagate", "raise"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_ours_takes_an_empty_batch_for_nothing(library: str, policy: Any) -> None:
    y, batch = ours(library, np.zeros((0, 3), np.float32))
    assert y.shape == (0, 3)
    state = advanced(batch, nonfinite=policy)
    assert (state.mean.tolist(), state.variance.tolist()) == ([0.0] * 3, [1.0] * 3)
    assert (state.updates.tolist(), state.skipped.tolist()) == ([0] * 3, [0] * 3)


# P5: masks.


def check_fully_masked(mean: Any, variance: Any) -> None:
    assert np.asarray(mean).tolist() == [0.0] * 3
    assert np.asarray(variance).tolist() == [1.0] * 3


def keras_masked_moments(x: np.ndarray, mask: np.ndarray, axes: Any) -> tuple[Any, Any]:
    """Keras 3's formula: one axis more at the mask's end, sums divided by sum(w) + 1e-7."""
    weights = np.broadcast_to(mask[..., None], x.shape).astype(np.float32)
    total = weights.sum(axes, keepdims=True) + 1e-7
    mean = (weights * x).sum(axes, keepdims=True) / total
    variance = (weights * (x - mean) ** 2).sum(axes, keepdims=True) / total
    return np.squeeze(mean, axes), np.squeeze(variance, axes)


def test_peer_keras_formula_moves_on_a_fully_masked_batch() -> None:
    x = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    mean, variance = keras_masked_moments(x, np.zeros((4, 5), bool), (0, 1))
    with pytest.raises(AssertionError):
        check_fully_masked(0.01 * mean, 0.99 + 0.01 * variance)


def test_peer_flax_turns_nan_on_a_fully_masked_batch() -> None:
    layer = flax_layer(3)
    x = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    flax_step(layer, x, mask=np.zeros((4, 5, 1), bool))
    with pytest.raises(AssertionError):
        check_fully_masked(layer.mean[...], layer.var[...])


@pytest.mark.parametrize("library", LIBRARIES)
def test_ours_takes_a_fully_masked_batch_for_nothing(library: str) -> None:
    x = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    y, batch = ours(library, x, weights=np.zeros((4, 5), bool))
    state = advanced(batch)
    check_fully_masked(state.mean, state.variance)
    assert np.isfinite(y).all()


def check_masked_first(x: np.ndarray, mask: np.ndarray, mean: Any, variance: Any) -> None:
    """(N, C, T) with axis=1 and a mask (N, T): the statistics of the elements that are kept."""
    kept = x.astype(np.float64).transpose(0, 2, 1)[mask]
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, kept.var(0), rtol=1e-5)


def masked_first() -> tuple[np.ndarray, np.ndarray]:
    # As many channels as steps, so that a mask for the one also fits the other.
    x = RNG.standard_normal((4, 5, 5)).astype(np.float32) * 3 + 1
    return x, RNG.uniform(size=(4, 5)) < 0.6


def test_peer_keras_formula_masks_channels_first() -> None:
    x, mask = masked_first()
    mean, variance = keras_masked_moments(x, mask, (0, 2))
    with pytest.raises(AssertionError):
        check_masked_first(x, mask, mean, variance)


@pytest.mark.parametrize("library", LIBRARIES)
def test_ours_masks_any_axis(library: str) -> None:
    x, mask = masked_first()
    _, batch = ours(library, x, weights=mask, axis=1)
    check_masked_first(x, mask, batch.mean, batch.variance)


@pytest.mark.parametrize("library", LIBRARIES)
def test_ours_masks_one_channel(library: str) -> None:
    x, mask = RNG.standard_normal((4, 5, 1)).astype(np.float32), RNG.uniform(size=(4, 5)) < 0.6
    _, batch = ours(library, x, weights=mask)
    np.testing.assert_allclose(batch.mean, [x[mask].mean()], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.variance, [x[mask].var()], rtol=1e-5)


# P7, P8: what a stored variance averages, and which value a momentum multiplies.

BATCHES = [(RNG.standard_normal((5, 3)) * (1 + k) + k).astype(np.float32) for k in range(4)]


def trained_torch() -> tuple[np.ndarray, np.ndarray]:
    torch, layer = torch_layer(3, momentum=0.25)
    for x in BATCHES:
        layer(torch.tensor(x))
    return layer.running_mean.numpy(), layer.running_var.numpy()


def trained_flax() -> tuple[np.ndarray, np.ndarray]:
    layer = flax_layer(3, momentum=0.25)
    for x in BATCHES:
        flax_step(layer, x)
    return np.asarray(layer.mean[...]), np.asarray(layer.var[...])


def trained_tf1_fused() -> tuple[np.ndarray, np.ndarray]:
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    mean, variance = np.zeros(3), np.ones(3)
    for x in BATCHES:
        image = tf.reshape(x, [5, 1, 1, 3])
        _, m, v = tf.compat.v1.nn.fused_batch_norm(image, tf.ones(3), tf.zeros(3))
        mean, variance = 0.25 * mean + 0.75 * m.numpy(), 0.25 * variance + 0.75 * v.numpy()
    return mean, variance


PEERS = {"torch": trained_torch, "flax": trained_flax, "tf1_fused": trained_tf1_fused}


def trained_oracle(momentum: float | None, stored: Any) -> tuple[np.ndarray, np.ndarray]:
    spec, state = BatchNormSpec(momentum=momentum, stored_variance=stored), oracle.start((3,))
    for x in BATCHES:
        state = oracle.train_step(x, state, spec).state
    return state.mean, state.variance


def check_same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("peer", PEERS)
def test_our_translation_of_momentum_and_variance(peer: str) -> None:
    """0.25 in every framework's own sense, translated by the one table."""
    theirs, convention = PEERS[peer](), CONVENTIONS[peer]
    check_same(trained_oracle(convention.to_old_weight(0.25), convention.stored_variance), theirs)


@pytest.mark.parametrize("peer", PEERS)
def test_peer_variance_untranslated(peer: str) -> None:
    theirs, convention = PEERS[peer](), CONVENTIONS[peer]
    other = "population" if convention.stored_variance == "sample" else "sample"
    with pytest.raises(AssertionError):
        check_same(trained_oracle(convention.to_old_weight(0.25), other), theirs)


@pytest.mark.parametrize("peer", PEERS)
def test_peer_momentum_untranslated(peer: str) -> None:
    theirs, convention = PEERS[peer](), CONVENTIONS[peer]
    wrong = 0.25 if convention.momentum_weighs == "new" else 0.75
    with pytest.raises(AssertionError):
        check_same(trained_oracle(wrong, convention.stored_variance), theirs)


@pytest.mark.parametrize("peer", PEERS)
def test_a_stored_variance_is_translated_by_its_factor(peer: str) -> None:
    """With no weight on the start, one stored variance becomes the other by n / (n - 1)."""
    convention = CONVENTIONS[peer]
    for stored in ("population", "sample"):
        _, mine = trained_oracle(0.0, stored)
        _, same = trained_oracle(0.0, convention.stored_variance)
        np.testing.assert_allclose(mine * convention.variance_factor(stored, 5), same, rtol=1e-12)
