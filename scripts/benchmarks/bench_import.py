"""CPU seconds of imports in a fresh process, against google-tunix.

    python scripts/benchmarks/bench_import.py [--peer-python PYTHON]

``import tunix`` alone loads nothing of ours, so the modules that do the work are measured, too.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

import harness

STATEMENTS = (
    "import tunix",
    "import tunix; tunix.PeftTrainer",
    "from tunix.sft import peft_trainer",
    "from tunix.rl.grpo import grpo_learner",
)


def cpu_seconds(python: str, statement: str) -> float:
    """Return user and system seconds of a process that runs ``statement``."""
    # Elsewhere: python -c looks for modules in the working directory first.
    process = subprocess.Popen(
        [python, "-c", statement], stderr=subprocess.DEVNULL, cwd=tempfile.gettempdir()
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{python} -c {statement!r} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure every statement on both sides, in turn."""
    options = harness.parser(__doc__).parse_args()
    pythons = {"tunix": sys.executable}
    if options.peer_python:
        pythons["google-tunix"] = options.peer_python
    for statement in STATEMENTS:
        found: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(options.repeats):
            for name, python in pythons.items():
                found[name].append(cpu_seconds(python, statement))
        for name, seconds in found.items():
            row = {
                "benchmark": statement,
                "side": name,
                "repeats": options.repeats,
                "cpu_s": statistics.median(seconds),
                "cpu_min_s": min(seconds),
                "device": harness.device(),
                "commit": harness.commit(),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
