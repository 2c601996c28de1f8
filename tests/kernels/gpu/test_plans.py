"""The table of plans: every plan fits its shape, whatever the shape."""

from __future__ import annotations

import pytest

from tests.kernels.gpu.devices import need_compiler, torch

need_compiler()

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from homeostat.kernels import gpu  # noqa: E402
from homeostat.kernels.gpu.plans import BUDGETS, MOST_SPLITS, Plan, Shape, divide_up  # noqa: E402

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float16, torch.float32, torch.float64])
SIZES = st.integers(1, 2**40).map(lambda n: max(1, n >> (n % 40)))


def elements(plan: Plan) -> int:
    return plan.block_o * plan.block_c * plan.block_i


@given(st.tuples(SIZES, st.integers(1, 2**17), SIZES), DTYPES, st.sampled_from(sorted(BUDGETS)))
def test_every_shape_has_a_plan_that_fits(
    sizes: tuple[int, int, int], dtype: torch.dtype, purpose: str
) -> None:
    shape, budget = Shape(*sizes), BUDGETS[purpose]
    plan = gpu.plan(shape, dtype, purpose, CPU)
    for block in (plan.block_o, plan.block_c, plan.block_i, plan.num_warps):
        assert block & (block - 1) == 0
    tiles = plan.tiles(shape)
    # Every split has a tile, and all tiles are some split's.
    each = divide_up(tiles, plan.splits)
    assert (plan.splits - 1) * each < tiles <= plan.splits * each
    if plan.resident:
        assert plan.splits == tiles
        assert elements(plan) <= budget.kept
        assert plan.splits == 1 or plan.splits * plan.blocks(shape) <= 132
    else:
        assert elements(plan) <= budget.tile
        assert not budget.run or each <= budget.run
        assert budget.run or plan.splits <= MOST_SPLITS
    # Offsets within a tile have 32 bits, or the arguments that they are made of have 64.
    span = (plan.block_o * shape.channels + plan.block_c) * shape.inner
    assert plan.block_o == 1 or span < 2**31


def test_few_channels_are_split_and_many_are_not() -> None:
    few = gpu.plan(Shape(400_000, 3, 1), torch.float32, "moments", CPU)
    many = gpu.plan(Shape(4, 100_000, 4096), torch.float32, "moments", CPU)
    assert few.splits > 90
    assert many.splits == 1


def test_rows_are_read_in_whole_sectors() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        for purpose in BUDGETS:
            plan = gpu.plan(Shape(6272, 512, 1), dtype, purpose, CPU)
            assert plan.block_c * dtype.itemsize >= 32


def test_a_given_plan_overrides_the_table() -> None:
    shape = Shape(64, 64, 1)
    table = gpu.plan(shape, torch.float32, "forward", CPU)
    other = Plan(True, 64, 16, 1, 1, 2)
    with gpu.using(other):
        assert gpu.plan(shape, torch.float32, "forward", CPU) == other
        # What keeps no tile cannot be resident.
        assert not gpu.plan(shape, torch.float32, "moments", CPU).resident
    assert gpu.plan(shape, torch.float32, "forward", CPU) == table


def test_a_plan_is_put_back_after_an_error() -> None:
    shape = Shape(64, 64, 1)
    table = gpu.plan(shape, torch.float32, "forward", CPU)
    with pytest.raises(KeyError), gpu.using(Plan(True, 64, 16, 1, 1, 2)):
        raise KeyError
    assert gpu.plan(shape, torch.float32, "forward", CPU) == table
