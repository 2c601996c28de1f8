"""`write`, `preserved`, `save`, loading: what the adapter changes, and what it puts back."""

import keras
import numpy as np
import pytest

from homeostat.errors import (
    DataError,
    DTypeError,
    ModelFileError,
    ShapeError,
    SpecError,
    UnsupportedError,
)
from homeostat.keras import BatchNormalization
from homeostat.models.files.keras_archive import read_keras_archive
from homeostat.models.keras import KerasModel, load_model, load_weights
from homeostat.moments import Moments
from tests.models.keras_backends.models import numpy, randomized, stack, state, unchanged
from tests.models.keras_saved import differences

L = keras.layers
WRITTEN = Moments(np.float64(10.0), np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))


def one(norm, **options):
    return keras.Sequential([keras.Input((3,)), norm(name="norm", **options)])


def test_writing():
    adapter = KerasModel(one(L.BatchNormalization))
    adapter.write("norm", WRITTEN)
    norm = adapter.record().norms[0]
    assert norm.moving_mean.tolist() == [1, 2, 3]
    assert norm.moving_variance.tolist() == [4, 5, 6]
    assert norm.moving_variance.dtype == np.float32
    adapter = KerasModel(one(BatchNormalization, stored_variance="sample"))
    adapter.write("norm", WRITTEN)
    np.testing.assert_allclose(
        adapter.record().norms[0].moving_variance, np.array([4, 5, 6]) * 10 / 9, rtol=1e-6
    )


def test_what_is_counted_goes_along():
    adapter = KerasModel(one(BatchNormalization, zero_debias=True))
    adapter.write("norm", WRITTEN)
    assert adapter.record().norms[0].updates == 1
    # The written statistics have weight in the next update.
    adapter.model(np.full((4, 3), 9.0, "float32"), training=True)
    expected = 1 + 8 * 0.01 / (1 - 0.99**2)
    assert numpy(adapter.norms["norm"].moving_mean)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", [L.BatchNormalization, BatchNormalization])
def test_renorm_goes_on_from_what_was_written(norm):
    adapter = KerasModel(one(norm, renorm=True))
    adapter.write("norm", WRITTEN)
    layer = adapter.norms["norm"]
    np.testing.assert_allclose(
        numpy(layer.moving_stddev) ** 2, np.array([4, 5, 6]) + 1e-3, rtol=1e-5
    )
    np.testing.assert_allclose(numpy(layer.renorm_mean), [1, 2, 3])
    np.testing.assert_allclose(numpy(layer.moving_variance), [4, 5, 6])


def test_what_cannot_be_written_changes_nothing():
    adapter = KerasModel(one(L.BatchNormalization, dtype="float16"))
    before = state(adapter.model)
    with pytest.raises(DTypeError, match="float16"):
        adapter.write("norm", WRITTEN._replace(variance=np.array([1.0, 1e6, 1.0])))
    with pytest.raises(ShapeError, match="2 channels"):
        adapter.write("norm", Moments(1.0, np.zeros(2), np.zeros(2)))
    with pytest.raises(SpecError, match="expected one of norm"):
        adapter.write("other", WRITTEN)
    assert unchanged(before, adapter.model)


@pytest.mark.parametrize("norm", [L.BatchNormalization, BatchNormalization])
def test_preserved(norm, rng):
    model = randomized(stack(norm), rng)
    adapter, before = KerasModel(model), state(model)
    layer = model.get_layer("first")

    def change(error):
        with adapter.preserved():
            adapter.write("first", WRITTEN)
            layer(rng.normal(size=(4, 6, 5, 3)).astype("float32"), training=True)
            layer.trainable = False
            if norm is L.BatchNormalization:
                layer.momentum = 0.1
            object.__setattr__(layer, "call", None)
            raise error

    for error in (ArithmeticError, KeyboardInterrupt):
        with pytest.raises(error):
            change(error)
        assert unchanged(before, model)
        assert layer.gamma.trainable
    with adapter.preserved():
        adapter.write("first", WRITTEN)
    assert numpy(layer.moving_mean).tolist() == [1, 2, 3]


