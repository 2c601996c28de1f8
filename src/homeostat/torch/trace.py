"""The graph of a module's own forward, or the reason why no graph tells all that it does.

Every child stays a call of a module. `torch.fx` follows one path through the code, so whatever
could take another path in another call is refused: what depends on `training`, on whether an
argument is None, on random numbers or on modes, what changes the module, and what computes with
tensors that are not the module's.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import itertools
import operator
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from homeostat.torch.snapshot import Snapshot

_ASKS = {"isinstance", "hasattr", "type", "is_tensor", "callable"}
_MODES = {"is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled"}


# What changes how a backward goes, and leaves no node.
_AROUND = {"torch.utils.checkpoint", "torch.autograd.graph"}
_NOT_USERS = {"torch", "homeostat"}


class Refused(Exception):  # noqa: N818
    """There is no graph that tells all that a forward does; the message says why."""


def own_graph(module: nn.Module) -> fx.Graph:
    """Return the graph of a module's forward.

    Args:
        module: any module; it is left as it was.

    Raises:
        Refused: the forward has no such graph.
    """
    _check_signature(module)
    training, inference = graphs_in(module, (True, False), Tracer)
    if str(training) != str(inference):
        raise Refused("its forward depends on self.training")
    return training


def graphs_in(
    module: nn.Module, modes: tuple[bool, ...], tracer: Callable[[], Tracer]
) -> list[fx.Graph]:
    """Return the graphs of a module's forward in training mode or not.

    Args:
        module: any module; it is left as it was.
        modes: the modes.
        tracer: makes what follows the forward.

    Raises:
        Refused: the forward has no such graph.
    """
    if "forward" in vars(module):
        raise Refused("its forward was replaced")
    before = Snapshot(module)
    numbers, more = random.getstate(), np.random.get_state()
    try:
        graphs = []
        for training in modes:
            for part in module.modules():
                part.__dict__["training"] = training
            graphs.append(_traced(module, tracer()))
            if before.differs(but=("training",)):
                raise Refused("its forward changes the module")
        same = map(np.array_equal, more, np.random.get_state())
        if random.getstate() != numbers or not all(same):
            raise Refused("its forward draws random numbers")
    finally:
        before.restore()
        random.setstate(numbers)
        np.random.set_state(more)
    return graphs


def _check_signature(module: nn.Module) -> None:
    if "forward" in vars(module):
        raise Refused("its forward was replaced")
    if isinstance(module, fx.GraphModule):
        raise Refused("it is a GraphModule already; convert before tracing")
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind != parameter.POSITIONAL_OR_KEYWORD:
            raise Refused(f"its forward takes {parameter}")
        if parameter.default is not parameter.empty:
            raise Refused(f"its forward has the optional argument {parameter.name}")


def _traced(module: nn.Module, tracer: Tracer) -> fx.Graph:
    try:
        graph = tracer.trace(module)
    except Refused:
        raise
    except Exception as error:
        # Whatever the user's code raises on a proxy.
        first = str(error).strip().partition("\n")[0]
        raise Refused(f"torch.fx cannot trace it: {first or type(error).__name__}") from error
    for code, proxies in tracer.codes:
        question = question_of(code, proxies)
        if question:
            raise Refused(f"its forward asks {question}")
    return graph


class Proxy(fx.Proxy):
    """Records ``x += y`` as what it is; to `fx.Proxy` it is ``x = x + y``."""


def _in_place(function: Any) -> Any:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift",
              "sub", "truediv", "xor"):  # fmt: skip
    setattr(Proxy, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))


class Tracer(fx.Tracer):
    """Follows a module's own forward: every child stays a call."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.modes = _modes()
        self.codes: list[tuple[CodeType, frozenset[str]]] = []

    def create_args_for_root(self, *arguments: Any, **named: Any) -> Any:
        """Make the proxies of a forward's arguments, and the forward, watched."""
        forward, proxies = super().create_args_for_root(*arguments, **named)

        def watched(*given: Any) -> Any:
            with _NoTensors(), calls_of_users(self.codes):
                return forward(*given)

        return watched, proxies

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return that a module stays a call."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a node's result."""
        return Proxy(node, self)

    def create_node(self, *arguments: Any, **named: Any) -> fx.Node:
        """Make a node, or refuse."""
        if _modes() != self.modes:
            raise Refused("its forward sets a mode, such as no_grad or autocast")
        return super().create_node(*arguments, **named)

    def create_arg(self, a: Any) -> Any:
        """Make an argument of a node, or refuse."""
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            raise Refused("its forward reads a tensor that is neither parameter nor buffer")
        return super().create_arg(a)


