"""Folding Keras models, on the backend of this process; the last test runs the others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers  # noqa: E402

from homeostat.errors import DataError, DisagreementError, UnsupportedError  # noqa: E402
from homeostat.fold import Folded, fold  # noqa: E402
from homeostat.keras import BatchNormalization as Ours  # noqa: E402

Norm = layers.BatchNormalization
BACKEND = keras.backend.backend()
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The structure of `inputs`"),
]


def shaken(model: Any, seed: int = 0) -> Any:
    """Give a model's norms statistics and parameters with which folding matters."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, Norm | Ours):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(0, 0.5, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.5, 1.5, shape))
            if layer.beta is not None:
                layer.beta.assign(rng.normal(0, 0.5, shape))
        elif hasattr(layer, "bias") and getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


def norms_of(model: Any) -> list[str]:
    return [layer.name for layer in model._flatten_layers() if isinstance(layer, Norm | Ours)]


def inputs_for(model: Any, examples: int = 3) -> Any:
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(examples, *t.shape[1:])).astype("float32") for t in model.inputs]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def folded(model: Any, **options: Any) -> Folded:
    """Fold, and hold the new model to the old one and to what it was before."""
    before = [np.array(w) for w in model.get_weights()]
    names = [layer.name for layer in model._flatten_layers()]
    x = inputs_for(model)
    result = fold(model, x, rounds=0, **options)
    given = list(x) if isinstance(x, tuple) else x
    for expected, actual in zip(
        keras.tree.flatten(model(given, training=False)),
        keras.tree.flatten(result.model(given, training=False)),
        strict=True,
    ):
        expected = keras.ops.convert_to_numpy(expected)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(actual), expected, rtol=1e-4, atol=2e-5 * scale
        )
    assert result.report.error < 1e-5
    assert result.report.precision == "float64"
    assert names == [layer.name for layer in model._flatten_layers()]
    for array, weights in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, weights)
    return result


def told(result: Folded) -> list[str]:
    return [
        f"{norm.side} {norm.into}" if norm.into else norm.reason for norm in result.report.norms
    ]


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dense": (lambda **o: layers.Dense(5, **o), (4,)),
    "dense of rank 3": (lambda **o: layers.Dense(5, **o), (3, 4)),
    "conv1d": (lambda **o: layers.Conv1D(5, 3, **o), (8, 4)),
    "conv2d": (lambda **o: layers.Conv2D(5, 3, strides=2, **o), (8, 8, 4)),
    "conv3d": (lambda **o: layers.Conv3D(5, 2, **o), (4, 4, 4, 2)),
    "grouped": (lambda **o: layers.Conv2D(6, 3, groups=2, **o), (8, 8, 4)),
    "grouped1d": (lambda **o: layers.Conv1D(6, 3, groups=2, **o), (8, 4)),
    "dilated": (lambda **o: layers.Conv2D(5, 3, dilation_rate=2, **o), (8, 8, 4)),
    "depthwise1d": (lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=2, **o), (8, 4)),
    "depthwise2d": (lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=3, **o), (8, 8, 4)),
    "separable1d": (lambda **o: layers.SeparableConv1D(5, 3, depth_multiplier=2, **o), (8, 4)),
    "separable2d": (lambda **o: layers.SeparableConv2D(5, 3, depth_multiplier=2, **o), (8, 8, 4)),
    "transpose1d": (lambda **o: layers.Conv1DTranspose(5, 3, strides=2, **o), (8, 4)),
    "transpose2d": (lambda **o: layers.Conv2DTranspose(5, 3, strides=2, **o), (6, 6, 4)),
    "transpose3d": (lambda **o: layers.Conv3DTranspose(3, 2, **o), (3, 3, 3, 2)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_takes_in_the_norm_behind_it(kind: str, bias: bool) -> None:
    make, shape = KINDS[kind]
    model = keras.Sequential([keras.Input(shape), make(use_bias=bias), Norm(), layers.ReLU()])
    result = folded(shaken(model))
    assert norms_of(result.model) == []
    assert len(result.model.layers) == 2
    assert result.model.layers[0].use_bias
    assert type(result.model.layers[0]) is type(model.layers[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("transpose")])
def test_every_layer_takes_in_the_norm_before_it(kind: str) -> None:
    make, shape = KINDS[kind]
    model = keras.Sequential([keras.Input(shape), Norm(), make(activation="relu")])
    result = folded(shaken(model))
    assert told(result) == [f"after {model.layers[1].name}"]
    assert norms_of(result.model) == []


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU has channels last alone")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "dense" not in kind])
def test_channels_first(kind: str) -> None:
    make, (*spatial, channels) = KINDS[kind]
    shape, first = (channels, *spatial), "channels_first"
    conv = make(data_format=first, name="conv")
    model = keras.Sequential([keras.Input(shape), conv, Norm(axis=1), layers.ReLU()])
    assert told(folded(shaken(model))) == ["before conv"]
    model = keras.Sequential([keras.Input(shape), make(data_format=first, name="conv"), Norm()])
    reason = (
        f"its channels are on axis {len(shape)}, those of {type(conv).__name__} 'conv' on axis 1"
    )
    assert told(folded(shaken(model))) == [f"{reason}; nothing is after it"]
    if not kind.startswith("transpose"):
        conv = make(data_format=first, name="conv")
        model = keras.Sequential([keras.Input(shape), Norm(axis=1), conv])
        assert told(folded(shaken(model))) == ["after conv"]


def test_options_of_the_norm() -> None:
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3)(x)
    y = Norm(scale=False)(y)
    y = layers.Conv2D(4, 3)(layers.ReLU()(y))
    y = Norm(center=False, epsilon=0.1)(y)
    y = layers.Dense(4, name="dense")(layers.ReLU()(y))
    y = Norm(axis=3)(y)
    y = Norm(scale=False, center=False, name="last")(layers.Dropout(0.5)(y))
    result = folded(shaken(keras.Model(x, y)))
    assert norms_of(result.model) == []
    assert result.report["last"].into == "dense"


