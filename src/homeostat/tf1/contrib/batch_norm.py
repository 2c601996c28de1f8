"""`tf.contrib.layers.batch_norm`, which is `slim.batch_norm`, as TF1 had it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow.compat.v1 as tf
from tf_slim.layers import utils
from tf_slim.ops.arg_scope import add_arg_scope
from tf_slim.ops.variables import model_variable

from homeostat.errors import ShapeError, SpecError
from homeostat.moments import Moments, MovingStatistics, changes
from homeostat.tf1.normalization import FUSED_AXES, BatchNormalization, known_training
from homeostat.tf1.step import NAMESPACE

Tensor = Any

_UPDATE_OPS = tf.GraphKeys.UPDATE_OPS


class _BatchNorm(BatchNormalization):
    """The layer of `tf.layers` with example weights, a zero-debiased mean and updates in place."""

    # Dense inputs went through the fused kernel, too.
    _fused_axes: Mapping[int, tuple[int, ...]] = {2: (1,), **FUSED_AXES}

    def __init__(self, *, zero_debias: bool, gamma_before_beta: bool, **options: Any) -> None:
        super().__init__(**options)
        self._zero_debias = zero_debias
        self._gamma_before_beta = gamma_before_beta
        self._biased = self._local_step = None

    def _build_statistics(self, shape: tuple[int, ...]) -> None:
        super()._build_statistics(shape)
        if not self._zero_debias:
            return
        # TF1 gave these the whole name once more: BatchNorm/BatchNorm/moving_mean/biased.
        with tf.variable_scope(self.moving_mean.op.name):
            kept = {
                "dtype": self._statistics_dtype,
                "initializer": tf.zeros_initializer(),
                "trainable": False,
            }
            self._biased = tf.get_variable("biased", shape, **kept)
            self._local_step = tf.get_variable("local_step", [], **kept)

    @property
    def _moving(self) -> MovingStatistics:
        return super()._moving._replace(updates=self._local_step)

    def changes(self, old: MovingStatistics, batch: Moments) -> MovingStatistics:
        """Return by how much a batch moves the statistics; only the mean's start has no weight."""
        by = super().changes(old, batch)
        if not self._zero_debias:
            return by
        # In float32, 1 - momentum**t is off by 1e-5 at the start.
        wide = MovingStatistics(*(_wide(old[i]) for i in range(3)))
        moments = batch._replace(mean=_wide(batch.mean), variance=_wide(batch.variance))
        spec = dataclasses.replace(
            self.spec, zero_debias=True, renorm=False, renorm_clipping=None,
            stored_variance="population",
        )  # fmt: skip
        debiased = changes(wide, moments, spec, NAMESPACE)
        return by._replace(
            mean=tf.cast(debiased.mean, old.mean.dtype),
            updates=tf.cast(tf.reduce_max(debiased.updates), old.updates.dtype),
        )

    def _moves(self, y: Tensor, variables: list[Any], changes: list[Tensor]) -> list[Tensor]:
        if self._zero_debias:
            # It is there for TF1 to go on with: mean = biased / (1 - momentum**t).
            mean, t = (_wide(variables[i] + changes[i]) for i in (0, 2))
            biased = tf.cast(mean * (1.0 - self.spec.momentum**t), self._biased.dtype.base_dtype)
            change = tf.where_v2(changes[2] > 0, biased - self._biased, tf.zeros_like(biased))
            variables, changes = [*variables, self._biased], [*changes, change]
        return super()._moves(y, variables, changes)

    @tf.autograph.experimental.do_not_convert
    def call(
        self,
        inputs: Tensor,
        training: Any = False,
        batch_weights: Tensor | None = None,
        updates_collections: Any = _UPDATE_OPS,
    ) -> Tensor:
        """Normalize; see `batch_norm`."""
        y, updates = self._normalize(inputs, training, batch_weights)
        if updates_collections is None:
            return _after(updates, y)
        for update in updates:
            tf.add_to_collections(updates_collections, update)
        return y


def _after(updates: list[Tensor], y: Tensor) -> Tensor:
    """Return y once the updates are made; its gradient waits for them, too, with or without y."""

    def wait(value: Tensor) -> Tensor:
        with tf.control_dependencies(updates):
            return tf.identity(value)

    return tf.custom_gradient(lambda y: (wait(y), wait))(y) if updates else y


def _wide(value: Any) -> Tensor:
    return tf.cast(value, tf.float64)


