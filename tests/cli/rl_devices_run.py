"""Runs a command of the library on as many devices as there are, and prints what it said as JSON.

Run as ``python -m tests.cli.rl_devices_run COMMAND ARGUMENTS...``; a process of its own, because
the number of devices is fixed when JAX starts.
"""

import contextlib
import io
import json
import sys

from tunix.cli import grpo_main, ppo_main
from tunix.cli.running import rl_run

MAINS = {"grpo": grpo_main.main, "ppo": ppo_main.main}

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        # The console of the module took hold of the real one.
        rl_run._OUT.file = said
        assert MAINS[command]([f"tunix {command}", *arguments]) == 0
    print(json.dumps(said.getvalue().splitlines()))