def _modes() -> tuple[Any, ...]:
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


class _NoTensors(TorchDispatchMode):
    """Refuses operations on real tensors, whose results would be constants of the graph."""

    def __torch_dispatch__(self, func: Any, *_: Any) -> Any:
        raise Refused(f"its forward computes {func.overloadpacket} of no input of its own")


@contextlib.contextmanager
def calls_of_users(codes: list[tuple[CodeType, frozenset[str]]]) -> Iterator[None]:
    """Collect the code that runs outside of torch, with its arguments that are proxies."""

    def note(frame: Any, event: str, _: Any) -> None:
        name = frame.f_globals.get("__name__", "")
        if event != "call":
            return
        if name in _AROUND:
            raise Refused(f"its forward uses {name}")
        if _top(name) not in _NOT_USERS:
            proxies = {k for k, v in frame.f_locals.items() if isinstance(v, fx.Proxy)}
            codes.append((frame.f_code, frozenset(proxies)))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        # A profiler written in C comes back by its own door alone.
        getattr(before, "enable", lambda: sys.setprofile(before))()


def _top(module: str) -> str:
    return module.partition(".")[0]


@functools.lru_cache
def question_of(code: CodeType, proxies: frozenset[str], *, none: bool = True) -> str:
    """Return what code asks that a proxy, or another mode, would answer in another way; or "".

    Args:
        code: of a function that was called.
        proxies: the names of its arguments that were proxies.
        none: whether it matters that it asks whether a proxy is None.
    """
    modes = sorted(_MODES & set(code.co_names))
    if modes or not proxies:
        return modes[0] if modes else ""
    instructions = list(dis.get_instructions(code))
    for i, instruction in enumerate(instructions):
        name = instruction.opname
        if name == "IS_OP" or name.endswith(("IF_NONE", "IF_NOT_NONE")):
            if not none:
                continue
            near = instructions[max(0, i - 2 if name == "IS_OP" else i - 1) : i]
        elif name.startswith("LOAD_") and instruction.argval in _ASKS:
            near = instructions[i + 1 : i + 4]
        else:
            continue
        asked = proxies & {local for other in near for local in _locals_of(other)}
        if asked:
            return f"what kind of thing {min(asked)} is"
    return ""


def _locals_of(instruction: dis.Instruction) -> tuple[str, ...]:
    if not instruction.opname.startswith("LOAD_FAST"):
        return ()
    named = instruction.argval
    return named if isinstance(named, tuple) else (named,)


def reads_of(module: nn.Module) -> tuple[set[str], set[str]]:
    """Return the attributes that a class reads of other objects, and of itself without a call.

    Args:
        module: one whose forward cannot be traced.
    """
    others: set[str] = set()
    uncalled: set[str] = set()
    for cls in type(module).__mro__:
        if _top(cls.__module__) in _NOT_USERS or cls is object:
            continue
        for name, value in vars(cls).items():
            code = getattr(inspect.unwrap(value) if callable(value) else value, "__code__", None)
            if code is not None and name != "__init__":
                _read(code, others, uncalled)
    return others, uncalled


def reached(
    reads: Mapping[str, tuple[set[str], set[str]]], names: Iterable[str]
) -> tuple[str, str] | None:
    """Return which module takes one of the named modules out of another, and by which name.

    Args:
        reads: of modules without a graph, by their paths, what `reads_of` says.
        names: paths.
    """
    for name in names:
        *above, key = name.split(".")
        for depth in range(len(above) + 1):
            outer = ".".join(above[:depth])
            others, uncalled = reads.get(outer, ((), ()))
            if not key.isdigit() and key in (uncalled if depth == len(above) else others):
                return outer, key
    return None


def _read(code: CodeType, others: set[str], uncalled: set[str]) -> None:
    instructions = list(dis.get_instructions(code))
    for before, instruction in itertools.pairwise(instructions):
        if instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            continue
        if "self" not in _locals_of(before):
            others.add(instruction.argval)
        elif instruction.opname == "LOAD_ATTR" and not (
            sys.version_info >= (3, 12) and instruction.arg is not None and instruction.arg & 1
        ):
            uncalled.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _read(constant, others, uncalled)
