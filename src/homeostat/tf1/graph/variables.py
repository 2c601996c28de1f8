"""The variables of a graph or a checkpoint, and the layers that their names tell of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow.compat.v1 as tf

VARIABLES = ("VariableV2", "Variable", "VarHandleOp", "AutoReloadVariable")

_STATISTIC = re.compile(
    r"(?:moving|running|pop|population)_(?P<of>mean|var|variance|std|stddev)(?P<number>_\d+)?"
)
# Of optimizers and of training.
_NO_LAYER = re.compile(
    r"(?:^|.*/)(?:global_step|beta[12]_power(?:_\d+)?|loss_scale|save_counter)|training(?:_\d+)?/.*"
)
_PART = re.compile(r"/part_\d+$")
_RECURRENT = re.compile(r"(lstm|gru|rnn)(?:_cell)?", re.IGNORECASE)
_BY_RANK = {2: "dense", 3: "conv1d", 4: "conv2d", 5: "conv3d"}


class Variable(NamedTuple):
    """A variable: its name, its shape (None where not known) and its operation, if there is one."""

    name: str
    shape: tuple[int | None, ...] | None
    op: Any = None

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return _PART.sub("", self.name).rpartition("/")[2]

    @property
    def statistic(self) -> str:
        """What moving statistic of a batch norm it is, "mean" or another; "" if it is none."""
        found = _STATISTIC.fullmatch(self.leaf)
        return found["of"] if found else ""

    @property
    def size(self) -> int | None:
        """Its number of elements."""
        if self.shape is None or None in self.shape:
            return None
        return math.prod(size for size in self.shape if size is not None)


def variables_of(graph: Any) -> list[Variable]:
    """Return the variables of a graph's layers: not an optimizer's, a metric's or the step."""
    local = {each.op for each in graph.get_collection(tf.GraphKeys.LOCAL_VARIABLES)}
    found = [
        Variable(each.name, _shape(each), each)
        for each in graph.get_operations()
        if each.type in VARIABLES and each not in local
    ]
    return without_slots(found)


def without_slots(variables: Iterable[Variable]) -> list[Variable]:
    """Return variables without those that optimizers keep, for each variable or for all."""
    kept = list(variables)
    names = {_PART.sub("", variable.name) for variable in kept}

    def is_slot(variable: Variable) -> bool:
        home = _PART.sub("", variable.name).rpartition("/")[0]
        return home in names or bool(_NO_LAYER.fullmatch(variable.name))

    return [variable for variable in kept if not is_slot(variable)]


def layers_of(variables: Iterable[Variable]) -> dict[str, list[Variable]]:
    """Return variables by their layer, which is their scope; alone, a variable is its own."""
    layers: dict[str, list[Variable]] = {}
    for variable in variables:
        name = _PART.sub("", variable.name)
        home = name.rpartition("/")[0]
        layers.setdefault(statistics_home(variable) or home or name, []).append(variable)
    return layers


def statistics_home(variable: Variable) -> str:
    """Return the batch norm whose statistic a variable is; "" if it is none.

    Its scope; statistics that are numbered or in no scope are called by their mean's name.
    """
    found = _STATISTIC.fullmatch(variable.leaf)
    if found is None:
        return ""
    scope, number = variable.name.rpartition("/")[0], found["number"] or ""
    if scope and not number:
        return scope
    stem = f"{variable.leaf[: found.start('of')]}mean{number}"
    return f"{scope}/{stem}" if scope else stem


def kind_by_names(name: str, variables: Iterable[Variable]) -> str:
    """Return what a layer is as far as the names and shapes of its variables tell."""
    kinds = []
    variables = list(variables)
    for variable in variables:
        weights = variable.leaf in ("kernel", "weights", "depthwise_kernel", "depthwise_weights")
        if weights and (found := _RECURRENT.search(name)):
            kinds.append(found[1].lower())
        elif weights and variable.shape is not None:
            kinds.append(_BY_RANK.get(len(variable.shape), ""))
        elif "embedding" in variable.leaf:
            kinds.append("embedding")
    if any(variable.statistic for variable in variables):
        kinds.append("batch norm")
    return " + ".join(dict.fromkeys(kind for kind in kinds if kind))


def parameters_of(variables: Iterable[Variable]) -> int | None:
    """Return the number of elements of variables, or None if a shape is not known."""
    sizes = [variable.size for variable in variables]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _shape(operation: Any) -> tuple[int | None, ...] | None:
    try:
        shape = tf.TensorShape(operation.get_attr("shape"))
    except (TypeError, ValueError):
        return None
    return None if shape.rank is None else tuple(shape.as_list())
