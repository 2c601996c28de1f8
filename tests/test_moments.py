from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from homeostat import BatchNormSpec, Moments, RenormClipping, ShapeError, SpecError, merge
from homeostat.moments import (
    Average,
    MovingStatistics,
    RenormCorrection,
    advance,
    average_groups,
    changes,
    corrected,
    finite_channels,
    merge_all,
    renorm_correction,
    sample_correction,
)
from homeostat.reference import moments
from tests.messages import has_three_parts

values = st.floats(-1e3, 1e3, width=32)
arrays = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=values)


def close(actual: Moments, expected: Moments, size: float = 1e3) -> None:
    np.testing.assert_allclose(actual.count, expected.count, rtol=1e-13)
    np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-12, atol=1e-12 * size)
    np.testing.assert_allclose(actual.variance, expected.variance, rtol=1e-11, atol=1e-11 * size**2)


@given(x=arrays, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_parts_merge_to_the_whole_wherever_it_is_cut(x: np.ndarray, cuts: list[int]) -> None:
    parts = np.split(x, sorted(min(cut, len(x)) for cut in cuts))
    close(merge_all((moments(part) for part in parts), np), moments(x))


@given(first=arrays, second=arrays)
def test_merge_does_not_care_about_the_order(first: np.ndarray, second: np.ndarray) -> None:
    a, b = moments(first), moments(second)
    close(merge(a, b, np), merge(b, a, np))


@given(first=arrays, second=arrays, third=arrays)
def test_merge_does_not_care_about_the_grouping(
    first: np.ndarray, second: np.ndarray, third: np.ndarray
) -> None:
    a, b, c = moments(first), moments(second), moments(third)
    close(merge(merge(a, b, np), c, np), merge(a, merge(b, c, np), np))


@given(x=arrays)
def test_an_empty_set_changes_nothing(x: np.ndarray) -> None:
    batch, nothing = moments(x), moments(np.zeros((0, 3)))
    for merged in (merge(batch, nothing, np), merge(nothing, batch, np)):
        for actual, expected in zip(merged, batch, strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_counts_may_be_numbers_or_arrays() -> None:
    a, b = np.array([[1.0], [3.0]]), np.array([[5.0], [5.0], [11.0]])
    for count in (lambda n: n, lambda n: float(n), lambda n: np.full(1, float(n))):
        merged = merge(
            Moments(count(2), np.array([2.0]), np.array([1.0])),
            Moments(count(3), np.array([7.0]), np.array([8.0])),
            np,
        )
        expected = moments(np.concatenate([a, b]))
        close(Moments(float(np.squeeze(merged.count)), *merged[1:]), expected._replace(count=5.0))
    zero = Moments(0, np.zeros(1), np.zeros(1))
    assert merge(zero, zero, np) == (0, 0, 0)


def test_merge_keeps_a_small_variance_beside_a_large_mean() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1000, 4)) + 1e6
    merged = merge_all((moments(part) for part in np.split(x, 10)), np)
    np.testing.assert_allclose(merged.variance, x.var(0), rtol=1e-9)


def test_merging_other_channels_or_nothing_is_refused() -> None:
    with pytest.raises(ShapeError) as shapes:
        merge(Moments(1, np.zeros(3), np.zeros(3)), Moments(1, np.zeros(1), np.zeros(1)), np)
    with pytest.raises(SpecError) as nothing:
        merge_all([], np)
    assert has_three_parts(shapes.value)
    assert has_three_parts(nothing.value)


@pytest.mark.parametrize(
    ("count", "factor"), [(5, 1.25), (2, 2.0), (1, 1.0), (0, 1.0), (0.5, 1.0), (2.5, 2.5 / 1.5)]
)
def test_sample_correction(count: float, factor: float) -> None:
    assert sample_correction(count, np) == pytest.approx(factor)
    assert sample_correction(np.array([count, count], float), np).tolist() == [factor] * 2
    variance = Moments(count, np.zeros(2), np.array([4.0, 0.0])).sample_variance(np)
    assert variance.tolist() == [4.0 * factor, 0.0]