@pytest.mark.parametrize("norm", [L.BatchNormalization, BatchNormalization])
def test_saving_and_loading(tmp_path, rng, norm):
    model = randomized(stack(norm), rng)
    adapter = KerasModel(model)
    x = rng.normal(size=(4, 6, 5, 3)).astype("float32")
    model(x, training=True)
    path = tmp_path / "model.keras"
    adapter.save(path)
    assert list(tmp_path.iterdir()) == [path]
    again = load_model(path)
    assert differences(again.record(), adapter.record()) == []
    assert differences(read_keras_archive(path), adapter.record()) == []
    np.testing.assert_allclose(again.outputs(x), adapter.outputs(x), rtol=1e-6)
    weights = tmp_path / "model.weights.h5"
    adapter.save(weights)
    fresh = load_weights(stack(norm), weights)
    np.testing.assert_allclose(fresh.outputs(x), adapter.outputs(x), rtol=1e-6)
    with pytest.raises(DataError, match="already"):
        adapter.save(path)
    with pytest.raises(UnsupportedError, match=r"\.keras"):
        adapter.save(tmp_path / "model.pt")
    with pytest.raises(DataError, match="no folder"):
        adapter.save(tmp_path / "nowhere" / "model.keras")


def test_a_legacy_file(tmp_path, rng):
    adapter = KerasModel(randomized(stack(), rng))
    adapter.save(tmp_path / "model.h5")
    found = load_model(tmp_path / "model.h5")
    assert differences(found.record(), adapter.record()) == []


@keras.saving.register_keras_serializable(package="tests")
class Unsavable(keras.layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        raise NotImplementedError("on purpose")


def test_a_model_that_cannot_be_saved_leaves_nothing_behind(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.BatchNormalization()(Unsavable()(inputs)))
    with pytest.raises(UnsupportedError, match="on purpose"):
        KerasModel(model).save(tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []
    record = KerasModel(model).record()
    assert record.graph is None
    assert "on purpose" in record.why_no_graph


def test_files_that_want_code_are_refused(tmp_path):
    inputs = keras.Input((3,))
    outputs = L.Lambda(lambda x: x + 1, output_shape=(3,))(L.BatchNormalization()(inputs))
    model = keras.Model(inputs, outputs)
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        with pytest.raises(ModelFileError, match="wants to run code"):
            load_model(tmp_path / name)


def test_classes_that_are_not_known_are_named(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((3,))
    keras.Model(inputs, Mine()(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(ModelFileError, match="Mine"):
        load_model(tmp_path / "model.keras")


def test_files_that_do_not_fit(tmp_path):
    KerasModel(one(L.BatchNormalization)).save(tmp_path / "one.weights.h5")
    with pytest.raises(ModelFileError, match="stack"):
        load_weights(stack(), tmp_path / "one.weights.h5")
    (tmp_path / "no.keras").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"no\.keras"):
        load_model(tmp_path / "no.keras")
    with pytest.raises(ModelFileError, match="no file"):
        load_model(tmp_path / "missing.keras")


def test_a_model_that_is_not_built():
    with pytest.raises(UnsupportedError, match="not built"):
        KerasModel(keras.Sequential([L.Dense(3), L.BatchNormalization()]))


def test_a_subclass_of_keras_own_norm():
    class Mine(L.BatchNormalization):
        pass

    adapter = KerasModel(one(Mine, momentum=0.7, trainable=False))
    norm = adapter.record().norms[0]
    assert (norm.kind, norm.momentum, norm.tracking) == ("Mine", 0.7, False)
    found = adapter.observe(np.array([[1, 2, 3], [3, 2, 1]], "float32"))["norm"]
    assert found.mean.tolist() == [2, 2, 2]
