"""The side of a benchmark that runs in a process of its own, under any Python.

Uses the standard library alone, so that it also runs in another library's
environment. A worker owns one case: it builds the inputs, runs the body once
(tracing, compiling), then runs it again whenever it is told to, and answers
with wall and CPU seconds. Two workers that are told in turn alternate, and
neither ever works while the other is on the clock.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time: ``setup`` runs outside the clock and returns the body."""

    setup: Callable[[], Callable[[], Any]]
    """The body must return only when its work is done. A dict that it returns is reported."""
    work: int
    """How many steps, tokens or whatever ``unit`` counts one call of the body does."""
    unit: str
    temporary_mb: Callable[[], float] | None = None
    """Scratch memory of the compiled program; called after the first run."""


def serve(cases: Mapping[str, Case]) -> None:
    """Run the case named on the command line and obey the lines that arrive on stdin."""
    # Libraries print; only our answers may go to the channel.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    case = cases[sys.argv[1]]
    setup = _Clock()
    body = case.setup()
    answer = {"setup": setup.seconds()}
    first = _Clock()
    facts = body()
    answer |= {"first": first.seconds(), "facts": facts if isinstance(facts, dict) else {}}
    if case.temporary_mb is not None:
        answer["temporary_mb"] = case.temporary_mb()
    answer |= {"work": case.work, "unit": case.unit, "versions": versions()}
    print(json.dumps(answer), file=channel)
    for line in sys.stdin:
        if line.strip() != "again":
            break
        clock = _Clock()
        body()
        answer = clock.seconds()
        answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), file=channel)


class _Clock:
    """Wall and CPU seconds of this process since it was made, all threads counted."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def seconds(self) -> dict[str, float]:
        """Return what has passed."""
        return {
            "wall_s": time.perf_counter() - self._wall,
            "cpu_s": _cpu_seconds() - self._cpu,
        }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def versions() -> dict[str, str]:
    """Return the version of every library of interest that the worker has loaded."""
    from importlib import metadata

    names = ("tunix", "google-tunix", "jax", "jaxlib", "flax", "optax", "qwix")
    names += ("torch", "transformers", "trl", "peft", "accelerate")
    found = {}
    for name in names:
        if name.removeprefix("google-") in sys.modules:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    return found
