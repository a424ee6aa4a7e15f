"""Runs a module of the tests in a process of its own that sees several devices."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]

TIMEOUT = 600
"""Seconds after which a run is taken to hang."""


def environment(devices: int) -> dict[str, str]:
    """Return the variables under which a process sees so many devices."""
    flags = [
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={devices}",
    ]
    return {
        "JAX_PLATFORMS": "cpu",
        # Threads of XLA's pool: with as many as cores, collectives of more devices wait forever.
        "NPROC": "32",
        "XLA_FLAGS": " ".join(flags).strip(),
    }


def run(module: str, *arguments: object, devices: int) -> Any:
    """Return what the last line of ``python -m module arguments`` says, which is JSON."""
    return run_with_stderr(module, *arguments, devices=devices)[0]


def run_with_stderr(module: str, *arguments: object, devices: int) -> tuple[Any, str]:
    """Return the last line of a run, which is JSON, and all it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment(devices),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
