"""The layers that a Keras configuration names, in the dialects of Keras 2 and Keras 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from homeostat.errors import ModelFileError

Shape = tuple[int | None, ...]

# What has a class and a name in a configuration and is no layer.
_NO_LAYERS = ("Policy", "PolicyMap")


class Reference(NamedTuple):
    """A result of another layer's call.

    Args:
        layer: the layer's name in the same model.
        index: which of its calls, as the configuration counts.
        tensor: which of the call's results.
        shape: the result's shape, where it is told.
    """

    layer: str
    index: int
    tensor: int
    shape: Shape | None = None


@dataclass(frozen=True)
class Call:
    """A call of a layer in a functional model.

    Args:
        arguments: the results that it takes.
        training: the argument of that name, where it is given.
        legacy: whether it is in Keras 2's dialect.
    """

    arguments: tuple[Reference, ...]
    training: bool | None = None
    legacy: bool = False


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's configuration.

    Args:
        name: its name in the model that it is in.
        path: the names of the models and wrappers that it is in, and its own, joined by ``/``; ""
            for the whole model.
        type: its class, without the package.
        package: that it is registered in, or its module.
        config: its options.
        input_shape: the shape that it was built for, where it is told and is one.
        calls: its calls in the model that it is in, where that is functional.
        layers: those that it calls in its own order, for a model; None for another layer.
        wrapped: layers among its options.
    """

    name: str
    path: str
    type: str
    package: str
    config: Mapping[str, Any]
    input_shape: Shape | None = None
    calls: tuple[Call, ...] = ()
    layers: tuple[Layer, ...] | None = None
    wrapped: tuple[Layer, ...] = ()

    @property
    def functional(self) -> bool:
        """Whether it is a model that says what takes what; a Sequential one does not have to."""
        return self.layers is not None and "output_layers" in self.config

    def walk(self) -> Iterator[Layer]:
        """Yield the layer and all inside it, in order."""
        yield self
        for layer in (*(self.layers or ()), *self.wrapped):
            yield from layer.walk()


def parse(config: Any) -> Layer:
    """Return the layers of a model's configuration, as `to_json` or a file has it.

    Args:
        config: the mapping with ``class_name`` and ``config``.

    Raises:
        ModelFileError: it is none.

    Example:
        >>> norm = {"class_name": "BatchNormalization", "config": {"name": "norm"}}
        >>> model = {"class_name": "Sequential", "config": {"name": "net", "layers": [norm]}}
        >>> [layer.path for layer in parse(model).walk()]
        ['', 'norm']
    """
    try:
        return _parse(config, None)
    except RecursionError as error:
        raise broken("layers are nested too deeply") from error


def parse_layer(config: Any, path: str) -> Layer:
    """Return one layer of a model from its configuration.

    Args:
        config: the mapping with ``class_name`` and ``config``.
        path: its path in the model.

    Raises:
        ModelFileError: it is none.
    """
    return replace(_parse(config, ""), path=path)


def _parse(config: Any, outer: str | None) -> Layer:
    if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
        raise broken("a layer is not told by its class and options")
    package, _, kind = config["class_name"].rpartition(">")
    options = config.get("config")
    # The first versions wrote a Sequential model as the list of its layers.
    options = {"layers": options} if isinstance(options, list) else options
    if not isinstance(options, Mapping):
        raise broken(f"a layer of class {kind!r} has no options")
    name = config.get("name") or options.get("name") or kind
    if not isinstance(name, str):
        raise broken(f"a layer of class {kind!r} has a name that is no text")
    registered = config.get("registered_name")
    if isinstance(registered, str) and ">" in registered:
        package = registered.rpartition(">")[0]
    path = "" if outer is None else f"{outer}/{name}".lstrip("/")
    nodes = config.get("inbound_nodes")
    layers = _layers(kind, options, path)
    return Layer(
        name,
        path,
        kind,
        package or str(config.get("module") or ""),
        options,
        _input_shape(config.get("build_config"), options),
        tuple(_call(node) for node in nodes) if isinstance(nodes, list) else (),
        layers,
        () if layers is not None else tuple(_wrapped(options, path)),
    )


def _layers(kind: str, options: Mapping[str, Any], path: str) -> tuple[Layer, ...] | None:
    layers = options.get("layers")
    if not isinstance(layers, list) or not (kind == "Sequential" or "output_layers" in options):
        return None
    return tuple(_parse(layer, path) for layer in layers)


def _wrapped(value: Any, path: str) -> Iterator[Layer]:
    for each in value.values() if isinstance(value, Mapping) else value:
        if isinstance(each, list):
            yield from _wrapped(each, path)
        elif isinstance(each, Mapping) and isinstance(each.get("class_name"), str):
            inside = each.get("config")
            named = isinstance(inside, Mapping) and isinstance(inside.get("name"), str)
            if named and not each["class_name"].endswith(_NO_LAYERS):
                yield _parse(each, path)


def _input_shape(build: Any, options: Mapping[str, Any]) -> Shape | None:
    found = build.get("input_shape") if isinstance(build, Mapping) else None
    for key in ("batch_shape", "batch_input_shape", "build_input_shape"):
        found = found or options.get(key)
    return read_shape(found)


def read_shape(value: Any) -> Shape | None:
    """Return a shape from a configuration; None for what is none."""
    if not isinstance(value, list | tuple):
        return None
    known = all(each is None or (type(each) is int and each >= 0) for each in value)
    return tuple(value) if known else None


def _call(node: Any) -> Call:
    if isinstance(node, Mapping) and "args" in node:
        options = node.get("kwargs")
        options = options if isinstance(options, Mapping) else {}
        # A mask goes along with a tensor; it is none of the operation's inputs.
        others = [value for name, value in options.items() if name != "mask"]
        training = options.get("training")
        found = tuple(references([node["args"], others]))
        return Call(found, training if isinstance(training, bool) else None)
    found = tuple(references(node))
    training = next(_training(node), None)
    return Call(found, training, legacy=True)


def _training(node: Any) -> Iterator[bool]:
    for each in node if isinstance(node, list) else ():
        if isinstance(each, list):
            yield from _training(each)
        elif isinstance(each, Mapping) and isinstance(each.get("training"), bool):
            yield each["training"]


def references(value: Any) -> Iterator[Reference]:
    """Yield the results of layers that a part of a configuration names, in order."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            tensor = value.get("config")
            tensor = tensor if isinstance(tensor, Mapping) else {}
            shape = read_shape(tensor.get("shape"))
            for found in references(tensor.get("keras_history")):
                yield found._replace(shape=shape)
            return
        # Keras flattens mappings by their sorted keys.
        for key in sorted(value, key=str):
            yield from references(value[key])
    elif isinstance(value, list | tuple):
        head = value[:3]
        if len(head) == 3 and [type(each) for each in head] == [str, int, int]:
            if head[0] != "_CONSTANT_VALUE":
                yield Reference(*head)
            value = value[3:]
        for each in value:
            yield from references(each)


def broken(what: str) -> ModelFileError:
    """Return the error of a configuration that is none."""
    return ModelFileError(
        f"the model's configuration is broken, {what}: expected one as Keras writes it. Save the "
        "model again."
    )
