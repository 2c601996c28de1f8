"""These tests run once for each Keras backend, which is fixed when Keras is first imported.

`tests/test_keras_backends.py` runs this folder in one process per backend; with KERAS_BACKEND set
it also runs by itself: KERAS_BACKEND=jax pytest tests/keras
"""

import os

if "KERAS_BACKEND" not in os.environ:
    collect_ignore_glob = ["*"]
else:
    import numpy as np
    import pytest

    @pytest.fixture
    def rng():
        return np.random.default_rng(7)
