"""Writes tensors into safetensors files, one at a time, named and indexed as transformers does.

Nothing here knows about models. Every name, shape and dtype is known beforehand, so that a
file's header is written first and memory holds one tensor.
"""

import json
import math
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tunix.models import safetensors_loader
from tunix.utils import finite

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of a tensor."""

_UNITS: Mapping[str, int] = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MOST_NAMED = 8
_CODES = {dtype: code for code, dtype in safetensors_loader.DTYPES.items()}


class NonFiniteError(ValueError):
    """Tensors that hold NaN or infinities, which nobody wants to load by accident."""


def parse_size(text: str | int) -> int:
    """Return the bytes that ``text`` means: a number, or ``5GB``, ``200MB`` (powers of ten).

    Raises:
        ValueError: If it is neither, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)?\s*", str(text), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[(match[2] or "B").upper()]) if match else 0
    if size < 1:
        raise ValueError(f"max_shard_size must be a size such as '5GB' or '200MB', got {text!r}")
    return size


def write(
    folder: pathlib.Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    max_shard_bytes: int,
    allow_non_finite: bool = False,
) -> None:
    """Write ``tensors`` into ``folder``: one file, or several and the index of which is where.

    Args:
        folder: An existing directory.
        specs: Shape and dtype of every tensor, in the order in which they come.
        tensors: Names and arrays; an array of another dtype is cast to that of its spec.
        max_shard_bytes: A file holds no more than this, unless it holds one tensor only.
        allow_non_finite: Whether NaN and infinities may be written.

    Raises:
        ValueError: If the tensors are not those of ``specs``.
        NonFiniteError: When all is written, naming every tensor that holds NaN or infinities in
            the dtype of its spec.
        OSError: If the disk is full, or cannot be written.
    """
    shards = plan(specs, max_shard_bytes)
    files = _file_names(len(shards))
    stream = iter(tensors)
    non_finite: list[str] = []
    for file, names in zip(files, shards, strict=True):
        own = {name: specs[name] for name in names}
        non_finite += _write_file(folder / file, own, stream)
    if (left := next(stream, None)) is not None:
        raise ValueError(f"tensor {left[0]} came, and all that were announced are written")
    if len(files) > 1:
        index = _index(specs, dict(zip(files, shards, strict=True)))
        path = folder / safetensors_loader.INDEX_NAME
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if non_finite and not allow_non_finite:
        more = len(non_finite) - _MOST_NAMED
        names = ", ".join(non_finite[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise NonFiniteError(
            f"{len(non_finite)} of {len(specs)} tensors hold NaN or infinite numbers ({names}); "
            "such a model computes nothing: the training has failed. Take a checkpoint from before "
            "that, or write it all the same with --allow-non-finite (allow_non_finite=True)"
        )


def plan(specs: Mapping[str, Spec], max_shard_bytes: int) -> list[list[str]]:
    """Return which tensors go into each file, in order."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, spec in specs.items():
        size = num_bytes(spec)
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def num_bytes(spec: Spec) -> int:
    """Return how much a tensor takes."""
    shape, dtype = spec
    return math.prod(shape) * dtype.itemsize


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [safetensors_loader.SINGLE_NAME]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _index(specs: Mapping[str, Spec], shards: Mapping[str, list[str]]) -> dict[str, object]:
    total = sum(math.prod(shape) for shape, _ in specs.values())
    return {
        "metadata": {"total_parameters": total, "total_size": sum(map(num_bytes, specs.values()))},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }


def _write_file(
    path: pathlib.Path, specs: Mapping[str, Spec], stream: Iterator[tuple[str, np.ndarray]]
) -> list[str]:
    """Write one file and return the names of tensors that hold NaN or infinities."""
    non_finite = []
    with open(path, "wb") as file:
        file.write(_header(specs))
        for expected, (shape, dtype) in specs.items():
            name, array = next(stream, (None, np.empty(0)))
            if name != expected or array.shape != shape:
                raise ValueError(
                    f"{path.name}: expected tensor {expected} {shape}, got {name} {array.shape}"
                )
            data = np.ascontiguousarray(array, dtype)
            if finite.count_non_finite(data):
                non_finite.append(name)
            file.write(data.reshape(-1).view(np.uint8).data)
    return non_finite


def _header(specs: Mapping[str, Spec]) -> bytes:
    """Return the length-prefixed header; tensors lie behind each other in the order given."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (shape, dtype) in specs.items():
        end = start + num_bytes((shape, dtype))
        entries[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    return struct.pack("<Q", len(text)) + text
