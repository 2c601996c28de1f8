"""`tf.layers.batch_normalization` and its class, as TF1 had them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import tensorflow.compat.v1 as tf
import tf_keras
from tf_keras.api._v1.keras.__internal__.legacy.layers import InputSpec, Layer

from homeostat.errors import SpecError
from homeostat.layout import Layout
from homeostat.moments import Moments, MovingStatistics, changes
from homeostat.spec import CONVENTIONS, BatchNormSpec
from homeostat.tf1 import step
from homeostat.tf1.records import record_call

Tensor = Any

# What TF1's fused op takes: these axes of an input of 4 or 5 axes.
FUSED_AXES = {4: (1, 3), 5: (1, 4)}


class BatchNormalization(Layer):
    """Batch normalization in a TF1 graph (Ioffe & Szegedy 2015).

    In training y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with the batch's moments,
    and the operations that move the moving statistics,
    moving = momentum * moving + (1 - momentum) * batch, go into `tf.GraphKeys.UPDATE_OPS`, one for
    each statistic: run them with the training step. Otherwise the moving statistics take the
    place of the batch's.

    Where TF1 would have used its fused kernel (``fused`` not False, 4-D or 5-D input, one channel
    axis, none of renorm, virtual batches and adjustment) the moving variance follows the sample
    variance, else the population variance, as it did there. Different from TF1: statistics are
    exact for data far from zero, and a channel whose batch is not finite does not move.

    Args:
        axis: channel axis or axes.
        momentum: weight of the old moving value.
        epsilon: added to the variance.
        center: whether there is a beta.
        scale: whether there is a gamma.
        beta_initializer: initializer of beta.
        gamma_initializer: initializer of gamma.
        moving_mean_initializer: initializer of the moving mean.
        moving_variance_initializer: initializer of the moving variance.
        beta_regularizer: regularizer of beta, or None.
        gamma_regularizer: regularizer of gamma, or None.
        beta_constraint: what an optimizer's step projects beta by, or None.
        gamma_constraint: the same for gamma.
        renorm: whether to use batch renormalization (Ioffe 2017).
        renorm_clipping: a mapping with any of "rmin", "rmax", "dmax": scalars or scalar tensors.
        renorm_momentum: momentum of renorm's own statistics.
        fused: None or True for the conventions of the fused kernel where it would have been used,
            False for those of the other.
        trainable: whether gamma and beta go into `tf.GraphKeys.TRAINABLE_VARIABLES`.
        virtual_batch_size: size of the virtual batches, each normalized by itself, or None.
        adjustment: a function of the input's shape that returns a scale and a bias for the
            normalized values in training, or None.
        name: name of the layer.
        **kwargs: ``dtype``, and what TF1's layers take.

    Raises:
        SpecError: options that are not valid, or that exclude each other.

    Example:
        In a graph::

            layer = BatchNormalization(momentum=0.9)
            y = layer(x, training=is_training)
            with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
                train_op = optimizer.minimize(loss)
    """

    # What tf.contrib's batch norm did otherwise.
    _fused_axes: Mapping[int, tuple[int, ...]] = FUSED_AXES
    _gamma_before_beta = True

    def __init__(
        self,
        axis: int | Iterable[int] = -1,
        momentum: float = 0.99,
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
        renorm_clipping: Mapping[str, Any] | None = None,
        renorm_momentum: float = 0.99,
        fused: bool | None = None,
        trainable: bool = True,
        virtual_batch_size: int | None = None,
        adjustment: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(trainable=trainable, name=name, **kwargs)
        if adjustment is not None and virtual_batch_size is not None:
            raise SpecError(
                "adjustment and virtual_batch_size exclude each other, as in TF1: expected at most "
                "one. Drop one of them."
            )
        self.clipping = _clipping(renorm_clipping)
        self.spec = BatchNormSpec(
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            renorm=renorm,
            renorm_momentum=renorm_momentum,
            virtual_batch_size=virtual_batch_size,
        )
        self.fused = fused
        self.adjustment = adjustment
        self._initializers = tuple(
            tf_keras.initializers.get(each)
            for each in (
                gamma_initializer,
                beta_initializer,
                moving_mean_initializer,
                moving_variance_initializer,
            )
        )
        self._regularizers = tuple(
            tf_keras.regularizers.get(each) for each in (gamma_regularizer, beta_regularizer)
        )
        self._constraints = tuple(
            tf_keras.constraints.get(each) for each in (gamma_constraint, beta_constraint)
        )

    def build(self, input_shape: Any) -> None:
        """Make the variables, of the names, shapes and order that TF1 gave them.

        Raises:
            ShapeError: an axis is out of range, or its size is not known.
        """
        shape = tuple(tf.TensorShape(input_shape).as_list())
        layout = Layout.of(shape, self.spec.axes)
        self._channel_shape = layout.known_channel_shape
        axes = layout.channel_axes
        self.input_spec = InputSpec(
            ndim=len(shape), axes=dict(zip(axes, self._channel_shape, strict=True))
        )
        convention = CONVENTIONS["tf1_fused" if self._takes_fused(layout) else "tf1"]
        self.spec = dataclasses.replace(
            self.spec, axis=axes, stored_variance=convention.stored_variance
        )
        variables = self._channel_shape
        if len(axes) > 1 or self.spec.virtual_batch_size is not None:
            # TF1's variables have the input's rank then, with virtual batches one more.
            variables = tuple(layout.broadcast_shape)
            if self.spec.virtual_batch_size is not None:
                variables = (variables[0], 1, *variables[1:])
        self._build_variables(variables)
        super().build(input_shape)

    def _takes_fused(self, layout: Layout) -> bool:
        """Return whether TF1 would have used its fused kernel."""
        plain = not (self.spec.renorm or self.spec.virtual_batch_size or self.adjustment)
        axes = self._fused_axes.get(len(layout.shape), ())
        one = len(layout.channel_axes) == 1 and layout.channel_axes[0] in axes
        return self.fused is not False and plain and one and self.dtype != "float64"

    def _build_variables(self, shape: tuple[int, ...]) -> None:
        self.gamma = self.beta = None
        names = ("gamma", "beta") if self._gamma_before_beta else ("beta", "gamma")
        for name in names:
            if self.spec.scale if name == "gamma" else self.spec.center:
                setattr(self, name, self._weight(name, shape))
        partitioner = self._scope.partitioner if self._scope else None
        try:
            if partitioner:
                self._scope.set_partitioner(None)
            self._build_statistics(shape)
        finally:
            if partitioner:
                self._scope.set_partitioner(partitioner)

    def _build_statistics(self, shape: tuple[int, ...]) -> None:
        mean, variance = self._initializers[2:]
        self.moving_mean = self._statistic("moving_mean", shape, mean)
        self.moving_variance = self._statistic("moving_variance", shape, variance)
        self.moving_stddev = self.renorm_mean = self.renorm_stddev = None
        if self.spec.renorm:

            def stddev(*args: Any, **kwargs: Any) -> Tensor:
                return tf.sqrt(variance(*args, **kwargs))

            self.moving_stddev = self._statistic("moving_stddev", shape, stddev)
            self.renorm_mean = self._statistic("renorm_mean", shape, mean)
            self.renorm_stddev = self._statistic("renorm_stddev", shape, stddev)

    @property
    def _statistics_dtype(self) -> Any:
        return tf.float64 if self.dtype == "float64" else tf.float32

    def _weight(self, name: str, shape: Any) -> Any:
        place = ("gamma", "beta").index(name)
        return self.add_weight(
            name,
            shape,
            dtype=self._statistics_dtype,
            initializer=self._initializers[place],
            regularizer=self._regularizers[place],
            constraint=self._constraints[place],
            trainable=True,
        )

    def _statistic(self, name: str, shape: Any, initializer: Any) -> Any:
        return self.add_weight(
            name,
            shape,
            dtype=self._statistics_dtype,
            initializer=initializer,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )

    def channels(self, variable: Any) -> Tensor | None:
        """Return a variable's value in the channel shape, a scalar as it is, or None for None."""
        if variable is None:
            return None
        value = tf.convert_to_tensor(variable)
        if value.shape.as_list() in ([], list(self._channel_shape)):
            return value
        return tf.reshape(value, self._channel_shape)

    # Its Python is for building the graph, not for TensorFlow to translate.
    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Tensor, training: Any = False) -> Tensor:
        """Normalize.

        Args:
            inputs: a floating tensor; its channel axes have known sizes.
            training: whether the batch's statistics are used and the moving ones follow: a bool,
                an int, or a scalar tensor such as a placeholder.

        Returns:
            A tensor of the input's shape and dtype.
        """
        y, updates = self._normalize(inputs, training)
        for update in updates:
            self.add_update(update)
        return y

    def _normalize(
        self, inputs: Tensor, training: Any, weights: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the output, and what moves the mean and the variance, if anything does."""
        known = known_training(training)
        variables = self._moving
        old = MovingStatistics(*(self.channels(variable) for variable in variables))
        if known is not None and not known:
            return step.infer(self, inputs, old), []

        if known is None:
            # Nothing differentiable, lest a variable be taken for a part of the output.
            flag = tf.not_equal(tf.cast(training, tf.int32), 0)
            y, batch = step.either(self, inputs, flag, old, weights)
        else:
            y, batch = step.train(self, inputs, old, weights)
        if self.spec.renorm:
            # The updates wait for y, and TensorFlow drops control edges that leave the op in which
            # a custom gradient ends.
            y = tf.ensure_shape(y, inputs.shape)
        moving = [variable for variable in variables if variable is not None]
        by = [change for change in self.changes(old, batch) if change is not None]
        return y, self._moves(y, moving, by)

    @property
    def _moving(self) -> MovingStatistics:
        """The variables that hold the statistics."""
        return MovingStatistics(
            mean=self.moving_mean,
            variance=self.moving_variance,
            stddev=self.moving_stddev,
            renorm_mean=self.renorm_mean,
            renorm_stddev=self.renorm_stddev,
        )

    def changes(self, old: MovingStatistics, batch: Moments) -> MovingStatistics:
        """Return by how much a batch moves the statistics."""
        return changes(old, batch, self.spec, step.NAMESPACE)

    def _moves(self, y: Tensor, variables: list[Any], changes: list[Tensor]) -> list[Tensor]:
        """Return the operations that move the mean and the variance, and the others with them."""

        def moved(variable: Any, change: Tensor) -> Tensor:
            with tf.name_scope("AssignMovingAvg"), tf.colocate_with(variable):
                if change.shape.as_list() != variable.shape.as_list():
                    change = tf.reshape(change, variable.shape)
                return tf.assign_add(variable, tf.cast(change, variable.dtype.base_dtype))

        # Nothing moves before everything that reads it has done so.
        with tf.control_dependencies([y, *changes] if self.spec.renorm else changes):
            others = [moved(*each) for each in zip(variables[2:], changes[2:], strict=True)]
            with tf.control_dependencies(others):
                updates = [moved(*each) for each in zip(variables[:2], changes[:2], strict=True)]
        record_call(self.scope_name, tuple(update.op for update in updates))
        return updates


def known_training(training: Any) -> Any:
    """Return what ``training`` says, or None if only the session will know."""
    if not tf.is_tensor(training):
        return training
    return tf.get_static_value(tf.convert_to_tensor(training))


def _clipping(given: Mapping[str, Any] | None) -> Any:
    """Return renorm's bounds; tensors may be among them."""
    known = ("rmin", "rmax", "dmax")
    unknown = set(given or ()) - set(known)
    if unknown:
        raise SpecError(
            f"renorm_clipping has the keys {sorted(unknown)}: expected only 'rmin', 'rmax' and "
            "'dmax'. Correct or drop them."
        )
    return SimpleNamespace(**{name: (given or {}).get(name) for name in known})


def batch_normalization(
    inputs: Tensor,
    axis: int | Iterable[int] = -1,
    momentum: float = 0.99,
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
    training: Any = False,
    trainable: bool = True,
    name: str | None = None,
    reuse: bool | None = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, Any] | None = None,
    renorm_momentum: float = 0.99,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Normalize with a new `BatchNormalization`, or with the one of that name if it is reused.

    Args:
        inputs: a floating tensor; its channel axes have known sizes.
        axis: see `BatchNormalization`, as the others that are not here.
        momentum: weight of the old moving value.
        epsilon: added to the variance.
        center: whether there is a beta.
        scale: whether there is a gamma.
        beta_initializer: initializer of beta.
        gamma_initializer: initializer of gamma.
        moving_mean_initializer: initializer of the moving mean.
        moving_variance_initializer: initializer of the moving variance.
        beta_regularizer: regularizer of beta, or None.
        gamma_regularizer: regularizer of gamma, or None.
        beta_constraint: constraint of beta, or None.
        gamma_constraint: constraint of gamma, or None.
        training: bool, int or scalar tensor: see `BatchNormalization.call`.
        trainable: whether gamma and beta are trainable.
        name: name of the layer and its variable scope.
        reuse: whether to take the variables of the layer of that name.
        renorm: whether to use batch renormalization.
        renorm_clipping: bounds of its corrections.
        renorm_momentum: momentum of its statistics.
        fused: which kernel's conventions to follow.
        virtual_batch_size: size of the virtual batches.
        adjustment: adjusts the normalized values in training.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        SpecError: options that are not valid, or that exclude each other.
        ShapeError: an axis is out of range, or its size is not known.
    """
    layer = BatchNormalization(
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        beta_initializer=beta_initializer,
        gamma_initializer=gamma_initializer,
        moving_mean_initializer=moving_mean_initializer,
        moving_variance_initializer=moving_variance_initializer,
        beta_regularizer=beta_regularizer,
        gamma_regularizer=gamma_regularizer,
        beta_constraint=beta_constraint,
        gamma_constraint=gamma_constraint,
        renorm=renorm,
        renorm_clipping=renorm_clipping,
        renorm_momentum=renorm_momentum,
        fused=fused,
        trainable=trainable,
        virtual_batch_size=virtual_batch_size,
        adjustment=adjustment,
        name=name,
        _reuse=reuse,
        _scope=name,
    )
    return layer(inputs, training=training)
