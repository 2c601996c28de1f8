"""`tf.contrib.framework`: argument scopes and variables of tf_slim, the rest of TensorFlow."""

from __future__ import annotations

from homeostat.tf1.contrib.mended_slim import mended_slim
from homeostat.tf1.names import moved_names

mended_slim()

_SCOPES = (
    *("add_arg_scope", "arg_scope", "arg_scope_func_key", "arg_scoped_arguments"),
    *("current_arg_scope", "has_arg_scope"),
)
_VARIABLES = (
    *("VariableDeviceChooser", "add_model_variable", "assert_global_step"),
    *("assert_or_get_global_step", "assign_from_checkpoint", "assign_from_checkpoint_fn"),
    *("assign_from_values", "assign_from_values_fn", "create_global_step", "filter_variables"),
    *("get_global_step", "get_local_variables", "get_model_variables"),
    *("get_or_create_global_step", "get_trainable_variables", "get_unique_variable"),
    *("get_variable_full_name", "get_variables", "get_variables_by_name"),
    *("get_variables_by_suffix", "get_variables_to_restore", "global_variable"),
    *("local_variable", "model_variable", "variable"),
)
_IN_TRAIN = (
    *("checkpoints_iterator", "init_from_checkpoint", "list_variables", "load_checkpoint"),
    "load_variable",
)
_TF = "tensorflow.compat.v1"

__getattr__, __dir__ = moved_names(
    "tf.contrib.framework",
    {name: f"tf_slim.ops.arg_scope:{name}" for name in _SCOPES}
    | {name: f"tf_slim.ops.variables:{name}" for name in _VARIABLES}
    | {name: f"{_TF}:train.{name}" for name in _IN_TRAIN}
    | {
        name: f"tf_slim.ops.framework_ops:{name}"
        for name in ("get_graph_from_inputs", "get_name_scope")
    }
    | {name: f"{_TF}:{name}" for name in ("argsort", "is_tensor", "sort")}
    | {name: f"{_TF}:debugging.{name}" for name in ("assert_same_float_dtype", "assert_scalar")}
    | {"nest": "tensorflow.python.util.nest", "variables": "tf_slim.ops.variables"},
)
