"""Reads GGUF files, the format of llama.cpp: metadata and named, quantised tensors.

Nothing here knows about models or tokenizers. The layout of a file is parsed here, in
one pass over the mapped bytes: the reader of the ``gguf`` package makes an array of every
vocabulary entry, which takes seconds. Quantised blocks are decoded by that package.
"""

import dataclasses
import itertools
import math
import mmap
import pathlib
import struct
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Kinds of values, by the numbers that the format gives them.
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct(f"<{letter}")
    for kind, letter in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}.items()
} | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}
_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10
_ROW_ELEMENTS = 4_096
"""Numbers decoded per row of blocks; ``gguf.dequantize`` takes twice as long for short rows."""


class GGUFError(ValueError):
    """A file that is not a complete GGUF file, or of a kind that cannot be read."""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: Any
    """A member of ``gguf.GGMLQuantizationType``."""
    start: int

    @property
    def num_bytes(self) -> int:
        block, size = _package().GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


class GGUFFile:
    """One mapped file: ``metadata``, ``shapes`` and, by name, the tensors."""

    def __init__(self, path: str | pathlib.Path):
        """Map the file and read everything but the tensors' data.

        Raises:
            GGUFError: If the file is not GGUF, truncated, or of a version we cannot read.
            OSError: If it cannot be opened.
        """
        self.path = pathlib.Path(path)
        with open(self.path, "rb") as file:
            magic = file.read(4)
            if magic != _MAGIC:
                raise GGUFError(f"{self.path}: not a GGUF file, it begins with {magic!r}")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.metadata, self._tensors = _parse(_Cursor(self._bytes, offset=len(_MAGIC)))
            _check_places(self._tensors)
        except (struct.error, UnicodeDecodeError, KeyError, ValueError, RecursionError) as error:
            raise GGUFError(f"{self.path}: cannot read its header: {error}") from error
        end = max((tensor.end for tensor in self._tensors.values()), default=0)
        if end > len(self._bytes):
            raise GGUFError(
                f"{self.path}: has {len(self._bytes)} bytes where its header promises {end}; "
                "the file is truncated, download it again"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor as numpy counts, output dimension first."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, decoded to float32.

        Raises:
            GGUFError: If the ``gguf`` package cannot decode the tensor's quantisation.
        """
        tensor = self._tensors[name]
        flat = np.frombuffer(self._bytes, np.uint8, tensor.num_bytes, tensor.start)
        block, size = _package().GGML_QUANT_SIZES[tensor.kind]
        blocks_a_row = math.gcd(len(flat) // size, _ROW_ELEMENTS // block)
        rows = flat.reshape(-1, blocks_a_row * size)
        try:
            decoded = _package().dequantize(rows, tensor.kind)
        except NotImplementedError as error:
            raise GGUFError(f"{self.path}: tensor {name}: {error}") from error
        return decoded.reshape(tensor.shape)


def _package() -> types.ModuleType:
    """Return the ``gguf`` package, which knows the quantisations; only GGUF files need it."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "reading a GGUF file needs the package gguf: pip install 'tunix[gguf]'"
        ) from error
    return gguf


class _Cursor:
    """A position in the header that moves as values are read."""

    def __init__(self, data: mmap.mmap, *, offset: int):
        self.data, self.offset = data, offset

    def scalar(self, kind: int) -> Any:
        form = _SCALARS[kind]
        (value,) = form.unpack_from(self.data, self.offset)
        self.offset += form.size
        return value

    def string(self) -> str:
        length = self.scalar(_UINT64)
        start, self.offset = self.offset, self.offset + length
        if self.offset > len(self.data):
            raise ValueError("the file ends inside a string, download it again")
        return self.data[start : self.offset].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(kind)
        item, length = self.scalar(_UINT32), self.scalar(_UINT64)
        if item not in _SCALARS:
            return [self.value(item) for _ in range(length)]
        form = struct.Struct(f"<{length}{_SCALARS[item].format[1:]}")
        values = list(form.unpack_from(self.data, self.offset))
        self.offset += form.size
        return values


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Return metadata and tensors of the header that the cursor stands at."""
    version = cursor.scalar(_UINT32)
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not one of {list(_VERSIONS)} (little-endian)")
    num_tensors, num_entries = cursor.scalar(_UINT64), cursor.scalar(_UINT64)
    metadata = {}
    for _ in range(num_entries):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"metadata {key} stands in it twice")
        metadata[key] = cursor.value(cursor.scalar(_UINT32))
    infos = []
    for _ in range(num_tensors):
        name = cursor.string()
        rank = cursor.scalar(_UINT32)
        shape = tuple(cursor.scalar(_UINT64) for _ in range(rank))[::-1]  # stored inside out
        kind = _package().GGMLQuantizationType(cursor.scalar(_UINT32))
        infos.append((name, shape, kind, cursor.scalar(_UINT64)))
    alignment = metadata.get("general.alignment", _package().GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"general.alignment must be a positive number, got {alignment!r}")
    start = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, _Tensor] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise ValueError(f"tensor {name} stands in it twice")
        tensors[name] = _Tensor(shape, kind, start + offset)
    return metadata, tensors


def _check_places(tensors: Mapping[str, _Tensor]) -> None:
    """Raise unless every tensor is made of whole blocks, and none lies in another."""
    for name, tensor in tensors.items():
        block, _ = _package().GGML_QUANT_SIZES[tensor.kind]
        if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % block:
            raise ValueError(
                f"tensor {name} has shape {tensor.shape}, which {tensor.kind.name} cannot have "
                f"(rows of a multiple of {block} numbers)"
            )
    placed = sorted(tensors.items(), key=lambda item: item[1].start)
    for (name, one), (other, behind) in itertools.pairwise(placed):
        if behind.start < one.end:
            raise ValueError(
                f"tensor {other} begins at byte {behind.start}, inside {name}, which ends at "
                f"{one.end}; download it again"
            )
