"""Runs in the child, before anything of the program: gives up what a program has no need for.

``python -I -S sandbox_child.py SETTINGS_JSON``; the program is read from ``program.py`` in the
working directory. Standard library only.
"""

import ctypes
import errno
import json
import os
import resource
import runpy
import struct
import sys

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9

_SYSTEM_CALLS = {
    "x86_64": (0xC000003E, 56, (57, 58)),
    "aarch64": (0xC00000B7, 220, ()),
}
"""Of each machine: what the kernel calls it, ``clone``, and other calls that make processes."""


def main(settings: dict[str, int]) -> None:
    """Limit this process and become the program."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    isolated = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID) == 0
    if not isolated and settings["require_isolation"]:
        print("cannot unshare namespaces", file=sys.stderr)
        sys.exit(settings["no_isolation_code"])
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if isolated:
        # A new namespace begins with the next process: its end is the end of all others in it.
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    _limit(settings)
    _forbid_processes(libc)
    sys.argv = ["program.py"]
    runpy.run_path("program.py", run_name="__main__")


def _limit(settings: dict[str, int]) -> None:
    limits = {
        resource.RLIMIT_CPU: settings["cpu_seconds"],
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 1,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def _forbid_processes(libc: ctypes.CDLL) -> None:
    """Have the kernel refuse new processes, though not threads, if it and the machine can.

    The limit of processes above does not hold for root, as whom programs run in most containers.
    """
    if os.uname().machine not in _SYSTEM_CALLS:
        return
    machine, clone, others = _SYSTEM_CALLS[os.uname().machine]
    load, is_equal, is_at_least, has_bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    # Instructions of (code, value, where to go if true, if false): a line, or None for the next.
    allow, refuse, unknown = (len(others) + line for line in (8, 9, 10))
    lines = [
        (load, 4, None, None),  # the machine
        (is_equal, machine, None, refuse),
        (load, 0, None, None),  # the number of the system call
        (is_at_least, 0x40000000, refuse, None),  # another numbering of x86
        (is_equal, 435, unknown, None),  # clone3, without which the C library takes clone
        *((is_equal, number, refuse, None) for number in others),
        (is_equal, clone, None, allow),
        (load, 16, None, None),  # its flags
        (has_bits, 0x10000, allow, refuse),  # CLONE_THREAD
        (answer, 0x7FFF0000, None, None),
        (answer, 0x00050000 | errno.EAGAIN, None, None),
        (answer, 0x00050000 | errno.ENOSYS, None, None),
    ]
    code = b"".join(
        struct.pack("HBBI", kind, *(0 if to is None else to - i - 1 for to in jumps), value)
        for i, (kind, value, *jumps) in enumerate(lines)
    )
    place = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(place)))
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
