"""Who may import whom: the rule of every room of the package, and what reads a module's imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

FRAMEWORKS = frozenset(
    (
        *("tensorflow", "tf_keras", "tf_slim", "keras", "torch", "torchvision"),
        *("jax", "jaxlib", "flax", "numba", "llvmlite", "triton", "sklearn"),
    )
)
CORE = ("errors", "spec", "layout", "moments")
OPS = ("ops.tensorflow", "ops.torch", "ops.jax")
FRONT_DOORS = ("keras", "torch", "flax", "tf1")
MODELS = ("models.keras", "models.torch", "models.files")
ANYTHING = "*"


@dataclass(frozen=True)
class Rule:
    """What a room may import besides itself.

    Args:
        ours: modules of the package, with all that is inside them; "" is its public names.
        frameworks: frameworks and other heavy packages.
        lazily: modules of the package that may be imported inside functions only.
    """

    ours: tuple[str, ...] = ()
    frameworks: frozenset[str] = frozenset()
    lazily: tuple[str, ...] = ()


def _of(framework: str, *others: str) -> frozenset[str]:
    return frozenset((framework, *others))


# A room is a module with all that is inside it; the longest name that fits a module is its room.
RULES: Mapping[str, Rule] = {
    "": Rule((*CORE, "memory"), lazily=FRONT_DOORS),
    "errors": Rule(),
    "spec": Rule(("errors",)),
    "layout": Rule(("errors",)),
    "moments": Rule(("errors", "spec", "layout")),
    "reference": Rule(CORE),
    "idx": Rule(("errors",)),
    "memory": Rule(("errors",)),
    "events": Rule(("errors",)),
    # What watches training asks the rules.
    "drift": Rule(("errors", "moments"), lazily=("audit", "rules")),
    "kernels": Rule(("errors",), FRAMEWORKS),
    "ops": Rule(CORE),
    "ops.numpy": Rule((*CORE, "ops.arguments", "kernels")),
    "ops.tensorflow": Rule((*CORE, "ops.arguments", "kernels"), _of("tensorflow")),
    "ops.torch": Rule((*CORE, "ops.arguments", "kernels"), _of("torch")),
    "ops.jax": Rule((*CORE, "ops.arguments", "kernels"), _of("jax")),
    "keras": Rule((*CORE, "drift", "events", *OPS), _of("keras", "tensorflow", "torch", "jax")),
    "torch": Rule((*CORE, "drift", "events", "ops.torch"), _of("torch")),
    "flax": Rule((*CORE, "ops.jax"), _of("flax", "jax")),
    "tf1": Rule((*CORE, "idx", "ops.tensorflow"), _of("tensorflow", "tf_keras", "tf_slim")),
    "models": Rule(CORE, lazily=MODELS),
    "models.files": Rule((*CORE, "models")),
    "models.keras": Rule(
        (*CORE, "models", "models.files", "keras", *OPS),
        _of("keras", "tensorflow", "torch", "jax"),
    ),
    "models.torch": Rule((*CORE, "models", "models.files", "ops.torch", "torch"), _of("torch")),
    "rules": Rule((*CORE, "models")),
    "audit": Rule((*CORE, "data", "models", "rules")),
    "data": Rule(("errors",)),
    "recalibrate": Rule((*CORE, "data", "models")),
    "fold": Rule((*CORE, "models"), lazily=MODELS),
    "freeze": Rule((*CORE, "models"), lazily=MODELS),
    "convert": Rule((*CORE, "models")),
    "report": Rule((*CORE, "models", "rules", "audit", "recalibrate", "fold", "freeze", "convert")),
    "studies": Rule(
        (*CORE, "idx", *FRONT_DOORS, "reference", "report.rows", "report.jsonl"), FRAMEWORKS
    ),
    "bench": Rule((*CORE, "", *OPS, *FRONT_DOORS, "reference", "report.bench.rows"), FRAMEWORKS),
    # The command line starts quickly, whatever it will do.
    "cli": Rule(("", "errors"), lazily=(ANYTHING,)),
}


class Import(NamedTuple):
    """One import: the module's full name, its line, and whether it is inside a function."""

    target: str
    line: int
    lazy: bool


def inside(module: str, room: str) -> bool:
    """Return whether a module (both without the package's name) is a room or inside it."""
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    """Return the room of a module, the longest name that fits; None for no room."""
    if module == "":
        return ""
    fitting = [room for room in RULES if room and inside(module, room)]
    return max(fitting, key=len, default=None)


def imports(source: str, module: str, *, package: bool) -> Iterator[Import]:
    """Yield every import of a module's source, but for those that only a type checker reads."""
    yield from _imports(ast.parse(source), f"homeostat.{module}".strip("."), package, lazy=False)


def _imports(node: ast.AST, module: str, package: bool, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                kept = module.split(".")[: len(module.split(".")) - child.level + package]
                base = ".".join((*kept, base)).strip(".")
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, lazy)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, module, package, lazy=lazy or function)


def violations(source: str, module: str, *, package: bool, known: frozenset[str]) -> list[str]:
    """Return what a module imports against its room's rule, each as a sentence.

    Args:
        source: its text.
        module: its name without the package's; "" for the package itself.
        package: whether it is an ``__init__.py``.
        known: the names of all modules, to tell modules from the names inside them.
    """
    room = room_of(module)
    if room is None:
        return [f"{module} has no room: expected one of {sorted(RULES)}."]
    rule, found = RULES[room], []
    for target, line, lazy in imports(source, module, package=package):
        top, _, rest = target.partition(".")
        if top in FRAMEWORKS and top not in rule.frameworks:
            found.append(f"{module}:{line} imports {top}, which the room {room!r} may not.")
        if top != "homeostat":
            continue
        while rest and rest not in known and rest not in RULES:
            rest = rest.rpartition(".")[0]
        allowed = (*rule.ours, *(rule.lazily if lazy else ()))
        if not _may(rest, room, allowed):
            found.append(f"{module}:{line} imports homeostat.{rest}, which {room!r} may not.")
    return found


def _may(target: str, room: str, allowed: tuple[str, ...]) -> bool:
    if ANYTHING in allowed or target == "":
        return ANYTHING in allowed or "" in allowed
    home = room_of(target)
    # A room's name does not open the rooms inside it: models, but not models.keras.
    return any(
        inside(target, name) and (home == name or home is None or not inside(home, name))
        for name in (room, *allowed)
        if name
    )
