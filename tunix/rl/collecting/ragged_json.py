"""Ragged rows of numbers as something that JSON can hold, bit for bit."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def encode(rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return rows of any lengths, all of one dtype; at least one row."""
    arrays = [np.asarray(row) for row in rows]
    dtype = np.result_type(*arrays)
    packed = zlib.compress(np.concatenate(arrays).astype(dtype).tobytes())
    return {
        "dtype": dtype.str,
        "lengths": [len(row) for row in arrays],
        "base64": base64.b64encode(packed).decode("ascii"),
    }


def decode(saved: Mapping[str, Any]) -> list[np.ndarray]:
    """Return what :func:`encode` was called with."""
    data = zlib.decompress(base64.b64decode(saved["base64"]))
    flat = np.frombuffer(data, np.dtype(saved["dtype"]))
    return np.split(flat, np.cumsum(saved["lengths"])[:-1])
