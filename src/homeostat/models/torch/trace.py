"""One graph of a whole model's inference, as `torch.fx` follows it through the model's code."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import CodeType
from typing import Any

from torch import fx, nn

from homeostat.models.torch.norms import is_batch_norm
from homeostat.models.torch.undisturbed import undisturbed
from homeostat.torch.fused import kind_of
from homeostat.torch.trace import Proxy, Refused, calls_of_users, question_of

_OPAQUE = ("torch.nn.", "torch.ao.")
_CONTAINERS = "torch.nn.modules.container"


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is one operation: a batch norm, or what PyTorch itself computes."""
    if is_batch_norm(module):
        return True
    home = type(module).forward.__module__ or ""
    replaced = "forward" in vars(module)
    return home.startswith(_OPAQUE) and home != _CONTAINERS and not replaced


def trace_inference(model: nn.Module) -> fx.Graph:
    """Return the graph of a model's inference, whose leaves are those of `is_leaf`.

    What cannot be followed and holds no batch norm is a leaf too. Arguments of the model that have
    a default keep it.

    Args:
        model: any module; it is left as it was.

    Raises:
        Refused: there is no such graph.
    """
    opaque: set[str] = set()
    while True:
        tracer = _Tracer(opaque)
        try:
            with undisturbed(model):
                graph = tracer.trace(model)
        except Exception as error:
            failed = tracer.failed
            if failed in opaque or not failed or _holds_norms(model.get_submodule(failed)):
                raise Refused(_told(model, failed, error)) from error
            opaque.add(failed)
        else:
            return _checked(graph, tracer, _files(model))


def _holds_norms(module: nn.Module) -> bool:
    return any(map(is_batch_norm, module.modules()))


def _told(model: nn.Module, failed: str, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    if not isinstance(error, Refused):
        first = f"torch.fx cannot trace it: {first}"
    kind = kind_of(model.get_submodule(failed) if failed else model)
    return f"no graph of {kind}{f' {failed!r}' if failed else ''}: {first}"


def _files(model: nn.Module) -> set[str]:
    """Return where the model's own forwards are written."""
    forwards = {inspect.unwrap(type(part).forward) for part in model.modules()}
    codes = (getattr(forward, "__code__", None) for forward in forwards)
    return {code.co_filename for code in codes if code is not None}


def _checked(graph: fx.Graph, tracer: _Tracer, files: set[str]) -> fx.Graph:
    for code, proxies in tracer.codes:
        # What a library asks of outputs, to put them into a class of its own, leads nowhere else.
        if code.co_filename not in files:
            continue
        asked = question_of(code, proxies, none=False)
        if asked:
            raise Refused(f"{code.co_qualname} in the model's code asks {asked}")
    return graph


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opaque: set[str]) -> None:
        super().__init__()
        self.opaque = opaque
        self.failed = ""
        self.codes: list[tuple[CodeType, frozenset[str]]] = []

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Make proxies of the arguments without defaults, or of the first, and leave the others."""
        given, named = _inputs(root_fn)
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in (*given, *named)]

        def forward(root: nn.Module, *inputs: Any) -> Any:
            rest = dict(zip(named, inputs[len(given) :], strict=True))
            with calls_of_users(self.codes):
                outputs = root_fn(root, *inputs[: len(given)], **rest)
            return _tensors(outputs)

        return forward, [self.root, *proxies]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.opaque or is_leaf(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost comes first.
            self.failed = self.failed or self.path_of_module(m)
            raise

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer what only checks an input, so that the check passes."""
        frame = sys._getframe(1)
        while frame.f_back is not None and _is_torch(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        answer = _passing(frame.f_code, frame.f_lasti)
        return super().to_bool(obj) if answer is None else answer


def _inputs(function: Any) -> tuple[list[str], list[str]]:
    """Return the names of what a model's forward takes by position, and by name alone."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    kinds = (inspect.Parameter.VAR_KEYWORD,)
    wanted = [p for p in parameters if p.kind not in kinds]
    needed = [p for p in wanted if p.default is p.empty and p.kind != p.VAR_POSITIONAL]
    named = [p.name for p in needed if p.kind == p.KEYWORD_ONLY]
    return [p.name for p in needed or wanted[:1] if p.kind != p.KEYWORD_ONLY], named


def _is_torch(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "homeostat")


def _passing(code: CodeType, offset: int) -> bool | None:
    """Return the answer with which a condition does not raise; None where it decides more."""
    instructions = list(dis.get_instructions(code))
    jump = next(i for i, each in enumerate(instructions) if each.offset == offset)
    if instructions[jump].opname == "TO_BOOL":
        jump += 1
    if "POP_JUMP" not in instructions[jump].opname:
        return None
    target = next(i for i, e in enumerate(instructions) if e.offset == instructions[jump].argval)
    on, away = _raises(instructions, jump + 1), _raises(instructions, target)
    jumps_if = not instructions[jump].opname.endswith("FALSE")
    return None if on == away else (jumps_if if on else not jumps_if)


def _raises(instructions: list[dis.Instruction], start: int) -> bool:
    for each in instructions[start:]:
        if each.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in each.opname or each.opname.startswith(("RETURN", "FOR_ITER", "YIELD")):
            return False
    return False


def _tensors(outputs: Any) -> Any:
    """Return what of a model's outputs is in a graph, in tuples."""
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif is_dataclass(outputs) and not isinstance(outputs, type):
        outputs = tuple(getattr(outputs, field.name) for field in fields(outputs))
    if isinstance(outputs, tuple | list):
        return tuple(_tensors(each) for each in outputs)
    return outputs if isinstance(outputs, fx.Proxy) else None
