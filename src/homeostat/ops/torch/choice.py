"""Which calls our own kernels take from PyTorch's: a table for each, the CPU's as measured."""

from __future__ import annotations

from collections.abc import Mapping

from homeostat import kernels

# Elements from which on the loops take a call, or None where they never do, by what is asked for
# ("train" is forward and backward, "infer" the forward pass with given moments, "moments" those
# alone; "+" says that an activation or a residual is fused in), the order in memory (channels
# "last", or "first": before other axes) and the bytes of an element. docs/speed.md has the
# measurements. PyTorch's own kernels are as good at plain inference.
LEAST: Mapping[tuple[str, str, int], int | None] = {
    **{
        (purpose, "last", size): 2**15
        for purpose in ("train", "train+", "moments")
        for size in (2, 4, 8)
    },
    **{
        (purpose, "first", size): 2**15 if size == 2 else 2**17
        for purpose in ("train", "train+", "moments")
        for size in (2, 4, 8)
    },
    **{("infer", order, size): None for order in ("last", "first") for size in (2, 4, 8)},
    **{("infer+", order, size): 2**19 for order in ("last", "first") for size in (2, 4, 8)},
}
# Elements that a line of one channel must have where channels come first: 16 lose, 36 win.
LEAST_INNER = 32


def prefers_loops(purpose: str, order: str, element_size: int, size: int, inner: int) -> bool:
    """Return whether the compiled loops should take a call, and can.

    Args:
        purpose: "train", "infer" or "moments"; with a "+" for something fused in.
        order: "last" or "first".
        element_size: bytes of one element of x.
        size: the elements of x.
        inner: neighbouring elements of one channel, 1 where channels come last.
    """
    least = LEAST[purpose, order, element_size]
    if least is None or size < least or 1 < inner < LEAST_INNER:
        return False
    return kernels.enabled()


# Elements from which on the kernels for GPUs take a call, or None where they never do, by what is
# asked for as above. Counted, not measured: docs/gpu.md has the bytes that each way moves. Plain
# inference is one pass by PyTorch's kernels as well.
LEAST_ON_GPU: Mapping[str, int | None] = {
    "train": 0,
    "train+": 0,
    "moments": 0,
    "infer": None,
    "infer+": 0,
}


def prefers_gpu(purpose: str, size: int) -> bool:
    """Return whether the kernels for GPUs, where they are switched on, should take a call.

    Args:
        purpose: as in `prefers_loops`.
        size: the elements of x.
    """
    least = LEAST_ON_GPU[purpose]
    return least is not None and size >= least
