"""Whether a checkpoint still is what was written: checksums of its files, and its arrays read back.

Orbax notices files that are missing or cut short, not a flipped bit: its chunks carry no checksum.
What it says of a damaged file is a traceback of its own, so files are looked at before it reads.
"""

import contextlib
import json
import pathlib
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
import numpy as np

from tunix.sft.checkpoints import checkpoint_storage as storage

CHECKSUMS_NAME = "checksums.json"
"""In the directory of a step: CRC-32 and size of every other file in it."""

_COMPLETE = "_CHECKPOINT_METADATA"
METRICS_DOCUMENT = "metrics/metrics"
"""In a step that was saved with an evaluation: what its options compare it by."""

_DOCUMENTS = (_COMPLETE, "metadata/metadata", METRICS_DOCUMENT)
"""Files of JSON that every reader of a checkpoint needs; the last one only where there is one."""
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
        self._error: OSError | None = None

    def start(self) -> None:
        """Seal what is being written when it is complete; returns at once."""
        self.wait()
        if jax.process_index() == 0:  # one process is enough: the files are shared
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until everything written so far is sealed.

        Raises:
            OSError: If that was not possible; the checkpoint itself is complete.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while self._is_saving():
            time.sleep(_POLL_SECONDS)
        try:
            seal_all(self._root)
        except OSError as error:  # a full disk: whoever waits is told
            self._error = error


def seal(step_directory: pathlib.Path) -> None:
    """Write the checksums of a complete checkpoint; its files must not change afterwards."""
    sums = {name: list(found) for name, found in _checksums(step_directory).items()}
    # Renamed into place, so that a process killed here leaves no half of them.
    draft = step_directory.with_name(f".{step_directory.name}.{CHECKSUMS_NAME}")
    try:
        draft.write_text(json.dumps(sums), encoding="utf-8")
        draft.replace(step_directory / CHECKSUMS_NAME)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def seal_all(root: pathlib.Path) -> None:
    """Seal every complete checkpoint below ``root`` that has no checksums yet."""
    for step_directory in root.iterdir():
        if is_complete(step_directory) and not is_sealed(step_directory):
            with contextlib.suppress(FileNotFoundError):  # old ones are being deleted
                seal(step_directory)


def is_complete(step_directory: pathlib.Path) -> bool:
    """Return whether a directory holds a checkpoint that was written to its end."""
    return (step_directory / _COMPLETE).exists() and not is_unfinished(step_directory)


def is_unfinished(directory: pathlib.Path) -> bool:
    """Return whether a checkpoint is being written there, or was when its process was killed."""
    return ".orbax-checkpoint-tmp" in directory.name


def is_sealed(step_directory: pathlib.Path) -> bool:
    """Return whether a checkpoint has checksums; one whose process was killed may have none."""
    return (step_directory / CHECKSUMS_NAME).exists()


def problems(step_directory: pathlib.Path) -> Iterator[str]:
    """Yield one sentence per fault of a checkpoint; reads all of it."""
    yield from file_problems(step_directory)
    if is_complete(step_directory):
        yield from array_problems(step_directory)


def file_problems(
    step_directory: pathlib.Path, parts: Collection[str] | None = None
) -> Iterator[str]:
    """Yield one sentence per file that is missing, new or changed since the checkpoint was sealed.

    Args:
        step_directory: A checkpoint; without checksums only its documents are looked at.
        parts: Which parts of it are wanted, for a checkpoint of which not all is to be read.
    """
    if not is_complete(step_directory):
        yield (
            f"{step_directory} has no {_COMPLETE}: it was not written to its end, or files have "
            "been deleted"
        )
        return
    changes = list(_changes(step_directory, parts)) if is_sealed(step_directory) else []
    yield from changes or document_problems(step_directory)


def document_problems(step_directory: pathlib.Path) -> Iterator[str]:
    """Yield one sentence per document that is missing or no JSON, and per part that is missing."""
    for name in _DOCUMENTS:
        path = step_directory / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            parts = document.get("item_handlers", ()) if name == _COMPLETE else ()
            for part in set(parts) - {entry.name for entry in step_directory.iterdir()}:
                yield f"{step_directory / part} is missing"
        except FileNotFoundError:
            if path.parent.is_dir() or name != METRICS_DOCUMENT:
                yield f"{path} is missing"
        except (ValueError, TypeError, AttributeError, OSError) as error:
            yield f"{path} cannot be read: {error}"


def array_problems(step_directory: pathlib.Path) -> Iterator[str]:
    """Yield one sentence per part that cannot be read and per array that is not finite."""
    import orbax.checkpoint as ocp

    for part in sorted(path for path in step_directory.iterdir() if path.is_dir()):
        if not (part / "_METADATA").exists():
            continue  # not arrays
        handler = ocp.PyTreeCheckpointHandler()
        folder = storage.literal_path(part)
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


def _changes(step_directory: pathlib.Path, parts: Collection[str] | None) -> Iterator[str]:
    path = step_directory / CHECKSUMS_NAME
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: (int(size), int(checksum)) for name, (size, checksum) in sealed.items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        yield f"{path} cannot be read: {error}"
        return
    wanted = None if parts is None else {*parts, *(n.partition("/")[0] for n in _DOCUMENTS)}
    if wanted is not None:
        expected = {n: v for n, v in expected.items() if n.partition("/")[0] in wanted}
    found = _checksums(step_directory, wanted)
    for name, (size, checksum) in expected.items():
        if name not in found:
            yield f"{step_directory / name} is missing"
        elif found[name][0] != size:
            yield f"{step_directory / name} has {found[name][0]} bytes, {size} were written"
        elif found[name][1] != checksum:
            yield f"{step_directory / name} has changed since it was written (CRC-32 differs)"
    for name in found.keys() - expected.keys():
        yield f"{step_directory / name} was not part of the checkpoint"


def _checksums(
    step_directory: pathlib.Path, wanted: Collection[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Return size and CRC-32 of every file but the checksums themselves, by relative name.

    Args:
        step_directory: The checkpoint.
        wanted: Entries of the directory to look at; all if not given.
    """
    sums = {}
    for path in sorted(step_directory.rglob("*")):
        entry = path.relative_to(step_directory).parts[0]
        if wanted is not None and entry not in wanted:
            continue
        if path.is_file() and path.name != CHECKSUMS_NAME:
            checksum, size = 0, 0
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    checksum, size = zlib.crc32(block, checksum), size + len(block)
            sums[str(path.relative_to(step_directory))] = (size, checksum)
    return sums
