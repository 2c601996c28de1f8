"""The state dict in a checkpoint, among optimizers, settings and copies of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from homeostat.models.files.torch_tensors import Tensor

# What training programs call the model's own, before any average of it.
_PREFERRED = (
    *("", "state_dict", "model_state_dict", "model", "model_state", "net", "network", "module"),
    *("weights", "params"),
)
_MAX_DEPTH = 4
Named = tuple[str, Tensor]


def state_dict_in(checkpoint: Any) -> tuple[list[Named], tuple[str, ...]]:
    """Return the tensors of the model in a checkpoint by name, and notes on what was left.

    A checkpoint is a state dict, or holds one under a key such as ``"state_dict"`` or ``"model"``.
    Of several under other keys all are taken, their names behind the key.

    Args:
        checkpoint: what the file holds.
    """
    homes: dict[str, list[Named]] = {}
    for path, name, tensor in _tensors(checkpoint):
        home, inner = (path[0], path[1:]) if path else ("", ())
        homes.setdefault(home, []).append((".".join((*inner, name)), tensor))
    with_norms = {home: found for home, found in homes.items() if _has_norms(found)}
    candidates = with_norms or homes
    for home in _PREFERRED:
        if home in candidates:
            return candidates[home], _left(home, with_norms)
    if len(candidates) == 1:
        return next(iter(candidates.values())), ()
    # Without a norm anywhere nothing tells a model from its optimizer.
    return [
        (f"{home}.{name}", tensor) for home, found in with_norms.items() for name, tensor in found
    ], ()


def _tensors(checkpoint: Any) -> Iterator[tuple[tuple[str, ...], str, Tensor]]:
    waiting: list[tuple[tuple[str, ...], Any]] = [((), checkpoint)]
    seen: set[int] = set()
    # What a pickle shares between places is looked at once, or a few bytes make endless work.
    while waiting:
        path, value = waiting.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        for key, inside in value.items():
            if not isinstance(key, str):
                continue
            if isinstance(inside, Tensor):
                yield path, key, inside
            elif len(path) < _MAX_DEPTH:
                waiting.append(((*path, key), inside))


def _has_norms(found: list[Named]) -> bool:
    return any(name.rpartition(".")[2] == "running_mean" for name, _ in found)


def _left(home: str, with_norms: Mapping[str, Any]) -> tuple[str, ...]:
    others = [repr(name) for name in with_norms if name not in (home, "")]
    if not others:
        return ()
    where = f"under {home!r}" if home else "at the top"
    return (f"The state dict {where} was read, and not those under {', '.join(others)}.",)