def test_average_of_groups_is_their_plain_mean() -> None:
    groups = Moments(4, np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[1.0, 1.0], [5.0, 2.0]]))
    count, mean, variance = average_groups(groups, 0, np)
    assert (count, mean.tolist(), variance.tolist()) == (4, [2.0, 4.0], [3.0, 1.5])


def test_finite_channels() -> None:
    inf, nan = np.inf, np.nan
    batch = Moments(4, np.array([0.0, nan, inf, 0.0]), np.array([1.0, 1.0, 1.0, inf]))
    assert finite_channels(batch, np).tolist() == [True, False, False, False]


series = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


@given(values=series, start=st.floats(-100, 100), momentum=st.floats(0, 1))
def test_the_exponential_average_is_its_closed_form(
    values: list[float], start: float, momentum: float
) -> None:
    average, state = Average(momentum), start
    for value in values:
        state = average.step(state, value)
    k = len(values)
    expected = momentum**k * start + sum(
        (1 - momentum) * momentum ** (k - 1 - i) * value for i, value in enumerate(values)
    )
    assert state == pytest.approx(expected, abs=1e-9)


@given(values=series, start=st.floats(-100, 100))
def test_the_cumulative_average_is_the_mean(values: list[float], start: float) -> None:
    average, state = Average(None), start
    for updates, value in enumerate(values):
        state = average.step(state, value, updates)
    assert state == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert average.counts


@given(values=series, start=st.floats(-100, 100), momentum=st.floats(0, 0.99))
def test_the_zero_debiased_average_is_adams(
    values: list[float], start: float, momentum: float
) -> None:
    """Kingma & Ba 2015, section 3: m_t / (1 - momentum**t) with m_0 = 0."""
    average, state, raw = Average(momentum, zero_debias=True), start, 0.0
    for updates, value in enumerate(values):
        state = average.step(state, value, updates)
        raw = momentum * raw + (1 - momentum) * value
        assert state == pytest.approx(raw / (1 - momentum ** (updates + 1)), abs=1e-9)


def test_which_average_a_spec_asks_for() -> None:
    assert Average.of(BatchNormSpec(momentum=0.9)) == Average(0.9)
    assert Average.of(BatchNormSpec(momentum=None)) == Average(None)
    assert Average.of(BatchNormSpec(momentum=0.9, zero_debias=True)) == Average(0.9, True)
    assert not Average(0.9).counts
    assert Average(0.9, True).counts


def state_of(**parts: Any) -> MovingStatistics:
    none = np.zeros(2)
    whole = MovingStatistics(
        none, np.ones(2), none, none, stddev=np.ones(2), renorm_mean=none, renorm_stddev=np.ones(2)
    )
    return whole._replace(**parts)


