"""Runs Python programs that a model wrote, in a process with little time, memory and rights.

What it does, on Linux: a process of its own without the environment's variables, in a temporary
directory that is deleted; limits on CPU seconds, wall time, memory, the size of files and output;
where the kernel allows namespaces (``is_isolated``) no network, and no process outlives the run.
The program may have threads but no further processes: a limit says so to users, a filter of system
calls (x86-64 and AArch64) to root as well.

What it does **not** protect from: the program runs as your user (without new rights) and reads
and writes whatever that user may; it can attack the kernel; it can fill the disk with small files;
without namespaces it can reach the network and, where there is no filter, leave processes behind.
It is good against accidents and lazy tricks of a model in training, not against an attacker. Where
the model, the prompts or the machine's secrets are worth an attack, run the training in a container
or a virtual machine without secrets and network.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from tunix.utils import config as config_lib

_CHILD = pathlib.Path(__file__).with_name("sandbox_child.py")
_NO_ISOLATION = 97
MIB = 2**20


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
    """Size of any file it writes, output included; beyond it is killed."""

    require_isolation: bool = False
    """Whether to refuse to run where the kernel gives no namespaces: there the program has a
    network, and a process that hides from its group may outlive it."""

    def problems(self) -> Iterator[str]:
        """Yield limits that allow nothing."""
        yield from super().problems()
        for name in ("cpu_seconds", "memory_mib", "output_bytes", "file_bytes"):
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
        SandboxError: If ``require_isolation`` is set and cannot be had, or this is not Linux.
    """
    limits = limits or SandboxLimits()
    if not sys.platform.startswith("linux"):
        raise SandboxError("the sandbox needs Linux; run the training in a container")
    settings = {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_mib * MIB,
        "file_bytes": limits.file_bytes,
        "require_isolation": int(limits.require_isolation),
        "no_isolation_code": _NO_ISOLATION,
    }
    # Files for input and output: unlike pipes they never fill up and never block.
    with (
        tempfile.TemporaryDirectory(prefix="sandbox") as directory,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        place = pathlib.Path(directory)
        (place / "program.py").write_text(source, encoding="utf-8", errors="replace")
        given.write(stdin.encode("utf-8", errors="replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD), json.dumps(settings)],
            cwd=place,
            env={"HOME": directory, "TMPDIR": directory, "LANG": "C.UTF-8", "PATH": os.defpath},
            stdin=given,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
        found = [_start(file, limits.output_bytes) for file in (stdout, stderr)]
    if code == _NO_ISOLATION and limits.require_isolation:
        raise SandboxError(
            "the kernel gives no namespaces to this user (unshare fails); allow unprivileged user "
            "namespaces, or set require_isolation to False and read what that means"
        )
    if code is not None and code < 0:
        code = 128 - code
    return SandboxResult(returncode=code, stdout=found[0], stderr=found[1])


@functools.cache
def is_isolated() -> bool:
    """Return whether programs run here without network, in a world of processes of their own."""
    try:
        result = run_python("", limits=SandboxLimits(require_isolation=True))
    except SandboxError:
        return False
    return result.returncode == 0


def _start(of: IO[bytes], limit: int) -> str:
    """Return the first bytes of a file as text."""
    of.seek(0)
    return of.read(limit).decode("utf-8", errors="replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
