"""When `homeostat.ops.jax` takes the CPU kernels, and what they must not change."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import homeostat

jax = pytest.importorskip("jax")
pytest.importorskip("numba", reason="the CPU kernels need numba")
if jax.default_backend() != "cpu":
    pytest.skip("of the CPU", allow_module_level=True)
jnp = jax.numpy
xla = pytest.importorskip("homeostat.kernels.xla")
ops = pytest.importorskip("homeostat.ops.jax")

LEAKY = {"name": "leaky_relu", "negative_slope": 0.3}
LARGE = (64, 8, 8, 16)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.statistics, "LEAST", 1)


def draw(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def step(x: Any, gamma: Any, beta: Any, dy: Any, **options: Any) -> Any:
    def loss(*arguments: Any) -> Any:
        y, batch = ops.normalize_batch(*arguments, **options)
        return jnp.sum(y * dy), batch

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, gamma, beta)


def arguments(*shape: int) -> tuple[Any, ...]:
    channels = shape[-1]
    return draw(*shape), draw(channels, seed=1), draw(channels, seed=2), draw(*shape, seed=3)


def calls(x: Any, *, platform: str = "cpu", **options: Any) -> int:
    """Return how many calls of kernels a step compiles to."""
    gamma = jnp.ones(x.shape[options.get("axis", -1)])
    traced = jax.jit(lambda x: step(x, gamma, gamma, x, **options)).trace(x)
    return traced.lower(lowering_platforms=(platform,)).as_text().count(f"@{xla.TARGET}")


@pytest.mark.parametrize("activation", [None, "relu"])
def test_kernels_are_taken_for_large_rows_of_channels(activation: Any) -> None:
    assert calls(jnp.ones(LARGE), activation=activation) == 2


@pytest.mark.parametrize(
    ("x", "options"),
    [
        pytest.param(jnp.ones((8, 8)), {}, id="small"),
        pytest.param(jnp.ones(LARGE, jnp.bfloat16), {}, id="bfloat16"),
        pytest.param(jnp.ones(LARGE), {"axis": 1}, id="channels-first"),
        pytest.param(jnp.ones(LARGE), {"weights": jnp.ones(64)}, id="weights"),
        pytest.param(jnp.ones(LARGE), {"platform": "tpu"}, id="another-platform"),
    ],
)
def test_kernels_are_not_taken_for_others(x: Any, options: dict[str, Any]) -> None:
    assert calls(x, **options) == 0


def test_the_switch_turns_them_off() -> None:
    with homeostat.kernels(False):
        assert calls(jnp.ones(LARGE)) == 0


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"activation": LEAKY}], ids=str)
@pytest.mark.parametrize("shape", [(4096, 64), (640, 9, 9, 30), (513, 1030)], ids=str)
def test_large_steps_equal_those_without(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    given = arguments(*shape)
    with_kernels = jax.jit(lambda *given: step(*given, **options))(*given)
    with homeostat.kernels(False):
        without = jax.jit(lambda *given: step(*given, **options))(*given)
    scale = np.sqrt(given[0].size / shape[-1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * scale),
        with_kernels,
        without,
    )


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "options", [{}, {"activation": LEAKY}, {"activation": "relu", "residual": True}], ids=str
)
def test_gradients_of_gradients_equal_those_without(options: dict[str, Any]) -> None:
    given = arguments(16, 3, 4)
    if "residual" in options:
        options = {**options, "residual": draw(16, 3, 4, seed=4)}
    direction = draw(16, 3, 4, seed=5)

    def second(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        gradients = step(x, gamma, beta, jnp.sin(dy), **options)[1]
        return jnp.sum(gradients[0] * direction) + jnp.sum(gradients[1] * gradients[2])

    differentiated = jax.grad(second, (0, 1, 2, 3))
    actual = jax.jit(differentiated)(*given)
    with homeostat.kernels(False):
        expected = differentiated(*given)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("always")
def test_vmap_scan_and_checkpoint() -> None:
    x, gamma, beta, dy = (jnp.stack([a, a[::-1] + 1, 2 * a]) for a in arguments(24, 5))

    def one(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        return jax.checkpoint(lambda *given: step(*given, activation="relu"))(x, gamma, beta, dy)

    mapped = jax.jit(jax.vmap(one))(x, gamma, beta, dy)
    scanned = jax.lax.scan(lambda _, given: (0, one(*given)), 0, (x, gamma, beta, dy))[1]
    alone = [step(*given, activation="relu") for given in zip(x, gamma, beta, dy, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    for actual in (mapped, scanned):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected
        )


def test_outside_of_jit() -> None:
    x = draw(*LARGE)
    batch = ops.moments(x)
    np.testing.assert_allclose(batch.mean, np.mean(x, (0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(batch.variance, np.var(x, (0, 1, 2)), rtol=1e-5)


def test_many_steps_at_once() -> None:
    given = arguments(8192, 64)
    run = jax.jit(lambda *given: step(*given, activation="relu"))
    expected = jax.tree.leaves(run(*given))
    for found in [run(*given) for _ in range(50)]:
        for a, b in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_runtime_that_they_do_not_fit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla, "moments", lambda x: jnp.zeros((2, 2)))
    monkeypatch.setattr(xla, "available", xla.available.__wrapped__)
    with pytest.warns(homeostat.HomeostatWarning, match="something else.*kernels.False."):
        assert calls(jnp.ones(LARGE)) == 0


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


DIGEST = """
    import hashlib, os
    if ONE_THREAD:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax, jax.numpy as jnp, numpy as np
    from homeostat.kernels import xla
    assert xla.available()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((100_003, 24), dtype=np.float32))
    mean = jnp.mean(x, 0)
    sums = jax.jit(lambda x: (xla.moments(x), xla.gradient_sums(x, x, mean, slope=0.0, y=x)))(x)
    print(hashlib.sha256(b"".join(np.asarray(s).tobytes() for s in sums)).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are limited by Linux")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    one, all_of_them = (run(DIGEST.replace("ONE_THREAD", value)) for value in ("True", "False"))
    assert one == all_of_them


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from homeostat.ops import jax as ops
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32))
    halves = NamedSharding(Mesh(np.array(jax.devices()), ("i",)), P("i"))
    compiled = jax.jit(ops.moments).lower(jax.device_put(x, halves)).compile()
    assert "homeostat_channel_sums" not in compiled.as_text()
    batch = compiled(jax.device_put(x, halves))
    np.testing.assert_allclose(batch.variance, np.var(x, 0), rtol=1e-5)
    print(jax.device_count())
"""


def test_several_devices_share_the_work_as_xla_divides_it() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    assert run(SHARDED, XLA_FLAGS=flags) == "2"
