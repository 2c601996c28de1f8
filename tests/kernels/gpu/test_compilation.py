"""What the compiler makes of the kernels for GPUs that need not be there.

Every launch of a shape is compiled as the launcher would, down to the machine's code, so that a
kernel that spills, reads element by element or computes addresses in 32 bits is seen without a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.gpu.devices import need_compiler, torch

need_compiler()

from homeostat.kernels.gpu import batchnorm, resident  # noqa: E402
from homeostat.kernels.gpu.plans import REGISTERS, Shape  # noqa: E402
from tests.kernels.gpu.compilation import (  # noqa: E402
    Launch,
    accesses,
    bytes_moved,
    launches,
    loops,
    resources,
)

pytestmark = [
    # Triton tells of a default of its own to come, where it parses what is given by name.
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# In either order one that streams and one that stays on chip, at its largest.
STREAMING = [Shape(100_352, 64, 1), Shape(32, 64, 3136)]
RESIDENT = [Shape(12_000, 128, 1), Shape(64, 200, 256)]
# Every dtype for one generation, and one dtype for the generation before.
TARGETS = [*((dtype, 90) for dtype in DTYPES), (torch.bfloat16, 80)]


def of_a_step(
    shape: Shape, dtype: torch.dtype, slope: float | None = 0.0, with_residual: bool = True
) -> list[Launch]:
    x = torch.empty(shape, dtype=dtype, device="meta")
    gamma = torch.empty(shape.channels, device="meta")
    residual = x if with_residual else None
    with launches() as found:
        y, moments, kept = batchnorm.train(x, gamma, gamma, residual, shape, 1e-3, slope)
        batchnorm.backward(x, x, y if with_residual else None, kept, shape, slope)
        batchnorm.normalize(x, moments, gamma, gamma, residual, shape, 1e-3, slope)
    return found


@pytest.mark.parametrize(("dtype", "capability"), TARGETS, ids=str)
@pytest.mark.parametrize("shape", STREAMING + RESIDENT, ids=str)
def test_no_loop_spills(shape: Shape, dtype: Any, capability: int, tmp_path: Path) -> None:
    for launch in of_a_step(shape, dtype):
        compiled = launch.compiled(capability)
        used = resources(compiled, tmp_path)
        # The compiler puts a few registers aside before a loop of float64 to start more programs,
        # and what is limited may do so once for a chain of tiles.
        most = 16 if dtype == torch.float64 else 0
        most = 64 if launch.plan.registers else most
        assert used["STACK"] <= most, (launch.kernel, launch.plan, used)
        for loop in loops(compiled, tmp_path):
            assert not re.search(r"\b(LDL|STL)\b", "\n".join(loop)), (launch.kernel, launch.plan)
        # What the plan's threads take fits a multiprocessor, or it would not start.
        assert used["REG"] * 32 * launch.plan.num_warps <= REGISTERS


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("shape", STREAMING, ids=str)
def test_loops_over_tiles_wait_for_memory_alone(
    shape: Shape, dtype: Any, with_residual: bool, tmp_path: Path
) -> None:
    """What a multiprocessor could move if it only computed is more than memory gives it.

    It starts an instruction of four warps a clock, so 128 bytes for each instruction that moves
    one byte of a thread. Memory gives each of the 132 of an H200 some 21 bytes a clock: 4.8 TB/s at
    1.755 GHz. Nothing in a loop waits for other threads.
    """
    for launch in of_a_step(shape, dtype, with_residual=with_residual):
        if "x" not in launch.arguments:
            continue
        found = loops(launch.compiled(90), tmp_path)
        assert found, launch.kernel
        for loop in found:
            assert not re.search(r"\b(BAR|SHFL|DADD|DFMA)\b", "\n".join(loop)), launch.kernel
        longest = max(found, key=bytes_moved)
        assert 128 * bytes_moved(longest) / len(longest) >= 1.25 * 21, launch.kernel


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", STREAMING, ids=str)
def test_all_programs_of_a_reduction_run_at_once(shape: Shape, dtype: Any, tmp_path: Path) -> None:
    for launch in of_a_step(shape, dtype):
        if launch.kernel.__name__ in ("split_moments", "split_sums"):
            used = resources(launch.compiled(90), tmp_path)["REG"]
            together = REGISTERS // (used * 32 * launch.plan.num_warps)
            assert launch.programs <= together * 132, (launch.kernel, launch.plan, used)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", STREAMING + RESIDENT, ids=str)
def test_tensors_are_read_and_written_16_bytes_at_a_time(shape: Shape, dtype: Any) -> None:
    for launch in of_a_step(shape, dtype):
        tensors = sum(
            isinstance(t, torch.Tensor) and t.shape == shape for t in launch.arguments.values()
        )
        plan = launch.plan
        tile = plan.block_o * plan.block_c * plan.block_i
        each = tile * dtype.itemsize // (16 * 32 * plan.num_warps)
        wide = [size for _, size in accesses(launch.compiled(90))].count(16)
        assert wide >= tensors * each, (launch.kernel, launch.plan)


@pytest.mark.parametrize(
    ("shape", "bytes_at_a_time"),
    [(Shape(4096, 24, 1), 16), (Shape(4096, 20, 1), 8), (Shape(32, 64, 196), 8)],
    ids=str,
)
def test_sizes_that_16_does_not_divide_are_read_in_vectors(
    shape: Shape, bytes_at_a_time: int
) -> None:
    for launch in of_a_step(shape, torch.bfloat16):
        if "x" not in launch.arguments:
            continue
        loads = [size for kind, size in accesses(launch.compiled(90)) if kind == "ld"]
        assert bytes_at_a_time in loads
        assert 2 not in loads


@pytest.mark.parametrize(
    "shape", [Shape(70_000, 40_000, 1), Shape(3, 5, 2**28), Shape(2, 2, 2**31)], ids=str
)
def test_offsets_beyond_2_to_the_31_have_64_bits(shape: Shape) -> None:
    """Every pointer of a tensor is moved by 64 bits first, and by 32 only within a tile."""
    for launch in of_a_step(shape, torch.float32):
        if "x" not in launch.arguments:
            continue
        told = launch.compiled(90).asm["ttir"]
        parameters = re.findall(r"%(\w+): !tt\.ptr<f32>", told)
        assert "x" in parameters
        for name in ("x", "y", "dy", "g", "dx", "residual"):
            if isinstance(launch.arguments.get(name), torch.Tensor):
                moved = re.findall(rf"tt\.addptr %{name}, %\S+ : !tt\.ptr<f32>, (\w+)", told)
                assert moved, (launch.kernel, name)
                assert set(moved) == {"i64"}, (launch.kernel, name)
        span = launch.plan.block_o * shape.channels * shape.inner
        assert launch.plan.block_o == 1 or span < 2**31


def test_kernels_of_a_mask_and_of_an_output_compute_the_same_z() -> None:
    """The same operations in the same order, none of them left to be contracted."""
    found = of_a_step(STREAMING[0], torch.float32, 0.25, with_residual=False)
    texts = {launch.kernel.__name__: launch.compiled(90).asm["ptx"] for launch in found}
    for name in ("normalize_tiles", "split_sums", "differentiate_tiles"):
        # x - pivot, rounded, and one fma, whose product nothing else takes part in.
        assert re.search(r"\bsub\.(rn\.)?f32", texts[name]), name
        assert re.search(r"\bfma\.rn\.f32", texts[name]), name


def test_programs_that_wait_for_each_other_all_run_at_once() -> None:
    """A cooperative launch of one program to a multiprocessor always fits."""
    for shape in RESIDENT:
        for launch in of_a_step(shape, torch.float32):
            if launch.plan.resident and launch.plan.splits > 1:
                assert launch.programs <= 132
                assert launch.kernel in (
                    resident.normalize_resident,
                    resident.differentiate_resident,
                )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(128, 1024, 1), 1),
        (Shape(32, 512, 196), 1),
        (Shape(32, 64, 3136), 3),
        (Shape(100_352, 64, 1), 3),
    ],
    ids=str,
)
def test_small_tensors_take_one_launch_a_pass(shape: Shape, expected: int) -> None:
    x = torch.empty(shape, device="meta")
    with launches() as found:
        _, moments, kept = batchnorm.train(x, None, None, None, shape, 1e-3, 0.0)
    assert len(found) == expected
    with launches() as found:
        batchnorm.backward(x, x, None, kept, shape, 0.0)
    assert len(found) == expected
    with launches() as found:
        batchnorm.normalize(x, moments, None, None, None, shape, 1e-3, 0.0)
    assert len(found) == 1
