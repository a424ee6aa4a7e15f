"""Runs in the child, before anything of the program: gives up what a program has no need for.

``python -I -S sandbox_child.py SETTINGS_JSON``; the program is read from ``program.py`` in the
working directory. What could be had is written to the descriptor ``report``; if that is not what
was expected, the program does not run. Standard library only.
"""

import ctypes
import json
import os
import resource
import runpy
import stat
import struct
import sys
from typing import Any

_CLONE_NEWUSER = 0x10000000
_CLONE_OTHERS = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Namespaces of mounts, host names, shared memory, processes and the network."""

_MS_BIND = 0x1000
_MOUNT_ATTR_RDONLY = 1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 442, 444, 445, 446

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9
_CAPABILITIES = 0x20080522

_OF_FILES = 0b1100_0000_0000_0111
"""Rights of Landlock that a file has: execute, write, read, truncate, control devices."""
_READ, _LIST, _WRITE = 1 << 2, 1 << 3, 1 << 1 | 1 << 14
_OWN = _READ | _LIST | _WRITE | 0b0011_0001_1011_0000
"""And make, delete, rename and link files, directories and symbolic links."""


def main(settings: dict[str, Any]) -> None:
    """Limit this process and become the program."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    # ``bwrap`` has seen to both: all that it shows but the directory is read-only.
    report: dict[str, Any] = dict.fromkeys(("namespaces", "read_only"), settings["is_in_bwrap"])
    if not settings["is_in_bwrap"] and _unshare(libc):
        report = {"namespaces": True, "read_only": _make_read_only(libc)}
        # A new namespace begins with the next process: its end is the end of all others in it.
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    _give_up_rights(libc)
    report["landlock"] = _confine_files(libc, settings["readable"], settings["devices"])
    code = bytes.fromhex(settings["filters"][int(report["read_only"])])
    report["filtered"] = bool(code) and _filter_calls(libc, code)
    os.write(settings["report"], json.dumps(report).encode())
    os.close(settings["report"])
    if settings["expected"] not in (None, report):
        os._exit(1)
    _limit(settings)  # last: this script itself may need more
    sys.argv = ["program.py"]
    runpy.run_path("program.py", run_name="__main__")


def _unshare(libc: ctypes.CDLL) -> bool:
    """Enter namespaces of its own, as a user without rights outside if that can be."""
    with_user = _CLONE_NEWUSER | _CLONE_OTHERS
    return libc.unshare(with_user) == 0 or libc.unshare(_CLONE_OTHERS) == 0


def _make_read_only(libc: ctypes.CDLL) -> bool:
    """Have everything but the working directory read-only; return whether that could be had."""
    place = os.getcwd()
    if libc.mount(None, b"/", None, 1 << 18 | 1 << 14, None):  # private: ours alone from here on
        return False
    if libc.mount(os.fsencode(place), os.fsencode(place), None, _MS_BIND, None):
        return False
    os.chdir(place)
    read_only = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    writable = struct.pack("QQQQ", 0, _MOUNT_ATTR_RDONLY, 0, 0)
    for path, flags, change in ((b"/", _AT_RECURSIVE, read_only), (b".", 0, writable)):
        if libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path, flags, change, len(change)):
            return False
    return True


def _give_up_rights(libc: ctypes.CDLL) -> None:
    """Give up the rights of root, also those within a namespace, for good."""
    none = struct.pack("IIIIII", *(0,) * 6)
    if libc.capset(struct.pack("Ii", _CAPABILITIES, 0), none):
        raise OSError("cannot give up capabilities")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0)  # a crash is not for the machine's collector of crashes


def _confine_files(libc: ctypes.CDLL, readable: dict[str, int], devices: list[str]) -> int:
    """Leave the working directory and what Python needs; return the version of Landlock, or 0."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return 0
    known = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    # Of files, of TCP (4 and later), and of sockets without a path and signals (6 and later).
    handled = struct.pack("QQQ", known, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_CREATE_RULESET, handled, len(handled), 0)
    if rules < 0:
        return 0
    places = [(".", _OWN), *((path, _READ | _WRITE) for path in devices)]
    places += [
        (path, _LIST if only_list else _READ | _LIST) for path, only_list in readable.items()
    ]
    for path, wanted in places:
        if os.path.exists(path):  # a link may lead to where ``bwrap`` shows nothing
            fd = os.open(path, os.O_PATH)
            if _allow(libc, rules, fd, wanted & known):
                raise OSError(f"Landlock refuses a rule for {path}")
            os.close(fd)
    # Standard input and output have no place, and a program may open /dev/stdin. What is no file,
    # a pipe for example, needs no rule and can have none.
    for fd, wanted in ((0, _READ), (1, _WRITE), (2, _WRITE)):
        _allow(libc, rules, fd, wanted & known)
    done = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return version if done else 0


def _allow(libc: ctypes.CDLL, rules: int, fd: int, wanted: int) -> int:
    """Add a rule of Landlock; return 0 if that went well."""
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        wanted &= _OF_FILES
    return libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", wanted, fd), 0)


def _limit(settings: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: settings["cpu_seconds"],
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if not any(settings["filters"]):
        limits[resource.RLIMIT_NPROC] = 1  # no threads either; and nothing to root
    for kind, value in limits.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _filter_calls(libc: ctypes.CDLL, code: bytes) -> bool:
    place = ctypes.create_string_buffer(code)
    pointer = struct.pack("HP", len(code) // 8, ctypes.addressof(place))
    program = ctypes.create_string_buffer(pointer)
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
