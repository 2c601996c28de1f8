"""What is particular to `homeostat.ops.jax`: transformations, memory, replicas, conditioning."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from homeostat import reference
from homeostat.moments import Moments

jax = pytest.importorskip("jax")
jnp = jax.numpy
ops = pytest.importorskip("homeostat.ops.jax")

EPSILON = 1e-2


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def plain(x, gamma, beta, *, weights=None, slope=None, residual=None):
    """The formula, for automatic differentiation; channels last, weights of the batch axis."""
    axes = tuple(range(x.ndim - 1))
    w = jnp.ones(x.shape[0]) if weights is None else weights
    w = jnp.broadcast_to(w.reshape(-1, *[1] * (x.ndim - 1)), (*x.shape[:-1], 1))
    mean = jnp.sum(w * x, axes) / jnp.sum(w)
    variance = jnp.sum(w * (x - mean) ** 2, axes) / jnp.sum(w)
    z = gamma * (x - mean) / jnp.sqrt(variance + EPSILON) + beta
    z = z if residual is None else z + residual
    return z if slope is None else jnp.where(z > 0, z, slope * z)


LEAKY = {"name": "leaky_relu", "negative_slope": 0.3}
OPTIONS = [
    pytest.param({}, {}, id="bare"),
    pytest.param({"activation": LEAKY}, {"slope": 0.3}, id="leaky"),
    pytest.param({"activation": "relu", "residual": True}, {"slope": 0.0}, id="relu-residual"),
    pytest.param({"weights": True}, {}, id="weights"),
]


def losses(options: dict[str, Any], plain_options: dict[str, Any], *, given: bool = False):
    """Return our scalar loss and the plain one, of (x, gamma, beta)."""
    arrays: dict[str, Any] = {}
    if options.get("residual"):
        arrays["residual"] = draw(6, 2, 3, seed=5)
    if options.get("weights"):
        arrays["weights"] = jnp.asarray([1.0, 0.0, 2.0, 0.5, 1.0, 0.0])
    dy = draw(6, 2, 3, seed=6)

    def ours(x, gamma, beta):
        batch = ops.moments(x, weights=arrays.get("weights")) if given else None
        y, _ = ops.normalize_batch(
            x, gamma, beta, epsilon=EPSILON, batch=batch, **{**options, **arrays}
        )
        return jnp.sum(jnp.sin(y) * dy)

    def expected(x, gamma, beta):
        return jnp.sum(jnp.sin(plain(x, gamma, beta, **plain_options, **arrays)) * dy)

    return ours, expected


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
@pytest.mark.parametrize(("options", "plain_options"), OPTIONS)
def test_gradients_of_gradients_equal_automatic_differentiation(options, plain_options, given):
    ours, expected = losses(options, plain_options, given=given)
    arguments = draw(6, 2, 3), draw(3, seed=1), draw(3, seed=2)
    direction = draw(6, 2, 3, seed=3)

    def second(loss):
        def along(*arguments):
            gradients = jax.grad(loss, (0, 1, 2))(*arguments)
            return jnp.sum(gradients[0] * direction) + jnp.sum(gradients[1] * gradients[2])

        return along

    for level in (lambda f: f, second, lambda f: second(second(f))):
        actual = jax.jit(jax.grad(level(ours), (0, 1, 2)))(*arguments)
        for a, b in zip(actual, jax.grad(level(expected), (0, 1, 2))(*arguments), strict=True):
            scale = float(jnp.max(jnp.abs(b)))
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.usefixtures("x64")
def test_gradients_of_gradients_equal_finite_differences() -> None:
    ours, _ = losses({"activation": LEAKY}, {})
    x, gamma, beta = draw(6, 2, 3), draw(3, seed=1), draw(3, seed=2)
    direction, step = draw(6, 2, 3, seed=3), 1e-5
    gradient = jax.grad(ours)
    actual = jax.grad(lambda x: jnp.sum(gradient(x, gamma, beta) * direction))(x)
    ahead, behind = (gradient(x + s * direction, gamma, beta) for s in (step, -step))
    np.testing.assert_allclose(actual, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_inference_sends_gradients_to_mean_and_variance() -> None:
    x, dy = draw(6, 2, 3), draw(6, 2, 3, seed=1)
    channels = [draw(3, seed=2), draw(3, seed=3) ** 2, draw(3, seed=4), draw(3, seed=5)]

    def ours(x, *channels):
        return jnp.sum(ops.normalize(x, *channels, epsilon=EPSILON, activation=LEAKY) * dy)

    def expected(x, mean, variance, gamma, beta):
        z = (x - mean) / jnp.sqrt(variance + EPSILON) * gamma + beta
        return jnp.sum(jnp.where(z > 0, z, 0.3 * z) * dy)

    everything = tuple(range(5))
    actual = jax.grad(ours, everything)(x, *channels)
    for a, b in zip(actual, jax.grad(expected, everything)(x, *channels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["near", "far"])
def test_vmap_equals_one_call_each(offset: float) -> None:
    # With both the data that need the mean corrected and those that do not, in one map.
    x = draw(4, 8, 2, 3, dtype=np.float32) + offset * jnp.arange(4.0).reshape(4, 1, 1, 1)
    gamma, beta = draw(4, 3, seed=1, dtype=np.float32), draw(4, 3, seed=2, dtype=np.float32)
    dy = draw(4, 8, 2, 3, seed=3, dtype=np.float32)

    def step(x, gamma, beta, dy):
        def loss(*arguments):
            y, batch = ops.normalize_batch(*arguments, activation="relu")
            return jnp.sum(y * dy), (y, batch.mean, batch.variance)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, gamma, beta)

    mapped = jax.jit(jax.vmap(step))(x, gamma, beta, dy)
    alone = [step(*arguments) for arguments in zip(x, gamma, beta, dy, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), mapped, stacked
    )


def test_scan_and_checkpoint_keep_the_gradient() -> None:
    x, gammas = draw(16, 5, dtype=np.float32), draw(3, 5, seed=1, dtype=np.float32)

    def layer(x, gamma):
        return ops.normalize_batch(x + jnp.sin(x), gamma, activation=LEAKY)[0]

    def unrolled(x, gammas):
        for gamma in gammas:
            x = layer(x, gamma)
        return jnp.sum(x**3)

    def scanned(x, gammas, layer=layer):
        return jnp.sum(jax.lax.scan(lambda x, gamma: (layer(x, gamma), None), x, gammas)[0] ** 3)

    def remade(x, gammas):
        return scanned(x, gammas, jax.checkpoint(layer))

    expected = jax.grad(unrolled, (0, 1))(x, gammas)
    for loss in (scanned, remade):
        actual = jax.jit(jax.grad(loss, (0, 1)))(x, gammas)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"activation": "relu"}, 1),
        ({"weights": jnp.arange(64) % 2}, 1),
        ({"residual": True}, 1),
        ({"residual": True, "activation": "relu"}, 2),
    ],
    ids=["bare", "relu", "weights", "residual", "residual-relu"],
)
def test_backward_keeps_x_and_little_else(options, expected, dtype) -> None:
    x = draw(64, 4, 8).astype(dtype)
    if "residual" in options:
        options = {**options, "residual": x + 1}
    gamma = jnp.ones(8)

    def call(x, gamma):
        return ops.normalize_batch(x, gamma, gamma, **options)[0]

    _, backward = jax.vjp(call, x, gamma)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [x.dtype] * expected


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU's compiler")
@pytest.mark.parametrize("activation", [None, "relu"])
def test_compiled_step_takes_no_further_tensor_of_the_size_of_x(activation) -> None:
    x, channels = jnp.ones((64, 28, 28, 16)), jnp.ones(16)

    def loss(x, gamma, beta, dy):
        y, batch = ops.normalize_batch(x, gamma, beta, activation=activation)
        return jnp.sum(y * dy), (y, batch)

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    compiled = step.lower(x, channels, channels, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 4


def test_moments_are_detached() -> None:
    x = draw(6, 3, dtype=np.float32)

    def of_moments(x):
        batch = ops.normalize_batch(x)[1]
        own = ops.moments(x)
        return sum(jnp.sum(m.mean + m.variance) for m in (batch, own))

    assert not jax.grad(of_moments)(x).any()


def test_forward_mode_is_refused() -> None:
    x = draw(6, 3, dtype=np.float32)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: ops.normalize_batch(x)[0], (x,), (x,))


def test_count_is_a_number_where_it_is_known() -> None:
    x = draw(6, 2, 3, dtype=np.float32)
    assert ops.moments(x).count == 12
    assert isinstance(ops.moments(x).count, int)
    assert ops.moments(x, weights=jnp.arange(6)).count.shape == ()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((100352, 64), -1), ((8, 5, 112, 112), 1), ((300000, 1), -1), ((20000, 3, 8), 1)],
    ids=str,
)
@pytest.mark.parametrize("ratio", [0.0, 1e1, 1e3, 1e4, 1e6])
def test_variance_of_many_elements_is_exact(shape, axis, ratio, compiled) -> None:
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32) + np.float32(ratio)
    expected = reference.moments(x, axis)
    take = jax.jit(lambda x: ops.moments(x, axis)) if compiled else lambda x: ops.moments(x, axis)
    batch = take(jnp.asarray(x))
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=2e-6)
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=3e-7, atol=1e-6)


def test_variance_does_not_depend_on_the_order_of_the_elements() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((50000, 4), dtype=np.float32) * 100 + 1
    x[:, 1] = np.sort(x[:, 1]) + 3000  # drifts
    x[:, 2] = np.where(np.arange(50000) < 49000, 0, x[:, 2])  # almost always zero, at first
    x[0, 3] = 1e6  # begins with an outlier
    expected = reference.moments(x)
    np.testing.assert_allclose(ops.moments(x).variance, expected.variance, rtol=2e-6)


def test_one_channel_that_is_not_finite_leaves_the_others_exact() -> None:
    x = np.random.default_rng(3).standard_normal((64, 3), dtype=np.float32) + np.float32(1e4)
    x[5, 1] = np.nan
    batch = ops.moments(x)
    assert np.isnan(batch.mean[1])
    assert np.isnan(batch.variance[1])
    expected = reference.moments(x[:, ::2])
    np.testing.assert_allclose(np.asarray(batch.variance)[::2], expected.variance, rtol=2e-6)


def test_masked_nan_without_gradient_of_its_own_stays_where_it_is() -> None:
    x = np.random.default_rng(4).standard_normal((8, 3), dtype=np.float32)
    x[6:] = np.nan
    mask = np.arange(8) < 6

    def loss(x, gamma):
        y, _ = ops.normalize_batch(x, gamma, weights=mask)
        return jnp.sum(jnp.where(mask[:, None], y, 0) ** 3)

    dx, dgamma = jax.jit(jax.grad(loss, (0, 1)))(x, jnp.ones(3))
    assert np.isfinite(dx).all()
    assert np.isfinite(dgamma).all()
    assert not dx[6:].any()


def test_relu_of_minus_infinity_is_zero() -> None:
    infinite = jnp.full((2, 1), -jnp.inf)
    y = ops.normalize(infinite, jnp.zeros(1), jnp.ones(1), activation="relu")
    assert y.tolist() == [[0.0], [0.0]]


REPLICAS = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, PartitionSpec as P
    from homeostat import reference
    from homeostat.ops import jax as ops

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 8, 3, 4))
    x, gamma, beta = x * 2 + 5, *rng.standard_normal((2, 4))

    def step(x, dy, weights, gamma, beta):
        def loss(x, gamma, beta):
            y, batch = ops.normalize_batch(
                x, gamma, beta, weights=weights, activation="relu",
                all_reduce=lambda a: jax.lax.psum(a, "i"),
            )
            return jnp.sum(y * dy), (y, batch)
        differentiated = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        (_, (y, batch)), gradients = differentiated(x, gamma, beta)
        return y, batch, gradients

    def check(y, batch, dx, dgamma, dbeta):
        options = {"weights": weights, "activation": "relu"}
        expected, moments = reference.normalize_batch(x, gamma, beta, **options)
        gradients = reference.backward(dy, x, gamma, beta, **options)
        for a, b in zip(
            (y, batch.count, batch.mean, batch.variance, dx, dgamma, dbeta),
            (expected, moments.count[0], *moments[1:], *gradients[:3]), strict=True,
        ):
            np.testing.assert_allclose(np.reshape(a, np.shape(b)), b, rtol=1e-10, atol=1e-11)

    # None of replica 1's elements count in the last.
    for weights in (np.ones(8), np.array([1, 1, 1, 2, 1, 0, 0, 0.0]), np.arange(8) < 4):
        parts = [a.reshape(2, 4, *a.shape[1:]) for a in (x, dy, weights)]
        y, batch, (dx, dgamma, dbeta) = jax.pmap(
            step, axis_name="i", in_axes=(0, 0, 0, None, None)
        )(*parts, gamma, beta)
        first = type(batch)(*(a[0] for a in batch))
        check(y, first, dx, dgamma.sum(0), dbeta.sum(0))
        for checked in (False, True):
            # Checked, shard_map sums the gradients of what all replicas share by itself.
            local = P() if checked else P("i")
            y, batch, (dx, dgamma, dbeta) = jax.jit(jax.shard_map(
                step, mesh=Mesh(np.array(jax.devices()), ("i",)), check_vma=checked,
                in_specs=(P("i"), P("i"), P("i"), P(), P()),
                out_specs=(P("i"), P(), (P("i"), local, local)),
            ))(x, dy, weights, gamma, beta)
            if not checked:
                dgamma, dbeta = dgamma.reshape(2, 4).sum(0), dbeta.reshape(2, 4).sum(0)
            check(y, batch, dx, dgamma, dbeta)
    print("equal", jax.device_count())
"""


def test_two_replicas_equal_one_batch() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(REPLICAS)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == ["equal", "2"], done.stderr


def test_moments_given_are_used() -> None:
    x = draw(6, 3, dtype=np.float32)
    given = Moments(6, jnp.ones(3), jnp.full(3, 4.0))
    y, batch = ops.normalize_batch(x, batch=given, epsilon=0.0)
    np.testing.assert_allclose(y, (x - 1) / 2, rtol=1e-6)
    assert batch.count == 6
    assert batch.mean.tolist() == [1.0] * 3
