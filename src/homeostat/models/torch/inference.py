"""The graph of a module's forward in eval mode, through all modules inside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from homeostat.torch.trace import Proxy, Tracer, graphs_in


class Arguments(NamedTuple):
    """What a module was called with, by position and by name."""

    given: tuple[Any, ...]
    named: Mapping[str, Any]


def inference_graph(
    module: nn.Module,
    is_leaf: Callable[[nn.Module], bool],
    arguments: Arguments | None = None,
) -> fx.Graph:
    """Return the graph of a module's forward in eval mode, through the modules inside it.

    Args:
        module: any module; it is left as it was.
        is_leaf: which modules stay one call.
        arguments: what it was called with; then code may ask for the sizes of tensors, and the
            graph is that for arguments of these sizes.

    Raises:
        Refused: the forward has no such graph.
    """

    def tracer() -> Tracer:
        if arguments is None:
            return _Through(is_leaf)
        return _Sized(is_leaf, _by_name(module, arguments))

    return graphs_in(module, (False,), tracer)[0]


def _by_name(module: nn.Module, arguments: Arguments) -> dict[str, Any]:
    try:
        bound = inspect.signature(module.forward).bind(*arguments.given, **arguments.named)
    except TypeError:
        return {}
    return dict(bound.arguments)


class _Through(Tracer):
    def __init__(self, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m)


class _Sized(_Through):
    """Computes beside the graph what it is for some arguments, so as to know all sizes."""

    def __init__(self, is_leaf: Callable[[nn.Module], bool], arguments: dict[str, Any]) -> None:
        super().__init__(is_leaf)
        self.arguments = arguments
        self.values: dict[fx.Node, Any] = {}
        self.computing = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _SizedProxy(node, self)

    def create_proxy(self, *arguments: Any, **named: Any) -> Any:
        proxy = super().create_proxy(*arguments, **named)
        node = proxy.node
        if node.op == "placeholder":
            if isinstance(self.arguments.get(str(node.target)), torch.Tensor):
                self.values[node] = self.arguments[str(node.target)]
        elif all(other in self.values for other in node.all_input_nodes):
            # In the modes in which fx follows the code no tensor is computed.
            self.computing = True
            try:
                with _disable_current_modes(), torch.inference_mode():
                    self.values[node] = self._computed(node)
            finally:
                self.computing = False
        return proxy

    def _computed(self, node: fx.Node) -> Any:
        given, named = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*given, **named)
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            return getattr(self.root.get_submodule(path), name)
        if node.op == "call_method":
            return getattr(given[0], str(node.target))(*given[1:], **named)
        return node.target(*given, **named) if callable(node.target) else None

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _SizedProxy(Proxy):
    def __getattribute__(self, name: str) -> Any:
        if name in ("shape", "ndim", "size", "dim"):
            value = self.tracer.values.get(self.node)
            if isinstance(value, torch.Tensor):
                return getattr(value, name)
        return super().__getattribute__(name)
