"""What `BatchNormMonitor` writes while a model trains, read back as TensorBoard reads it."""

import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from homeostat import DataError, HomeostatWarning, SpecError, reference
from homeostat.keras import BatchNormalization, BatchNormMonitor

EventAccumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator"
).EventAccumulator
BACKEND = keras.backend.backend()
EPSILON = 1e-3
LAYERS = {"keras": keras.layers.BatchNormalization, "homeostat": BatchNormalization}


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars(folder, tag) -> dict[int, float]:
    from tensorboard.util.tensor_util import make_ndarray

    events = read(folder)
    if tag not in events.Tags()["tensors"]:
        return {}
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}


def tags(folder) -> set[str]:
    return set(read(folder).Tags()["tensors"])


def train(layer, x, folder, *, every=1, epochs=1, batch_size=16, **compiled) -> keras.Model:
    model = keras.Sequential([keras.Input(x.shape[1:]), layer, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.01), "mse", **compiled)
    monitor = BatchNormMonitor(folder, observe_every=every)
    y = np.zeros((len(x), 2), "float32")
    model.fit(
        x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=[monitor]
    )
    return model


def root(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture
def x(rng):
    """Twelve batches of 16, whose mean and spread move."""
    steps = np.repeat(np.arange(12), 16)[:, None]
    return (rng.normal(size=(192, 5)) * (1 + 0.1 * steps) + 3 + 0.2 * steps).astype("float32")


def expected(x, weight_of):
    """Shift and log ratio of each batch against the averages before it, in float64."""
    mean, variance, found = np.zeros(5), np.ones(5), {}
    for step, batch in enumerate(x.reshape(12, 16, 5)):
        moments, weight = reference.moments(batch), weight_of(step)
        scale = variance + EPSILON
        shift = (moments.mean - mean) / np.sqrt(scale)
        found[step] = shift, np.log((moments.variance + EPSILON) / scale)
        mean += weight * (moments.mean - mean)
        variance += weight * (moments.variance - variance)
    return found


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("every", [1, 5])
def test_drift_is_that_of_each_batch_against_the_statistics_before_it(kind, every, x, tmp_path):
    train(LAYERS[kind](momentum=0.8, epsilon=EPSILON, name="bn"), x, tmp_path, every=every)
    truth = expected(x, lambda step: 0.2)
    for index, tag in enumerate(("mean_shift", "log_variance_ratio")):
        found = scalars(tmp_path, f"bn/{tag}")
        assert list(found) == list(range(0, 12, every))
        largest = scalars(tmp_path, f"bn/{tag}_max")
        for step, value in found.items():
            assert value == pytest.approx(root(truth[step][index]), rel=1e-4)
            assert largest[step] == pytest.approx(np.abs(truth[step][index]).max(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "weight_of"),
    [
        ({"momentum": None}, lambda step: 1 / (step + 1)),
        (
            {"momentum": 0.9, "zero_debias": True},
            lambda step: 0.1 / (1 - 0.9 ** (step + 1)),
        ),
    ],
    ids=["cumulative", "zero debias"],
)
def test_drift_of_averages_whose_weights_change(options, weight_of, x, tmp_path):
    train(BatchNormalization(epsilon=EPSILON, name="bn", **options), x, tmp_path)
    truth = expected(x, weight_of)
    for index, tag in enumerate(("mean_shift", "log_variance_ratio")):
        found = scalars(tmp_path, f"bn/{tag}")
        assert len(found) == 12
        for step, value in found.items():
            assert value == pytest.approx(root(truth[step][index]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_drift_under_renorm(kind, x, tmp_path):
    layer = LAYERS[kind](momentum=0.8, renorm=True, epsilon=EPSILON, name="bn")
    train(layer, x, tmp_path)
    # The first step starts from the same 0 and 1, the second from averaged standard deviations.
    first, second = (reference.moments(batch) for batch in x[:32].reshape(2, 16, 5))
    mean = 0.2 * first.mean
    stddev = 0.8 * np.sqrt(1.0 + (EPSILON if kind == "homeostat" else 0.0))
    stddev = stddev + 0.2 * np.sqrt(first.variance + EPSILON)
    shift, ratio = (scalars(tmp_path, f"bn/{tag}") for tag in ("mean_shift", "log_variance_ratio"))
    assert shift[1] == pytest.approx(root((second.mean - mean) / stddev), rel=1e-3)
    logs = np.log((second.variance + EPSILON) / stddev**2)
    assert ratio[1] == pytest.approx(root(logs), rel=2e-3)


def test_several_steps_in_one_call(x, tmp_path):
    if BACKEND == "torch":
        pytest.skip("Keras runs one step a call on torch")
    layer = BatchNormalization(momentum=0.8, epsilon=EPSILON, name="bn")
    train(layer, x[:176], tmp_path, steps_per_execution=4)
    found = scalars(tmp_path, "bn/mean_shift")
    assert list(found) == [0, 4, 8]
    weights = 0.2 * 0.8 ** np.arange(4)[::-1]
    means = x[:64].reshape(4, 16, 5).mean(1)
    assert found[0] == pytest.approx(
        root(weights @ means / weights.sum() / np.sqrt(1 + EPSILON)), rel=1e-4
    )


def test_gamma_and_beta_are_written_after_each_epoch(x, tmp_path):
    from tensorboard.util.tensor_util import make_ndarray

    model = train(keras.layers.BatchNormalization(name="bn"), x, tmp_path, epochs=2)
    gamma = keras.ops.convert_to_numpy(model.layers[0].gamma)
    written = read(tmp_path).Tensors("bn/gamma")
    assert [event.step for event in written] == [12, 24]
    buckets = make_ndarray(written[-1].tensor_proto)
    assert buckets[:, 2].sum() == 5
    assert buckets[0, 0] == pytest.approx(gamma.min(), rel=1e-5)
    assert buckets[-1, 1] == pytest.approx(gamma.max(), rel=1e-5)
    assert "bn/beta" in tags(tmp_path)


def test_skipped_updates_are_counted_and_leave_no_drift(x, tmp_path):
    x[35, 2] = np.nan
    # The NaN is kept from the statistics, but not from the gradients.
    with pytest.warns(HomeostatWarning, match="'bn': BN010 nonfinite-parameters after epoch 1"):
        train(BatchNormalization(momentum=0.8, epsilon=EPSILON, name="bn"), x, tmp_path)
    skipped = scalars(tmp_path, "bn/skipped_updates")
    assert [skipped[step] for step in range(12)] == [0, 0, *[1] * 10]
    kept = [channel for channel in range(5) if channel != 2]
    shift, _ = expected(np.nan_to_num(x), lambda step: 0.2)[2]
    assert scalars(tmp_path, "bn/mean_shift")[2] == pytest.approx(root(shift[kept]), rel=1e-4)


def test_statistics_that_are_not_finite_are_warned_of_once(x, tmp_path):
    x[35, 2] = np.inf
    with pytest.warns(HomeostatWarning, match="after epoch 1: ") as caught:
        train(keras.layers.BatchNormalization(name="bn"), x, tmp_path, epochs=3)
    ours = [str(each.message) for each in caught if each.category is HomeostatWarning]
    assert len(ours) == 2
    assert ours[0].startswith("'bn': moving statistics hold NaN or infinity after epoch 1")
    assert ours[1].startswith("'bn': BN010 nonfinite-parameters after epoch 1")


class Forgetful(keras.layers.BatchNormalization):
    """One that is always called as at inference."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


def test_statistics_that_never_move_are_warned_of(x, tmp_path):
    with pytest.warns(HomeostatWarning, match="'bn': moving statistics did not move in epoch 1"):
        train(Forgetful(name="bn"), x, tmp_path)
    shifts = scalars(tmp_path, "bn/mean_shift")
    assert set(shifts.values()) == {0.0}


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.BatchNormalization(name="bn", trainable=False),
        lambda: BatchNormalization(name="bn", frozen_statistics=True),
        lambda: BatchNormalization(name="bn", inference_mode=True),
        lambda: BatchNormalization(name="bn", momentum=1.0),
    ],
    ids=["not trainable", "frozen statistics", "inference mode", "momentum 1"],
)
def test_statistics_that_are_to_stay_are_not_warned_of(layer, x, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", HomeostatWarning)
        train(layer(), x, tmp_path)
    assert "bn/mean_shift" not in tags(tmp_path)
    assert "bn/gamma" in tags(tmp_path)


def test_no_step_runs_the_model_twice(x, tmp_path):
    calls = []

    class Counting(keras.layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    layer = keras.Sequential([Counting(), BatchNormalization(name="bn")])
    layer.build((None, 5))
    model = keras.Sequential([keras.Input((5,)), layer])
    model.compile("sgd", "mse", run_eagerly=True)
    y = np.zeros((192, 5), "float32")
    # Keras builds the model the first time.
    model.fit(x, y, batch_size=16, verbose=0)
    calls.clear()
    monitor = BatchNormMonitor(tmp_path, observe_every=1)
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[monitor])
    assert len(calls) == 12
    assert "bn/mean_shift" in tags(tmp_path)


def test_watching_changes_nothing(x, tmp_path):
    weights = []
    for callbacks in ([], [BatchNormMonitor(tmp_path, observe_every=1)]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((5,)), BatchNormalization(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], batch_size=16, shuffle=False, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for without, watched in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, watched)


def test_training_that_goes_on_counts_on(x, tmp_path):
    model = keras.Sequential([keras.Input((5,)), BatchNormalization(name="bn")])
    model.compile("sgd", "mse")
    for _ in range(2):
        model.fit(x, x, batch_size=16, verbose=0, callbacks=[BatchNormMonitor(tmp_path, 4)])
    assert sorted(scalars(tmp_path, "bn/mean_shift")) == [0, 4, 8, 12, 16, 20]


def test_norms_of_one_name_are_told_apart(x, tmp_path):
    inner = keras.Sequential([keras.Input((5,)), BatchNormalization(name="bn")], name="inner")
    model = keras.Sequential([keras.Input((5,)), BatchNormalization(name="bn"), inner])
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=16, verbose=0, callbacks=[BatchNormMonitor(tmp_path)])
    assert {"bn/mean_shift", "bn_2/mean_shift"} <= tags(tmp_path)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, None])
def test_every_how_many_steps_must_be_a_positive_integer(every, tmp_path):
    with pytest.raises(SpecError, match="observe_every"):
        BatchNormMonitor(tmp_path, observe_every=every)


def test_a_folder_that_cannot_be_written_to(x, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no event file can be written"):
        train(BatchNormalization(), x, tmp_path / "file" / "logs")


def test_without_tensorboard_it_says_what_to_install():
    script = (
        "import sys\n"
        "sys.modules['tensorboard'] = None\n"
        "from homeostat.keras import BatchNormMonitor\n"
        "BatchNormMonitor('logs')"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert "MissingExtraError" in run.stderr
    assert "pip install 'homeostat[tensorboard]'" in run.stderr
