"""Batch norm by the loops, against the oracle: odd shapes, every dtype, hard data, any threads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from homeostat import reference

numba = pytest.importorskip("numba", reason="the CPU kernels need numba")
batchnorm = pytest.importorskip("homeostat.kernels.batchnorm")
elements = pytest.importorskip("homeostat.kernels.elements")
conversions = pytest.importorskip("homeostat.kernels.halves")
vectors = pytest.importorskip("homeostat.kernels.vectors")

# (outer, channels, inner): single elements, odd sizes, several parts, lines of several pieces.
SHAPES = [
    (1, 1, 1), (2, 5, 1), (33, 7, 1), (129, 255, 1), (7, 1500, 1), (9001, 64, 1), (200_001, 3, 1),
    (1, 3, 2), (5, 3, 7), (3, 17, 49), (2, 3, 2049), (40, 30, 196), (1, 2, 140_001),
]  # fmt: skip
FUSED = [(None, False), (0.0, False), (0.25, False), (None, True), (0.0, True), (0.25, True)]
# The dtype of a flat buffer, how to make one and how to read it.
BITS = {"float16": np.uint16, "bfloat16": np.int16}
TOLERANCES = {"float64": 1e-12, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


class Outcome(NamedTuple):
    y: np.ndarray
    dx: np.ndarray
    g: np.ndarray | None
    dgamma: np.ndarray
    dbeta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)
    made = np.ascontiguousarray(values.astype(dtype))
    return made.view(BITS.get(dtype, made.dtype))


def from_bits(buffer: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        wide = buffer.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).astype(np.float64)
    return buffer.view(dtype).astype(np.float64)


def on_a_line(array: np.ndarray) -> np.ndarray:
    """Return a copy that starts on a line of the cache."""
    room = np.empty(array.size + 64, array.dtype)
    first = -room.ctypes.data % 64 // room.itemsize
    copy = room[first : first + array.size]
    copy[:] = array
    return copy


def poisoned(like: np.ndarray) -> np.ndarray:
    """Return a buffer full of NaN: what is not written is seen."""
    value = {"u": 0x7E00, "i": 0x7FC0}.get(like.dtype.kind, np.nan)
    return on_a_line(np.full(like.size, value, like.dtype))


def address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


def plan_of(x: np.ndarray, shape: tuple[int, ...]) -> Any:
    return batchnorm.plan_of(x.dtype.name, batchnorm.Shape(*shape))


def moments(x: np.ndarray, shape: tuple[int, ...], threads: int) -> list[np.ndarray]:
    batch = batchnorm.Batch(plan_of(x, shape))
    batch.find_moments(address(x), 0, 0, threads)
    return list(batch.moments)


def step(
    shape: tuple[int, ...], x: Any, dy: Any, residual: Any, gamma: Any, beta: Any,
    slope: float | None, threads: int,
) -> Outcome:  # fmt: skip
    batch = batchnorm.Batch(plan_of(x, shape), 1e-3, slope)
    kind = batchnorm.statistics_dtype(x.dtype.name)
    gamma, beta = (None if t is None else t.astype(kind) for t in (gamma, beta))
    results, sums = np.full((2, 2, shape[1]), np.nan, kind)
    y, dx = poisoned(x), poisoned(x)
    mean, variance = map(address, results)
    held = (x, residual, y, gamma, beta)
    batch.train(*map(address, held), threads, mean=mean, variance=variance)
    np.testing.assert_array_equal(results, batch.moments.astype(kind))
    both = residual is not None and slope is not None
    g = poisoned(x) if both else None
    batch.gradients(*map(address, (x, dy, y if both else None, dx, g, *sums)), threads)
    return Outcome(y, dx, g, *sums, *batch.moments)


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [to_bits(rng.normal(0.5, 2.0, np.prod(shape)), dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("slope", "with_residual"), FUSED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_equals_the_oracle(shape: Any, slope: Any, with_residual: bool, dtype: str) -> None:
    x, dy, residual = draw(shape, dtype)
    gamma, beta = np.random.default_rng(1).normal(size=(2, shape[1]))
    wide = [from_bits(t, dtype).reshape(shape) for t in (x, dy, residual)]
    options: dict[str, Any] = {"axis": 1, "epsilon": 1e-3}
    options["residual"] = wide[2] if with_residual else None
    if slope is not None:
        z, _ = reference.normalize_batch(wide[0], gamma, beta, **options)
        # Nearer to the kink than rounding, an output may fall on either side.
        wide[1][np.abs(z) < 10 * TOLERANCES[dtype]] = 0
        dy = to_bits(wide[1].ravel(), dtype)
        name = {"name": "leaky_relu", "negative_slope": slope}
        options["activation"] = name if slope else "relu"
    found = step(shape, x, dy, residual if with_residual else None, gamma, beta, slope, 2)
    expected, batch = reference.normalize_batch(wide[0], gamma, beta, **options)
    exact = reference.backward(wide[1], wide[0], gamma, beta, **options)
    tolerance = TOLERANCES[dtype]
    close(from_bits(found.y, dtype), expected.ravel(), tolerance)
    close(from_bits(found.dx, dtype), exact.x.ravel(), tolerance)
    close(found.dgamma, exact.gamma, tolerance, np.sqrt(batch.count).max())
    close(found.dbeta, exact.beta, tolerance, np.sqrt(batch.count).max())
    close(found.mean, batch.mean, 1e-6)
    np.testing.assert_allclose(found.variance, batch.variance, rtol=1e-6, atol=1e-12)
    if found.g is not None:
        close(from_bits(found.g, dtype), exact.residual.ravel(), tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(9001, 64, 1), (999, 96, 1), (70, 2048, 1), (3, 5, 704)])
def test_writing_past_the_cache_writes_the_same(
    shape: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dy, residual = draw(shape, dtype)
    every = [step(shape, x, dy, r, None, None, 0.0, 2) for r in (None, residual)]
    for least in (1, 2**62):
        monkeypatch.setattr(batchnorm, "LEAST_PAST", least)
        batchnorm.plan_of.cache_clear()
        assert plan_of(x, shape).leaves_the_cache == (least == 1)
        for expected, r in zip(every, (None, residual), strict=True):
            found = step(shape, x, dy, r, None, None, 0.0, 2)
            for one, other in zip(expected, found, strict=True):
                assert one is other or one.tobytes() == other.tobytes()
    batchnorm.plan_of.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_of_long_lines_start_on_lines_of_the_cache(dtype: str) -> None:
    shape = (1, 4, 1_200_032)
    x, dy, _ = draw(shape, dtype)
    assert plan_of(x, shape).leaves_the_cache
    found = step(shape, x, dy, None, None, None, None, 2)
    assert not np.isnan(from_bits(found.dx, dtype)).any()
    wide = from_bits(x, dtype).reshape(shape)
    expected = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + 1e-3)
    close(from_bits(found.y, dtype), expected.ravel(), TOLERANCES[dtype])


def close(actual: Any, expected: Any, tolerance: float, scale: float = 1.0) -> None:
    scale = max(scale, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("channels", [*range(1, 71), 96, 128, 255, 256, 257, 300, 512, 1000, 2048])
def test_every_number_of_channels(channels: int) -> None:
    shape = (61, channels, 1)
    x, dy, _ = draw(shape, "float32")
    found = step(shape, x, dy, None, None, None, None, 1)
    exact = reference.backward(dy.reshape(shape), x.reshape(shape), axis=1, epsilon=1e-3)
    close(found.dx, exact.x.ravel(), 3e-6)
    close(found.dgamma, exact.gamma, 3e-6, 8.0)


# What costs other algorithms digits.


def outlier_first(x: np.ndarray) -> None:
    # At the start of every block of rows or segment, and of every part.
    x.reshape(-1)[:: 32 * 1024] = 1e6
    x.reshape(-1)[:7] = 1e6


def mostly_zero(x: np.ndarray) -> None:
    x[np.random.default_rng(1).random(x.shape) < 0.9] = 0


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("spoil", [None, outlier_first, mostly_zero])
@pytest.mark.parametrize("shape", [(100_352, 8, 1), (3001, 300, 1), (16, 3, 9000), (64, 20, 196)])
def test_the_variance_is_exact_whatever_the_data(shape: Any, spoil: Any, ratio: float) -> None:
    x = np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(ratio)
    if spoil is not None:
        spoil(x)
    mean, variance = moments(x.ravel(), shape, 2)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(variance, exact.var((0, 2)), rtol=1e-6)
    # The mean's error is small beside the standard deviation.
    off = np.abs(mean - exact.mean((0, 2))) / exact.std((0, 2))
    assert (off < 1e-7 * max(1.0, ratio)).all()


@pytest.mark.parametrize("shape", [(3000, 3, 1), (5, 3, 700)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(shape: Any) -> None:
    x, dy, _ = draw(shape, "float32")
    x.reshape(shape)[1, 1, 0] = np.inf
    found = step(shape, x, dy, None, None, None, 0.0, 2)
    for values in (found.y, found.dx):
        apart = values.reshape(shape)
        assert np.isfinite(apart[:, ::2]).all()
        assert not np.isfinite(apart[:, 1]).all()


def test_a_slope_of_0_stops_an_infinite_gradient_and_minus_0() -> None:
    x, dy = np.float32([3, -3, 1, -1]), np.float32([1, np.inf, 1, 1])
    found = step((4, 1, 1), x, dy, None, None, None, 0.0, 1)
    assert np.isfinite(found.dx).all()
    assert not np.signbit(found.y).any()


# Statistics that move.

MOMENTUM = 0.9


class Statistics(NamedTuple):
    mean: np.ndarray
    variance: np.ndarray
    updates: np.ndarray


def moving(x: np.ndarray, shape: tuple[int, ...]) -> Statistics:
    start = np.random.default_rng(2).normal(1.0, 0.1, (2, shape[1]))
    return Statistics(*start.astype(batchnorm.statistics_dtype(x.dtype.name)), np.array([7]))


def train(
    x: np.ndarray, shape: tuple[int, ...], statistics: Statistics, threads: int = 1
) -> tuple[Any, np.ndarray]:
    """Return the batch and y after a step that lets statistics follow."""
    batch, y = batchnorm.Batch(plan_of(x, shape), 1e-3), poisoned(x)
    weights = MOMENTUM, 1 - MOMENTUM, 2 * (1 - MOMENTUM)
    following = batchnorm.Moving(*map(address, statistics), weights)
    batch.train(address(x), 0, address(y), 0, 0, threads, moving=following)
    return batch, y


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_follow_the_batch(shape: Any, dtype: str) -> None:
    x, _, _ = draw(shape, dtype)
    statistics, start = moving(x, shape), moving(x, shape)
    batch, y = train(x, shape, statistics)
    assert batch.moved
    expected = step(shape, x, x, None, None, None, None, 1)
    assert y.tobytes() == expected.y.tobytes()
    mean, variance = batch.moments
    found = np.float64([expected.mean, expected.variance])
    np.testing.assert_array_equal([mean, variance], found)
    tolerance = 1e-15 if dtype == "float64" else 1e-7
    close(statistics.mean, MOMENTUM * start.mean + (1 - MOMENTUM) * mean, tolerance)
    close(statistics.variance, MOMENTUM * start.variance + 2 * (1 - MOMENTUM) * variance, tolerance)
    assert statistics.updates.tolist() == [8]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("shape", [(3000, 3, 1), (5, 3, 700)], ids=str)
def test_statistics_stay_where_a_moment_is_not_finite(shape: Any, bad: float) -> None:
    """Also where only rounding to float32 makes it infinite, as 3e38 squared does."""
    x, _, _ = draw(shape, "float32")
    x.reshape(shape)[-1, 2, -1] = bad
    statistics, start = moving(x, shape), moving(x, shape)
    batch, y = train(x, shape, statistics)
    assert not batch.moved
    for found, expected in zip(statistics, start, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert y.tobytes() == step(shape, x, x, None, None, None, None, 1).y.tobytes()
    np.testing.assert_array_equal(batch.moments, moments(x, shape, 1))


@pytest.mark.parametrize("shape", [(100_003, 24, 1), (64, 40, 784)])
def test_any_number_of_threads_moves_statistics_alike(shape: Any) -> None:
    x, _, _ = draw(shape, "float32")
    seen = []
    for threads in (1, 2, 3, 1):
        statistics = moving(x, shape)
        train(x, shape, statistics, threads)
        seen.append([part.tobytes() for part in statistics])
    assert seen == seen[:1] * 4


def test_each_result_is_written_where_it_is_asked_for() -> None:
    shape = (33, 7, 1)
    x, dy, _ = draw(shape, "float32")
    whole = step(shape, x, dy, None, None, None, None, 1)
    for asked in ((True, False), (False, True)):
        batch, y, dx = batchnorm.Batch(plan_of(x, shape), 1e-3), poisoned(x), poisoned(x)
        results, sums = np.full((2, 2, shape[1]), np.nan, np.float32)
        mean, variance = (address(r) if ask else 0 for r, ask in zip(results, asked, strict=True))
        batch.train(*map(address, (x, None, y, None, None)), 1, mean=mean, variance=variance)
        wanted = [s if ask else None for s, ask in zip(sums, asked, strict=True)]
        batch.gradients(*map(address, (x, dy, None, dx, None, *wanted)), 1)
        for found, expected in ((results, batch.moments), (sums, (whole.dgamma, whole.dbeta))):
            for part, right, ask in zip(found, expected, asked, strict=True):
                right = right.astype(np.float32) if ask else np.full(shape[1], np.nan, np.float32)
                np.testing.assert_array_equal(part, right)


# Threads.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slope", [None, 0.0])
@pytest.mark.parametrize(
    "shape", [(100_003, 24, 1), (2000, 1000, 1), (64, 40, 784), (1, 2, 500_000)]
)
def test_any_number_of_threads_gives_the_same_bits(shape: Any, slope: Any, dtype: str) -> None:
    x, dy, residual = draw(shape, dtype)
    gamma, beta = np.random.default_rng(1).normal(size=(2, shape[1]))
    assert batchnorm.parts_and_room(batchnorm.Shape(*shape))[0] > 3
    for given in (None, residual):
        runs = [step(shape, x, dy, given, gamma, beta, slope, n) for n in (1, 2, 3, 4, 1)]
        for run in runs[1:]:
            for one, other in zip(runs[0], run, strict=True):
                assert one is other or one.tobytes() == other.tobytes()


def test_forward_and_backward_agree_on_every_sign() -> None:
    """The mask of the backward is the sign of the very output that the forward computed."""
    shape = (60_000, 8, 1)
    x, _, _ = draw(shape, "float32")
    gamma, beta = np.random.default_rng(1).normal(size=(2, 8))
    dy = np.ones_like(x)
    found = step(shape, x, dy, None, gamma, beta, 0.0, 2)
    positive = found.y.reshape(shape) > 0
    assert found.dbeta.tolist() == positive.sum((0, 2)).tolist()


# Elements of 16 bits.


@numba.njit
def _widened(bits: Any, out: Any) -> None:
    for i in range(bits.size):
        out[i] = elements.widen(bits[i])


@numba.njit
def _narrowed(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = elements.narrow(values[i], out)


def _copied_by_vectors(values: Any, out: Any) -> None:
    lanes = vectors.lanes_of(values)
    for i in range(0, values.size, lanes):
        vectors.store(out, i, vectors.load(values, i), False)


@pytest.fixture(params=["one by one", "as vectors", "as vectors, by shifts"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What widens and what narrows elements."""
    if request.param == "one by one":
        return _widened, _narrowed
    if "shifts" in request.param:
        # As on a processor that cannot convert float16.
        monkeypatch.setattr(conversions, "CONVERTS", False)
    copied = numba.njit(_copied_by_vectors)
    return copied, copied