@pytest.mark.parametrize("kind", ["population", "sample"])
def test_advance_gives_exact_values_after_k_updates(kind: Any) -> None:
    spec = BatchNormSpec(momentum=0.75, stored_variance=kind)
    state = MovingStatistics(np.array([1.0, -1.0]), np.array([2.0, 4.0]))
    factor = 4 / 3 if kind == "sample" else 1.0
    mean, variance = np.array([1.0, -1.0]), np.array([2.0, 4.0])
    for k in range(1, 5):
        state = advance(state, Moments(4, np.array([k, 2.0 * k]), np.array([3.0, k])), spec, np)
        mean = 0.75 * mean + 0.25 * np.array([k, 2.0 * k])
        variance = 0.75 * variance + 0.25 * factor * np.array([3.0, k])
    np.testing.assert_allclose(state.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(state.variance, variance, rtol=1e-15)
    assert state.updates is None
    assert state.skipped is None


NOT_FINITE = Moments(4, np.array([5.0, np.nan]), np.array([3.0, np.nan]))
EMPTY = Moments(0, np.zeros(2), np.zeros(2))


def test_a_batch_that_is_not_finite_is_skipped_and_counted_by_channel() -> None:
    state = advance(state_of(), NOT_FINITE, BatchNormSpec(momentum=0.5), np)
    assert state.mean.tolist() == [2.5, 0.0]
    assert state.variance.tolist() == [2.0, 1.0]
    assert state.updates.tolist() == [1, 0]
    assert state.skipped.tolist() == [0, 1]


def test_a_batch_that_is_not_finite_propagates_where_it_is_asked_to() -> None:
    state = advance(state_of(), NOT_FINITE, BatchNormSpec(nonfinite="propagate"), np)
    assert np.isnan(state.mean).tolist() == [False, True]
    assert np.isnan(state.variance).tolist() == [False, True]
    assert state.updates.tolist() == [1, 1]
    assert state.skipped.tolist() == [0, 0]


@pytest.mark.parametrize("policy", ["skip", "propagate", "raise"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"zero_debias": True}, {"renorm": True}]
)
def test_an_empty_batch_changes_nothing(policy: Any, options: dict[str, Any]) -> None:
    before = state_of(mean=np.array([3.0, 4.0]), variance=np.array([5.0, 6.0]))
    if "renorm" in options:
        before = before._replace(variance=np.full(2, 0.25), stddev=np.sqrt(np.full(2, 0.251)))
    after = advance(before, EMPTY, BatchNormSpec(nonfinite=policy, **options), np)
    for name, old, new in zip(before._fields, before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-15, err_msg=name)


def test_counts_by_channel() -> None:
    """Weights may leave one channel of two without elements."""
    batch = Moments(np.array([4.0, 0.0]), np.array([2.0, 0.0]), np.array([3.0, 0.0]))
    state = advance(state_of(), batch, BatchNormSpec(momentum=0.5, stored_variance="sample"), np)
    assert state.mean.tolist() == [1.0, 0.0]
    assert state.variance.tolist() == [2.5, 1.0]
    assert state.updates.tolist() == [1, 0]


def test_a_skipped_batch_does_not_age_the_averages() -> None:
    """Channels that skipped a batch average the others, by their own number of updates."""
    for options in ({"momentum": None}, {"momentum": 0.9, "zero_debias": True}):
        spec, state = BatchNormSpec(**options), state_of()
        good = Moments(4, np.array([2.0, 8.0]), np.array([1.0, 1.0]))
        for batch in (NOT_FINITE, good, NOT_FINITE, good):
            state = advance(state, batch, spec, np)
        assert state.updates.tolist() == [4, 2]
        assert state.skipped.tolist() == [0, 2]
        assert state.mean[1] == pytest.approx(8.0)


def test_renorm_moves_standard_deviations() -> None:
    """Ioffe 2017, Algorithm 1, with the moving variance derived from the standard deviation."""
    spec = BatchNormSpec(momentum=0.5, renorm=True, renorm_momentum=0.75, epsilon=1.0)
    state = state_of()
    batch = Moments(4, np.array([2.0, 4.0]), np.array([8.0, 0.0]))
    state = advance(state, batch, spec, np)
    assert state.mean.tolist() == [1.0, 2.0]
    assert state.stddev.tolist() == [2.0, 1.0]
    assert state.variance.tolist() == [3.0, 0.0]
    assert state.renorm_mean.tolist() == [0.5, 1.0]
    assert state.renorm_stddev.tolist() == [1.5, 1.0]


