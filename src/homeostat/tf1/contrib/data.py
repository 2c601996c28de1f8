"""`tf.contrib.data`: what of it is in `tf.data` now, and batches without the remainder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from homeostat.tf1.names import moved_names

_DATA = "tensorflow.compat.v1:data"
_IN_DATA = ("Dataset", "FixedLengthRecordDataset", "Iterator", "TextLineDataset", "TFRecordDataset")
_IN_EXPERIMENTAL = (
    *("Counter", "CsvDataset", "Optional", "RandomDataset", "Reducer", "SqlDataset"),
    *("TFRecordWriter", "bucket_by_sequence_length", "choose_from_datasets", "copy_to_device"),
    *("dense_to_sparse_batch", "enumerate_dataset", "get_next_as_optional", "get_single_element"),
    *("group_by_reducer", "group_by_window", "ignore_errors", "make_batched_features_dataset"),
    *("make_csv_dataset", "make_saveable_from_iterator", "map_and_batch", "parallel_interleave"),
    *("prefetch_to_device", "rejection_resample", "sample_from_datasets", "scan"),
    *("shuffle_and_repeat", "unbatch", "unique"),
)
_HERE = ("batch_and_drop_remainder", "padded_batch_and_drop_remainder")

__getattr__, __dir__ = moved_names(
    "tf.contrib.data",
    {name: f"{_DATA}.{name}" for name in _IN_DATA}
    | {name: f"{_DATA}.experimental.{name}" for name in _IN_EXPERIMENTAL}
    | {name: f"{__name__}:{name}" for name in _HERE},
)


def batch_and_drop_remainder(batch_size: Any) -> Callable[[Any], Any]:
    """Return what `Dataset.apply` takes to make batches, all of one size."""
    return lambda dataset: dataset.batch(batch_size, drop_remainder=True)


def padded_batch_and_drop_remainder(
    batch_size: Any, padded_shapes: Any, padding_values: Any = None
) -> Callable[[Any], Any]:
    """Return what `Dataset.apply` takes to make padded batches, all of one size."""
    return lambda dataset: dataset.padded_batch(
        batch_size, padded_shapes, padding_values, drop_remainder=True
    )