# NumPy's own casts of NaN and of what overflows.
quiet = pytest.mark.filterwarnings("ignore:.*encountered in cast:RuntimeWarning")


@quiet
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_16_bit_numbers_come_through(dtype: str, ways: Any) -> None:
    widened, narrowed = ways
    bits = np.arange(2**16, dtype=np.uint16).view(BITS[dtype])
    wide, back = np.empty(bits.size, np.float32), np.empty_like(bits)
    widened(bits, wide)
    np.testing.assert_array_equal(wide, from_bits(bits, dtype).astype(np.float32))
    narrowed(wide, back)
    finite = ~np.isnan(wide)
    np.testing.assert_array_equal(back[finite], bits[finite])
    assert np.isnan(from_bits(back, dtype)[~finite]).all()
    # Rounding up would make a zero of these.
    narrowed(np.array([0x7FFFFFFF, 0xFFFFFFFF] * 128, np.uint32).view(np.float32), back[:256])
    assert np.isnan(from_bits(back[:256], dtype)).all()


@quiet
def test_rounding_to_16_bits_is_to_the_nearest_even(ways: Any) -> None:
    _, narrowed = ways
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(200_000) * 10.0 ** rng.integers(-12, 8, 200_000)
    ties = np.arange(2**16, dtype=np.uint32) << 16 | 0x8000
    edges = [65504.0, 65519.9, 65520.0, 65536.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 6.1e-5]
    values = np.concatenate([spread, ties.view(np.float32), edges]).astype(np.float32)
    values = values[~np.isnan(values)]
    values = values[: values.size // 64 * 64]
    halves, brains = np.empty(values.size, np.uint16), np.empty(values.size, np.int16)
    narrowed(values, halves)
    np.testing.assert_array_equal(halves, values.astype(np.float16).view(np.uint16))
    narrowed(values, brains)
    np.testing.assert_array_equal(brains, to_bits(values, "bfloat16"))
