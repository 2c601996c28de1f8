"""`BatchNormalization` for Keras 3: variables, state and serialization; the maths is in `ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import constraints, initializers, regularizers

from homeostat.errors import ShapeError, SpecError, UnsupportedError
from homeostat.keras.backend import operations, replica_sum, value_of
from homeostat.keras.step import train
from homeostat.layout import Layout, compatible, show
from homeostat.moments import Average
from homeostat.spec import BatchNormSpec

Tensor = Any

# The weights that `keras.layers.BatchNormalization` does not have come last in the file.
_COUNTERS = ("updates", "skipped_updates")


@keras.saving.register_keras_serializable(package="homeostat")
class BatchNormalization(keras.layers.Layer):
    """Batch normalization (Ioffe & Szegedy 2015) with every option, exact and guarded.

    In training y = activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual) with
    the batch's mean and variance over all axes but ``axis``, and the moving statistics follow them:
    moving = moving * momentum + batch * (1 - momentum). In inference the moving statistics take the
    batch's place. The arguments that `keras.layers.BatchNormalization` has mean what they mean
    there and have the same defaults.

    Statistics are kept in float32 or wider whatever the policy, the variance is centred, and a
    batch with NaN or infinity leaves the moving statistics of the channels concerned as they were
    and is counted in ``skipped_updates``.

    Args:
        axis: channel axis, or a list of axes that keep their own statistics.
        momentum: weight of the old moving value, 0 to 1; None for the cumulative average.
        epsilon: added to the variance.
        center: whether beta is added.
        scale: whether gamma multiplies.
        beta_initializer: initializer of beta.
        gamma_initializer: initializer of gamma.
        moving_mean_initializer: initializer of the moving mean.
        moving_variance_initializer: initializer of the moving variance.
        beta_regularizer: regularizer of beta.
        gamma_regularizer: regularizer of gamma.
        beta_constraint: constraint of beta.
        gamma_constraint: constraint of gamma.
        renorm: batch renormalization (Ioffe 2017).
        renorm_clipping: mapping with keys among rmin, rmax, dmax that bounds renorm's r and d.
        renorm_momentum: momentum of the statistics that renorm corrects towards.
        synchronized: statistics over all replicas of a `tf.distribute` strategy.
        virtual_batch_size: size of ghost batches; of G groups, example i is in group i mod G.
        adjustment: function of the input's shape that returns (scale, bias), which multiply and
            shift the normalized values in training, before gamma and beta.
        activation: None, "relu", "leaky_relu" or {"name": "leaky_relu", "negative_slope": 0.2}.
        stored_variance: whether the moving variance averages the "population" or the "sample"
            variance of the batches.
        zero_debias: give the start of the moving statistics no weight.
        nonfinite: what NaN or infinity in a batch does to the moving statistics: "skip" them,
            "propagate" them, or "raise".
        frozen_affine: gamma and beta do not train.
        frozen_statistics: the moving statistics stay as they are; training still normalizes with
            the batch's own.
        inference_mode: always normalize with the moving statistics; gamma and beta still train.
        **kwargs: `keras.layers.Layer`'s own, such as ``name`` and ``dtype``. ``trainable=False``
            means what it means in Keras: all three of the above.

    Call arguments:
        inputs: tensor of rank >= 2.
        training: whether to normalize with the batch's statistics and update the moving ones.
        mask: booleans or weights of the averaged elements, of the shape of the input's axes that
            are not channel axes, or of the leading ones of those.
        residual: tensor of the input's shape, added before the activation.

    Raises:
        SpecError: an option, or a combination of options, is not valid.
        ShapeError: an input's shape does not fit.
        NonFiniteBatchError: with ``nonfinite="raise"``.

    Example:
        >>> import numpy as np
        >>> layer = BatchNormalization(momentum=0.9)
        >>> y = layer(np.array([[1.0], [3.0]], dtype="float32"), training=True)
        >>> round(float(layer.moving_mean[0]), 6)
        0.2
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, float] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        virtual_batch_size: int | None = None,
        adjustment: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        activation: Any = None,
        stored_variance: str = "population",
        zero_debias: bool = False,
        nonfinite: str = "skip",
        frozen_affine: bool = False,
        frozen_statistics: bool = False,
        inference_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = BatchNormSpec(
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            stored_variance=stored_variance,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_momentum,
            virtual_batch_size=virtual_batch_size,
            zero_debias=zero_debias,
            nonfinite=nonfinite,
            activation=activation,
            synchronized=synchronized,
        )
        if adjustment is not None and virtual_batch_size is not None:
            raise SpecError(
                "adjustment and virtual_batch_size exclude each other, as in TF1: drop one."
            )
        if synchronized:
            replica_sum()
        self.axis = list(self.spec.axes) if len(self.spec.axes) > 1 else self.spec.axes[0]
        self.adjustment = adjustment
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.frozen_affine = bool(frozen_affine)
        self.frozen_statistics = bool(frozen_statistics)
        self.inference_mode = bool(inference_mode)
        self.supports_masking = True
        self.gamma = self.beta = self.moving_mean = self.moving_variance = None
        self.moving_stddev = self.renorm_mean = self.renorm_stddev = None
        self.updates = self.skipped_updates = None

    @property
    def momentum(self) -> float | None:
        """Weight of the old moving value."""
        return self.spec.momentum

    @property
    def epsilon(self) -> float:
        """What is added to the variance."""
        return self.spec.epsilon

    @property
    def center(self) -> bool:
        """Whether beta is added."""
        return self.spec.center

    @property
    def scale(self) -> bool:
        """Whether gamma multiplies."""
        return self.spec.scale

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weights for an input shape."""
        layout = Layout.of(input_shape, self.spec.axes)
        shape = layout.known_channel_shape
        if self.spec.scale:
            self.gamma = self._affine(shape, "gamma")
        if self.spec.center:
            self.beta = self._affine(shape, "beta")
        # float16 and bfloat16 policies keep their statistics in float32.
        dtype = "float64" if self.variable_dtype == "float64" else "float32"

        def statistic(name: str, initializer: Any, dtype: str = dtype) -> Any:
            return self.add_weight(
                shape=shape,
                name=name,
                dtype=dtype,
                initializer=initializer,
                trainable=False,
                autocast=False,
                aggregation="only_first_replica" if name in _COUNTERS else "mean",
            )

        self.moving_mean = statistic("moving_mean", self.moving_mean_initializer)
        self.moving_variance = statistic("moving_variance", self.moving_variance_initializer)
        if self.spec.renorm:
            self.moving_stddev = statistic("moving_stddev", self._initial_stddev)
            self.renorm_mean = statistic("renorm_mean", _clone(self.moving_mean_initializer))
            self.renorm_stddev = statistic("renorm_stddev", self._initial_stddev)
        if Average.of(self.spec).counts:
            self.updates = statistic("updates", "zeros")
        if self.spec.nonfinite != "propagate":
            self.skipped_updates = statistic("skipped_updates", "zeros", "int32")
        axes = dict(zip(layout.channel_axes, shape, strict=True))
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=axes)

    def _affine(self, shape: tuple[int, ...], name: str) -> Any:
        return self.add_weight(
            shape=shape,
            name=name,
            initializer=getattr(self, f"{name}_initializer"),
            regularizer=getattr(self, f"{name}_regularizer"),
            constraint=getattr(self, f"{name}_constraint"),
            trainable=not self.frozen_affine,
            autocast=False,
        )

    def _initial_stddev(self, shape: Any, dtype: Any = None) -> Tensor:
        return keras.ops.sqrt(_clone(self.moving_variance_initializer)(shape, dtype=dtype))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the input's shape, which is the output's."""
        return Layout.of(input_shape, self.spec.axes).shape

    def compute_output_spec(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        residual: Any = None,
    ) -> Any:
        """Return the symbolic output."""
        layout = Layout.of(inputs.shape, self.spec.axes)
        layout.check_residual(residual)
        if mask is not None:
            layout.weights_shape(tuple(mask.shape))
        return keras.KerasTensor(layout.shape, dtype=self.compute_dtype)

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Normalize the inputs; see the class."""
        if training and self.trainable and not self.inference_mode:
            outputs = train(self, inputs, mask, residual)
        else:
            outputs = operations().normalize(
                inputs,
                value_of(self.moving_mean),
                value_of(self.moving_variance),
                value_of(self.gamma),
                value_of(self.beta),
                axis=self.spec.axes,
                epsilon=self.spec.epsilon,
                activation=self.spec.activation,
                residual=residual,
            )
        dtype = self.compute_dtype
        # An operation of Keras's costs its Python, also where there is nothing to do.
        cast = keras.backend.standardize_dtype(outputs.dtype) != dtype
        return keras.ops.cast(outputs, dtype) if cast else outputs

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer again.

        Raises:
            UnsupportedError: the adjustment is not a registered function.
        """
        spec = self.spec
        activation = spec.fused_activation
        config = {
            "axis": self.axis,
            "momentum": spec.momentum,
            "epsilon": spec.epsilon,
            "center": spec.center,
            "scale": spec.scale,
            **{name: _SERIALIZERS[name](getattr(self, name)) for name in _SERIALIZERS},
            "renorm": spec.renorm,
            "renorm_clipping": spec.clipping.config() or None,
            "renorm_momentum": spec.renorm_momentum,
            "synchronized": spec.synchronized,
            "virtual_batch_size": spec.virtual_batch_size,
            "adjustment": _adjustment_config(self.adjustment, self.name),
            "activation": None if activation is None else activation.config(),
            "stored_variance": spec.stored_variance,
            "zero_debias": spec.zero_debias,
            "nonfinite": spec.nonfinite,
            "frozen_affine": self.frozen_affine,
            "frozen_statistics": self.frozen_statistics,
            "inference_mode": self.inference_mode,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BatchNormalization:
        """Make a layer from `get_config`'s value."""
        config = dict(config)
        if isinstance(config.get("adjustment"), dict):
            config["adjustment"] = keras.saving.deserialize_keras_object(config["adjustment"])
        return cls(**config)

    def load_own_variables(self, store: Any) -> None:
        """Load the weights, also from a file that `keras.layers.BatchNormalization` wrote."""
        variables = [*self._trainable_variables, *self._non_trainable_variables]
        counters = [v for v in variables if v.name in _COUNTERS]
        if len(store.keys()) == len(variables) - len(counters):
            variables = [v for v in variables if v.name not in _COUNTERS]
        if len(store.keys()) != len(variables):
            raise ShapeError(
                f"the file holds {len(store.keys())} weights for layer {self.name!r}: expected "
                f"{len(variables)}: {', '.join(v.name for v in variables)}. Make the layer with "
                "the options that it was saved with."
            )
        for index, variable in enumerate(variables):
            value = store[str(index)]
            if not compatible(value.shape, variable.shape):
                raise ShapeError(
                    f"weight {variable.name!r} of layer {self.name!r} has shape "
                    f"{show(value.shape)} in the file: expected {show(variable.shape)}. Load it "
                    "into a layer with as many channels."
                )
            variable.assign(value)


def _clone(initializer: Any) -> Any:
    return initializer.clone() if hasattr(initializer, "clone") else initializer


def _adjustment_config(adjustment: Any, name: str) -> Any:
    if adjustment is None:
        return None
    if keras.saving.get_registered_name(adjustment) == getattr(adjustment, "__name__", None):
        raise UnsupportedError(
            f"the adjustment of layer {name!r} cannot be written to a file: expected a function "
            "registered with @keras.saving.register_keras_serializable(). Register it, or save "
            "the weights only."
        )
    return keras.saving.serialize_keras_object(adjustment)


_SERIALIZERS: dict[str, Callable[[Any], Any]] = {
    "beta_initializer": initializers.serialize,
    "gamma_initializer": initializers.serialize,
    "moving_mean_initializer": initializers.serialize,
    "moving_variance_initializer": initializers.serialize,
    "beta_regularizer": regularizers.serialize,
    "gamma_regularizer": regularizers.serialize,
    "beta_constraint": constraints.serialize,
    "gamma_constraint": constraints.serialize,
}
