"""One owner of a directory at a time, so that two runs never write one log.

The owner holds a lock of the operating system on ``run.lock``, which goes when its process does,
however that ends, and which many shared file systems pass on to other hosts. Where they do not, the
file speaks for itself: it names host and process, and its owner touches it every few seconds.
Whoever finds the lock free but the file of another host watches it, by a clock of its own, until it
is touched (the owner lives) or has been silent for long enough (it is gone).
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

FILE = "run.lock"
BEAT_SECONDS = 10.0
"""How often an owner touches its file."""
SILENCE_SECONDS = 60.0
"""After how long without a touch an owner on another host is taken for dead."""
_LONG_AGO_SECONDS = 3600.0
"""Beyond this no difference of clocks matters: nobody needs to watch."""

_LOG = logging.getLogger(__name__)


class RunLockedError(OSError):
    """A directory that another process writes to; names it and what to do."""


@dataclasses.dataclass(frozen=True)
class _Owner:
    host: str
    pid: int
    boot: str
    """Of the host's kernel: containers may have one name on several hosts."""
    since: str

    @classmethod
    def here(cls) -> "_Owner":
        now = datetime.datetime.now().astimezone()
        return cls(socket.gethostname(), os.getpid(), _boot(), now.isoformat(timespec="seconds"))

    @property
    def is_here(self) -> bool:
        """Whether the owner is or was on this host."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclasses.dataclass
class _Held:
    file: int
    owner: _Owner
    count: int = 1
    """One process may own a directory several times: a trainer follows another in a notebook."""
    is_lost: bool = False


_held: dict[pathlib.Path, _Held] = {}
_guard = threading.Lock()
_beating: threading.Thread | None = None


@contextlib.contextmanager
def owned(directory: pathlib.Path) -> Iterator[None]:
    """Own ``directory`` while the body runs; errors of :func:`acquire`."""
    acquire(directory)
    try:
        yield
    finally:
        release(directory)


def acquire(directory: pathlib.Path) -> None:
    """Become the owner of a directory until :func:`release`, or the end of the process.

    Raises:
        RunLockedError: If another process owns it.
    """
    global _beating
    path = directory.resolve() / FILE
    with _guard:
        if path in _held and _is_current(path, _held[path].file):
            _held[path].count += 1
            return
        _held[path] = _take(path)
        if _beating is None:
            _beating = threading.Thread(target=_beat, name="tunix-run-lock", daemon=True)
            _beating.start()


def release(directory: pathlib.Path) -> None:
    """Give up what :func:`acquire` took."""
    path = directory.resolve() / FILE
    with _guard:
        held = _held.get(path)
        if held is None:
            return
        held.count -= 1
        if held.count == 0:
            del _held[path]
            if _is_current(path, held.file) and _read(held.file) == held.owner:
                path.unlink(missing_ok=True)
            os.close(held.file)


def touch_all() -> None:
    """Touch the files of all directories that are owned, so that other hosts see who lives."""
    for path, held in list(_held.items()):
        with contextlib.suppress(OSError):  # released in this moment, or on a disk that is away
            if (found := _read(held.file)) == held.owner:
                os.utime(held.file)
            elif not held.is_lost:
                held.is_lost = True
                _LOG.error(
                    "%s now names %s, which had not heard of this process for long; stop one of "
                    "them, for both write to that directory",
                    path,
                    found,
                )


def _take(path: pathlib.Path) -> _Held:
    """Lock the file and write the owner's name into it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked = _lock(file, path)
            before, owner = _read(file), _Owner.here()
            is_doubtful = False
            if before is not None and not (is_locked and before.is_here):
                is_doubtful = True
                _watch(path, before)
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(dataclasses.asdict(owner)).encode(), 0)
            if is_doubtful:  # others may have watched as well: the last one to write has it
                time.sleep(BEAT_SECONDS / 10)
            if not _is_current(path, file):  # its owner has deleted it in this moment
                os.close(file)
                continue
            if (found := _read(file)) != owner:
                raise _locked(path, found)
        except BaseException:
            os.close(file)
            raise
        return _Held(file, owner)


def _lock(file: int, path: pathlib.Path) -> bool:
    """Return whether the file system has locks; raise if another process has this one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(path, _read(file)) from None
    except OSError:
        return False
    return True


def _watch(path: pathlib.Path, before: _Owner) -> None:
    """Return when the owner on another host has been silent for long enough."""
    touched = path.stat().st_mtime_ns
    if time.time() - touched / 1e9 > _LONG_AGO_SECONDS:
        return
    _LOG.warning(
        "%s names %s; waiting up to %.0f s to see whether it is still there",
        path, before, SILENCE_SECONDS,
    )  # fmt: skip
    end = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE_SECONDS / 10))
        try:
            # Opened, not asked by name: a shared disk then shows what others have done.
            with path.open("rb") as file:
                is_silent = os.fstat(file.fileno()).st_mtime_ns == touched
        except FileNotFoundError:
            return  # it has ended
        if not is_silent:
            raise _locked(path, before)
    _LOG.warning("%s is gone; its run is continued here", before)


def _locked(path: pathlib.Path, owner: _Owner | None) -> RunLockedError:
    name = "another process" if owner is None else str(owner)
    return RunLockedError(
        f"{path.parent} is in use by {name}: two runs there would mix their logs and delete each "
        "other's checkpoints. Wait for it or stop it, or choose another directory"
    )


def _read(file: int) -> _Owner | None:
    """Return who is named in the file; None if nobody can be made out."""
    try:
        return _Owner(**json.loads(os.pread(file, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _is_current(path: pathlib.Path, file: int) -> bool:
    """Return whether an open file still is the one of this name."""
    try:
        found, own = path.stat(), os.fstat(file)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _beat() -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        touch_all()


def _boot() -> str:
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # no Linux
        return ""
