"""State dicts of PyTorch modules, written beside and renamed, and loaded all or not at all."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from homeostat.errors import MissingExtraError, ModelFileError
from homeostat.models.torch.undisturbed import Kept

PICKLED = (".pt", ".pth")
SAFE = ".safetensors"
# Names under which training scripts keep the state dict beside an optimizer's.
_INSIDE = ("state_dict", "model_state_dict", "model")


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state dict to a file that does not exist yet; see `TorchModel.save`."""
    path = Path(path)
    _check_suffix(path)
    if path.suffix in PICKLED:
        with _beside(path) as beside:
            torch.save(module.state_dict(), beside)
        return
    tensors = _apart(module.state_dict())
    with _beside(path) as beside:
        _safetensors().save_file(tensors, beside, metadata={"format": "pt"})


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Load a file's weights into a module, strictly; the module is as it was if anything fails.

    No code of the file runs: pickles are read with ``weights_only=True``.

    Args:
        module: of the class and options that the weights are of.
        path: .pt or .pth with a state dict, also one inside a checkpoint under ``"state_dict"``,
            ``"model_state_dict"`` or ``"model"``; or .safetensors. Names may begin with
            ``"module."``, as data parallel models write them.

    Raises:
        ModelFileError: the file cannot be read, or its names or shapes are not the module's.
        MissingExtraError: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.pt")
        >>> torch.save({"weight": torch.ones(3), "bias": torch.zeros(3)}, path)
        >>> norm = nn.BatchNorm1d(3, track_running_stats=False)
        >>> load_weights(norm, path)
        >>> norm.weight.tolist()
        [1.0, 1.0, 1.0]
    """
    path = Path(path)
    state = _read(path)
    state = _without_prefix(state, module)
    tensors = [*module.parameters(), *module.buffers()]
    waiting = [(t, type(t)) for t in tensors if nn.parameter.is_lazy(t)]
    kept = Kept(module, [t for t in tensors if not nn.parameter.is_lazy(t)])
    try:
        try:
            missing, unexpected = module.load_state_dict(state, strict=False)
        except Exception as error:
            raise _misfit(path, module, str(error).strip().rpartition("\n")[2].strip()) from error
        problems = [f"it lacks {_some(missing)}"] if missing else []
        problems += [f"it has {_some(unexpected)}"] if unexpected else []
        if problems:
            raise _misfit(path, module, " and ".join(problems))
    except BaseException:
        kept.restore()
        for tensor, cls in waiting:
            _empty(tensor, cls)
        raise


def _misfit(path: Path, module: nn.Module, problem: str) -> ModelFileError:
    return ModelFileError(
        f"{path} does not fit {type(module).__name__}: {problem.rstrip('.')}: expected the "
        "module's own names and shapes. Make the module with the options that the weights were "
        "trained with."
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if names[8:] else "")


def _empty(tensor: Any, cls: type) -> None:
    # A lazy tensor takes its shape in place.
    if not nn.parameter.is_lazy(tensor):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.__class__ = cls


def _read(path: Path) -> Mapping[str, Any]:
    _check_suffix(path)
    try:
        if path.suffix == SAFE:
            return _safetensors().load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except MissingExtraError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{path} holds more than tensors, and reading that would run its code: expected a "
            "state dict. Load it where you trust it and write torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:
        # Whatever a damaged file makes its reader raise.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelFileError(
            f"{path} cannot be read: {reason}: expected a state dict of tensors. Check the path, "
            "or write the file again."
        ) from error
    inside = (found.get(key) for key in _INSIDE) if isinstance(found, Mapping) else ()
    state = next((each for each in inside if isinstance(each, Mapping)), found)
    if not isinstance(state, Mapping):
        raise ModelFileError(
            f"{path} holds a {type(state).__name__}: expected a state dict, names and tensors. "
            "Write torch.save(model.state_dict(), path)."
        )
    return state


def _without_prefix(state: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
    prefix = "module."
    own = any(name.startswith(prefix) for name in module.state_dict())
    if own or not state or not all(str(name).startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _apart(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a state dict whose tensors share no memory, as safetensors asks for."""
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelFileError(
            f"{_some(others)} of the state dict are no tensors: expected tensors alone in "
            f"{SAFE}. Write a .pt file."
        )
    apart, seen = {}, set()
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and memory not in seen
        apart[name] = tensor if whole else tensor.contiguous().clone()
        seen.add(memory)
    return apart


def _check_suffix(path: Path) -> None:
    if path.suffix not in (*PICKLED, SAFE):
        raise ModelFileError(
            f"{path.name} is no name for PyTorch weights: expected the suffix .pt, .pth or "
            ".safetensors. Choose one of these."
        )


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError(
            "safetensors is not installed: expected it for .safetensors files. Run "
            "pip install 'homeostat[audit]'."
        ) from error
    return safetensors.torch


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a file beside a path to write, which takes the path's name when it is whole."""
    _refuse_existing(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        _refuse_existing(path)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ModelFileError(
            f"{path} is there already: expected the name of a new file. Choose another name, or "
            "move the file away."
        )
