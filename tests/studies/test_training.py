"""The training of every backend, against one written out in NumPy."""

from __future__ import annotations

import pytest

from tests.command import run_python

CHECK = '''
import sys
import warnings
import numpy as np
from homeostat.errors import OneElementWarning
from homeostat.studies.backends import select_backend
from homeostat.studies.data import load_data

warnings.simplefilter("ignore", OneElementWarning)
backend = sys.argv[1]
select_backend(backend)
import keras
from homeostat.studies.experiment import BATCH_SIZE
from homeostat.studies.network import Network, order_batches
from homeostat.studies.trainer import make_trainer

data = load_data("digits")
order = order_batches(3, len(data.train), 12, BATCH_SIZE)


def by_hand(weights, biases, steps, rate):
    """Gradient descent on softmax cross-entropy through ReLU layers, in float64."""
    for chosen in order[:steps]:
        x, y = data.train.images[chosen].astype(float), data.train.labels[chosen]
        inputs = [x]
        for w, b in zip(weights[:-1], biases[:-1]):
            inputs.append(np.maximum(inputs[-1] @ w + b, 0))
        logits = inputs[-1] @ weights[-1] + biases[-1]
        e = np.exp(logits - logits.max(1, keepdims=True))
        d = (e / e.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
        for i in reversed(range(4)):
            dw, db = inputs[i].T @ d, d.sum(0)
            d = (d @ weights[i].T) * (inputs[i] > 0)
            weights[i], biases[i] = weights[i] - rate * dw, biases[i] - rate * db
    return weights, biases


def numpy_of(values):
    return [keras.ops.convert_to_numpy(value) for value in values]


plain, normed = Network(64, "relu", False), Network(64, "relu", True)
starts = plain.start(5, 0.05), normed.start(5, 0.05)
for i, j in zip(plain.kernel_positions, normed.kernel_positions):
    np.testing.assert_array_equal(starts[0].trainable[i], starts[1].trainable[j])
    assert abs(starts[0].trainable[i].std() - 0.05) < 0.005
    bad = plain.start(5, 5.0).trainable[i]
    np.testing.assert_allclose(bad / 100, starts[0].trainable[i], rtol=1e-5)
assert not np.array_equal(plain.start(6, 0.05).trainable[0], starts[0].trainable[0])

trainer = make_trainer(backend, plain)
images = trainer.put(data.train)
first = trainer.load(starts[0])
# Nine of the twelve steps: what lies behind the count is padding.
state, loss = trainer.train(first, images, 0.1, order, 9)
weights, biases = by_hand(
    [starts[0].trainable[i].astype(float) for i in plain.kernel_positions], [0.0] * 4, 9, 0.1
)
found = numpy_of(state[0])
for i, w in zip(plain.kernel_positions, weights):
    np.testing.assert_allclose(found[i], w, rtol=1e-4, atol=1e-6)
assert 1.5 < loss < 2.5
for before, after in zip(starts[0].trainable, numpy_of(first[0])):
    np.testing.assert_array_equal(before, after)

trainer = make_trainer(backend, normed)
images, test = trainer.put(data.train), trainer.put(data.test)
long = order_batches(0, len(data.train), 150, BATCH_SIZE)
state, _ = trainer.train(trainer.load(starts[1]), images, 0.5, long, 150)
kept = numpy_of(state[1])
wrong = trainer.predict_singly(state, test, batch_statistics=True)
assert len(set(wrong.tolist())) == 1, "an image alone is the same whatever it is"
right = trainer.predict_singly(state, test, batch_statistics=False)
np.testing.assert_array_equal(right, trainer.predict(state, test))
assert np.mean(right == data.test.labels) > 0.9
look = trainer.look(state, test)
assert look.gradient_norms.shape == (4,) and np.isfinite(look.gradient_norms).all()
assert look.before_activation.shape == (297, 100)
# gamma starts at 1 and beta at 0, so what goes into the activation is still near N(0, 1).
assert abs(look.before_activation.mean()) < 0.5 and 0.5 < look.before_activation.std() < 2
for before, after in zip(kept, numpy_of(state[1])):
    np.testing.assert_array_equal(before, after)
again, _ = trainer.train(trainer.load(starts[1]), images, 0.5, long, 150)
for a, b in zip(numpy_of(state[0]), numpy_of(again[0])):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
print("checked")
'''


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_training_is_gradient_descent(backend):
    run = run_python("-c", CHECK, backend)
    assert run.stdout.strip().endswith("checked"), run.stderr[-3000:]


ORDER = """
import numpy as np
from homeostat.studies.network import order_batches
order = order_batches(1, 120, 5, 60)
assert order.shape == (5, 60) and order.dtype == np.int32
for epoch in (order[:2], order[2:4]):
    assert sorted(epoch.ravel()) == list(range(120))
assert len(set(order[4])) == 60
assert (order[:2] != order[2:4]).any()
np.testing.assert_array_equal(order, order_batches(1, 120, 5, 60))
print("checked")
"""


def test_every_image_comes_once_an_epoch():
    run = run_python("-c", ORDER, KERAS_BACKEND="jax")
    assert run.stdout.strip() == "checked", run.stderr
