"""These tests run with the behaviour of TensorFlow 2 switched off, which holds for a process.

`tests/test_tf1.py` runs this folder in a process of its own; with HOMEOSTAT_TF1=1 set it also runs
by itself: HOMEOSTAT_TF1=1 pytest tests/tf1
"""

import os

if os.environ.get("HOMEOSTAT_TF1") != "1":
    collect_ignore_glob = ["*"]
else:
    import pytest

    tf = pytest.importorskip("tensorflow.compat.v1")
    tf.disable_v2_behavior()
