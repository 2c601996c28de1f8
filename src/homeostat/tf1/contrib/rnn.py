"""`tf.contrib.rnn`: the cells are tf-keras's, what unrolls them is in `tf.nn`."""

from __future__ import annotations

from homeostat.tf1.names import moved_names

_CELLS = "tf_keras.api._v1.keras.__internal__.legacy.rnn_cell"
_CELL_NAMES = (
    *("BasicLSTMCell", "BasicRNNCell", "DeviceWrapper", "DropoutWrapper", "GRUCell", "LSTMCell"),
    *("LSTMStateTuple", "MultiRNNCell", "RNNCell", "ResidualWrapper"),
)
_UNROLLED = ("static_bidirectional_rnn", "static_rnn", "static_state_saving_rnn")

__getattr__, __dir__ = moved_names(
    "tf.contrib.rnn",
    {name: f"{_CELLS}:{name}" for name in _CELL_NAMES}
    | {name: f"tensorflow.compat.v1:nn.{name}" for name in _UNROLLED},
)
