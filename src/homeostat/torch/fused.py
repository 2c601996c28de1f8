"""Modules whose activation or residual add has moved into their batch norms.

A fused module stays the same object with the same parameters, children, hooks and methods, and gets
a class derived from its own, in which only `forward` is another, as
`torch.nn.utils.parametrize` does it.
"""

from __future__ import annotations

import copy
import importlib
import operator
from types import CodeType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import fx, nn
from torch.nn import functional

from homeostat.torch.state import State

Tensor = torch.Tensor


def add_residual(norm: State, x: Any, residual: Any, in_place: bool = False) -> Any:
    """Return activation(norm(x) + residual), in the norm where the residual fits.

    What broadcasts or promotes is added as it was before the two were fused.

    Args:
        norm: a Homeostat batch norm.
        x: its input.
        residual: what is added, a tensor or a number.
        in_place: whether the sum keeps the dtype and shape of the norm's output.
    """
    if isinstance(x, fx.Proxy) or (
        isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype
    ):
        return norm(x, residual)
    plain = copy.copy(norm)
    plain.activation = None
    y = plain(x)
    y = operator.iadd(y, residual) if in_place else y + residual
    activation = norm.spec.fused_activation
    if activation is None:
        return y
    if activation.name == "relu":
        return functional.relu(y)
    return functional.leaky_relu(y, activation.negative_slope)


class Absorbed(nn.Identity):
    """Stands where an activation was that a batch norm before it in a Sequential now applies.

    Args:
        original: the activation.
        norm: the norm's path in the Sequential.
    """

    def __init__(self, original: nn.Module, norm: str) -> None:
        super().__init__()
        # Not registered: it is no part of the model.
        self.__dict__.update(original=original, norm=norm)


class Fused:
    """Base of the classes that `fuse` makes, before the user's own.

    Attributes:
        original: the user's class.
        norms: paths of the batch norms into which something has moved.
    """

    original: type
    norms: tuple[str, ...]
    _recipe: tuple[Any, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class has no name to be found by.
        return _blank, self._recipe, self.__getstate__()  # type: ignore[attr-defined]


def fuse(module: nn.Module, graph: fx.Graph, norms: tuple[str, ...]) -> None:
    """Give a module a class whose forward is a graph.

    Args:
        module: any module.
        graph: calls the module's children.
        norms: paths of the batch norms into which something has moved.
    """
    cls = type(module)
    if isinstance(module, Fused):
        cls, norms = module.original, tuple(dict.fromkeys((*module.norms, *norms)))
    for node in graph.nodes:
        # Annotations name what no pickle may find.
        node.type = None
    code = graph.python_code("self")
    used = _names(compile(code.src, "<fused>", "exec"))
    found = {name: value for name, value in code.globals.items() if name in used}
    modules = {k: v.__name__ for k, v in found.items() if isinstance(v, ModuleType)}
    others = {k: v for k, v in found.items() if k not in modules}
    module.__class__ = _class(cls, code.src, modules, others, norms)


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class, which of a fused one is the user's."""
    return (module.original if isinstance(module, Fused) else type(module)).__name__


def can_fuse(module: nn.Module) -> bool:
    """Return whether a module is pickled in the ordinary way, which a fused one needs."""
    cls = type(module)
    if isinstance(module, Fused):
        return True
    return cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__


_CLASSES: WeakValueDictionary[Any, type] = WeakValueDictionary()


def _class(
    cls: type, source: str, modules: dict[str, str], others: dict[str, Any], norms: tuple[str, ...]
) -> type:
    key = (cls, source, norms)
    made = _CLASSES.get(key)
    if made is not None:
        return made
    scope = {name: importlib.import_module(module) for name, module in modules.items()} | others
    exec(compile(source, f"<fused {cls.__qualname__}>", "exec"), scope)  # noqa: S102
    body = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "_recipe": (cls, source, modules, others, norms),
        "forward": scope["forward"],
        "norms": norms,
        "original": cls,
    }
    made = type(f"Fused{cls.__name__}", (Fused, cls), body)
    _CLASSES[key] = made
    return made


def _blank(*recipe: Any) -> Any:
    cls = _class(*recipe)
    return cls.__new__(cls)


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
