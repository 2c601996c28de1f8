"""Freeze the batch norms of a Keras model, and unfreeze them."""

from __future__ import annotations

from collections.abc import Collection

import keras

from homeostat.errors import SpecError
from homeostat.models.keras.layers import NORMS, layers_of
from homeostat.models.records import Frozen


def freeze_norms(model: keras.Model, names: Collection[str] | None = None) -> tuple[Frozen, ...]:
    """Set ``trainable=False`` on batch norms; see `homeostat.freeze`.

    In Keras 3 that freezes gamma and beta, and has the layer normalize by its moving statistics,
    which stay as they are, also in training. For Homeostat's layer it stands for its three switches
    ``frozen_affine``, ``frozen_statistics`` and ``inference_mode``, which keep their own values.

    Args:
        model: any Keras 3 model; as it was if anything fails.
        names: of the layers; None for all.

    Returns:
        What happened to each of them, in the order of the layers.

    Raises:
        SpecError: a name is not known.
    """
    return _set_trainable(model, names, False)


def unfreeze_norms(model: keras.Model, names: Collection[str] | None = None) -> tuple[Frozen, ...]:
    """Set ``trainable=True`` on batch norms; see `freeze_norms`."""
    return _set_trainable(model, names, True)


def _set_trainable(
    model: keras.Model, names: Collection[str] | None, trainable: bool
) -> tuple[Frozen, ...]:
    layers = {path: each for path, each in layers_of(model).items() if isinstance(each, NORMS)}
    unknown = sorted(set(names or ()) - layers.keys())
    if unknown:
        raise SpecError(
            f"there are no batch norms {unknown}: expected names among {list(layers)}. Take the "
            "names of the layers."
        )
    before = {name: layer.trainable for name, layer in layers.items()}
    done = []
    try:
        for name, layer in layers.items():
            if names is not None and name not in names:
                continue
            kind = type(layer).__name__
            if before[name] is trainable:
                state = "trains already" if trainable else "is frozen already"
                done.append(Frozen(name, kind, reason=f"it {state}"))
                continue
            layer.trainable = trainable
            done.append(Frozen(name, kind, f"{kind}(trainable={trainable})"))
    except BaseException:
        for name, layer in layers.items():
            layer.trainable = before[name]
        raise
    return tuple(done)
