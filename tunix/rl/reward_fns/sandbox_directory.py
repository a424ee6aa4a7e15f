"""The directory that a program in the sandbox works in, and what becomes of it."""

import contextlib
import itertools
import logging
import os
import pathlib
import tempfile
import time

MAX_DEPTH = 100
"""Of directories within directories."""

_BLOCK = 4096
"""What a file takes at least, however small: its name and its entry take room as well."""

_ATTEMPTS = 100
"""How often to look again whether a killed process has let go: a second in all."""

_LOG = logging.getLogger(__name__)


class SandboxDirectory:
    """A temporary directory that a program may do anything to; ``remove`` gets rid of it all.

    It is held by a descriptor: whatever the program puts in its place is not followed.
    """

    def __init__(self) -> None:
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="sandbox")).resolve()
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def is_above(self, limit: int) -> bool:
        """Return whether its files take more than ``limit`` bytes, or cannot be counted.

        They cannot if directories are nested too deep or closed to us. Files that have been
        deleted and are still open do not count.
        """
        try:
            return _bytes_within(self._fd, limit, MAX_DEPTH) > limit
        except PermissionError:
            return True

    def remove(self) -> None:
        """Delete it. What cannot be deleted stays and is reported; nothing is raised."""
        for attempt in range(_ATTEMPTS):
            try:
                _empty(self._fd)
                self._unlink()
                break
            except OSError as error:  # of a process that was killed and is not gone yet, perhaps
                if attempt == _ATTEMPTS - 1:
                    _LOG.warning("cannot delete %s, which a program left: %s", self.path, error)
                time.sleep(0.01)
        os.close(self._fd)

    def _unlink(self) -> None:
        try:
            os.rmdir(self.path)
        except NotADirectoryError:
            os.unlink(self.path)  # what the program put there, a link for example
        except FileNotFoundError:
            pass


def _bytes_within(directory: int, limit: int, depth: int) -> int:
    """Return what the files below take, or as soon as that is known more than ``limit``."""
    if depth == 0:
        return limit + 1
    found = 0
    # A program deletes and renames while this looks: what is gone does not count.
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found += max(_BLOCK, entry.stat(follow_symlinks=False).st_blocks * 512)
                if entry.is_dir(follow_symlinks=False) and found <= limit:
                    found += _of_child(directory, entry.name, limit - found, depth - 1)
            if found > limit:
                break
    return found


def _of_child(directory: int, name: str, limit: int, depth: int) -> int:
    child = _open(name, directory)
    try:
        return _bytes_within(child, limit, depth)
    finally:
        os.close(child)


def _empty(directory: int) -> None:
    """Delete all in a directory, however deep: what is in its directories moves up into it.

    Neither the depth of recursion, nor the length of a path, nor open descriptors are a limit.
    """
    os.fchmod(directory, 0o700)
    names = (f".{i}" for i in itertools.count())
    while entries := os.listdir(directory):
        for entry in entries:
            if _is_deleted(entry, directory):
                continue
            os.chmod(entry, 0o700, dir_fd=directory)  # a directory, as ``unlink`` has found
            child = _open(entry, directory)
            try:
                for inner in os.listdir(child):
                    if not _is_deleted(inner, child):
                        os.chmod(inner, 0o700, dir_fd=child)
                        free = next(name for name in names if not _exists(name, directory))
                        os.rename(inner, free, src_dir_fd=child, dst_dir_fd=directory)
            finally:
                os.close(child)
            os.rmdir(entry, dir_fd=directory)


def _is_deleted(name: str, directory: int) -> bool:
    """Delete a file; return False if it is a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open(name: str, directory: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=directory)
