"""The batch norms of a PyTorch state dict, whatever file it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from homeostat.models.files.arrays import StoredArray
from homeostat.models.files.tensors import (
    TENSORFLOW,
    TORCH,
    count_parameters,
    find_norms,
    natural,
)
from homeostat.models.records import ModelRecord

_PARALLEL = (
    "Every name begins with 'module.', as DataParallel and DistributedDataParallel save them: the "
    "norms are called without it."
)
_AVERAGED = (
    "These are averaged weights (torch.optim.swa_utils.AveragedModel): their statistics fit them "
    "only after update_bn or a recalibration."
)
_INSTANCE = (
    "A state dict does not tell BatchNorm from InstanceNorm with track_running_stats=True: the "
    "norms are taken for batch norms."
)
_NO_GRAPH = "a file of arrays does not tell what feeds what; give the model itself for that"


def describe_state_dict(
    path: Path,
    source: str,
    arrays: Sequence[StoredArray],
    *,
    in_order: bool = True,
    notes: Sequence[str] = (),
) -> ModelRecord:
    """Return what a state dict tells of a model, PyTorch's or one named in TensorFlow's way.

    Args:
        path: the file.
        source: what it is, in words.
        arrays: its arrays.
        in_order: whether they are in the order of the network; if not they are sorted by name.
        notes: what else is to be told.

    Raises:
        ModelFileError: its norms are too large.
    """
    arrays, wrapper = _unwrapped(arrays)
    if not in_order:
        arrays = sorted(arrays, key=lambda array: natural(array.name))
    found, framework = find_norms(path, arrays, TORCH), "torch"
    if not found.norms:
        others = find_norms(path, arrays, TENSORFLOW)
        found, framework = (others, "keras") if others.norms else (found, framework)
    instance = (_INSTANCE,) if found.norms and framework == "torch" else ()
    return ModelRecord(
        name=path.name,
        framework=framework,
        source=source,
        norms=found.norms,
        why_no_graph=_NO_GRAPH,
        parameters=count_parameters(arrays),
        distributed=True if wrapper == (_PARALLEL,) else None,
        notes=(*notes, *wrapper, *found.notes, *instance),
    )


def _unwrapped(arrays: Sequence[StoredArray]) -> tuple[list[StoredArray], tuple[str, ...]]:
    """Return arrays called as in the model itself, and what had wrapped it."""
    # torch.compile's, wherever a part was compiled.
    plain = [replace(each, name=each.name.replace("_orig_mod.", "")) for each in arrays]
    averaged = [each for each in plain if each.name == "n_averaged"]
    rest = [each for each in plain if each.name != "n_averaged"]
    if not rest or not all(each.name.startswith("module.") for each in rest):
        return plain, ()
    rest = [replace(each, name=each.name.removeprefix("module.")) for each in rest]
    return rest, (_AVERAGED if averaged else _PARALLEL,)
