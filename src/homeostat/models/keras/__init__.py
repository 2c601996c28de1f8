"""The adapter of live Keras models, on Keras's TensorFlow, JAX and torch backends.

Example:
    >>> import keras, numpy as np
    >>> layers = [keras.Input((2,)), keras.layers.BatchNormalization(name="norm")]
    >>> adapter = KerasModel(keras.Sequential(layers))
    >>> x = np.array([[1, 0], [3, 0]], "float32")
    >>> adapter.observe(x)["norm"].mean.tolist()
    [2.0, 0.0]
"""

from homeostat.models.keras.load import load_model, load_weights
from homeostat.models.keras.model import KerasModel

__all__ = ["KerasModel", "load_model", "load_weights"]
