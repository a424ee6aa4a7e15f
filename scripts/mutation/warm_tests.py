"""Runs tests in forks of a process that has imported everything but the code under test."""

import importlib
import json
import os
import pathlib
import select
import signal
import sys
import time
import tomllib
import warnings
from typing import Any

import hypothesis
import pytest

_OWN = ("tunix", "tests")


class WarmTests:
    """The tests of one module, ready to run on any version of it."""

    def __init__(self, tree: pathlib.Path, module: str, tests: list[str], programs: pathlib.Path):
        """Run the tests on the unchanged module, which must pass, and keep their times.

        Args:
            tree: Directory with ``tunix`` and ``tests``; the module is replaced in it.
            module: Path of the module, relative to ``tree``.
            tests: Files and test ids, relative to ``tree``.
            programs: Directory of the programs that JAX compiled.

        Raises:
            SystemExit: if a test fails on the unchanged module.
        """
        self._tree, self._module, self._tests = tree, module, tests
        self._cost: dict[str, float] = {}
        self._kills: dict[str, int] = {}
        # Before jax is imported: the forks share compiled programs.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # Reproducible, and the first counterexample will do: no time for a smaller one.
        phases = set(hypothesis.Phase) - {hypothesis.Phase.shrink, hypothesis.Phase.explain}
        hypothesis.settings.register_profile(
            "mutation", deadline=None, derandomize=True, database=None, phases=phases
        )
        _import(["jax", "flax.nnx", "optax", "numpy", "hypothesis", "beartype", "jaxtyping"])
        report = self._fork(1200.0, sort=False)
        if report is None or report["failed"] or not report["times"]:
            raise SystemExit(f"tests fail on the unchanged module: {report}")
        _import(report["modules"])
        self._cost = report["times"]
        self._limit = 30.0 + 4.0 * report["seconds"]

    def outcome(self, source: str) -> str:
        """Return which test noticed this source of the module, or how it ended otherwise."""
        (self._tree / self._module).write_text(source)
        report = self._fork(self._limit, sort=True)
        if report is None:
            return "died or timed out"
        if not report["failed"]:
            return "survived"
        test = report["failed"][0]
        self._kills[test] = self._kills.get(test, 0) + 1
        return f"noticed by {test}"

    def _order(self, test: str) -> tuple[int, float]:
        return -self._kills.get(test, 0), self._cost.get(test, 0.0)

    def _fork(self, limit: float, *, sort: bool) -> dict[str, Any] | None:
        """Return the report of a run in a child, or ``None`` if it died or had to be ended."""
        read, write = os.pipe()
        with warnings.catch_warnings():
            # JAX has threads only once it has a backend, and this process never makes one.
            warnings.simplefilter("ignore", RuntimeWarning)
            child = os.fork()
        if child == 0:
            os.close(read)
            os.setsid()
            try:
                report = self._run(sort=sort)
            except BaseException as error:
                report = {"failed": [f"{type(error).__name__} before any test"], "times": {}}
            with os.fdopen(write, "w") as out:
                json.dump(report, out)
            os._exit(0)
        os.close(write)
        return _report_of(child, read, limit)

    def _run(self, *, sort: bool) -> dict[str, Any]:
        started = time.monotonic()
        os.chdir(self._tree)
        sys.path.insert(0, str(self._tree))
        # A mutant may have the size and the second of the one before: no file of bytecode then.
        sys.dont_write_bytecode = sort
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if sort:
            os.dup2(null, 2)
        watch = _Watch(self._order if sort else None)
        # Nobody reads the traceback, and collecting garbage after each run takes a second.
        options = [
            "-x",
            "-q",
            "--tb=native",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:unraisableexception",
        ]
        options += ["-m", "not slow", "--hypothesis-profile=mutation"]
        options += ["-o", "addopts=", "--import-mode=importlib", *self._checked_shapes()]
        code = pytest.main([*options, *self._tests], plugins=[watch])
        failed = watch.failed or ([] if code == 0 else [f"exit code {int(code)}"])
        tops = sorted(m for m in sys.modules if m.split(".")[0] not in _OWN)
        seconds = time.monotonic() - started
        return {"failed": failed, "times": watch.times, "modules": tops, "seconds": seconds}

    def _checked_shapes(self) -> list[str]:
        """Return the option that checks shapes while the tests run, if the project sets it.

        Of this module alone: to wrap the functions of all of them takes a second of every run.
        """
        settings = tomllib.loads((self._tree / "pyproject.toml").read_text())
        prefix, name = "--jaxtyping-packages=", self._module.removesuffix(".py").replace("/", ".")
        for option in settings["tool"]["pytest"]["ini_options"]["addopts"]:
            if option.startswith(prefix):
                *packages, checker = option.removeprefix(prefix).split(",")
                if any(f"{name}.".startswith(f"{package}.") for package in packages):
                    return [f"{prefix}{name},{checker}"]
        return []


class _Watch:
    """Orders the tests and keeps what they took and which failed."""

    def __init__(self, order):
        self._order = order
        self.times: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._order is not None:
            items.sort(key=lambda item: self._order(item.nodeid))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.times[report.nodeid] = self.times.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def _import(names: list[str]) -> None:
    """Import what can be imported; a child inherits it."""
    for name in names:
        if name in sys.modules or name.split(".")[0] in ("torch", "__main__"):
            continue
        try:
            importlib.import_module(name)
        except Exception:  # modules that only exist inside a package's own import
            continue


def _report_of(child: int, read: int, limit: float) -> dict[str, Any] | None:
    """Wait for a child's report; end it, and all that it started, when the time is over."""
    deadline, parts = time.monotonic() + limit, []
    try:
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while (left := deadline - time.monotonic()) > 0 and (
                select.select([pipe], [], [], left)[0]
            ):
                part = pipe.read(1 << 16)
                if not part:
                    break
                parts.append(part)
            else:
                return None
        return json.loads(b"".join(parts)) if parts else None  # nothing: the process died
    finally:  # also when this process is interrupted: a mutant may run for ever
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
