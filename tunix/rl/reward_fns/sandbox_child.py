"""Runs in the child, before anything of the program: gives up what a program has no need for.

``python -I -S sandbox_child.py SETTINGS_JSON``; the program is read from ``program.py`` in the
working directory. Standard library only.
"""

import ctypes
import json
import os
import resource
import runpy
import sys

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


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


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
