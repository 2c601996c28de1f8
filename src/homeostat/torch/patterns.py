"""What may move into a batch norm: how activations and additions look in a graph."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.lazy import LazyModuleMixin

_RELUS = {torch.relu, torch.relu_, functional.relu, functional.relu_}
_LEAKY_RELUS = {functional.leaky_relu, functional.leaky_relu_}
_ADDS = {operator.add, operator.iadd, torch.add}
_MAKE_ANEW = (nn.modules.conv._ConvNd, nn.Linear)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Add(NamedTuple):
    """An addition to a norm's output: the other operand, and whether it writes into the norm's."""

    other: fx.Node
    in_place: bool


def has_hooks(module: nn.Module) -> bool:
    """Return whether something watches the calls of a module, besides what makes lazy ones."""
    hooks = {hook for name in _HOOKS for hook in getattr(module, name, None) or ()}
    if isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook"):
        hooks.discard(module._initialize_hook.id)
    return bool(hooks)


def is_identity(node: fx.Node, owner: nn.Module) -> bool:
    """Return whether a node calls what does nothing, as disabled layers are written."""
    if node.op != "call_module":
        return False
    module = owner.get_submodule(str(node.target))
    return type(module) is nn.Identity and not has_hooks(module)


def activation_of_module(module: nn.Module) -> Any:
    """Return the activation that a module is, as batch norms take it, or None."""
    if has_hooks(module):
        return None
    if type(module) is nn.ReLU:
        return "relu"
    return _leaky(module.negative_slope) if type(module) is nn.LeakyReLU else None


def _leaky(slope: Any) -> Any:
    if isinstance(slope, int | float) and 0 <= slope <= 1:
        return {"name": "leaky_relu", "negative_slope": float(slope)}
    return None


def activation_of(node: fx.Node, owner: nn.Module) -> Any:
    """Return the activation that a node applies to its first input, or None.

    Args:
        node: of the owner's graph.
        owner: whose children the graph calls.
    """
    if node.op == "call_module":
        return activation_of_module(owner.get_submodule(str(node.target)))
    if node.op == "call_method":
        return "relu" if node.target in ("relu", "relu_") else None
    if node.op == "call_function" and node.target in _RELUS:
        return "relu"
    if node.op == "call_function" and node.target in _LEAKY_RELUS:
        named = node.kwargs.get("negative_slope", 0.01)
        return _leaky(node.args[1] if len(node.args) > 1 else named)
    return None


def add_of(node: fx.Node, norm: fx.Node) -> Add | str | None:
    """Return what a node adds to a norm's output, why it may not move, or None for no addition.

    Args:
        node: the only user of the norm's output.
        norm: the node that is the norm's output.
    """
    method = node.op == "call_method" and node.target in ("add", "add_")
    if not (method or (node.op == "call_function" and node.target in _ADDS)):
        return None
    operands = [*node.args, *(node.kwargs[k] for k in ("input", "other") if k in node.kwargs)]
    if node.kwargs.get("out") is not None:
        return "the sum is written into another tensor"
    if node.kwargs.get("alpha", 1) != 1:
        return f"the sum has alpha={node.kwargs['alpha']}"
    if len(operands) != 2 or not all(isinstance(operand, fx.Node) for operand in operands):
        return "a number is added, not a tensor"
    if operands[0] is operands[1]:
        return "it is added to itself"
    in_place = node.target in (operator.iadd, "add_")
    if in_place and operands[0] is not norm:
        return "the sum is written into another tensor"
    other: Any = operands[1] if operands[0] is norm else operands[0]
    return Add(other, in_place)


def may_wait(norm: fx.Node, until: fx.Node, owner: nn.Module) -> bool:
    """Return whether a norm may be computed as late as a later node.

    It may where nothing between the two writes into the norm's input.

    Args:
        norm: the node that calls the norm.
        until: a later node.
        owner: whose children the graph calls.
    """
    source: Any = norm.args[0]
    if source.op == "call_module" and len(source.users) == 1:
        module = owner.get_submodule(str(source.target))
        if isinstance(module, _MAKE_ANEW) and not has_hooks(module):
            return True
    node = norm.next
    while node is not until:
        if _may_write(node, owner):
            return False
        node = node.next
    return True


def _may_write(node: fx.Node, owner: nn.Module) -> bool:
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module":
        parts = list(owner.get_submodule(str(node.target)).modules())
        return any(
            getattr(part, "inplace", False)
            or has_hooks(part)
            or type(part).__module__.partition(".")[0] not in ("torch", "homeostat")
            for part in parts
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if node.op == "call_function":
        module = getattr(node.target, "__module__", None) or "torch"
        known = module.partition(".")[0] in ("torch", "_operator", "math")
        writes = module == "_operator" and name.startswith(("i", "set", "del"))
        return not known or writes or "out" in node.kwargs or _in_place(node)
    return name in ("__setitem__",) or name.startswith("__i")


def _in_place(node: fx.Node) -> bool:
    # A flag may come by position too.
    return any(argument is True for argument in (*node.args, *node.kwargs.values()))


def told(node: fx.Node, owner: nn.Module) -> str:
    """Return what a node is, in the words of the user's code."""
    if node.op == "call_module":
        return type(owner.get_submodule(str(node.target))).__name__
    if node.op == "output":
        return f"the end of {type(owner).__name__}"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