def test_padding() -> None:
    """Zeros around are not normalized, unless the norm adds nothing."""
    x = keras.Input((8, 8, 3))
    y = layers.ZeroPadding2D(name="pad")(layers.Conv2D(4, 3, name="first")(x))
    y = layers.Conv2D(4, 3, padding="same", name="second")(Norm()(y))
    model = shaken(keras.Model(x, y))
    assert told(folded(model)) == [
        "ZeroPadding2D 'pad' puts zeros around, which the norm would shift; Conv2D 'second' after "
        "it sees zeros around its input, which it would shift"
    ]
    norm = model.layers[-2]
    norm.moving_mean.assign(np.zeros(4))
    norm.beta.assign(np.zeros(4))
    assert told(folded(model)) == ["before first"]
    # A kernel of size 1 sees no border.
    model = keras.Sequential([x, Norm(), layers.Conv2D(4, 1, padding="same", name="one")])
    assert told(folded(shaken(model))) == ["after one"]
    for layer in (
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.DepthwiseConv2D(3, padding="same", name="conv"),
        layers.SeparableConv2D(4, 3, padding="same", name="conv"),
        layers.Conv2DTranspose(4, 2, strides=2, name="conv"),
    ):
        model = keras.Sequential([keras.Input((8, 8, 3)), Norm(), layer])
        assert "'conv' after it sees zeros around its input" in told(folded(shaken(model)))[0]
    causal = layers.Conv1D(4, 3, padding="causal", name="conv")
    model = keras.Sequential([keras.Input((8, 3)), Norm(), causal])
    assert "sees zeros around" in told(folded(shaken(model)))[0]


def test_what_does_nothing_in_inference_lies_between() -> None:
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, name="conv")(x)
    for between in (
        layers.Dropout(0.5),
        layers.SpatialDropout2D(0.5),
        layers.GaussianNoise(1.0),
        layers.Identity(),
        layers.Activation("linear"),
        layers.Cropping2D(1),
        layers.UpSampling2D(2),
    ):
        y = between(y)
    result = folded(shaken(keras.Model(x, Norm()(y))))
    assert told(result) == ["before conv"]


