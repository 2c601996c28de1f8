"""Where the layers of a Keras model lie in its weights file (HDF5), in each version's layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from homeostat.models.files.hdf5_tree import Tree
from homeostat.models.files.keras_kinds import is_batch_norm, snake_case
from homeostat.models.files.keras_layers import Layer, broken
from homeostat.models.files.keras_norms import variable_names
from homeostat.models.records import ARRAYS, Array

# What lies beside the layers, or in them, and is none of their parameters.
_NO_LAYERS = ("optimizer", "optimizer_weights", "metrics", "compile_metrics", "_metrics")
_SEEDS = ("seed_generator", "random_generator")


def is_parameter(path: str) -> bool:
    """Return whether a dataset is a parameter of a layer, not an optimizer's, metric's or seed."""
    parts = path.split("/")
    return parts[0] not in _NO_LAYERS and not any(part.startswith(_SEEDS) for part in parts)


def count_parameters(tree: Tree) -> int:
    """Return how many parameters a weights file holds, statistics included."""
    return sum(size for path, size in tree.sizes.items() if is_parameter(path))


def count_by_group(tree: Tree) -> dict[str, int]:
    """Return how many parameters lie in each group and the groups inside it."""
    counts: dict[str, int] = {}
    for path, size in tree.sizes.items():
        group = path
        while group and is_parameter(path):
            group = group.rpartition("/")[0]
            counts[group] = counts.get(group, 0) + size
    return counts


def names_of_groups(tree: Tree) -> dict[str, str]:
    """Return the path of each layer, made of layers' names, by the group that it lies in.

    Keras 3 writes a layer's name beside its variables. Files without names give nothing.
    """
    found: dict[str, str] = {}
    for group in tree.groups:
        name = tree.text(f"{group}/vars".lstrip("/"), "name")
        if name is None or group == "":
            continue
        outer = group.rpartition("/")[0]
        while outer and outer not in found:
            outer = outer.rpartition("/")[0]
        found[group] = f"{found[outer]}/{name}" if outer else name
    return found


def groups_of(model: Layer, tree: Tree) -> Mapping[str, str]:
    """Return the group that each layer of a model lies in, by the layer's path.

    Args:
        model: the layers of the configuration.
        tree: what Keras wrote with it.
    """
    named: dict[str, str] = {}
    for group, path in names_of_groups(tree).items():
        named.setdefault(path, group)
    return named or dict(_by_class(model, "", tree))


def _by_class(layer: Layer, group: str, tree: Tree) -> Iterator[tuple[str, str]]:
    """Yield layers and groups as files without names have them: by class, counted."""
    container = next(
        (name for name in ("layers", "_layer_checkpoint_dependencies") if name in tree.groups),
        "layers",
    )
    counts: dict[str, int] = {}
    for each in layer.layers or ():
        if ".ops." in each.package:
            continue
        name = snake_case(each.type)
        counts[name] = counts.get(name, -1) + 1
        inside = f"{group}/{container}/{name}".lstrip("/")
        inside += f"_{counts[name]}" if counts[name] else ""
        yield each.path, inside
        yield from _by_class(each, inside, tree)
    for each in layer.wrapped:
        key = next((key for key, value in layer.config.items() if _names(value, each)), None)
        if key is not None:
            yield each.path, f"{group}/{key}"
            yield from _by_class(each, f"{group}/{key}", tree)


def _names(value: object, layer: Layer) -> bool:
    inside = value.get("config") if isinstance(value, Mapping) else None
    return isinstance(inside, Mapping) and inside.get("name") == layer.name


def vectors_in(group: str, tree: Tree) -> list[Array] | None:
    """Return a layer's own variables in order; None where one is no vector."""
    found: list[Array] = []
    while (path := f"{group}/vars/{len(found)}") in tree.sizes:
        if path not in tree.vectors:
            return None
        found.append(tree.vectors[path])
    return found


def arrays_of(norm: Layer, group: str | None, tree: Tree) -> dict[str, Array]:
    """Return the variables of a batch norm by name.

    Args:
        norm: its configuration.
        group: where it lies; None where it was not found.
        tree: the weights file.

    Raises:
        ModelFileError: the file holds others than its options ask for.
    """
    names = variable_names(norm)
    found = None if group is None else vectors_in(group, tree)
    if found is not None and len(found) == len(names):
        return dict(zip(names, found, strict=True))
    # Homeostat's layer also loads what Keras's own has written, without counters.
    counted = [name for name in names if name not in ("updates", "skipped_updates")]
    if found is not None and len(found) == len(counted):
        return dict(zip(counted, found, strict=True))
    held = "no vectors" if not found else f"{len(found)} vectors"
    raise broken(f"batch norm {norm.path!r} has {held} in the file where {len(names)} belong")


# The layout of Keras 2: groups with the names of the model's layers, and in them lists of names.


def legacy_groups(tree: Tree) -> tuple[str, list[str]] | None:
    """Return the group of the weights in a legacy file, and its layers' names; None for another."""
    for base in ("model_weights", ""):
        names = tree.names(base, "layer_names")
        if names:
            return base, names
    return None


def legacy_norms(base: str, layer: str, tree: Tree) -> dict[str, dict[str, Array]]:
    """Return the batch norms in a layer's group: the prefix of their names, and their arrays."""
    group = f"{base}/{layer}".lstrip("/")
    found: dict[str, dict[str, Array]] = {}
    for name in tree.names(group, "weight_names"):
        prefix, _, word = name.rpartition("/")
        vector = tree.vectors.get(f"{group}/{name}")
        if vector is not None:
            found.setdefault(prefix, {})[word.partition(":")[0]] = vector
    statistics = set(ARRAYS[2:])
    return {prefix: arrays for prefix, arrays in found.items() if statistics <= set(arrays)}


def legacy_arrays(
    norms: Sequence[Layer], found: Mapping[str, dict[str, Array]]
) -> dict[str, dict[str, Array]]:
    """Return the arrays of the batch norms in one of the model's layers, by their paths.

    Args:
        norms: their configurations, in order.
        found: what `legacy_norms` gives.

    Raises:
        ModelFileError: there are more or fewer in the file.
    """
    if len(norms) != len(found):
        raise broken(
            f"{len(found)} batch norms are in the file where the model has {len(norms)} in "
            f"{norms[0].path.partition('/')[0]!r}"
            if norms
            else f"the file has {len(found)} batch norms in a layer that has none"
        )
    left, result = dict(found), dict[str, dict[str, Array]]()
    for norm in norms:
        parts = norm.path.split("/")
        prefixes = ["/".join(parts[start:]) for start in range(len(parts))]
        match = next((prefix for prefix in prefixes if prefix in left), None)
        if match is not None:
            result[norm.path] = left.pop(match)
    # A wrapper's name stands for that of the norm in it; what is left goes by order.
    rest = [norm for norm in norms if norm.path not in result]
    for norm, arrays in zip(rest, left.values(), strict=True):
        result[norm.path] = arrays
    return result


def norms_in(layer: Layer) -> list[Layer]:
    """Return the batch norms in a layer, itself included, in order."""
    return [each for each in layer.walk() if is_batch_norm(each)]
