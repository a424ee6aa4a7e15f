"""Runs Python programs that a model wrote, in a process with little time, memory and rights.

What it does, on Linux: a process of its own without the environment's variables and descriptors,
in a temporary directory that is deleted; limits on CPU seconds, wall time, memory, files and
output; no rights of root. Then as much as the machine has of:

- a filter of system calls (x86-64 and AArch64): threads, but no further processes; no sockets,
  signals to others, tracing, mounts, shared memory;
- Landlock (Linux 5.13; all of it from 6.2 on): files of the directory, and to read the standard
  library and the system's shared libraries;
- namespaces: no network, no other processes to be seen, everything else read-only;
- ``bwrap`` (bubblewrap), if it is installed: the same, and no other files to be seen.

:func:`protection` says what there is here and what programs are not kept from. As root, whose files
are the system's, nothing runs without Landlock or ``bwrap``.

What it does **not** protect from: the program can attack the kernel, and what the standard library
of Python holds is open to it. Where the model, the prompts or the machine's secrets are worth such
an attack, run the training in a virtual machine without secrets and network.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from tunix.rl.reward_fns import sandbox_command, sandbox_directory, sandbox_filter
from tunix.utils import config as config_lib

MIB = 2**20
_POLL_SECONDS = 0.05
_TOO_MANY_FILES = 128 + signal.SIGXFSZ

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxLimits(config_lib.Config):
    """What a program may use."""

    cpu_seconds: int = 5
    """Time on a processor."""

    wall_seconds: float = 10.0
    """Time in all; then every process of the program is killed."""

    memory_mib: int = 512
    """Address space."""

    output_bytes: int = dataclasses.field(default=65_536, metadata=config_lib.ANY_SIZE)
    """What is kept of standard output and of standard error; the rest is cut off."""

    file_bytes: int = dataclasses.field(default=4 * MIB, metadata=config_lib.ANY_SIZE)
    """Size of any file it writes, output included; beyond it writing fails."""

    disk_mib: int = 64
    """What all its files take, 4 KiB at least each; looked at now and then and at the end. Beyond
    it, or with directories nested more than 100 deep, the program is killed and has failed. What
    is deleted and still open, 64 files of ``file_bytes`` at most, or mapped, is not seen."""

    require_isolation: bool = False
    """Whether to refuse to run where :func:`protection` finds anything missing."""

    allow_root: bool = False
    """Whether to run as root where neither Landlock nor ``bwrap`` keeps the program from the
    system's files."""

    def problems(self) -> Iterator[str]:
        """Yield limits that allow nothing."""
        yield from super().problems()
        for name in ("cpu_seconds", "memory_mib", "output_bytes", "file_bytes", "disk_mib"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        if not self.wall_seconds > 0.0:
            yield f"wall_seconds must be positive, got {self.wall_seconds}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxResult:
    """How a program ended."""

    returncode: int | None
    """0 if all went well, ``None`` if its time ran out; above 128 a signal ended it."""
    stdout: str
    stderr: str

    @property
    def timed_out(self) -> bool:
        """Whether it was killed because of ``wall_seconds``."""
        return self.returncode is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protection:
    """What keeps programs in here."""

    landlock: int = 0
    """Version of Landlock; 0 without."""
    filtered: bool = False
    """Whether system calls are filtered."""
    namespaces: bool = False
    read_only: bool = False
    """Whether all but the program's directory is read-only."""
    bwrap: bool = False

    def missing(self) -> list[str]:
        """Return what programs are not kept from, in words."""
        hidden = self.landlock > 0 or self.bwrap
        unchanged = self.read_only or (self.landlock >= 3 and self.filtered)
        kept = {
            "reading your files": hidden,
            "changing your files": unchanged,
            "the network": self.filtered or self.namespaces,
            "sockets of other programs": self.filtered or self.bwrap,
            "starting processes": self.filtered,
            "other processes": self.filtered or self.namespaces,
        }
        return [what for what, is_kept in kept.items() if not is_kept]

    def __str__(self) -> str:
        """Return one line for people."""
        found = [f"Landlock {self.landlock}"] if self.landlock else []
        found += ["bwrap"] if self.bwrap else ["namespaces"] if self.namespaces else []
        found += ["read-only files"] if self.read_only else []
        found += ["filter of system calls"] if self.filtered else []
        missing = self.missing()
        return f"{', '.join(found) or 'limits only'}; not kept from: {', '.join(missing) or '-'}"


class SandboxError(RuntimeError):
    """The sandbox itself does not work here."""


def run_python(
    source: str, *, stdin: str = "", limits: SandboxLimits | None = None
) -> SandboxResult:
    """Run a program and return how it ended.

    Args:
        source: Python; the standard library is all it can import.
        stdin: What it can read.
        limits: What it may use.

    Raises:
        SandboxError: If this is not Linux, if ``require_isolation`` is set and something is
            missing, or if root's files would be open to the program.
    """
    limits = limits or SandboxLimits()
    found = protection()
    if limits.require_isolation and found.missing():
        raise SandboxError(
            f"require_isolation is set, and programs would not be kept from "
            f"{', '.join(found.missing())} (there is: {found}). A kernel of 6.2 or later has "
            "Landlock; else install bubblewrap, or set require_isolation to False"
        )
    if os.geteuid() == 0 and "reading your files" in found.missing() and not limits.allow_root:
        raise SandboxError(
            "programs would run as root with neither Landlock (Linux 5.13) nor bwrap to keep them "
            "from the system's files: train as another user, install bubblewrap, or set "
            "allow_root in SandboxLimits where the machine may be lost"
        )
    result, report = _run(source, stdin, limits, expected=found)
    if report != found and result.returncode is not None:
        raise SandboxError(
            f"the sandbox did not come about: expected {found}, got {report or 'no answer'}; "
            f"{result.stderr.strip()[-500:] or 'no output'}"
        )
    return result


def is_isolated() -> bool:
    """Return whether programs here are kept from everything that :class:`Protection` lists."""
    return sys.platform.startswith("linux") and not protection().missing()


@functools.cache
def protection() -> Protection:
    """Return what keeps programs in on this machine, found out by running an empty one.

    Raises:
        SandboxError: If none runs, or this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError("the sandbox needs Linux; run the training in a container")
    limits, said = SandboxLimits(wall_seconds=60.0), ""
    for bwrap in (True, False) if sandbox_command.bwrap() else (False,):
        result, found = _run("", "", limits, bwrap=bwrap)
        if found is not None and result.returncode == 0:
            if found.missing():
                _LOG.warning("sandbox: %s", found)
            return found
        said = result.stderr.strip()[-500:]
    raise SandboxError(f"no program runs in the sandbox: {said or 'no output'}")


def _run(
    source: str,
    stdin: str,
    limits: SandboxLimits,
    *,
    expected: Protection | None = None,
    bwrap: bool = False,
) -> tuple[SandboxResult, Protection | None]:
    """Return how a program ended, and what kept it in, ``None`` if it did not begin."""
    bwrap = bwrap if expected is None else expected.bwrap
    directory = sandbox_directory.SandboxDirectory()
    try:
        # Files for input and output: unlike pipes they never fill up and never block.
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
            tempfile.TemporaryFile() as report,
        ):
            program = source.encode("utf-8", errors="replace")
            (directory.path / "program.py").write_bytes(program)
            given.write(stdin.encode("utf-8", errors="replace"))
            given.seek(0)
            process = subprocess.Popen(
                sandbox_command.command(
                    directory.path, _settings(limits, report, expected, bwrap), bwrap=bwrap
                ),
                cwd=directory.path,
                env=sandbox_command.environment(directory.path),
                stdin=given,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[report.fileno()],
                start_new_session=True,
            )
            code = _wait(process, directory, limits)
            result = SandboxResult(
                returncode=128 - code if code is not None and code < 0 else code,
                stdout=_start(stdout, limits.output_bytes),
                stderr=_start(stderr, limits.output_bytes),
            )
            answer = _start(report, MIB)
    finally:
        directory.remove()
    return result, Protection(**json.loads(answer), bwrap=bwrap) if answer else None


def _settings(
    limits: SandboxLimits, report: IO[bytes], expected: Protection | None, bwrap: bool
) -> dict[str, Any]:
    machine = os.uname().machine
    promised = None
    if expected is not None:
        promised = {k: v for k, v in dataclasses.asdict(expected).items() if k != "bwrap"}
    return {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_mib * MIB,
        "file_bytes": limits.file_bytes,
        "is_in_bwrap": bwrap,
        "readable": sandbox_command.readable(),
        "devices": sandbox_command.devices(),
        "filters": [
            sandbox_filter.assemble(machine, attributes=attributes).hex()
            for attributes in (False, True)
        ],
        "report": report.fileno(),
        "expected": promised,
    }


def _wait(
    process: subprocess.Popen[bytes],
    directory: sandbox_directory.SandboxDirectory,
    limits: SandboxLimits,
) -> int | None:
    """Wait for the end or for a limit, kill what is left, and return the exit code."""
    deadline = time.monotonic() + limits.wall_seconds
    code: int | None = None
    is_full = False
    try:
        while code is None and not is_full and (left := deadline - time.monotonic()) > 0:
            try:
                code = process.wait(min(_POLL_SECONDS, left))
            except subprocess.TimeoutExpired:
                is_full = directory.is_above(limits.disk_mib * MIB)
    finally:
        _kill_group(process)
    return _TOO_MANY_FILES if is_full or directory.is_above(limits.disk_mib * MIB) else code


def _start(of: IO[bytes], limit: int) -> str:
    """Return the first bytes of a file as text."""
    of.seek(0)
    return of.read(limit).decode("utf-8", errors="replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