def test_channels_must_be_where_the_cropping_thinks() -> None:
    x = keras.Input((8, 8, 6))
    y = layers.Conv2D(8, 3, name="conv")(x)
    y = Norm()(layers.Cropping2D(1, data_format="channels_first")(y))
    assert "Cropping2D" in told(folded(shaken(keras.Model(x, y))))[0]


def test_dropout_called_in_training_stops_it() -> None:
    x = keras.Input((3,))
    y = Norm()(layers.Dropout(0.0)(layers.Dense(4)(x), training=True))
    assert "Dropout" in told(folded(shaken(keras.Model(x, y))))[0]


def test_branches() -> None:
    x = keras.Input((8, 8, 3))
    left = Norm(name="left")(layers.Conv2D(4, 3, name="conv_left")(x))
    right = layers.Conv2D(4, 3, name="conv_right")(x)
    normed = Norm(name="right")(right)
    y = Norm(name="sum")(layers.Add(name="add")([left, normed, right]))
    z = layers.Concatenate(name="cat")([y, left])
    result = folded(shaken(keras.Model(x, [Norm(name="end")(z), left])))
    report = result.report
    assert report["left"].into == "conv_left"
    assert "Add 'add' takes the result of Conv2D 'conv_right' too" in report["right"].reason
    assert report["sum"].reason == "Add 'add' is before it; Concatenate 'cat' is after it"
    assert report["end"].reason == "Concatenate 'cat' is before it; nothing is after it"


def test_an_output_of_the_model_stays() -> None:
    x = keras.Input((8, 8, 3))
    conv = layers.Conv2D(4, 3, name="conv")(x)
    result = folded(shaken(keras.Model(x, [conv, layers.ReLU()(Norm()(conv))])))
    assert "the result of Conv2D 'conv' is an output" in told(result)[0]


def test_an_activation_inside_the_layer_forbids_it() -> None:
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="relu", name="dense"), Norm()]
    )
    assert "Dense 'dense' applies relu itself" in told(folded(shaken(model)))[0]
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, activation="linear"), Norm()])
    assert norms_of(folded(shaken(model)).model) == []


def test_shared_layers() -> None:
    x, z = keras.Input((3,)), keras.Input((3,))
    dense, norm, own = layers.Dense(4, name="dense"), Norm(name="norm"), layers.Dense(4, name="own")
    y = layers.Add()([norm(dense(x)), norm(own(z)), Norm(name="alone")(dense(z))])
    result = folded(shaken(keras.Model([x, z], y)))
    assert result.report["norm"].reason == "it is called 2 times"
    assert "Dense 'dense' is called 2 times" in result.report["alone"].reason
    assert len(result.report.norms) == 2


def block(shape: tuple[int, ...], name: str) -> Any:
    x = keras.Input(shape)
    y = layers.ReLU()(Norm(name="norm")(layers.Conv2D(3, 3, padding="same", name="conv")(x)))
    return keras.Model(x, y, name=name)


def test_nested_models() -> None:
    """A block twice in a model, a Sequential in a Sequential, and a border that stops folding."""
    x = keras.Input((8, 8, 3))
    shared = block((8, 8, 3), "shared")
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="a"), Norm(name="b")], name="inner"
    )
    outer = keras.Sequential([keras.Input((8, 8, 3)), block((8, 8, 3), "c"), inner], name="outer")
    y = outer(shared(shared(x)))
    result = folded(shaken(keras.Model(x, Norm(name="behind")(y))))
    assert told(result) == [
        "before shared/conv",
        "before outer/c/conv",
        "before outer/inner/a",
        "Sequential 'outer' is before it; nothing is after it",
    ]
    assert norms_of(result.model) == ["behind"]
    assert [type(layer).__name__ for layer in result.model.layers] == [
        *("InputLayer", "Functional", "Sequential", "BatchNormalization")
    ]


