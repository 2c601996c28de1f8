"""What a batch norm is asked to do, and how each framework words the same request.

`BatchNormSpec` is the one frozen, validated set of options; `CONVENTIONS` is the one table of what
frameworks mean by momentum, epsilon and the stored variance. Everything inside Homeostat speaks
the meaning of `BatchNormSpec`; front doors translate through this file and nowhere else.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

from homeostat.errors import SpecError

NonFinite: TypeAlias = Literal["skip", "propagate", "raise"]
StoredVariance: TypeAlias = Literal["population", "sample"]

NONFINITE_POLICIES = ("skip", "propagate", "raise")
STORED_VARIANCES = ("population", "sample")


def _real(name: str, value: Any, expected: str) -> float:
    # NaN alone differs from itself; `math.isnan` takes no symbol of a compiler.
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise SpecError(f"{name}={value!r} is not a number: expected {expected}. Pass a number.")
    return float(value)


def check_epsilon(value: Any) -> float:
    """Return epsilon as a float.

    Raises:
        SpecError: it is not a finite number >= 0.
    """
    epsilon = _real("epsilon", value, "a finite number >= 0, such as 1e-3")
    if epsilon < 0 or epsilon == math.inf:
        raise SpecError(
            f"epsilon={value} is not valid: expected a finite number >= 0. Use 1e-3 (Keras) or "
            "1e-5 (PyTorch)."
        )
    return epsilon


@dataclass(frozen=True)
class Activation:
    """An activation fused behind the normalization: y = max(z, 0) + negative_slope * min(z, 0).

    Args:
        name: ``"relu"`` or ``"leaky_relu"``.
        negative_slope: slope for z < 0; 0 for relu.

    Example:
        >>> Activation.of("relu")
        Activation(name='relu', negative_slope=0.0)
        >>> Activation.of({"name": "leaky_relu", "negative_slope": 0.1}).negative_slope
        0.1
    """

    name: Literal["relu", "leaky_relu"]
    negative_slope: float = 0.0

    @classmethod
    def of(cls, value: Any) -> Activation | None:
        """Read an activation from None, a name, a ``{"name", "negative_slope"}`` mapping or itself.

        Returns:
            The activation, or None for None, ``"linear"`` and ``"identity"``.

        Raises:
            SpecError: the activation is not one that can be fused, or its slope is not valid.
        """
        if value is None or value in ("linear", "identity"):
            return None
        if isinstance(value, Activation):
            return value
        options: dict[str, Any]
        if isinstance(value, Mapping):
            options = dict(cast("Mapping[str, Any]", value))
        else:
            options = {"name": value}
        name = options.pop("name", None)
        slope = options.pop("negative_slope", 0.2 if name == "leaky_relu" else 0.0)
        if name not in ("relu", "leaky_relu") or options:
            raise SpecError(
                f"activation={value!r} cannot be fused: expected None, 'relu', 'leaky_relu' or "
                "{'name': 'leaky_relu', 'negative_slope': 0.2}. Apply any other activation as a "
                "layer of its own after the batch norm."
            )
        slope = _real("negative_slope", slope, "a number with 0 <= negative_slope <= 1")
        if not 0.0 <= slope <= 1.0 or (name == "relu" and slope != 0.0):
            raise SpecError(
                f"negative_slope={slope} is not valid for activation={name!r}: expected 0 for relu "
                "and 0 <= negative_slope <= 1 for leaky_relu. Choose a slope in that range."
            )
        return cls(name=name, negative_slope=slope)

    def config(self) -> str | dict[str, Any]:
        """Return the plain value that `Activation.of` reads back."""
        if self.name == "relu":
            return "relu"
        return {"name": self.name, "negative_slope": self.negative_slope}


@dataclass(frozen=True)
class RenormClipping:
    """Bounds of batch renormalization's corrections r and d (Ioffe 2017, section 3).

    r is clipped to [rmin, rmax] and d to [-dmax, dmax]; None leaves that side open.

    Example:
        >>> RenormClipping.of({"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}).dmax
        5.0
    """

    rmin: float | None = None
    rmax: float | None = None
    dmax: float | None = None

    def __post_init__(self) -> None:
        for name in ("rmin", "rmax", "dmax"):
            value = getattr(self, name)
            if value is not None and _real(name, value, "a number >= 0, or None") < 0:
                raise SpecError(
                    f"renorm_clipping {name}={value} is negative: expected {name} >= 0. Leave it "
                    "out, or None, for no bound."
                )
        if self.rmin is not None and self.rmax is not None and self.rmin > self.rmax:
            raise SpecError(
                f"renorm_clipping rmin={self.rmin} is greater than rmax={self.rmax}: expected "
                "rmin <= rmax. The usual choice is rmin = 1 / rmax."
            )

    @classmethod
    def of(cls, value: RenormClipping | Mapping[str, Any] | None) -> RenormClipping:
        """Read the bounds from None, a mapping with keys among rmin, rmax, dmax, or itself."""
        if value is None:
            return cls()
        if isinstance(value, RenormClipping):
            return value
        unknown = sorted(set(value) - {"rmin", "rmax", "dmax"})
        if unknown:
            raise SpecError(
                f"renorm_clipping has unknown keys {unknown}: expected keys among 'rmin', 'rmax' "
                "and 'dmax'. Remove the others."
            )
        return cls(**value)

    def config(self) -> dict[str, float]:
        """Return the bounds that are set, as the mapping that `RenormClipping.of` reads back."""
        bounds = {"rmin": self.rmin, "rmax": self.rmax, "dmax": self.dmax}
        return {name: value for name, value in bounds.items() if value is not None}


def _read_axis(axis: Any) -> tuple[int, ...]:
    axes: tuple[Any, ...]
    if isinstance(axis, Iterable) and not isinstance(axis, str):
        axes = tuple(cast("Iterable[Any]", axis))
    else:
        axes = (axis,)
    if not axes or any(isinstance(a, bool) or not isinstance(a, numbers.Integral) for a in axes):
        raise SpecError(
            f"axis={axis!r} is not valid: expected an integer, or a list of integers that names "
            "the axes that keep their own statistics. For channels-last images use axis=-1."
        )
    found = tuple(int(a) for a in axes)
    if len(set(found)) != len(found):
        raise SpecError(
            f"axis={axis!r} repeats an axis: expected different axes. Name each axis once."
        )
    return found


@dataclass(frozen=True)
class BatchNormSpec:
    """The options of one batch norm, validated (Ioffe & Szegedy 2015; Ioffe 2017 for renorm).

    Args:
        axis: the channel axis, or axes; statistics are kept for each index along them.
        momentum: weight of the OLD moving value, 0 <= momentum <= 1; None keeps the cumulative
            average of all batches seen.
        epsilon: added to the variance, > 0 (or 0, at the caller's risk).
        center: whether beta is added.
        scale: whether gamma multiplies.
        stored_variance: whether the moving variance averages the batches' ``"population"``
            variance (divided by n) or ``"sample"`` variance (by n - 1).
        renorm: batch renormalization.
        renorm_clipping: bounds of renorm's r and d.
        renorm_momentum: weight of the old value for the statistics that renorm corrects towards.
        virtual_batch_size: size of ghost batches; of G groups, example i belongs to group i mod G.
        zero_debias: give the moving statistics' start no weight (see `homeostat.moments.Average`).
        nonfinite: what a batch with NaN or infinity does to the moving statistics: ``"skip"``
            leaves those channels as they were and counts it, ``"propagate"`` stores what came,
            ``"raise"`` is an error.
        activation: None, ``"relu"`` or ``"leaky_relu"``, fused behind the normalization.
        synchronized: statistics over all replicas of a distributed batch.

    Raises:
        SpecError: an option is out of range, or two options exclude each other.

    Example:
        >>> BatchNormSpec(momentum=0.9, axis=[1, -1]).axis
        (1, -1)
    """

    axis: int | tuple[int, ...] = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    stored_variance: StoredVariance = "population"
    renorm: bool = False
    renorm_clipping: RenormClipping | Mapping[str, Any] | None = None
    renorm_momentum: float = 0.99
    virtual_batch_size: int | None = None
    zero_debias: bool = False
    nonfinite: NonFinite = "skip"
    activation: Activation | str | Mapping[str, Any] | None = None
    synchronized: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("axis", _read_axis(self.axis))
        if self.momentum is not None:
            put(
                "momentum", _read_momentum("momentum", self.momentum, "None for the average of all")
            )
        put("renorm_momentum", _read_momentum("renorm_momentum", self.renorm_momentum, "0.99"))
        put("epsilon", check_epsilon(self.epsilon))
        for name, allowed in (
            ("stored_variance", STORED_VARIANCES),
            ("nonfinite", NONFINITE_POLICIES),
        ):
            if getattr(self, name) not in allowed:
                raise SpecError(
                    f"{name}={getattr(self, name)!r} is not known: expected one of {allowed}. "
                    "Choose one of these."
                )
        clipping = RenormClipping.of(self.renorm_clipping)
        if clipping != RenormClipping() and not self.renorm:
            raise SpecError(
                "renorm_clipping is given but renorm=False: expected renorm=True. Set renorm=True "
                "or drop renorm_clipping."
            )
        put("renorm_clipping", clipping)
        put("activation", Activation.of(self.activation))
        self._check_virtual_batch()
        self._check_averages()

    def _check_virtual_batch(self) -> None:
        size: Any = self.virtual_batch_size
        if size is None:
            return
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size <= 0:
            raise SpecError(
                f"virtual_batch_size={size!r} is not valid: expected a positive integer that "
                "divides the batch size, or None. Use None for statistics over the whole batch."
            )
        if 0 in self.axes:
            raise SpecError(
                "virtual_batch_size cannot be used when axis 0 is a channel axis: expected the "
                "batch there, which virtual batches split. Move the batch to axis 0."
            )
        if self.synchronized:
            raise SpecError(
                "virtual_batch_size and synchronized exclude each other: expected at most one, "
                "since one takes statistics over less than the local batch, the other over more. "
                "Choose one."
            )

    def _check_averages(self) -> None:
        if self.zero_debias and self.momentum is None:
            raise SpecError(
                "zero_debias needs a momentum: expected 0 <= momentum < 1, since the cumulative "
                "average (momentum=None) has no bias towards its start. Drop zero_debias or set a "
                "momentum."
            )
        if self.zero_debias and self.momentum == 1.0:
            raise SpecError(
                "zero_debias with momentum=1 divides by 1 - 1**t = 0: expected momentum < 1. Drop "
                "zero_debias to keep the statistics as they are."
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """The channel axes as a tuple, as given."""
        return cast("tuple[int, ...]", self.axis)

    @property
    def clipping(self) -> RenormClipping:
        """The bounds of renorm's corrections."""
        return cast("RenormClipping", self.renorm_clipping)

    @property
    def fused_activation(self) -> Activation | None:
        """The activation to fuse, or None."""
        return cast("Activation | None", self.activation)


def _read_momentum(name: str, value: Any, otherwise: str) -> float:
    momentum = _real(name, value, f"a number with 0 <= {name} <= 1, or {otherwise}")
    if not 0.0 <= momentum <= 1.0:
        raise SpecError(
            f"{name}={value} is out of range: expected 0 <= {name} <= 1. It is the weight of the "
            "old moving value, so 0.99 keeps 99 % of it; PyTorch's momentum is 1 minus this."
        )
    return momentum


@dataclass(frozen=True)
class Convention:
    """What one framework's batch norm means by its words.

    Args:
        momentum_weighs: ``"old"`` or ``"new"``: which value its momentum multiplies.
        momentum: its default, in its own sense.
        epsilon: its default.
        stored_variance: what its moving variance averages. TensorFlow's fused op, and so TF1's
            ``fused=True``, stores the sample variance; the non-fused path the population one.
        names: its names for gamma, beta, moving_mean and moving_variance.
    """

    momentum_weighs: Literal["old", "new"]
    momentum: float
    epsilon: float
    stored_variance: StoredVariance
    names: Mapping[str, str]

    def to_old_weight(self, momentum: float | None) -> float | None:
        """Translate this framework's momentum to the weight of the old value.

        Example:
            >>> CONVENTIONS["torch"].to_old_weight(0.25)
            0.75
        """
        if momentum is None or self.momentum_weighs == "old":
            return momentum
        return 1.0 - momentum

    def from_old_weight(self, momentum: float | None) -> float | None:
        """Translate the weight of the old value to this framework's momentum."""
        return self.to_old_weight(momentum)

    def variance_factor(self, stored: StoredVariance, count: float) -> float:
        """Return the factor that turns a ``stored`` variance into one of this convention.

        Args:
            stored: the kind of variance at hand.
            count: elements per channel in each batch that it averages.

        Raises:
            SpecError: count is not above 1 although a correction is needed.
        """
        if stored == self.stored_variance:
            return 1.0
        if not count > 1:
            raise SpecError(
                f"count={count} is too small to translate a {stored} variance to a "
                f"{self.stored_variance} variance: expected a number above 1. Pass the elements "
                "per channel of each training batch."
            )
        return count / (count - 1.0) if stored == "population" else (count - 1.0) / count


def _names(gamma: str, beta: str, mean: str, variance: str) -> Mapping[str, str]:
    return MappingProxyType(
        {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": variance}
    )


_KERAS_NAMES = _names("gamma", "beta", "moving_mean", "moving_variance")

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "keras": Convention("old", 0.99, 1e-3, "population", _KERAS_NAMES),
        "tf1": Convention("old", 0.99, 1e-3, "population", _KERAS_NAMES),
        "tf1_fused": Convention("old", 0.99, 1e-3, "sample", _KERAS_NAMES),
        "slim": Convention("old", 0.999, 1e-3, "sample", _KERAS_NAMES),
        "torch": Convention(
            "new", 0.1, 1e-5, "sample", _names("weight", "bias", "running_mean", "running_var")
        ),
        "flax": Convention("old", 0.99, 1e-5, "population", _names("scale", "bias", "mean", "var")),
    }
)