@pytest.mark.parametrize(
    "options",
    [{}, {"stored_variance": "sample"}, {"nonfinite": "propagate"}, {"renorm": True}],
)
@pytest.mark.parametrize("count", [0, 5, np.float64(0), np.float64(5)])
def test_changes_are_what_advance_moves_by(options: dict[str, Any], count: Any) -> None:
    spec = BatchNormSpec(momentum=0.75, **options)
    draw = np.random.default_rng(4)
    state = MovingStatistics(draw.normal(size=3), draw.uniform(1, 2, 3))
    if spec.renorm:
        kept = {"stddev": draw.uniform(1, 2, 3), "renorm_mean": draw.normal(size=3)}
        state = state._replace(**kept, renorm_stddev=draw.uniform(1, 2, 3))
    batch = Moments(count, np.array([1.0, np.nan, 2.0]), np.array([1.0, 1.0, 3.0]))
    by, new = changes(state, batch, spec, np), advance(state, batch, spec, np)
    for old, change, moved in zip(state, by, new, strict=True):
        if old is None:
            assert change is None
            continue
        np.testing.assert_allclose(old + change, moved, rtol=1e-14)
        if not count:
            assert not change.any()


def test_a_batch_that_is_left_out_leaves_renorms_variance() -> None:
    ones = np.ones(2)
    state = MovingStatistics(0 * ones, ones, None, None, ones, 0 * ones, ones)
    batch = Moments(4, np.array([1.0, np.nan]), ones)
    new = advance(state, batch, BatchNormSpec(renorm=True, epsilon=0.5), np)
    assert new.variance[1] == 1.0
    assert new.variance[0] == new.stddev[0] ** 2 - 0.5


def test_renorm_without_a_standard_deviation_of_its_own_takes_the_variance() -> None:
    spec = BatchNormSpec(momentum=0.5, renorm=True, epsilon=1.0)
    batch = Moments(4, np.array([2.0, 4.0]), np.array([8.0, 0.0]))
    variance = np.array([8.0, 3.0])
    kept = advance(state_of(variance=variance, stddev=np.array([3.0, 2.0])), batch, spec, np)
    derived = advance(state_of(variance=variance, stddev=None), batch, spec, np)
    assert derived.stddev is None
    assert derived.variance.tolist() == kept.variance.tolist() == [8.0, 1.25]


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"zero_debias": True}, {"renorm": True}], ids=str
)
def test_a_batch_known_to_be_finite_moves_all_the_same(options: dict[str, Any]) -> None:
    spec = BatchNormSpec(**options)
    batch = Moments(4, np.array([2.0, 4.0]), np.array([8.0, 0.5]))
    asked, told = (advance(state_of(), batch, spec, np, finite=f) for f in (False, True))
    for name, a, b in zip(asked._fields, asked, told, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_renorms_correction_goes_into_gamma_and_beta() -> None:
    x_hat, gamma, beta = np.array([-1.0, 0.5]), np.array([2.0, 3.0]), np.array([0.25, 0.5])
    correction = RenormCorrection(np.array([1.5, 0.5]), np.array([0.125, -1.0]))
    for g, b in ((gamma, beta), (None, beta), (gamma, None), (None, None)):
        scale, shift = corrected(g, b, correction)
        z = x_hat * correction.r + correction.d
        expected = z * (1.0 if g is None else g) + (0.0 if b is None else b)
        np.testing.assert_array_equal(x_hat * scale + shift, expected)


def test_renorms_variance_never_turns_negative() -> None:
    spec = BatchNormSpec(momentum=0.0, renorm=True, epsilon=0.1)
    batch = Moments(4, np.zeros(2), np.array([0.0, 1e-20]))
    assert (advance(state_of(), batch, spec, np).variance >= 0).all()


@pytest.mark.parametrize(
    ("clipping", "r", "d"),
    [
        ({}, [2.0, 0.5, 1.0], [3.0, -2.0, 0.0]),
        ({"rmax": 1.5}, [1.5, 0.5, 1.0], [3.0, -2.0, 0.0]),
        ({"rmin": 0.75}, [2.0, 0.75, 1.0], [3.0, -2.0, 0.0]),
        ({"dmax": 2.5}, [2.0, 0.5, 1.0], [2.5, -2.0, 0.0]),
        ({"dmax": 1.0, "rmin": 1.0, "rmax": 1.0}, [1.0, 1.0, 1.0], [1.0, -1.0, 0.0]),
    ],
)
def test_renorm_correction(clipping: dict[str, float], r: list[float], d: list[float]) -> None:
    epsilon = 1.0
    batch = Moments(4, np.array([7.0, 0.0, 0.0]), np.array([15.0, 3.0, np.nan]))
    means, deviations = np.array([1.0, 8.0, 0.0]), np.array([2.0, 4.0, 1.0])
    correction = renorm_correction(
        batch, means, deviations, epsilon, RenormClipping.of(clipping), np
    )
    assert (correction.r.tolist(), correction.d.tolist()) == (r, d)


def test_renorm_never_divides_by_less_than_epsilon_allows() -> None:
    batch = Moments(4, np.array([3.0]), np.array([0.0]))
    correction = renorm_correction(batch, np.zeros(1), np.zeros(1), 0.25, RenormClipping(), np)
    assert (correction.r.tolist(), correction.d.tolist()) == ([1.0], [6.0])


finite = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=values)


