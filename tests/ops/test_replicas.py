"""Statistics over replicas: uneven shards give what one batch of all of them gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from homeostat import reference
from tests.ops.adapters import adapter

EPSILON = 1e-3


class Replicas:
    """Threads that sum their arrays when all of them have come."""

    def __init__(self, number: int) -> None:
        self.arrays: list[Any] = [None] * number
        self.barrier = threading.Barrier(number, timeout=60)

    def all_reduce(self, rank: int) -> Callable[[Any], Any]:
        def summed(array: Any) -> Any:
            self.arrays[rank] = array
            self.barrier.wait()
            total = sum(self.arrays[1:], self.arrays[0])
            self.barrier.wait()
            return total

        return summed

    def run(self, step: Callable[[int, Any], Any]) -> list[Any]:
        found: list[Any] = [None] * len(self.arrays)

        def work(rank: int) -> None:
            try:
                found[rank] = step(rank, self.all_reduce(rank))
            except BaseException as error:
                found[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
        return found


def draw(rows: tuple[int, ...], offset: float) -> tuple[Any, ...]:
    rng = np.random.default_rng(sum(rows))
    shape = (sum(rows), 4, 3)
    x = rng.standard_normal(shape) * 1.5 + offset * np.arange(sum(rows))[:, None, None]
    arrays = (x, rng.standard_normal(shape), rng.uniform(0.5, 2.0, 3), rng.standard_normal(3))
    mask = rng.uniform(size=shape[:2]) < 0.7
    return *(a.astype(np.float32).astype(np.float64) for a in arrays), mask


def check(found: list[Any], rows: tuple[int, ...], arrays: Any, *, masked: bool) -> None:
    x, dy, gamma, beta, mask = arrays
    weights = mask if masked else None
    y, batch = reference.normalize_batch(x, gamma, beta, weights=weights, epsilon=EPSILON)
    whole = reference.backward(dy, x, gamma, beta, weights=weights, epsilon=EPSILON)
    x_hat = (x - batch.mean) / np.sqrt(batch.variance + EPSILON)
    start = 0
    for size, (their_y, moments, gradients) in zip(rows, found, strict=True):
        mine = slice(start, start + size)
        start += size
        # dgamma and dbeta are summed over replicas by whoever sums all gradients.
        expected = {
            "x": whole.x[mine],
            "gamma": (dy * x_hat)[mine].sum((0, 1)),
            "beta": dy[mine].sum((0, 1)),
        }
        np.testing.assert_allclose(their_y, y[mine], rtol=1e-5, atol=2e-5)
        for actual, part in zip(moments, batch, strict=True):
            np.testing.assert_allclose(np.broadcast_to(actual, part.shape), part, rtol=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [(6, 3), (5, 0), (2, 1, 4)])
@pytest.mark.parametrize("library", ["numpy", "tensorflow", "torch"])
def test_uneven_replicas_are_one_batch(library: str, rows: tuple[int, ...], masked: bool) -> None:
    lib = adapter(library)
    arrays = draw(rows, offset=2.0)
    shards = [np.split(a, np.cumsum(rows)[:-1]) for a in (arrays[0], arrays[1], arrays[4])]

    def step(rank: int, all_reduce: Any) -> Any:
        x, dy = (lib.array(shards[part][rank], "float32") for part in (0, 1))
        inputs = {
            "x": x,
            "gamma": lib.array(arrays[2], "float32"),
            "beta": lib.array(arrays[3], "float32"),
            "residual": None,
            "weights": lib.array(shards[2][rank], "bool") if masked else None,
        }

        def function(**given: Any) -> Any:
            return lib.ops.normalize_batch(**given, epsilon=EPSILON, all_reduce=all_reduce)

        y, batch, gradients = lib.run(function, inputs, dy, "eager")
        return (
            lib.values(y),
            [lib.values(part) for part in batch],
            {name: lib.values(gradient) for name, gradient in gradients.items()},
        )

    check(Replicas(len(rows)).run(step), rows, arrays, masked=masked)


@pytest.mark.parametrize("masked", [False, True])
def test_jax_devices_are_one_batch(masked: bool) -> None:
    """By a mapped axis; its shards are of one size, and masks make them uneven."""
    lib, rows = adapter("jax"), (4, 4)
    jax = lib.jax
    arrays = draw(rows, offset=2.0)
    x, dy, mask = (np.stack(np.split(arrays[part], 2)) for part in (0, 1, 4))
    gamma, beta = (lib.array(arrays[part], "float32") for part in (2, 3))

    def step(x: Any, dy: Any, mask: Any) -> Any:
        def function(x: Any, gamma: Any, beta: Any) -> Any:
            return lib.ops.normalize_batch(
                x, gamma, beta, epsilon=EPSILON, weights=mask if masked else None,
                all_reduce=lambda array: jax.lax.psum(array, "replicas"),
            )  # fmt: skip

        y, pull, batch = jax.vjp(function, x, gamma, beta, has_aux=True)
        count = jax.numpy.asarray(batch.count, "float32")
        return y, (count, batch.mean, batch.variance), pull(dy)

    y, moments, gradients = jax.vmap(step, axis_name="replicas")(
        lib.array(x, "float32"), lib.array(dy, "float32"), lib.array(mask, "bool")
    )
    found = [
        (
            lib.values(y[rank]),
            [lib.values(part[rank]) for part in moments],
            {
                n: lib.values(g[rank])
                for n, g in zip(("x", "gamma", "beta"), gradients, strict=True)
            },
        )
        for rank in range(2)
    ]
    check(found, rows, arrays, masked=masked)


@pytest.mark.parametrize("library", ["numpy", "tensorflow", "torch"])
def test_moments_alone_are_reduced(library: str) -> None:
    lib = adapter(library)
    rows, arrays = (6, 3), draw((6, 3), offset=5.0)
    shards = np.split(arrays[0], [6])

    def step(rank: int, all_reduce: Any) -> Any:
        batch = lib.ops.moments(lib.array(shards[rank], "float32"), all_reduce=all_reduce)
        return [lib.values(part) for part in batch]

    expected = reference.moments(arrays[0])
    for found in Replicas(len(rows)).run(step):
        for actual, part in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.broadcast_to(actual, part.shape), part, rtol=1e-5)
