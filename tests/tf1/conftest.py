"""These tests switch TensorFlow 2's behaviour off, which holds for the whole process.

`tests/test_tf1.py` runs this folder in a process of its own; by hand: HOMEOSTAT_TF1=1 pytest
tests/tf1
"""

import os

if "HOMEOSTAT_TF1" not in os.environ:
    collect_ignore_glob = ["*"]
else:
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    tf.logging.set_verbosity(tf.logging.ERROR)
