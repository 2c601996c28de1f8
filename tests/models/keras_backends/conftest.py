"""These tests run once for each Keras backend: KERAS_BACKEND=jax pytest tests/models/keras_backends

`tests/models/test_keras_adapter.py` runs them in one process for each backend.
"""

import os

if "KERAS_BACKEND" not in os.environ:
    collect_ignore_glob = ["*"]
else:
    import keras
    import numpy as np
    import pytest

    @pytest.fixture
    def rng():
        keras.utils.set_random_seed(5)
        return np.random.default_rng(5)
