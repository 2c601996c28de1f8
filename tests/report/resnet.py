"""A real ResNet50 whose statistics are wrong in known places, as an audit."""

from __future__ import annotations

import functools

import numpy as np

from homeostat.models import BatchNormRecord, ModelRecord, Observation
from homeostat.moments import Moments
from homeostat.rules.findings import Audit, Finding, RuleInfo, Skipped

RULES = (
    RuleInfo(
        "BN001",
        "never-updated",
        "error",
        "The moving statistics are still what they started from.",
        "Looks for a moving mean of 0 and a moving variance of 1 in every channel.",
        "At inference the norm only scales and shifts: the network sees other activations than "
        "those it was trained on, and its outputs are near chance.",
        "Run the updates with each training step, or recalibrate the statistics on training data.",
        "Safe: `homeostat recalibrate` replaces nothing but statistics that nothing ever set.",
    ),
    RuleInfo(
        "BN003",
        "dead-channels",
        "warning",
        "Channels that are the same whatever comes in.",
        "Looks for channels whose moving variance is 0.",
        "Such a channel carries nothing, and its first change is divided by sqrt(epsilon).",
        "Prune the channels, or look for what silences them: a bias far below 0 before a ReLU.",
    ),
    RuleInfo(
        "BN030",
        "drifted",
        "warning",
        "The moving statistics are not those of the data.",
        "Compares them with the pooled statistics of the data, channel by channel.",
        "Inference normalizes with means and variances that the data does not have.",
        "Recalibrate on data like what the model will see.",
        "Safe where the data stands for what the model will see.",
        ("data",),
    ),
    RuleInfo(
        "BN040",
        "foldable",
        "info",
        "A norm that can be folded into the convolution before it.",
        "Looks for a convolution or dense layer right before the norm.",
        "It costs time at inference for nothing.",
        "Fold it with `homeostat fold` before deployment.",
        "Safe: the result is checked against the original.",
        ("graph",),
    ),
)


@functools.cache
def resnet50_audit() -> Audit:
    """Return what is found in a ResNet50 with random statistics and damage in five norms."""
    import keras

    keras.utils.set_random_seed(7)
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    _set_statistics(layers)
    images = np.random.default_rng(1).normal(size=(8, 64, 64, 3)).astype("float32")
    watch = keras.Model(model.input, [layer.input for layer in layers])
    outputs = [np.asarray(output) for output in watch(images, training=True)]
    inputs = {
        layer.name: Moments(
            output.size / output.shape[-1],
            output.mean((0, 1, 2), dtype="float64"),
            output.var((0, 1, 2), dtype="float64"),
        )
        for layer, output in zip(layers, outputs, strict=True)
    }
    rng = np.random.default_rng(2)
    for layer in layers:
        _, mean, variance = inputs[layer.name]
        noise = rng.normal(0, 0.1, (2, len(mean)))
        layer.moving_mean.assign(mean + noise[0] * np.sqrt(variance))
        layer.moving_variance.assign(variance * np.exp(noise[1]))
    _damage(layers)
    norms = tuple(record_of(layer) for layer in layers)
    findings = (
        Finding("BN001", "error", norms[1].name, "All 64 channels have mean 0 and variance 1."),
        Finding("BN030", "error", norms[20].name, "Non-finite: 2 means.", (3, 400)),
        Finding("BN003", "warning", norms[10].name, "3 channels have variance 0.", (1, 7, 90)),
        Finding(
            "BN030",
            "warning",
            norms[30].name,
            "12 channels are up to 9 standard deviations off.",
            tuple(range(40, 52)),
            {"largest_shift": 9.0, "share": 12 / 1024, "loss": float("inf"), "slope": float("nan")},
        ),
        *(Finding("BN040", "info", each.name, "Folding saves 0.2 MB.") for each in norms[40:]),
        Finding("BN040", "info", None, "13 norms can be folded, which saves 2.1 MB."),
    )
    skipped = (
        Skipped("BN050", None, "no labels were given: pass --labels to compare accuracies."),
        Skipped("BN030", norms[0].name, "no data came to it."),
    )
    record = ModelRecord(
        "resnet50.keras", "keras", "Keras archive", norms, parameters=model.count_params()
    )
    return Audit(record, findings, skipped, RULES, Observation(inputs, 1, 8))


def record_of(layer) -> BatchNormRecord:
    """Return what a Keras batch norm says of itself, but for its momentum."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return BatchNormRecord(
        layer.name,
        type(layer).__name__,
        **{name: np.asarray(getattr(layer, name)) for name in names},
        epsilon=layer.epsilon,
        stored_variance="population",
        trainable=layer.trainable,
        dtype=layer.compute_dtype,
        unknown=frozenset({"momentum", "updates"}),
    )


def _set_statistics(layers) -> None:
    rng = np.random.default_rng(0)
    for layer in layers:
        count = layer.gamma.shape[0]
        layer.gamma.assign(rng.normal(1, 0.2, count))
        layer.beta.assign(rng.normal(0, 0.3, count))
        layer.moving_mean.assign(rng.normal(0, 1, count))
        layer.moving_variance.assign(np.exp(rng.normal(0, 1, count)))


def _damage(layers) -> None:
    def put(layer, name, channels, value):
        variable = getattr(layer, name)
        array = np.array(variable)
        array[channels] = value
        variable.assign(array)

    put(layers[1], "moving_mean", slice(None), 0)
    put(layers[1], "moving_variance", slice(None), 1)
    put(layers[20], "moving_mean", [3, 400 % layers[20].gamma.shape[0]], np.nan)
    put(layers[10], "moving_variance", [1, 7, 90 % layers[10].gamma.shape[0]], 0)
    put(layers[30], "moving_mean", slice(40, 52), 30)
    put(layers[50], "gamma", slice(0, 500, 20), 0)
