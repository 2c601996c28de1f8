"""What modules were before something was done to them, to be put back."""

from __future__ import annotations

from typing import Any

from torch import nn

_INNER = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Snapshot:
    """Classes, attributes and registrations of a module and all in it; not the tensors' values.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> before = Snapshot(model)
        >>> model[0] = nn.Tanh()
        >>> before.restore()
        >>> model[0]
        ReLU()
    """

    def __init__(self, module: nn.Module) -> None:
        self._states = [
            (part, type(part), dict(vars(part)), {k: vars(part)[k].copy() for k in _INNER})
            for part in module.modules()
        ]

    def differs(self, but: tuple[str, ...] = ()) -> bool:
        """Return whether an attribute or a registration is another object than it was.

        Args:
            but: attributes that do not count.
        """
        for part, cls, attributes, inner in self._states:
            now = vars(part)
            if type(part) is not cls or now.keys() != attributes.keys():
                return True
            if any(now[k] is not v for k, v in attributes.items() if k not in but):
                return True
            if any(_another(now[k], v) for k, v in inner.items()):
                return True
        return False

    def restore(self) -> None:
        """Put everything back."""
        for part, cls, attributes, inner in self._states:
            part.__class__ = cls
            vars(part).clear()
            vars(part).update(attributes)
            for name, content in inner.items():
                registered = vars(part)[name]
                registered.clear()
                registered.update(content)


def _another(now: Any, then: Any) -> bool:
    if isinstance(then, set):
        return now != then
    return now.keys() != then.keys() or any(now[k] is not v for k, v in then.items())
