"""Finds numbers that are none: NaN and infinities."""

import ml_dtypes
import numpy as np

_CHUNK = 1 << 20
"""Elements looked at together, so that no mask of a whole array is made."""


def count_non_finite(array: np.ndarray) -> int:
    """Return how many elements of an array of floating point numbers are NaN or infinite."""
    flat = array.reshape(-1)
    is_brain = flat.dtype == ml_dtypes.bfloat16
    if is_brain:
        flat = flat.view(np.uint16)  # numpy looks at them one by one
    found = 0
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        mask = (chunk & 0x7F80) == 0x7F80 if is_brain else ~np.isfinite(chunk)
        found += int(np.count_nonzero(mask))
    return found
