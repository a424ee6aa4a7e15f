"""NaN and infinities are counted in every type of weights."""

import ml_dtypes
import numpy as np
import pytest

from tunix.utils import finite


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_each_element_counts_once_wherever_it_lies(dtype):
    array = np.zeros((3, 700_001), dtype)
    assert finite.count_non_finite(array) == 0
    array[0, 0], array[1, -1], array[2, -1] = np.nan, np.inf, -np.inf
    assert finite.count_non_finite(array) == 3
    assert finite.count_non_finite(array.T[::2]) == 3
    assert finite.count_non_finite(array[:0]) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_largest_and_smallest_numbers_are_finite(dtype):
    info = ml_dtypes.finfo(dtype)
    numbers = [info.max, info.min, info.smallest_subnormal, -0.0]
    assert finite.count_non_finite(np.asarray(numbers, dtype)) == 0
