from __future__ import annotations

import numpy as np
import pytest

from homeostat.errors import ShapeError
from homeostat.models import BatchNormRecord, count_examples


def test_arrays_of_a_record() -> None:
    record = BatchNormRecord("bn", "BatchNorm2d", moving_mean=np.zeros(3), gamma=np.ones(3))
    assert list(record.arrays) == ["gamma", "moving_mean"]
    assert record.channels == 3
    assert BatchNormRecord("bn", "BatchNorm2d").channels is None


@pytest.mark.parametrize("gamma", [np.ones(4), np.ones((3, 1)), np.float32(1)])
def test_arrays_that_do_not_belong_together(gamma: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="do not belong together"):
        BatchNormRecord("bn", "BatchNorm2d", moving_mean=np.zeros(3), gamma=gamma)


def test_examples_are_counted_in_the_first_array() -> None:
    assert count_examples((np.zeros((5, 2)), np.zeros(7))) == 5
    assert count_examples({"a": [np.zeros((2, 1))]}) == 2
