"""Records of the batch norms of Keras models: from their configurations and their arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from homeostat.errors import HomeostatError, ModelFileError
from homeostat.models.files.keras_config import Network
from homeostat.models.files.keras_kinds import activation_of
from homeostat.models.files.keras_layers import Layer, broken
from homeostat.models.graph import Graph, Operation
from homeostat.models.records import ARRAYS, Array, BatchNormRecord
from homeostat.spec import StoredVariance, check_epsilon

# How many operations back a norm's rank is looked for.
_FAR = 100
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
OURS = "homeostat"
"""The package that Homeostat's layers are registered in."""

_TOLD_BY_OPTIONS = (
    *("epsilon", "momentum", "dtype", "trainable", "tracking", "training"),
    *("synchronized", "activation", "updates"),
)


def variable_names(layer: Layer) -> tuple[str, ...]:
    """Return the names of a batch norm's variables in the order in which Keras stores them.

    Example:
        >>> from homeostat.models.files.keras_layers import parse
        >>> variable_names(parse({"class_name": "BatchNormalization", "config": {"scale": False}}))
        ('beta', 'moving_mean', 'moving_variance')
    """
    option = layer.config.get
    names = ["gamma"] * bool(option("scale", True)) + ["beta"] * bool(option("center", True))
    names += ["moving_mean", "moving_variance"]
    if option("renorm"):
        names += _RENORM
    if _is_ours(layer) and (option("zero_debias") or option("momentum", 0.99) is None):
        names.append("updates")
    if _is_ours(layer) and option("nonfinite", "skip") != "propagate":
        names.append("skipped_updates")
    return tuple(names)


def _is_ours(layer: Layer) -> bool:
    return layer.package.split(".")[0] == OURS


def record_of(
    layer: Layer,
    arrays: Mapping[str, Array],
    *,
    keras: int,
    network: Network | None = None,
) -> BatchNormRecord:
    """Return the record of a batch norm.

    Args:
        layer: its configuration.
        arrays: its variables by the names of `variable_names`.
        keras: the major version of the Keras whose dialect the configuration is in.
        network: what is known of the model.

    Raises:
        ModelFileError: an option is not one, or the arrays do not belong together.
    """
    network = network or Network(None)
    calls, training = network.norms.get(layer.path, ()), network.training.get(layer.path)
    ours = _is_ours(layer)
    option = layer.config.get
    frozen = option("trainable", True) is False
    still = bool(ours and (option("frozen_statistics") or option("inference_mode")))
    updates, skipped = (_largest(arrays.get(name)) for name in ("updates", "skipped_updates"))
    stored = _stored_variance(layer, keras, network.graph, calls)
    unknown = [] if updates is not None else ["updates"]
    unknown += [] if stored is not None else ["stored_variance"]
    momentum = option("momentum", 0.99)
    try:
        return BatchNormRecord(
            layer.path,
            f"{OURS}.keras.{layer.type}" if ours else layer.type,
            **{name: arrays[name].reshape(-1) for name in ARRAYS if name in arrays},
            epsilon=check_epsilon(option("epsilon", 1e-3)),
            momentum=None if momentum is None else _number("momentum", momentum),
            cumulative=ours and momentum is None,
            stored_variance=stored,
            updates=updates,
            skipped=skipped,
            dtype=compute_dtype(option("dtype")),
            trainable=not (frozen or (ours and option("frozen_affine"))),
            tracking=not (frozen or still or training is False),
            training=training is True and not frozen,
            synchronized=bool(option("synchronized")) or layer.type.startswith("Sync"),
            activation=activation_of(layer),
            operations=tuple(call.name for call in calls),
            unknown=frozenset(unknown),
            debiased=bool(ours and option("zero_debias")),
        )
    except ModelFileError:
        raise
    except HomeostatError as error:
        raise broken(f"batch norm {layer.path!r}: {error}") from error


def bare_record(
    name: str,
    arrays: Mapping[str, Array],
    *,
    stored_variance: StoredVariance | None,
    kind: str = "BatchNormalization",
    named: bool = False,
) -> BatchNormRecord:
    """Return the record of a batch norm of which the arrays alone are known.

    Args:
        name: its name.
        arrays: its variables.
        stored_variance: which variance it stores, if that is known.
        kind: its class.
        named: whether the file names the variables, so that one that is not there does not exist.

    Raises:
        ModelFileError: the arrays do not belong together.
    """
    unknown = set(_TOLD_BY_OPTIONS)
    if not named:
        unknown |= {key for key in ARRAYS[:2] if key not in arrays}
    if stored_variance is None:
        unknown.add("stored_variance")
    try:
        return BatchNormRecord(
            name,
            kind,
            **{key: arrays[key].reshape(-1) for key in ARRAYS if key in arrays},
            stored_variance=stored_variance,
            skipped=_largest(arrays.get("skipped_updates")),
            unknown=frozenset(unknown),
        )
    except HomeostatError as error:
        raise broken(f"batch norm {name!r}: {error}") from error


def _largest(counts: Array | None) -> int | None:
    return None if counts is None or not counts.size else int(np.nanmax(counts, initial=0))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise broken(f"{name}={value!r} is no number")
    return float(value)


def compute_dtype(policy: Any) -> str | None:
    """Return the dtype that a layer computes in, from its policy in any dialect.

    Example:
        >>> compute_dtype("mixed_float16"), compute_dtype("float32")
        ('float16', 'float32')
    """
    if isinstance(policy, Mapping):
        inside = policy.get("config")
        policy = inside.get("name") if isinstance(inside, Mapping) else None
    if not isinstance(policy, str):
        return None
    # Such as "int8_from_mixed_bfloat16".
    return policy.rpartition("_from_")[2].removeprefix("mixed_")


def _stored_variance(
    layer: Layer, keras: int, graph: Graph | None, calls: Sequence[Operation]
) -> StoredVariance | None:
    """Return which variance the layer stores.

    Keras 2 used TensorFlow's fused operation for images, and that stores the sample variance.
    """
    if _is_ours(layer):
        return "sample" if layer.config.get("stored_variance") == "sample" else "population"
    if keras >= 3:
        return "population"
    option = layer.config.get
    synchronized = option("synchronized") or layer.type.startswith("Sync")
    if synchronized or option("renorm") or option("virtual_batch_size"):
        return "population"
    if option("fused") is False or compute_dtype(option("dtype")) == "float64":
        return "population"
    rank = len(layer.input_shape) if layer.input_shape else _rank(graph, calls)
    axis = option("axis", -1)
    axes = axis if isinstance(axis, list) else [axis]
    if rank is None:
        return None
    fused = {4: (1, 3, -1, -3), 5: (1, 4, -1, -4)}.get(rank, ())
    return "sample" if len(axes) == 1 and axes[0] in fused else "population"


def _rank(graph: Graph | None, calls: Sequence[Operation]) -> int | None:
    """Return how many axes a norm's input has, as far as the operations before it tell."""
    operation = calls[0] if graph is not None and calls else None
    for _ in range(_FAR):
        if operation is None or graph is None:
            return None
        if operation.shape is not None:
            return len(operation.shape)
        if operation.kind in ("conv", "depthwise_conv", "separable_conv", "conv_transpose", "pool"):
            dimensions = [n for n in (1, 2, 3) if f"{n}D" in operation.type]
            if dimensions and not operation.type.startswith("Global"):
                return dimensions[0] + 2
            return None
        if operation.kind in ("reshape", "other", "recurrent"):
            return None
        operation = graph[operation.inputs[0]] if operation.inputs else None
    return None
