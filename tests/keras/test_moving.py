"""Moving statistics that the compiled loops move in passing, on the torch backend."""

import keras
import numpy as np
import pytest

from homeostat.keras import BatchNormalization
from homeostat.moments import Moments, MovingStatistics, advance

if keras.backend.backend() != "torch":
    pytest.skip("only torch changes variables in place", allow_module_level=True)
pytest.importorskip("numba", reason="the CPU kernels need numba")

from tests.ops.adapters import kernels_for_all

SHAPE = (6, 7, 9, 5)


@pytest.fixture(autouse=True)
def _on_loops():
    with kernels_for_all():
        yield


@pytest.fixture
def in_passing(monkeypatch):
    """Fail where statistics are moved by operations."""

    def unexpected(*_):
        raise AssertionError("the loops did not move the statistics")

    monkeypatch.setattr("homeostat.keras.step._move_statistics", unexpected)


def draw(rng, dtype="float32"):
    return keras.ops.convert_to_tensor(rng.normal(2.0, 3.0, SHAPE).astype("float32"), dtype)


def values(layer):
    return [v.numpy().copy() for v in layer.non_trainable_variables]


@pytest.mark.usefixtures("in_passing")
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.3, "stored_variance": "sample"}, {"nonfinite": "propagate"}, {"axis": 1}],
    ids=str,
)
def test_the_loops_move_what_advance_moves(options, policy, rng):
    layer = BatchNormalization(**options, dtype=policy)
    axis = options.get("axis", -1) % 4
    axes, count = tuple({0, 1, 2, 3} - {axis}), int(np.prod(SHAPE)) // SHAPE[axis]
    expected = MovingStatistics(np.zeros(SHAPE[axis]), np.ones(SHAPE[axis]))
    for _ in range(3):
        x = draw(rng, layer.compute_dtype)
        wide = x.double().numpy()
        batch = Moments(count, wide.mean(axes), wide.var(axes))
        expected = advance(expected, batch, layer.spec, np)
        y = layer(x, training=True)
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    close = {"rtol": 1e-12 if policy == "float64" else 1e-5, "atol": 0}
    np.testing.assert_allclose(layer.moving_mean.numpy(), expected.mean, **close)
    np.testing.assert_allclose(layer.moving_variance.numpy(), expected.variance, **close)


def test_a_scope_that_collects_what_is_assigned_gets_it(rng):
    """As `stateless_call` does, and whoever looks at a model without changing it."""
    layer, twin = BatchNormalization(), BatchNormalization()
    for each in (layer, twin):
        each.build(SHAPE)
    x, before = draw(rng), values(layer)
    given = [keras.ops.copy(v.value) for v in layer.non_trainable_variables]
    _, collected = layer.stateless_call(
        [v.value for v in layer.trainable_variables], given, x, training=True
    )
    with keras.StatelessScope() as scope:
        layer(x, training=True)
    twin(x, training=True)
    for variable, start, held, new, right in zip(
        layer.non_trainable_variables, before, given, collected, values(twin), strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), start)
        np.testing.assert_array_equal(held.detach().numpy(), start)
        np.testing.assert_allclose(new.detach().numpy(), right, rtol=1e-6)
        assigned = scope.get_current_value(variable)
        np.testing.assert_allclose(assigned.detach().numpy(), right, rtol=1e-6)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_a_batch_that_is_not_finite_takes_the_long_way(nonfinite, rng):
    layer = BatchNormalization(nonfinite=nonfinite)
    layer(draw(rng), training=True)
    before, x = values(layer), draw(rng)
    x[2, 3, 4, 1] = float("nan")
    layer(x, training=True)
    for start, now in zip(before[:2], values(layer), strict=False):
        assert (start[[0, 2, 3, 4]] != now[[0, 2, 3, 4]]).all()
        assert np.isnan(now[1]) if nonfinite == "propagate" else now[1] == start[1]
    if nonfinite == "skip":
        assert values(layer)[2].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("options", [{"momentum": None}, {"zero_debias": True}, {"renorm": True}])
def test_other_averages_move_as_without(options, rng, monkeypatch):
    layer, twin = BatchNormalization(**options), BatchNormalization(**options)
    for _ in range(3):
        x = draw(rng)
        layer(x, training=True)
        with monkeypatch.context() as patch:
            patch.setattr("homeostat.keras.step.changes_in_place", lambda: False)
            twin(x, training=True)
    for found, right in zip(values(layer), values(twin), strict=True):
        np.testing.assert_array_equal(found, right)


def test_frozen_statistics_and_masks_take_no_part(rng):
    layer, mask = BatchNormalization(frozen_statistics=True), np.ones(SHAPE[:3], bool)
    layer.build(SHAPE)
    before = values(layer)
    layer(draw(rng), training=True)
    for start, now in zip(before, values(layer), strict=True):
        np.testing.assert_array_equal(start, now)
    mask[3:] = False
    layer.frozen_statistics, x = False, draw(rng)
    layer(x, training=True, mask=mask)
    seen = x[:3].double().numpy()
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.01 * seen.mean((0, 1, 2)), rtol=1e-5)
