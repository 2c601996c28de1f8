"""What a floating dtype can hold, by its name."""

from __future__ import annotations

from typing import NamedTuple


class Precision(NamedTuple):
    """The limits of a dtype.

    Args:
        roundoff: largest relative error of rounding to it.
        normal: its smallest normal number.
        smallest: its smallest number above 0.
    """

    roundoff: float
    normal: float
    smallest: float


PRECISIONS = {
    "float16": Precision(2.0**-11, 2.0**-14, 2.0**-24),
    "bfloat16": Precision(2.0**-8, 2.0**-126, 2.0**-133),
    "float32": Precision(2.0**-24, 2.0**-126, 2.0**-149),
    "float64": Precision(2.0**-53, 2.0**-1022, 2.0**-1074),
}


def precision(dtype: str | None) -> Precision:
    """Return the limits of a dtype; those of float32 for one that is not known.

    Example:
        >>> precision("float16").normal
        6.103515625e-05
    """
    return PRECISIONS.get(dtype or "float32", PRECISIONS["float32"])
