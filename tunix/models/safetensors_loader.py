"""Reads the safetensors files of one model, one tensor at a time.

Nothing here knows about models: a directory is a set of named arrays. Files are mapped,
not read, so a tensor costs memory only while somebody looks at it.
"""

import math
import pathlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tunix.utils import error_text, json_text, reference_names

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""How the format calls the types; a file may mix them."""

_MAX_HEADER = 100_000_000  # the limit of the format
_LONGEST_NAME = 255  # of a file, on all common file systems
_MAX_RANK = 32  # of an array of numpy


class CheckpointFileError(ValueError):
    """A checkpoint file that is missing, truncated or not what its name says."""


class SafetensorsFile:
    """One mapped file: ``names`` and, by name, the tensors."""

    def __init__(self, path: str | pathlib.Path):
        """Map the file and check its header against its size.

        Raises:
            CheckpointFileError: If the file is not a complete safetensors file.
        """
        self.path = pathlib.Path(path)
        self._header, self._start = _open(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the header."""
        return tuple(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return tuple(self._header[name]["shape"])

    def read(self, name: str) -> np.ndarray:
        """Return a read-only view of one tensor in its stored type.

        The tensor is mapped on its own, so that its pages leave memory with the view.
        """
        entry = self._header[name]
        start, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if start == end:
            return np.empty(shape, dtype)  # an empty range cannot be mapped
        data = np.memmap(self.path, np.uint8, "r", offset=self._start + start, shape=end - start)
        return data.view(dtype).reshape(shape)


class SafetensorsDirectory:
    """All tensors of a model directory, whichever of its files they are in.

    Reads ``model.safetensors``, else the files of ``model.safetensors.index.json``, else
    every ``*.safetensors`` file there is.
    """

    def __init__(self, file_dir: str | pathlib.Path):
        """Open every file and check its header.

        Raises:
            CheckpointFileError: If the directory holds no model, a file is missing, truncated
                or corrupt, or the files and their index disagree about any tensor.
        """
        self.where = str(file_dir)
        paths = find_files(file_dir)
        files = [SafetensorsFile(path) for path in paths]
        index = pathlib.Path(file_dir) / INDEX_NAME
        if index.exists() and paths[0].name != SINGLE_NAME:
            _check_index(index, _weight_map(index), files)
        counts = Counter(name for file in files for name in file.names)
        if repeated := sorted(name for name, count in counts.items() if count > 1):
            raise CheckpointFileError(
                f"{file_dir}: tensors are in more than one of {[path.name for path in paths]}: "
                f"{_listed(repeated)}; keep the files of one model only"
            )
        self._files = {name: file for file in files for name in file.names}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: file.shape(name) for name, file in self._files.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a read-only view of one tensor in its stored type."""
        return self._files[name].read(name)


def find_files(file_dir: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the safetensors files that make up the model in ``file_dir``.

    Raises:
        CheckpointFileError: If there is no such directory, no such file, or files that the
            index names are not there.
    """
    folder = pathlib.Path(file_dir)
    if not folder.is_dir():
        raise CheckpointFileError(
            f"{folder}: no such model directory; expected a directory with {SINGLE_NAME} or "
            f"{INDEX_NAME}"
        )
    if (folder / SINGLE_NAME).exists():
        return [folder / SINGLE_NAME]
    index = folder / INDEX_NAME
    if not index.exists():
        if files := sorted(folder.glob("*.safetensors")):
            return files
        found = sorted(path.name for path in folder.iterdir())
        raise CheckpointFileError(
            f"{folder}: no weights; looked for {SINGLE_NAME}, {INDEX_NAME} and *.safetensors, "
            f"found {_listed(found) or 'an empty directory'}"
        )
    files = sorted({folder / name for name in _weight_map(index).values()})
    if not files:
        raise CheckpointFileError(f"{index}: names no file; the download is incomplete")
    if missing := [path.name for path in files if not path.exists()]:
        raise CheckpointFileError(
            f"{index}: names files that are not there: {_listed(missing)}; "
            "the download is incomplete"
        )
    return files


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """Return which tensor is in which file; the files are those beside the index and no others."""
    try:
        found = json_text.parse_object(index.read_bytes())["weight_map"]
        if not isinstance(found, dict):
            raise TypeError(f"'weight_map' is a {type(found).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointFileError(
            f"{index}: not a safetensors index ({error!r}); expected JSON with a 'weight_map'"
        ) from error
    strange = {repr(file) for file in found.values() if not _is_plain_name(file)}
    if strange := sorted(error_text.shorten(name, _LONGEST_NAME) for name in strange):
        raise CheckpointFileError(
            f"{index}: names files that are not beside it: {_listed(strange)}; expected names "
            f"such as 'model-00001-of-00002.safetensors', all in {index.parent}"
        )
    return found


def _is_plain_name(file: Any) -> bool:
    is_name = isinstance(file, str) and 0 < len(file) <= _LONGEST_NAME and file != ".."
    return is_name and pathlib.PurePath(file).name == file and "\0" not in file


def _check_index(
    index: pathlib.Path, weight_map: Mapping[str, str], files: list[SafetensorsFile]
) -> None:
    """Raise if any file lacks a tensor that the index promises, or holds one it does not."""
    problems = []
    for file in files:
        promised = {name for name, where in weight_map.items() if where == file.path.name}
        if lacking := sorted(promised - set(file.names)):
            problems.append(f"{file.path.name} lacks {_listed(lacking)}")
        if extra := sorted(set(file.names) - promised):
            problems.append(f"{file.path.name} also holds {_listed(extra)}")
    if problems:
        raise CheckpointFileError(f"{index}: disagrees with its files: " + "; ".join(problems))


def _open(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """Return the tensors' header entries and where in the file the bytes behind them start."""
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise CheckpointFileError(f"{path}: not a file; expected a safetensors file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > min(size - 8, _MAX_HEADER):
            raise CheckpointFileError(
                f"{path}: {size} bytes are not a safetensors file, or only its beginning; "
                "download it again"
            )
        raw = file.read(length)
    try:
        header = json_text.parse_object(raw)
        header.pop("__metadata__", None)
        problems = [text for name, entry in header.items() for text in _check(name, entry)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointFileError(
            f"{path}: corrupt safetensors header ({error!r}); download it again"
        ) from error
    problems = problems or list(_place_problems(header))
    if problems:
        raise CheckpointFileError(
            f"{path}: unusable tensors: {_listed(problems, separator='; ')}; the file is corrupt "
            "or of a kind that cannot be read, download it again or convert it"
        )
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise CheckpointFileError(
            f"{path}: has {size} bytes where its header promises {8 + length + end}; the file is "
            "truncated or corrupt, download it again"
        )
    return header, 8 + length


def _check(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with one entry of a header."""
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        yield f"{name} has type {error_text.shown(kind)}, readable are {list(DTYPES)}"
    elif not _are_counts(shape) or len(shape) > _MAX_RANK:
        yield f"{name} has shape {error_text.shown(shape)}"
    elif not _are_counts(offsets) or len(offsets) != 2:
        yield f"{name} has offsets {error_text.shown(offsets)}"
    elif offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        taken = offsets[1] - offsets[0]
        yield f"{name} of shape {shape} and type {kind} takes {taken} bytes"


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _place_problems(header: Mapping[str, Any]) -> Iterator[str]:
    """Yield which tensors do not lie directly behind each other, as the format demands."""
    places = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    last, end = "the header", 0
    for start, stop, name in places:
        if start < end:
            yield f"{name} begins at byte {start}, inside {last}, which ends at {end}"
        elif start > end:
            yield f"{name} begins at byte {start}, behind {start - end} bytes of no tensor"
        last, end = name, max(end, stop)


def _listed(names: Sequence[str], limit: int = 8, separator: str = ", ") -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


__getattr__ = reference_names.hints(__name__)
