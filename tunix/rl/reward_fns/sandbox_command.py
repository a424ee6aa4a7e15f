"""The command that starts a program in the sandbox, with ``bwrap`` around it or without."""

import functools
import json
import os
import pathlib
import shutil
import sys
import sysconfig
from typing import Any

_CHILD = pathlib.Path(__file__).with_name("sandbox_child.py")

_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)
"""Shared libraries and time zones."""

_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_PACKAGES = ("site-packages", "dist-packages")


def command(place: pathlib.Path, settings: dict[str, Any], *, bwrap: bool) -> list[str]:
    """Return the command that becomes the program in the directory ``place``."""
    python = [_python(), "-I", "-S", "-B", str(_CHILD), json.dumps(settings)]
    return [*_bwrap_options(place), *python] if bwrap else python


def environment(place: pathlib.Path) -> dict[str, str]:
    """Return the environment of a program: nothing of ours."""
    directory = str(place)
    return {"HOME": directory, "TMPDIR": directory, "LANG": "C.UTF-8", "PATH": os.defpath}


@functools.cache
def bwrap() -> str | None:
    """Return where ``bwrap`` is, if it is installed."""
    return shutil.which("bwrap")


@functools.cache
def readable() -> dict[str, bool]:
    """Return what Python needs to read, and of each whether only the names in it.

    That is the standard library without the packages that are installed in it: what a model is
    tested with may be among them.
    """
    stdlib = {pathlib.Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    own = pathlib.Path(os.__file__).resolve().parent
    found: dict[str, bool] = dict.fromkeys(_SYSTEM, False)
    for directory in sorted({own, *stdlib}):
        if directory.joinpath("os.py").exists() or directory.joinpath("lib-dynload").exists():
            found[str(directory)] = True
            parts = (p for p in directory.iterdir() if p.name not in _PACKAGES)
            found |= {str(part): False for part in sorted(parts)}
    libraries = pathlib.Path(sys.base_prefix, "lib").glob("*.so*")
    found |= {str(library): False for library in sorted(libraries)}
    return {path: only_names for path, only_names in found.items() if os.path.exists(path)}


def devices() -> list[str]:
    """Return the devices a program may use."""
    return [path for path in _DEVICES if os.path.exists(path)]


def _bwrap_options(place: pathlib.Path) -> list[str]:
    whole = [path for path, only_names in readable().items() if only_names]
    inner = tuple(f"{path}{os.sep}" for path in whole)
    shown = [path for path in readable() if not path.startswith(inner)]
    shown += [_python(), str(_CHILD)]
    options = ["--unshare-user", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    for path in shown:
        options += ["--ro-bind", path, path]
    options += ["--proc", "/proc"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        options += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    for path in devices():
        options += ["--dev-bind", path, path]
    options += ["--bind", str(place), str(place), "--remount-ro", "/", "--chdir", str(place)]
    return [bwrap() or "bwrap", *options, "--"]


def _python() -> str:
    """Return the interpreter itself: that of a virtual environment is a link to it."""
    return os.path.realpath(sys.executable)
