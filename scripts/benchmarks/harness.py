"""Runs benchmark workers in turn and prints what they measured, one JSON line each.

A number is only comparable to another one together with the machine, the
versions and the commit it was taken with, so every line carries them. CPU
seconds are the number to compare on a shared machine: wall time also measures
the neighbours.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One contender: which worker file runs which case under which Python."""

    name: str
    worker: str
    case: str
    python: str = sys.executable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Everything needed to compare this number with another one later."""

    benchmark: str
    side: str
    unit: str
    work: int
    repeats: int
    wall_s: float
    """Median of the repeats."""
    wall_iqr_s: float
    cpu_s: float
    """Median of the repeats, user and system, all threads."""
    cpu_min_s: float
    per_wall_s: float
    per_cpu_s: float
    setup_cpu_s: float
    first_wall_s: float
    """The first call: tracing and compiling included."""
    first_cpu_s: float
    peak_mb: float
    """Largest resident memory of the process."""
    temporary_mb: float | None
    """Scratch memory of the compiled program, where the library lets us ask."""
    facts: dict[str, Any]
    device: str
    versions: dict[str, str]
    commit: str


class _Running:
    """A worker process and what it has answered."""

    def __init__(self, side: Side):
        self.side = side
        self.process = subprocess.Popen(
            [side.python, str(FOLDER / side.worker), side.case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("BENCH_DEBUG") else None,
            text=True,
            # Compile times are measured, so nothing may come from an earlier run.
            env={k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
            | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        self.first = self._answer()
        self.repeats: list[dict[str, float]] = []

    def again(self) -> None:
        """Have the body run once more."""
        assert self.process.stdin is not None
        print("again", file=self.process.stdin, flush=True)
        self.repeats.append(self._answer())

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        log = self.process.stderr.read() if self.process.stderr else ""
        raise RuntimeError(f"{self.side.worker} {self.side.case} died:\n{log[-3000:]}")


def compare(benchmark: str, sides: Sequence[Side], *, repeats: int) -> list[Result]:
    """Measure all sides, repeat by repeat in turn, and print one JSON line for each."""
    running = [_Running(side) for side in sides]
    for _ in range(repeats):
        for worker in running:
            worker.again()
    for worker in running:
        worker.stop()
    results = [_result(benchmark, worker) for worker in running]
    for result in results:
        print(json.dumps(dataclasses.asdict(result)), flush=True)
    _print_ratios(results)
    return results


def _result(benchmark: str, worker: _Running) -> Result:
    walls = [answer["wall_s"] for answer in worker.repeats]
    cpus = [answer["cpu_s"] for answer in worker.repeats]
    low, _, high = statistics.quantiles(walls, n=4) if len(walls) > 1 else (walls[0],) * 3
    first = worker.first
    return Result(
        benchmark=benchmark,
        side=worker.side.name,
        unit=first["unit"],
        work=first["work"],
        repeats=len(walls),
        wall_s=statistics.median(walls),
        wall_iqr_s=high - low,
        cpu_s=statistics.median(cpus),
        cpu_min_s=min(cpus),
        per_wall_s=first["work"] / statistics.median(walls),
        per_cpu_s=first["work"] / statistics.median(cpus),
        setup_cpu_s=first["setup"]["cpu_s"],
        first_wall_s=first["first"]["wall_s"],
        first_cpu_s=first["first"]["cpu_s"],
        peak_mb=worker.repeats[-1]["peak_mb"],
        temporary_mb=first.get("temporary_mb"),
        facts=first["facts"],
        device=device(),
        versions=first["versions"],
        commit=commit(),
    )


def _print_ratios(results: Sequence[Result]) -> None:
    """Print, for people, how the first side compares with each other one."""
    ours, *others = results
    for result in results:
        print(
            f"# {result.benchmark:28} {result.side:24} {result.per_wall_s:8.4g} {result.unit}/s  "
            f"{result.per_cpu_s:8.4g} {result.unit}/cpu-s  first {result.first_cpu_s:6.2f} cpu-s  "
            f"peak {result.peak_mb:6.0f} MB  scratch {result.temporary_mb or float('nan'):6.0f} MB"
        )
    for other in others:
        print(
            f"# {ours.side} is {other.cpu_s / ours.cpu_s:.2f}x by CPU seconds, "
            f"{other.wall_s / ours.wall_s:.2f}x by wall time, "
            f"{other.first_cpu_s / ours.first_cpu_s:.2f}x to the first result "
            f"against {other.side}",
            flush=True,
        )


def device() -> str:
    """Return the processor's name and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name} x{len(os.sched_getaffinity(0))}"


def commit() -> str:
    """Return the commit of the working tree, with ``+`` when files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    return (head or "unknown") + ("+" if git("status", "--porcelain") else "")


def sides(case: str, peer_python: str | None) -> list[Side]:
    """Return our side of a case and, given its Python, that of google-tunix."""
    found = [Side(name="tunix", worker="tunix_worker.py", case=case)]
    if peer_python is not None:
        peer = Side(
            name="google-tunix", worker="google_tunix_worker.py", case=case, python=peer_python
        )
        found.append(peer)
    return found


def parser(description: str) -> argparse.ArgumentParser:
    """Return the command line that the benchmarks share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--peer-python", help="Python of an environment with google-tunix, to compare with it"
    )
    made.add_argument("--repeats", type=int, default=7, help="timed calls of each side")
    return made


def trainers_parser(description: str) -> argparse.ArgumentParser:
    """Return the command line of the comparisons of whole trainers."""
    made = parser(description)
    made.set_defaults(repeats=3)
    made.add_argument("--trl-python", help="Python of an environment with TRL, to compare with it")
    made.add_argument("--model-dir", required=True, help="SmolLM2-135M-Instruct, for all sides")
    return made


def compare_trainers(
    benchmark: str, options: argparse.Namespace, *, trl: Sequence[str], peer: bool
) -> list[Result]:
    """Compare our trainer with those of the libraries whose Python is given.

    Args:
        benchmark: The name of the case of our worker, and of google-tunix's.
        options: From :func:`trainers_parser`.
        trl: Variants that TRL is run in; its cases are called BENCHMARK_VARIANT.
        peer: Whether google-tunix has the case, too.
    """
    os.environ["BENCH_MODEL"] = str(pathlib.Path(options.model_dir).resolve())
    found = [Side(name="tunix", worker="tunix_trainers_worker.py", case=benchmark)]
    if options.trl_python is not None:
        found += [
            Side(
                name=f"trl {variant}",
                worker="trl_worker.py",
                case=f"{benchmark}_{variant}",
                python=options.trl_python,
            )
            for variant in trl
        ]
    if peer and options.peer_python is not None:
        found.append(
            Side(
                name="google-tunix",
                worker="google_tunix_trainers_worker.py",
                case=benchmark,
                python=options.peer_python,
            )
        )
    return compare(benchmark, found, repeats=options.repeats)
