"""The activation and its derivative, of single values and of vectors."""

from __future__ import annotations

from homeostat.kernels.compiled import compiled
from homeostat.kernels.elements import choose, zero_like


@compiled
def activate(z, slope):
    """Return z where it is positive or NaN, else slope * z; with a slope of 1, z."""
    # A slope of 0 makes -0 of a negative value and NaN of minus infinity.
    return choose(z <= 0, choose(slope != 0, z * slope, zero_like(z)), z)


@compiled
def behind(z, value, slope):
    """Return value times the derivative of the activation that z went into, or came out of."""
    # A slope of 0 makes 0 of an infinite gradient too.
    return choose(z > 0, value, choose(slope != 0, value * slope, zero_like(value)))
