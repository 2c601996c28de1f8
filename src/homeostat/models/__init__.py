"""Find, observe and rewrite the batch norms of a user's model: one adapter for each framework.

`records` and `graph` say what is known of a model, `live` what a live one lets one do. `files`
reads model files without their frameworks; `keras` and `torch` adapt live models; `source` opens
either by the name that it has on a command line.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from homeostat.errors import UnsupportedError
from homeostat.models.graph import KINDS, LINEAR, Graph, Kind, Operation
from homeostat.models.live import Batch, LiveModel, count_examples
from homeostat.models.records import (
    BatchNormRecord,
    Behaviour,
    Framework,
    Frozen,
    ModelRecord,
    Observation,
)
from homeostat.models.source import open_live, open_model

__all__ = [
    "KINDS",
    "LINEAR",
    "Batch",
    "BatchNormRecord",
    "Behaviour",
    "Framework",
    "Frozen",
    "Graph",
    "Kind",
    "LiveModel",
    "ModelRecord",
    "Observation",
    "Operation",
    "adapt",
    "count_examples",
    "open_live",
    "open_model",
]


def adapt(model: Any) -> LiveModel:
    """Return the adapter of a live model.

    Args:
        model: a Keras 3 model or a `torch.nn.Module`; or an adapter, which is returned.

    Raises:
        UnsupportedError: it is neither.
    """
    # A live model's framework is loaded, so nothing is imported for the others.
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Model):
        from homeostat.models.keras import KerasModel

        return cast("LiveModel", KerasModel(model))
    if torch is not None and isinstance(model, torch.nn.Module):
        from homeostat.models.torch import TorchModel

        return cast("LiveModel", TorchModel(model))
    if isinstance(model, LiveModel):
        return model
    raise UnsupportedError(
        f"an object of type {type(model).__name__} is no model that can be looked into: expected "
        "a Keras 3 model or a torch.nn.Module. Pass the model itself, not its weights."
    )