@add_arg_scope
def batch_norm(
    inputs: Tensor,
    decay: float = 0.999,
    center: bool = True,
    scale: bool = False,
    epsilon: float = 0.001,
    activation_fn: Callable[[Tensor], Tensor] | None = None,
    param_initializers: Mapping[str, Any] | None = None,
    param_regularizers: Mapping[str, Any] | None = None,
    updates_collections: Any = _UPDATE_OPS,
    is_training: Any = True,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    batch_weights: Tensor | None = None,
    fused: bool | None = None,
    data_format: str = "NHWC",
    zero_debias_moving_mean: bool = False,
    scope: Any = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, Any] | None = None,
    renorm_decay: float = 0.99,
    adjustment: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Normalize as `tf.contrib.layers.batch_norm` (Ioffe & Szegedy 2015); see `BatchNormalization`.

    Where TF1 would have used its fused kernel (2-D or 4-D input, ``fused`` not False, none of
    weights, renorm and adjustment) the moving variance follows the sample variance, else the
    population variance. All options go together, also those that TF1 refused or left out together.

    Args:
        inputs: a floating tensor of known rank >= 2 and known number of channels.
        decay: weight of the old moving value.
        center: whether there is a beta.
        scale: whether there is a gamma.
        epsilon: added to the variance.
        activation_fn: applied to the output, or None.
        param_initializers: initializers of any of "beta", "gamma", "moving_mean" and
            "moving_variance".
        param_regularizers: regularizers of any of "beta" and "gamma".
        updates_collections: collection or collections of the operations that move the statistics;
            None to move them before the output is there.
        is_training: bool, int or scalar tensor: whether the batch's statistics are used, and the
            moving ones follow.
        reuse: whether to take the variables that `scope` has.
        variables_collections: collections of the variables: a list, or a mapping of lists by name.
        outputs_collections: collection or collections of the output.
        trainable: whether gamma and beta are trainable.
        batch_weights: weight of each example in the statistics, of shape (batch,), or None.
        fused: None or True for the conventions of the fused kernel where it would have been used.
        data_format: "NHWC" for channels in the last axis, "NCHW" for channels in axis 1.
        zero_debias_moving_mean: give the moving mean's start no weight; TF1's variables
            "moving_mean/biased" and "moving_mean/local_step" are kept with it.
        scope: the variable scope, "BatchNorm" if None.
        renorm: whether to use batch renormalization.
        renorm_clipping: bounds of its corrections: any of "rmin", "rmax" and "dmax".
        renorm_decay: momentum of its statistics.
        adjustment: a function of the input's shape that returns a scale and a bias for the
            normalized values in training, or None.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        SpecError: options that are not valid.
        ShapeError: the input's rank or number of channels is not known, or weights do not fit.
    """
    if data_format not in ("NHWC", "NCHW"):
        raise SpecError(
            f"data_format={data_format!r} is not known: expected 'NHWC' or 'NCHW', since "
            "data_format has to be either NCHW or NHWC. Use NHWC for channels in the last axis."
        )
    inputs = tf.convert_to_tensor(inputs)
    if inputs.shape.rank is None:
        raise ShapeError(
            f"inputs {inputs.name} has undefined rank: expected a known number of axes, at least "
            "2. Give it a shape by set_shape."
        )
    # TF1 had three ways to do it: tf.layers, the fused kernel, and moments written out.
    by_layer = (
        batch_weights is None and updates_collections == _UPDATE_OPS and not zero_debias_moving_mean
    )
    if not by_layer and (inputs.shape.rank not in (2, 4) or batch_weights is not None):
        fused = False
    by_kernel = fused is not False and not renorm and adjustment is None
    by_layer = by_layer and not (by_kernel and inputs.shape.rank == 2)
    initial, regular = param_initializers or {}, param_regularizers or {}
    getter = _model_variables(variables_collections, ("biased", "local_step") if by_kernel else ())
    with tf.variable_scope(
        scope, "BatchNorm", [inputs], reuse=reuse, custom_getter=getter
    ) as place:
        layer = _BatchNorm(
            axis=-1 if data_format == "NHWC" else 1,
            momentum=decay,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=initial.get("beta", "zeros"),
            gamma_initializer=initial.get("gamma", "ones"),
            moving_mean_initializer=initial.get("moving_mean", "zeros"),
            moving_variance_initializer=initial.get("moving_variance", "ones"),
            beta_regularizer=regular.get("beta"),
            gamma_regularizer=regular.get("gamma"),
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_decay,
            fused=fused,
            trainable=trainable,
            adjustment=adjustment,
            zero_debias=zero_debias_moving_mean and known_training(is_training) is not False,
            gamma_before_beta=by_layer,
            name=place.name,
            _scope=place,
            _reuse=reuse,
        )
        y = layer(
            inputs,
            training=is_training,
            batch_weights=batch_weights,
            updates_collections=updates_collections,
        )
        y = y if activation_fn is None else activation_fn(y)
        return utils.collect_named_outputs(outputs_collections, place.name, y)


def _model_variables(collections: Any, without: tuple[str, ...]) -> Callable[..., Any]:
    """Return a getter of model variables in their collections, but for those with some names."""

    def get(getter: Callable[..., Any], name: str, *rest: Any, **options: Any) -> Any:
        short = name.rpartition("/")[2]
        if short in without:
            return getter(name, *rest, **options)
        taken = (
            *("shape", "dtype", "initializer", "regularizer", "trainable", "caching_device"),
            *("partitioner", "use_resource", "synchronization", "aggregation"),
        )
        return model_variable(
            name,
            collections=utils.get_variable_collections(collections, short),
            custom_getter=getter,
            **{key: options[key] for key in taken if key in options},
        )

    return get