@given(x=finite, data=st.data())
def test_weights_of_0_and_1_drop_elements(x: np.ndarray, data: st.DataObject) -> None:
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))))
    poisoned = np.where(kept[:, None], x, np.nan)
    close(moments(poisoned, weights=kept), moments(x[kept]))


@given(x=finite, data=st.data())
def test_whole_weights_repeat_elements(x: np.ndarray, data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(0, 4), min_size=len(x), max_size=len(x)))
    close(moments(x, weights=np.array(times)), moments(np.repeat(x, times, axis=0)))


@given(x=finite, shift=st.floats(-1e4, 1e4), scale=st.floats(0.1, 10))
def test_moments_follow_shift_and_scale(x: np.ndarray, shift: float, scale: float) -> None:
    plain, moved = moments(x), moments(x * scale + shift)
    expected = Moments(plain.count, plain.mean * scale + shift, plain.variance * scale**2)
    close(moved, expected, size=2e4)


@settings(deadline=None)
@given(x=finite)
@pytest.mark.parametrize("library", ["numpy", "tensorflow", "torch", "jax"])
def test_the_core_takes_any_library_arrays(library: str, x: np.ndarray) -> None:
    namespace, array = _namespace(library)
    plain = moments(x)
    batch = Moments(len(x), array(plain.mean), array(plain.variance))
    merged = merge(batch, batch, namespace)
    np.testing.assert_allclose(np.asarray(merged.mean), plain.mean, rtol=1e-5, atol=1e-4)
    state = MovingStatistics(array(np.zeros(3)), array(np.ones(3)), array(np.zeros(3)))
    spec = BatchNormSpec(momentum=0.5, stored_variance="sample")
    state = advance(state, batch, spec, namespace)
    np.testing.assert_allclose(np.asarray(state.mean), plain.mean / 2, rtol=1e-5, atol=1e-4)
    expected = (1 + plain.variance * (len(x) / (len(x) - 1) if len(x) > 1 else 1.0)) / 2
    np.testing.assert_allclose(np.asarray(state.variance), expected, rtol=1e-5)
    assert np.asarray(state.updates).tolist() == [1.0] * 3


@functools.cache
def _namespace(library: str) -> tuple[Any, Any]:
    if library == "tensorflow":
        tf = pytest.importorskip("tensorflow")
        return tf.experimental.numpy, lambda a: tf.constant(a, tf.float32)
    if library == "torch":
        torch = pytest.importorskip("torch")
        return torch, lambda a: torch.tensor(a, dtype=torch.float32)
    if library == "jax":
        jnp = pytest.importorskip("jax.numpy")
        return jnp, lambda a: jnp.asarray(a, jnp.float32)
    return np, lambda a: np.asarray(a, np.float32)
