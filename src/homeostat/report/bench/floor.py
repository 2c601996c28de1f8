"""The least time of a call, in copies of the tensor; a copy reads it once and writes it once."""

from __future__ import annotations

# Reads and writes of one tensor: x and y; the statistics read x once more; then x and dy twice and
# dx. A residual is read, and its gradient written.
_PASSES = {"inference": 2, "forward": 3, "forward+backward": 8}
_RESIDUAL = {"inference": 1, "forward": 1, "forward+backward": 2}


def floor_of(work: str, form: str) -> float:
    """Return the floor of a work (see `TimeRow`) and form, in copies.

    Example:
        >>> floor_of("forward+backward", "relu"), floor_of("inference", "add+relu")
        (4.0, 1.5)
    """
    return (_PASSES[work] + (_RESIDUAL[work] if form == "add+relu" else 0)) / 2
