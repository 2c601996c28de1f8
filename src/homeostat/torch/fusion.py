"""Find what may move into a model's batch norms, and move it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from homeostat.torch.fused import Absorbed, Fused, add_residual, can_fuse, fuse, kind_of
from homeostat.torch.patterns import (
    activation_of,
    activation_of_module,
    add_of,
    has_hooks,
    is_identity,
    may_wait,
    told,
)
from homeostat.torch.state import State
from homeostat.torch.trace import Refused, own_graph, reached, reads_of


class Outcome:
    """What moved into one norm, and why no more did."""

    def __init__(self) -> None:
        self.activation: Any = None
        self.residual = False
        self.reason = ""


class Fusion:
    """One pass over a model whose batch norms are Homeostat's.

    Args:
        model: where to look.
        outcomes: what to fill in, by the id of each norm into which something may move.
    """

    def __init__(self, model: nn.Module, outcomes: dict[int, Outcome]) -> None:
        self.names = {id(part): name for name, part in model.named_modules()}
        self.outcomes = outcomes
        self.graphs: dict[str, fx.Graph] = {}
        self.refused: dict[str, str] = {}
        self.sequentials: dict[str, nn.Module] = {}
        self.registered = Counter(
            id(child) for part in model.modules() for child in part._modules.values()
        )
        self.calls: Counter[int] = Counter()
        self.model = model
        for name, part in model.named_modules():
            self._read(name, part)
        self.reads = {name: reads_of(model.get_submodule(name)) for name in self.refused}

    def _read(self, name: str, part: nn.Module) -> None:
        if isinstance(part, State) or not any(isinstance(m, State) for m in part.modules()):
            return
        forward = type(part).forward
        if forward is nn.Sequential.forward and "forward" not in vars(part):
            self.sequentials[name] = part
            self.calls.update(map(id, part._modules.values()))
        elif forward.__qualname__ == "_forward_unimplemented":
            return
        elif type(part).__module__.startswith("torch.nn."):
            self.refused[name] = "it is of PyTorch's own"
        else:
            self._trace(name, part)

    def _trace(self, name: str, part: nn.Module) -> None:
        try:
            graph = own_graph(part)
        except Refused as refused:
            self.refused[name] = str(refused)
            return
        self.graphs[name] = graph
        self.calls.update(
            id(part.get_submodule(node.target)) for node in graph.nodes if node.op == "call_module"
        )

    def run(self) -> None:
        """Move what may move; give every norm that could take more a reason."""
        for name, part in self.sequentials.items():
            self._fuse_sequential(name, part)
        for name, graph in self.graphs.items():
            self._fuse_graph(name, graph)
        for norm, outcome in self.outcomes.items():
            if not (outcome.activation or outcome.residual or outcome.reason):
                outcome.reason = self._why_no_call(self.names[norm])

    def _why_no_call(self, name: str) -> str:
        while name:
            name = name.rpartition(".")[0]
            kind = kind_of(self.model.get_submodule(name))
            if name in self.refused:
                return f"no graph of {kind}: {self.refused[name]}"
            if name in self.graphs:
                return f"{kind} does not call it by itself"
        return "nothing in the model calls it"

    def _tail(self, module: nn.Module) -> list[nn.Module]:
        """Return the Sequentials, from the outside in, that end with a norm, and that norm."""
        chain = [module]
        while id(chain[-1]) in self.names and self.names[id(chain[-1])] in self.sequentials:
            children = list(chain[-1]._modules.values())
            if not children or children[-1] is None:
                return []
            chain.append(children[-1])
        return chain if id(chain[-1]) in self.outcomes else []

    def _refusal(self, chain: list[nn.Module], *around: str) -> str:
        """Return why nothing may move into the norm at a chain's end; "" where it may.

        Args:
            chain: of `_tail`.
            around: names of the modules that apply the chain and what follows one after the other.
        """
        for part in chain:
            if has_hooks(part):
                return f"{type(part).__name__} has hooks"
            if self.registered[id(part)] > 1:
                return f"{type(part).__name__} is in the model more than once"
            if self.calls[id(part)] > 1:
                return f"{type(part).__name__} is called more than once"
        if chain[-1].__dict__["activation"] is not None:
            return "it has an activation"
        return self._reached([*(self.names[id(part)] for part in chain), *around])

    def _reached(self, names: list[str]) -> str:
        """Return which module without a graph takes one of the named modules out of another."""
        found = reached(self.reads, names)
        if found is None:
            return ""
        kind = kind_of(self.model.get_submodule(found[0]))
        return f"{kind}, which has no graph, reads .{found[1]}"

    def _fuse_sequential(self, name: str, part: nn.Module) -> None:
        children = part._modules
        keys = list(children)
        for i, key in enumerate(keys):
            if children[key] is None or not (chain := self._tail(children[key])):
                continue
            outcome = self.outcomes[id(chain[-1])]
            if i + 1 == len(keys):
                outcome.reason = f"nothing follows it in {type(part).__name__}"
                continue
            following = children[keys[i + 1]]
            activation = activation_of_module(following)
            refusal = self._refusal(chain, name)
            if activation is None:
                outcome.reason = f"{type(following).__name__} follows"
            elif refusal:
                outcome.reason = refusal
            else:
                path = self.names[id(chain[-1])][len(name) + 1 if name else 0 :]
                children[keys[i + 1]] = Absorbed(following, path)
                chain[-1].activation = outcome.activation = activation
                outcome.reason = ""

    def _fuse_graph(self, name: str, graph: fx.Graph) -> None:
        owner = self.model.get_submodule(name)
        moved: list[str] = []
        for node in list(graph.nodes):
            if node.op != "call_module" or not (
                chain := self._tail(owner.get_submodule(node.target))
            ):
                continue
            outcome = self.outcomes[id(chain[-1])]
            try:
                self._move(node, owner, chain, outcome)
            except Refused as refused:
                outcome.reason = str(refused)
            else:
                outcome.reason = ""
                moved.append(self.names[id(chain[-1])][len(name) + 1 if name else 0 :])
        if moved:
            graph.lint()
            fuse(owner, graph, tuple(moved))

    def _move(
        self, node: fx.Node, owner: nn.Module, chain: list[nn.Module], outcome: Outcome
    ) -> None:
        """Move what follows a node into the norm that it ends with, or raise Refused."""
        user = _only_user(node)
        while is_identity(user, owner):
            user.replace_all_uses_with(node)
            node.graph.erase_node(user)
            user = _only_user(node)
        added = add_of(user, node)
        activation = activation_of(user, owner) if added is None else None
        if isinstance(added, str):
            raise Refused(added)
        if added is None and activation is None:
            residual = user.op == "call_function" and user.target is add_residual
            raise Refused(
                "it is the residual of another" if residual else f"{told(user, owner)} follows"
            )
        home = self.names[id(chain[0])].rpartition(".")[0]
        if home in self.refused:
            raise Refused(f"{kind_of(self.model.get_submodule(home))} may call it too")
        refusal = self._refusal(chain)
        if refusal:
            raise Refused(refusal)
        if not can_fuse(owner):
            raise Refused(f"{type(owner).__name__} has its own way to be pickled")
        if added is not None:
            if not may_wait(node, user, owner):
                raise Refused("its input may be written to before the addition")
            node = _with_residual(node, user, chain, added)
            outcome.residual = True
            if len(node.users) == 1:
                user = next(iter(node.users))
                activation = activation_of(user, owner)
        if activation is not None:
            user.replace_all_uses_with(node)
            node.graph.erase_node(user)
            chain[-1].activation = outcome.activation = activation


def _only_user(node: fx.Node) -> fx.Node:
    if len(node.args) != 1 or node.kwargs:
        raise Refused("it is called with more than its input")
    if len(node.users) != 1:
        raise Refused(f"its output has {len(node.users)} users")
    return next(iter(node.users))


def _with_residual(node: fx.Node, addition: fx.Node, chain: list[nn.Module], added: Any) -> fx.Node:
    """Put the norm with its residual in the place of an addition."""
    graph, target, x = node.graph, str(node.target), node.args[0]
    with graph.inserting_before(node):
        for part in chain[:-1]:
            *front, last = part._modules
            for key in front:
                x = graph.call_module(f"{target}.{key}", (x,))
            target = f"{target}.{last}"
    with graph.inserting_before(addition):
        norm = graph.get_attr(target)
        arguments = (norm, x, added.other, *((True,) if added.in_place else ()))
        fused = graph.call_function(add_residual, arguments)
    addition.replace_all_uses_with(fused)
    graph.erase_node(addition)
    graph.erase_node(node)
    return fused


def unfuse(model: nn.Module) -> Iterator[State]:
    """Take out of a model's batch norms what `convert` moved into them, and yield those norms.

    Args:
        model: its modules get their own forward and their activations back.
    """
    for part in list(model.modules()):
        if isinstance(part, Fused):
            for path in part.norms:
                yield _plain(part.get_submodule(path))
            part.__class__ = part.original
        for key, child in list(part._modules.items()):
            if isinstance(child, Absorbed):
                yield _plain(part.get_submodule(child.norm))
                part._modules[key] = child.original.train(child.training)


def _plain(norm: Any) -> State:
    norm.activation = None
    return norm