def test_a_model_called_in_training_takes_the_batchs_statistics() -> None:
    x = keras.Input((8, 8, 3))
    inner, frozen = block((8, 8, 3), "inner"), block((8, 8, 3), "frozen")
    frozen.trainable = False
    y = frozen(inner(inner(x), training=True), training=True)
    y = Norm(name="own")(layers.Dense(2)(y), training=True)
    y = Norm(name="off")(layers.Dense(2)(y), training=False)
    report = fold(shaken(keras.Model(x, y)), rounds=0).report
    reason = "it is called with training=True, so that it takes the batch's statistics"
    assert report["inner/norm"].reason == report["own"].reason == reason
    assert report["frozen/norm"].into == "frozen/conv"
    assert report["off"].into is not None


def test_norms_in_wrappers_and_classes_of_ones_own() -> None:
    class Wrapped(layers.Layer):
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            self.norm = Norm(name="within")

        def build(self, shape: Any) -> None:
            self.norm.build(shape)

        def call(self, x: Any) -> Any:
            return self.norm(x)

        def get_config(self) -> dict[str, Any]:
            return super().get_config()

    class Derived(Norm):
        pass

    x = keras.Input((3, 4))
    y = layers.TimeDistributed(Norm(name="norm"), name="time")(layers.Dense(4)(x))
    y = Wrapped(name="wrapped")(layers.Dense(4)(y))
    x, again = keras.Input((2, 3, 4)), keras.Model(x, y, name="again")
    y = layers.TimeDistributed(again, name="twice")(x)
    y = Derived(name="derived")(layers.Dense(4)(y))
    report = folded(shaken(keras.Model(x, y))).report
    assert report["derived"].reason == "what its class Derived does is not known"
    assert report["twice/again/time/norm"].reason.startswith("it is inside TimeDistributed 'twice'")
    assert report["twice/again/wrapped/within"].reason == (
        "it is inside TimeDistributed 'twice', whose calls are not known"
    )


def test_fused_activations_and_residuals_stay() -> None:
    x = keras.Input((6, 6, 4))
    y = Ours(activation="relu", name="a")(layers.Conv2D(4, 3, padding="same")(x))
    leaky = {"name": "leaky_relu", "negative_slope": 0.3}
    z = layers.Conv2D(4, 3, padding="same", use_bias=False)(y)
    z = Ours(activation=leaky, name="b")(z, residual=y)
    w = Ours(name="c")(layers.Conv2D(4, 1)(z), residual=z)
    w = Ours(name="d", activation="relu")(w)
    model = shaken(keras.Model(x, layers.Dense(2)(w)))
    result = folded(model)
    report = result.report
    assert [norm.remains for norm in report.norms] == ["relu", "add + leaky_relu", "add", ""]
    assert "relu is fused behind it" in report["d"].reason
    assert norms_of(result.model) == ["d"]
    pair = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), Ours(activation=leaky, name="bn"), layers.Dense(2)]
    )
    small = folded(shaken(pair)).model
    assert [type(layer).__name__ for layer in small.layers] == ["Dense", "LeakyReLU", "Dense"]


def test_axes_of_ones_own_and_a_residual_of_itself() -> None:
    x = keras.Input((3, 4))
    y = Ours(axis=[1, 2], name="two")(layers.Dense(4)(x))
    z = layers.Dense(4, name="dense")(y)
    model = shaken(keras.Model(x, Ours(name="self")(z, residual=z)))
    report = folded(model).report
    assert report["two"].reason == "it has statistics along the axes [1, 2]"
    assert "takes the result of Dense 'dense' twice" in report["self"].reason


def test_broken_statistics_stay() -> None:
    model = shaken(keras.Sequential([keras.Input((3,)), layers.Dense(4), Norm(name="bn")]))
    model.layers[1].moving_mean.assign([0.0, np.nan, 0.0, 0.0])
    report = fold(model, rounds=0).report
    assert report["bn"].reason == "not finite: moving_mean"


def test_lora_stays() -> None:
    dense = layers.Dense(4, name="dense")
    model = keras.Sequential([keras.Input((3,)), dense, Norm(name="bn"), layers.ReLU()])
    dense.enable_lora(2)
    report = fold(shaken(model), rounds=0).report
    assert "Dense 'dense' has LoRA weights" in report["bn"].reason


def test_computing_in_two_dtypes_stays() -> None:
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, dtype="mixed_bfloat16"), Norm(name="bn")]
    )
    report = fold(shaken(model), rounds=0).report
    assert "it computes in float32, Dense 'dense" in report["bn"].reason


