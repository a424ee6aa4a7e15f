"""Whether a checkpoint still is what was written: checksums of its files, and its arrays read back.

Orbax notices files that are missing or cut short, not a flipped bit: its chunks carry no checksum.
"""

import contextlib
import json
import pathlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

CHECKSUMS_NAME = "checksums.json"
"""In the directory of a step: CRC-32 and size of every other file in it."""

_BLOCK = 1 << 22
_POLL_SECONDS = 0.05


class Sealer:
    """Seals checkpoints in a thread of its own, once they have been written.

    Args:
        root: The directory of the checkpoints.
        is_saving: Whether one is being written.
    """

    def __init__(self, root: pathlib.Path, is_saving: Callable[[], bool]):
        self._root, self._is_saving = root, is_saving
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Seal what is being written when it is complete; returns at once."""
        self.wait()
        if jax.process_index() == 0:  # one process is enough: the files are shared
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until everything written so far is sealed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while self._is_saving():
            time.sleep(_POLL_SECONDS)
        seal_all(self._root)


def seal(step_directory: pathlib.Path) -> None:
    """Write the checksums of a complete checkpoint; its files must not change afterwards."""
    sums = {name: list(found) for name, found in _checksums(step_directory).items()}
    # Renamed into place, so that a process killed here leaves no half of them.
    draft = step_directory.with_name(f".{step_directory.name}.{CHECKSUMS_NAME}")
    draft.write_text(json.dumps(sums), encoding="utf-8")
    draft.replace(step_directory / CHECKSUMS_NAME)


def seal_all(root: pathlib.Path) -> None:
    """Seal every complete checkpoint below ``root`` that has no checksums yet."""
    for step_directory in root.iterdir():
        if is_complete(step_directory) and not is_sealed(step_directory):
            with contextlib.suppress(FileNotFoundError):  # old ones are being deleted
                seal(step_directory)


def is_complete(step_directory: pathlib.Path) -> bool:
    """Return whether a directory holds a checkpoint that was written to its end."""
    return (step_directory / "_CHECKPOINT_METADATA").exists() and ".orbax-checkpoint-tmp" not in (
        step_directory.name
    )


def is_sealed(step_directory: pathlib.Path) -> bool:
    """Return whether a checkpoint has checksums; one whose process was killed may have none."""
    return (step_directory / CHECKSUMS_NAME).exists()


def file_problems(step_directory: pathlib.Path) -> Iterator[str]:
    """Yield one sentence per file that is missing, new or changed since the checkpoint was sealed.

    Raises:
        FileNotFoundError: If it has not been sealed.
    """
    expected = json.loads((step_directory / CHECKSUMS_NAME).read_text(encoding="utf-8"))
    found = _checksums(step_directory)
    for name, (size, checksum) in expected.items():
        if name not in found:
            yield f"{step_directory / name} is missing"
        elif found[name][0] != size:
            yield f"{step_directory / name} has {found[name][0]} bytes, {size} were written"
        elif found[name][1] != checksum:
            yield f"{step_directory / name} has changed since it was written (CRC-32 differs)"
    for name in found.keys() - expected.keys():
        yield f"{step_directory / name} was not part of the checkpoint"


def array_problems(step_directory: pathlib.Path) -> Iterator[str]:
    """Yield one sentence per part that cannot be read and per array that is not finite."""
    import orbax.checkpoint as ocp

    for part in sorted(path for path in step_directory.iterdir() if path.is_dir()):
        if not (part / "_METADATA").exists():
            continue  # not arrays
        handler = ocp.PyTreeCheckpointHandler()
        folder: Any = part  # Orbax annotates a path type of its own and takes any
        try:
            tree = handler.metadata(folder).tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arrays = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        except Exception as error:  # whatever a broken file makes of the reader
            yield f"{part} cannot be read: {str(error).splitlines()[0]}"
            continue
        yield from _not_finite(part, arrays)


def num_bytes(step_directory: pathlib.Path) -> int:
    """Return the size of all files of a checkpoint."""
    return sum(path.stat().st_size for path in step_directory.rglob("*") if path.is_file())


def _not_finite(part: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, array in arrays.items():
        if array.dtype.kind in "fV":  # V: bfloat16 and its like
            bad = int((~np.isfinite(array.astype(np.float32))).sum())
            if bad:
                yield f"{part}: {name} has {bad} of {array.size} values that are not finite"


def _checksums(step_directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return size and CRC-32 of every file but the checksums themselves, by relative name."""
    sums = {}
    for path in sorted(step_directory.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS_NAME:
            checksum, size = 0, 0
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    checksum, size = zlib.crc32(block, checksum), size + len(block)
            sums[str(path.relative_to(step_directory))] = (size, checksum)
    return sums
