from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat import Layout, ShapeError, SpecError
from homeostat.layout import compatible, show
from tests.cases import CASES, Case
from tests.messages import has_three_parts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layout_agrees_with_numpy(case: Case) -> None:
    layout = case.layout
    x = np.zeros(case.shape)
    averaged = x.sum(layout.reduction_axes)
    assert averaged.shape == layout.channel_shape == layout.known_channel_shape
    kept = x.sum(layout.reduction_axes, keepdims=True)
    assert kept.shape == layout.broadcast_shape
    assert layout.count == x.size // max(averaged.size, 1)
    assert sorted((*layout.reduction_axes, *layout.channel_axes)) == list(range(x.ndim))


@pytest.mark.parametrize(
    ("shape", "axis", "channels", "last"),
    [
        ((2, 3, 4), -1, (2,), True),
        ((2, 3, 4), 1, (1,), False),
        ((2, 3, 4), (-1, 1), (1, 2), True),
        ((2, 3, 4), [0, 2], (0, 2), False),
        ((2, 3, 4), iter((2,)), (2,), True),
        ((2, 3), 0, (0,), False),
    ],
)
def test_channel_axes(shape: Any, axis: Any, channels: Any, last: bool) -> None:
    layout = Layout.of(shape, axis)
    assert layout.channel_axes == channels
    assert layout.channels_last is last


def test_unknown_sizes() -> None:
    layout = Layout.of((None, 8, None, 3), -1)
    assert layout.count is None
    assert layout.known_channel_shape == (3,)
    assert Layout.of((None, 3), 0).count == 3
    with pytest.raises(ShapeError, match="unknown") as caught:
        Layout.of((4, None), -1).known_channel_shape  # noqa: B018
    assert has_three_parts(caught.value)


@pytest.mark.parametrize(
    ("shape", "axis", "words"),
    [
        ((), -1, "scalar"),
        ((4,), -1, r"\(4,\)"),
        ((4, 3), 2, "axis=2 .*-2 <= axis <= 1"),
        ((4, 3), -3, "axis=-3"),
        ((4, 3), (0, 1), r"axis=\[0, 1\] leaves nothing"),
        ((4, 3), (1, -1), r"axis=\[1, -1\] names the same axis twice"),
    ],
)
def test_bad_axes(shape: Any, axis: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words) as caught:
        Layout.of(shape, axis)
    assert has_three_parts(caught.value)


def test_check_channels() -> None:
    layout = Layout.of((4, 3, 5), (1, 2))
    layout.check_channels(gamma=np.ones((3, 5)), beta=None)
    for shape in ((5, 3), (15,), (3,), (1, 3, 5)):
        with pytest.raises(ShapeError, match=r"beta has shape .*expected \(3, 5\)") as caught:
            layout.check_channels(gamma=np.ones((3, 5)), beta=np.ones(shape))
        assert has_three_parts(caught.value)


def test_check_residual() -> None:
    layout = Layout.of((4, None, 5), -1)
    layout.check_residual(None)
    layout.check_residual(np.ones((4, 7, 5)))
    for shape in ((4, 7, 1), (4, 5)):
        with pytest.raises(ShapeError, match="residual") as caught:
            layout.check_residual(np.ones(shape))
        assert has_three_parts(caught.value)


@pytest.mark.parametrize(
    ("shape", "axis", "given", "full"),
    [
        ((4, 3), -1, (4,), (4, 1)),
        ((4, 3), -1, (4, 1), (4, 1)),
        ((4, 3), 0, (3,), (1, 3)),
        ((4, 6, 3), -1, (4,), (4, 1, 1)),
        ((4, 6, 3), -1, (4, 6), (4, 6, 1)),
        ((4, 6, 3), -1, (1, 6), (1, 6, 1)),
        ((4, 6, 3), -1, (1, 6, 1), (1, 6, 1)),
        ((4, 3, 6), 1, (4, 6), (4, 1, 6)),
        ((4, 3, 6, 2), (1, 3), (4,), (4, 1, 1, 1)),
        ((None, 6, 3), -1, (4, None), (4, None, 1)),
    ],
)
def test_weights_take_the_shape_of_what_is_averaged(
    shape: Any, axis: Any, given: Any, full: Any
) -> None:
    assert Layout.of(shape, axis).weights_shape(given) == full


@pytest.mark.parametrize(
    ("shape", "axis", "given"),
    [
        ((4, 6, 3), -1, ()),
        ((4, 6, 3), -1, (6,)),
        ((4, 6, 3), -1, (4, 3)),
        ((4, 6, 3), -1, (4, 6, 3)),
        ((4, 6, 3), -1, (4, 6, 1, 1)),
        ((4, 3, 6), 1, (4, 3)),
        # A mask (N, C) says nothing about the time steps that axis=1 averages.
        ((4, 3, 6), 1, (4, 3, 1)),
    ],
)
def test_weights_of_another_shape_are_refused(shape: Any, axis: Any, given: Any) -> None:
    with pytest.raises(ShapeError, match="weights or mask") as caught:
        Layout.of(shape, axis).weights_shape(given)
    assert has_three_parts(caught.value)


def test_ghost_batches_put_example_i_in_group_i_mod_g() -> None:
    shape, layout = Layout.of((6, 5, 3), -1).ghost(2)
    assert shape == (2, 3, 5, 3)
    assert layout.channel_axes == (1, 3)
    viewed = np.arange(6).reshape(2, 3)
    assert [viewed[:, group].tolist() for group in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert Layout.of((None, 3), 1).ghost(4)[0] == (4, None, 3)


def test_bad_ghost_batches() -> None:
    with pytest.raises(ShapeError, match="virtual_batch_size=4 does not divide") as uneven:
        Layout.of((6, 3), -1).ghost(4)
    with pytest.raises(SpecError, match="axis 0") as first:
        Layout.of((6, 3), 0).ghost(2)
    assert has_three_parts(uneven.value)
    assert has_three_parts(first.value)


def test_compatible_and_show() -> None:
    assert compatible((None, 3), (4, 3))
    assert not compatible((2, 3), (4, 3))
    assert not compatible((3,), (3, 1))
    assert show([None, 3]) == "(None, 3)"


@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=5), data=st.data())
def test_negative_axes_mean_the_same(shape: list[int], data: st.DataObject) -> None:
    rank = len(shape)
    axes = data.draw(st.sets(st.integers(0, rank - 1), min_size=1, max_size=rank - 1))
    negative = [a - rank for a in sorted(axes, reverse=True)]
    assert Layout.of(shape, axes) == Layout.of(shape, negative)