def test_sixteen_bits() -> None:
    """Parameters of 16 bits cannot hold the product to 1e-5, and that is said."""
    policy = keras.DTypePolicy("bfloat16")
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, dtype=policy), Norm(dtype=policy, name="bn")]
    )
    shaken(model)
    with pytest.raises(DisagreementError, match="expected at most 1e-05"):
        fold(model, rounds=0)
    assert norms_of(model) == ["bn"]
    assert norms_of(fold(model, rounds=0, tolerance=0.05).model) == []
    mixed = keras.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, dtype=mixed), Norm(dtype=mixed, name="bn")]
    )
    result = fold(shaken(model), rounds=0)
    assert norms_of(result.model) == []
    assert result.model.layers[0].compute_dtype == "bfloat16"


def test_several_inputs_and_outputs_by_name() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b", dtype="int32")
    y = Norm(name="one")(layers.Dense(4)(a))
    z = Norm(name="two")(layers.Dense(3)(layers.Embedding(9, 3)(b)))
    model = shaken(keras.Model({"a": a, "b": b}, {"y": y, "z": z}))
    batch = {"a": np.ones((2, 3), "float32"), "b": np.full((2, 4), 8)}
    for inputs in (batch, None):
        result = fold(model, inputs, rounds=0)
        assert norms_of(result.model) == []
        assert result.report.error < 1e-5
    assert set(result.model(batch)) == {"y", "z"}


def test_functions_constants_and_lambdas() -> None:
    x = keras.Input((6, 6, 3))
    y = Norm()(layers.Conv2D(4, 3)(keras.ops.relu(x * 2.0 - 1.0)))
    y = layers.Lambda(lambda t: t * 3.0)(y)
    y = keras.ops.mean(y, axis=(1, 2))
    y = Norm(name="last")(keras.ops.cast(y, "float32"))
    result = folded(shaken(keras.Model(x, y)))
    assert norms_of(result.model) == ["last"]
    assert result.report["last"].reason.startswith("Cast ")


def test_sizes_that_vary() -> None:
    x = keras.Input((None, None, 3))
    y = layers.GlobalAveragePooling2D()(Norm(name="bn")(layers.Conv2D(4, 3)(x)))
    result = fold(shaken(keras.Model(x, y)), rounds=0)
    assert norms_of(result.model) == []
    assert result.report["bn"].operations is None


def test_savings_and_times() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False), Norm(), layers.ReLU()]
    )
    report = fold(shaken(model), rounds=2).report
    assert (report.parameters_before, report.parameters_after) == (3 * 4 * 9 + 16, 3 * 4 * 9 + 4)
    assert report.parameters == 12
    assert report.operations == 2 * 36 * 4 - 36 * 4
    assert report.examples == 2
    assert report.seconds_before is not None
    assert 0 < report.seconds_before < 5


def test_saving_without_homeostat(tmp_path: Path) -> None:
    """A folded model of Homeostat's norms loads where Homeostat was never imported."""
    x = keras.Input((6, 6, 3))
    y = Ours(activation="relu")(layers.Conv2D(4, 3, use_bias=False)(x))
    y = Ours()(layers.SeparableConv2D(4, 3)(y), residual=layers.Conv2D(4, 3)(y))
    model = shaken(keras.Model(x, y))
    result, path = folded(model), tmp_path / "folded.keras"
    result.model.save(path)
    batch = inputs_for(model)
    np.save(tmp_path / "x.npy", batch)
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1], safe_mode=True)\n"
        "np.save(sys.argv[3], keras.ops.convert_to_numpy(model(np.load(sys.argv[2]))))\n"
        "assert 'homeostat' not in sys.modules\n"
    )
    files = [str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = keras.ops.convert_to_numpy(result.model(batch))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-5)


def test_a_compiled_model_stays_compiled() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), Norm(), layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse", metrics=["mae"])
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 1), "float32")
    result = fold(shaken(model), rounds=0).model
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(result.evaluate(x, y, verbose=0), expected, rtol=1e-4)


