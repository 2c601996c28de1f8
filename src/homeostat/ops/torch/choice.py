"""Which calls the compiled loops take from PyTorch's native CPU kernels: one table, as measured."""

from __future__ import annotations

from collections.abc import Mapping

from homeostat import kernels

# Elements from which on the loops take a call, or None where they never do, by the order in memory
# (channels "last", or "first": before other axes), the dtype and what is asked for: "train" is
# forward and backward, "infer" the forward pass with given moments, "moments" those alone; "+" says
# that an activation or a residual is fused in. docs/speed.md has the measurements.
#
# Plain float32 with the channels last is what PyTorch's own kernels are best at.
LEAST: Mapping[tuple[str, str, str], int | None] = {
    **{
        (order, dtype, purpose): 2**18
        for order in ("last", "first")
        for dtype in ("float32", "float64", "float16", "bfloat16")
        for purpose in ("train", "train+", "infer", "infer+", "moments")
    },
    ("last", "float32", "train"): None,
    ("last", "float32", "infer"): None,
}
# Elements that a line of one channel must have where channels come first: 49 lose, 196 win.
LEAST_INNER = 128


def prefers_loops(order: str, dtype: str, purpose: str, size: int, inner: int) -> bool:
    """Return whether the compiled loops should take a call, and can.

    Args:
        order: "last" or "first".
        dtype: of x.
        purpose: "train", "infer" or "moments"; with a "+" for something fused in.
        size: the elements of x.
        inner: neighbouring elements of one channel, 1 where channels come last.
    """
    least = LEAST.get((order, dtype, purpose))
    if least is None or size < least or 1 < inner < LEAST_INNER:
        return False
    return kernels.enabled()
