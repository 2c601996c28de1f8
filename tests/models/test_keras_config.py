"""Keras configurations as graphs and options, without Keras."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import ModelFileError
from homeostat.models import KINDS
from homeostat.models.files.keras_config import read_network
from homeostat.models.files.keras_kinds import kind_of
from homeostat.models.files.keras_layers import parse
from homeostat.models.files.keras_norms import record_of, variable_names
from homeostat.models.files.keras_weights import norms_in


def layer(kind: str, name: str, *nodes: Any, build: Any = None, **options: Any) -> dict[str, Any]:
    found = {"module": "keras.layers", "class_name": kind, "config": {"name": name, **options}}
    found |= {"name": name, "inbound_nodes": list(nodes)}
    return found | ({"build_config": {"input_shape": build}} if build else {})


def tensor(name: str, index: int = 0, output: int = 0, shape: Any = None) -> dict[str, Any]:
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": shape, "dtype": "float32", "keras_history": [name, index, output]},
    }


def call(*tensors: Any, **options: Any) -> dict[str, Any]:
    return {"args": list(tensors), "kwargs": options}


def functional(name: str, layers: list[Any], inputs: Any, outputs: Any) -> dict[str, Any]:
    config = {"name": name, "layers": layers, "input_layers": inputs, "output_layers": outputs}
    return {"class_name": "Functional", "config": config}


def sequential(name: str, *layers: Any) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": name, "layers": list(layers)}}


def graph_of(config: Any) -> Any:
    network = read_network(parse(config))
    assert network.graph is not None, network.why_no_graph
    return network.graph


def rows(config: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(each.name, each.kind, each.inputs) for each in graph_of(config).operations]


def test_a_fused_activation_is_behind_its_layer_and_in_front_of_the_norm() -> None:
    model = sequential(
        "net",
        layer("InputLayer", "x", batch_shape=[None, 8, 8, 3]),
        layer(
            "Conv2D", "conv", activation="relu", use_bias=True, padding="same", kernel_size=[3, 3]
        ),
        layer("BatchNormalization", "norm", build=[None, 8, 8, 4]),
        layer("Dropout", "drop", rate=0.25),
        layer("Dense", "head", activation="linear", units=2, build=[None, 8, 8, 4]),
    )
    graph = graph_of(model)
    assert rows(model) == [
        ("x", "input", ()),
        ("conv", "conv", ("x",)),
        ("conv:activation", "activation", ("conv",)),
        ("norm", "batch_norm", ("conv:activation",)),
        ("drop", "dropout", ("norm",)),
        ("head", "dense", ("drop",)),
    ]
    assert (graph["conv"].bias, graph["conv"].padded) == (True, True)
    assert graph["conv:activation"].type == "relu"
    assert graph["norm"].shape == (None, 8, 8, 4)
    assert graph["drop"].rate == 0.25
    assert graph["head"].shape == (None, 8, 8, 2)
    assert graph.outputs == ("head",)


def test_a_residual_of_homeostats_norm_is_added_before_its_activation() -> None:
    norm = layer("BatchNormalization", "norm", call(tensor("x"), residual=tensor("x"), mask=None))
    norm |= {"registered_name": "homeostat>BatchNormalization"}
    norm["config"]["activation"] = {"name": "leaky_relu", "negative_slope": 0.1}
    model = functional("net", [layer("InputLayer", "x"), norm], ["x", 0, 0], ["norm", 0, 0])
    assert rows(model)[1:] == [
        ("norm", "batch_norm", ("x",)),
        ("norm:residual", "add", ("norm", "x")),
        ("norm:activation", "activation", ("norm:residual",)),
    ]
    assert graph_of(model)["norm:activation"].type == "leaky_relu"


def shared(first: int, **told: Any) -> dict[str, Any]:
    """A nested model that is called twice; its calls are counted from ``first``."""
    inner = functional(
        "inner",
        [
            layer("InputLayer", "entry"),
            layer("BatchNormalization", "norm", call(tensor("entry"))),
        ],
        ["entry", 0, 0],
        ["norm", 0, 0],
    )
    inner |= {"name": "inner"}
    if first:
        inner["config"]["layers"][1]["inbound_nodes"] = [[["entry", 0, 0, {}]]]
        nodes: list[Any] = [[["x", 0, 0, told]], [["inner", 1, 0, {"training": False}]]]
        add: Any = [["inner", 1, 0, {}], ["inner", 2, 0, {}]]
    else:
        nodes = [call(tensor("x", shape=[None, 3])), call(tensor("inner", 0, shape=[None, 3]))]
        add = call([tensor("inner", 0), tensor("inner", 1)])
    # Out of order: the sum comes first.
    layers = [layer("Add", "sum", add), layer("InputLayer", "x"), inner | {"inbound_nodes": nodes}]
    return functional("net", layers, ["x", 0, 0], [["sum", 0, 0], ["inner", 2, 0]])


@pytest.mark.parametrize("first", [0, 1])
def test_a_nested_model_that_is_called_twice(first: int) -> None:
    graph = graph_of(shared(first))
    assert rows(shared(first)) == [
        ("x", "input", ()),
        ("inner/norm", "batch_norm", ("x",)),
        ("inner:1/norm", "batch_norm", ("inner/norm",)),
        ("sum", "add", ("inner/norm", "inner:1/norm")),
    ]
    assert {graph["inner/norm"].layer, graph["inner:1/norm"].layer} == {"inner/norm"}
    assert graph.outputs == ("sum", "inner:1/norm")
    assert graph["inner/norm"].shape == (None if first else (None, 3))


def test_functions_of_both_dialects() -> None:
    relu = {"module": "keras.src.ops.nn", "class_name": "Relu", "config": {"name": "relu"}}
    assert kind_of(parse(relu)) == "activation"
    old = {"class_name": "TFOpLambda", "config": {"name": "f", "function": "__operators__.add"}}
    assert kind_of(parse(old)) == "add"
    bare = {"class_name": "Relu", "config": {"name": "relu"}}
    assert kind_of(parse(bare)) == "activation"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("SeparableConv2D", "separable_conv"),
        ("Conv2DTranspose", "conv_transpose"),
        ("DepthwiseConv1D", "depthwise_conv"),
        ("GlobalAveragePooling3D", "pool"),
        ("ZeroPadding2D", "pad"),
        ("SyncBatchNormalization", "batch_norm"),
        ("LayerNormalization", "other_norm"),
        ("SpatialDropout2D", "dropout"),
        ("ConvLSTM2D", "recurrent"),
        ("Lambda", "other"),
        ("<img src=x onerror=alert(1)>", "other"),
    ],
)
def test_kinds(kind: str, word: str) -> None:
    assert word in KINDS
    assert kind_of(parse({"class_name": kind, "config": {"name": "a"}})) == word


def test_a_kernel_of_one_element_is_not_padded() -> None:
    options = {"padding": "same", "use_bias": False}
    graph = graph_of(sequential("net", layer("Conv2D", "c", kernel_size=[1, 1], **options)))
    assert (graph["c"].padded, graph["c"].bias) == (False, False)
    graph = graph_of(sequential("net", layer("Conv1D", "c", kernel_size=[3], padding="causal")))
    assert graph["c"].padded is True


def norm_record(keras: int = 3, **options: Any) -> Any:
    package = options.pop("package", "")
    config = layer("BatchNormalization", "norm", build=options.pop("build", None), **options)
    found = parse(sequential("net", config | {"registered_name": f"{package}>BatchNormalization"}))
    (norm,) = norms_in(found)
    arrays = {name: np.ones(4, "float32") for name in variable_names(norm)}
    return record_of(norm, arrays, keras=keras, network=read_network(found))


def test_options_of_a_norm() -> None:
    record = norm_record(
        momentum=0.9, epsilon=1e-4, synchronized=True, trainable=False, dtype="mixed_bfloat16"
    )
    assert (record.momentum, record.epsilon, record.dtype) == (0.9, 1e-4, "bfloat16")
    assert (record.synchronized, record.trainable, record.tracking) == (True, False, False)
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    assert norm_record(dtype=policy).dtype == "float16"
    assert norm_record().momentum == 0.99


def test_options_of_homeostats_norm() -> None:
    record = norm_record(
        package="homeostat", momentum=None, stored_variance="sample", frozen_affine=True
    )
    assert (record.cumulative, record.momentum, record.updates) == (True, None, 1)
    assert (record.stored_variance, record.trainable, record.tracking) == ("sample", False, True)
    assert norm_record(package="homeostat", inference_mode=True).tracking is False


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({"build": [None, 8, 8, 4], "axis": [3]}, "sample"),
        ({"build": [None, 4, 8, 8], "axis": [1]}, "sample"),
        ({"build": [None, 8, 8, 8, 4], "axis": [4]}, "sample"),
        ({"build": [None, 8, 8, 4], "axis": [2]}, "population"),
        ({"build": [None, 4], "axis": [1]}, "population"),
        ({"build": [None, 8, 8, 4], "axis": [3], "renorm": True}, "population"),
        ({"build": [None, 8, 8, 4], "axis": [3], "dtype": "float64"}, "population"),
        ({"axis": [3]}, None),
    ],
)
def test_the_variance_that_keras_2_stores(options: dict[str, Any], stored: str | None) -> None:
    assert norm_record(keras=2, **options).stored_variance == stored


def test_keras_2_was_told_to_infer() -> None:
    network = read_network(parse(shared(1, training=False)))
    assert network.training == {"inner/norm": False}
    # The other call is told nothing.
    assert read_network(parse(shared(1))).training == {}


def test_no_graph_of_a_subclassed_model() -> None:
    network = read_network(parse({"class_name": "Mine", "config": {"name": "mine"}}))
    assert network.graph is None
    assert "Mine" in network.why_no_graph


# What is hostile.


def test_a_model_in_a_model_that_is_called_twice_is_not_unfolded_for_ever() -> None:
    model = functional(
        "0",
        [layer("InputLayer", "x"), layer("ReLU", "r", call(tensor("x")))],
        ["x", 0, 0],
        ["r", 0, 0],
    )
    for depth in range(40):
        inner = model | {"name": str(depth), "inbound_nodes": [call(tensor("x"))]}
        inner["inbound_nodes"] += [call(tensor(str(depth), 0))]
        layers = [layer("InputLayer", "x"), inner]
        model = functional(str(depth + 1), layers, ["x", 0, 0], [str(depth), 2, 0])
    network = read_network(parse(model))
    assert network.graph is None
    assert "more than" in network.why_no_graph


BROKEN = {
    "wait for each other": functional(
        "net",
        [
            layer("InputLayer", "x"),
            layer("ReLU", "a", call(tensor("b"))),
            layer("ReLU", "b", call(tensor("a"))),
        ],
        ["x", 0, 0],
        ["b", 0, 0],
    ),
    "is not there": functional(
        "net", [layer("ReLU", "a", call(tensor("nothing")))], [], ["a", 0, 0]
    ),
    "outputs": functional("net", [layer("InputLayer", "x")], ["x", 0, 0], []),
    "same name": functional(
        "net", [layer("InputLayer", "x"), layer("ReLU", "x")], ["x", 0, 0], ["x", 0, 0]
    ),
    "is there twice": sequential("net", layer("ReLU", "a"), layer("ReLU", "a")),
    "no text": {"class_name": "ReLU", "config": {"name": ["a"]}},
    "no options": {"class_name": "ReLU", "config": 3},
    "by its class": ["Sequential"],
}


@pytest.mark.parametrize("words", BROKEN)
def test_broken_configurations(words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        read_network(parse(BROKEN[words]))


def places(value: Any) -> list[tuple[Any, Any]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


WORDS = st.sampled_from(["inner", "norm", "x", "BatchNormalization"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | WORDS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(WORDS, inside, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_configurations_end_in_a_graph_or_an_error(data: Any) -> None:
    config = copy.deepcopy(shared(data.draw(st.integers(0, 1))))
    for _ in range(data.draw(st.integers(1, 4))):
        found = places(config)
        if not found:
            break
        holder, key = found[data.draw(st.integers(0, len(found) - 1))]
        holder[key] = data.draw(JUNK)
    try:
        model = parse(config)
        network = read_network(model)
        for norm in norms_in(model):
            arrays = {name: np.ones(2) for name in variable_names(norm)}
            record_of(norm, arrays, keras=2, network=network)
    except ModelFileError as error:
        assert "expected" in str(error)  # noqa: PT017