def test_what_cannot_be_folded_at_all() -> None:
    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(UnsupportedError, match="cannot fold a Own"):
        fold(Own())
    with pytest.raises(UnsupportedError, match="a model that is not built"):
        fold(keras.Sequential([layers.Dense(3), Norm()]))

    class Sneaky(keras.Model):
        """Made of a graph, and does something else."""

        def call(self, x: Any, training: Any = None, mask: Any = None) -> Any:
            return super().call(x, training=training) + 1

    x = keras.Input((3,))
    model = Sneaky(x, Norm()(layers.Dense(3)(x)))
    with pytest.raises(UnsupportedError, match="cannot fold a Sneaky"):
        fold(model)


def test_a_layer_that_cannot_be_copied_is_named() -> None:
    class Unwritten(layers.Layer):
        def __init__(self, size: Any, **named: Any) -> None:
            super().__init__(**named)

        def call(self, x: Any) -> Any:
            return x

    x = keras.Input((3,))
    model = keras.Model(x, Unwritten(object(), name="odd")(Norm()(layers.Dense(3)(x))))
    with pytest.raises(UnsupportedError, match="layer 'odd' of class Unwritten cannot be copied"):
        fold(shaken(model), rounds=0)


def test_inputs_that_do_not_fit() -> None:
    model = shaken(keras.Sequential([keras.Input((3,)), layers.Dense(4), Norm()]))
    with pytest.raises(DataError, match="the model fails on its inputs"):
        fold(model, np.ones((2, 5), "float32"), rounds=0)


def test_a_layer_that_knows_float32_alone() -> None:
    class Strict(layers.Layer):
        def call(self, x: Any) -> Any:
            if keras.backend.standardize_dtype(x.dtype) != "float32":
                raise TypeError("float32 alone")
            return x

    x = keras.Input((3,))
    model = shaken(keras.Model(x, Strict()(Norm()(layers.Dense(4)(x)))))
    report = fold(model, rounds=0).report
    assert report.precision == "the model's own precision"
    assert "not computed in float64" in report.notes[0]
    assert report.error < 1e-5


def test_nothing_to_fold() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, activation="relu"), Norm()])
    result = fold(shaken(model))
    assert (result.report.folded, result.report.seconds_before) == ((), None)
    assert result.model is not model
    assert norms_of(result.model) == norms_of(model)


NETWORKS = {
    "ResNet50": (64, 53, 0),
    "MobileNetV2": (64, 52, 0),
    # Those behind a concatenation, before a ReLU.
    "DenseNet121": (64, 59, 62),
    "InceptionV3": (75, 94, 0),
    "EfficientNetB0": (64, 49, 0),
}


@pytest.mark.slow
@pytest.mark.skipif("HOMEOSTAT_INNER" in os.environ, reason="once is enough")
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name: str) -> None:
    size, expected, left = NETWORKS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    result = fold(shaken(model), inputs_for(model, 2), rounds=0)
    report = result.report
    assert (len(report.folded), len(report.left)) == (expected, left)
    assert report.error < 1e-5
    assert report.precision == "float64"
    assert sorted(norms_of(result.model)) == sorted(norm.name for norm in report.left)
    for norm in report.left:
        assert norm.reason.endswith("_relu' is after it") or norm.reason.endswith(
            "'relu' is after it"
        )


# What depends on a backend's convolutions and arrays, and not on what folding makes of a graph.
ELSEWHERE = (
    "(behind_it and False and (conv2d or grouped1d or depthwise2d or separable2d or transpose2d)) "
    "or (before_it and separable2d) or (channels_first and (grouped1d or depthwise2d)) or nested "
    "or sixteen"
)


@pytest.mark.slow
@pytest.mark.skipif("HOMEOSTAT_INNER" in os.environ, reason="this runs it")
@pytest.mark.parametrize("backend", sorted({"tensorflow", "jax", "torch"} - {BACKEND}))
def test_on_the_other_backends(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", __file__, "-q", "-n", "0", "-k", ELSEWHERE),
            *("-p", "no:cacheprovider"),
        ],
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ | {"KERAS_BACKEND": backend, "HOMEOSTAT_INNER": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
