"""The Keras 3 front door: a complete batch norm layer for the TensorFlow, JAX and torch backends.

Keras chooses its backend when it is first imported, by the environment variable KERAS_BACKEND.

Example:
    >>> import keras
    >>> from homeostat.keras import BatchNormalization
    >>> model = keras.Sequential([keras.Input((8,)), BatchNormalization(activation="relu")])
    >>> model.output_shape
    (None, 8)
"""

from homeostat.keras.convert import convert, from_keras, revert, to_keras
from homeostat.keras.layer import BatchNormalization
from homeostat.keras.monitor import BatchNormMonitor

__all__ = ["BatchNormMonitor", "BatchNormalization", "convert", "from_keras", "revert", "to_keras"]
