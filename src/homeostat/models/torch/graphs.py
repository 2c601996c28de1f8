"""What calls what in a PyTorch model in eval mode: the graphs of all parts that have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.models.graph import Kind, Operation
from homeostat.models.torch.inference import Arguments, inference_graph
from homeostat.models.torch.linear import kind_of, linear_class
from homeostat.torch.trace import Refused, reached, reads_of


class Call(NamedTuple):
    """A node of a graph, and the module that it calls, or None."""

    node: fx.Node
    module: nn.Module | None


class Graphs:
    """The graphs of a model, or of those parts that have one where the whole has none.

    Args:
        model: any module.
        arguments: what its parts were called with, by their names.

    Attributes:
        operations: of all graphs, each after those that it takes.
        outputs: names of the operations whose results leave their part.
        calls: what each operation calls, by its name.
        names: of the modules, by their ids.
        counts: how often each module is called, by its id.
        read: ids of the modules whose parameters a graph takes by themselves.
        sized: classes whose graph depends on the sizes of what they were called with.
    """

    def __init__(self, model: nn.Module, arguments: Mapping[str, Arguments]) -> None:
        self.model = model
        self.sized: set[str] = set()
        self._arguments = arguments
        self.names = {id(part): name for name, part in model.named_modules()}
        self.operations: list[Operation] = []
        self.outputs: list[str] = []
        self.calls: dict[str, Call] = {}
        self.read: set[int] = set()
        self._refused: dict[str, str] = {}
        self._visited: set[int] = set()
        self._visit(model)
        self.counts = Counter(id(c.module) for c in self.calls.values() if c.module is not None)
        self._reads = {name: reads_of(model.get_submodule(name)) for name in self._refused}

    def why_no_call(self, name: str) -> str:
        """Return why the graphs do not tell where a module is called."""
        while name:
            name = name.rpartition(".")[0]
            if name in self._refused:
                kind = type(self.model.get_submodule(name)).__name__
                return f"no graph of {kind}: {self._refused[name]}"
        return "nothing in the model's graph calls it in eval mode"

    def why_not_alone(self, module: nn.Module) -> str:
        """Return what else than one call in a graph depends on a module; "" for nothing."""
        calls = self.counts[id(module)]
        if calls > 1:
            return f"is called {calls} times"
        if id(module) in self.read:
            return "has parameters that are used by themselves too"
        found = reached(self._reads, [self.names[id(module)]])
        if found is not None:
            kind = type(self.model.get_submodule(found[0])).__name__
            return f"may be used by {kind} too, which has no graph and reads .{found[1]}"
        return ""

    def _visit(self, part: nn.Module) -> None:
        if id(part) in self._visited or _is_leaf(part) or not _has_norms(part):
            return
        self._visited.add(id(part))
        try:
            graph = self._graph(part)
        except Refused as refused:
            # Lists and dicts of modules have no forward to speak of.
            if type(part).forward.__qualname__ != "_forward_unimplemented":
                self._refused[self.names[id(part)]] = str(refused)
            for child in part.children():
                self._visit(child)
        else:
            self._add(graph, part)

    def _graph(self, part: nn.Module) -> fx.Graph:
        try:
            return inference_graph(part, _is_leaf)
        except Refused:
            arguments = self._arguments.get(self.names[id(part)])
            if arguments is None:
                raise
            try:
                graph = inference_graph(part, _is_leaf, arguments)
            except Refused:
                graph = None
            if graph is None:
                raise
            self.sized.add(type(part).__name__)
            return graph

    def _add(self, graph: fx.Graph, owner: nn.Module) -> None:
        prefix = f"{self.names[id(owner)]}:"
        for node in graph.nodes:
            inputs = tuple(prefix + name for name in _inputs(node))
            if node.op == "output":
                self.outputs += inputs
                continue
            module = None
            if node.op == "call_module":
                module = owner.get_submodule(str(node.target))
            if node.op == "get_attr":
                path = str(node.target).rpartition(".")[0]
                self.read.add(id(owner.get_submodule(path)))
            kind, word = _kind(node, module)
            name = prefix + node.name
            layer = node.name if module is None else self.names[id(module)]
            self.operations.append(Operation(name, kind, inputs, layer, word))
            self.calls[name] = Call(node, module)


def _kind(node: fx.Node, module: nn.Module | None) -> tuple[Kind, str]:
    if module is not None:
        if isinstance(module, _BatchNorm):
            return "batch_norm", type(module).__name__
        return kind_of(module), type(module).__name__
    if node.op == "placeholder":
        return "input", "input"
    word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return "other", f"{'method' if node.op == 'call_method' else 'function'} {word}"


def _inputs(node: fx.Node) -> list[str]:
    # `all_input_nodes` has each but once.
    found: list[str] = []
    fx.node.map_arg((node.args, node.kwargs), lambda other: found.append(other.name))
    return found


def _is_leaf(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm) or linear_class(module) is not None:
        return True
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, fx.GraphModule)
    return type(module).__module__.startswith("torch.") and not isinstance(module, containers)


def _has_norms(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())
