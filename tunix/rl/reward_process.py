"""Processes that call one function again and again, and can be killed while they do.

Only the standard library: a child imports this file and what the function needs.
"""

import functools
import importlib.util
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import types
import weakref
from collections.abc import Callable
from concurrent import futures
from multiprocessing import connection
from typing import Any

START_SECONDS = 300.0
"""How long a child may take to import the function's module."""


class ProcessDiedError(RuntimeError):
    """The process that ran a function ended: it crashed, or the system killed it."""


class ProcessPool:
    """Calls one function in processes, each of which serves one call at a time.

    Args:
        fn: Found by name in a module, or an object of a class that is.
        num_workers: How many processes; they start when they are first needed.
    """

    def __init__(self, fn: Callable[..., Any], num_workers: int):
        payload = (pickle.dumps(fn), _source_of(fn))
        self._workers = [_Worker(payload) for _ in range(num_workers)]
        self._finalizer = weakref.finalize(self, _close_all, self._workers)

    def run(
        self, calls: list[dict[str, Any]], time_limit: float | None
    ) -> list[Any | BaseException]:
        """Return the value of every call, or the exception it ended with.

        Args:
            calls: Keyword arguments.
            time_limit: Seconds for each; a process that takes longer is killed.
        """
        idle: queue.Queue[_Worker] = queue.Queue()
        for worker in self._workers:
            idle.put(worker)

        def call(kwargs: dict[str, Any]) -> Any:
            worker = idle.get()
            try:
                return worker.call(kwargs, time_limit)
            except Exception as error:
                return error
            finally:
                idle.put(worker)

        with futures.ThreadPoolExecutor(max_workers=len(self._workers)) as pool:
            return list(pool.map(call, calls))

    def close(self) -> None:
        """End all processes."""
        self._finalizer()


class _Worker:
    """One process, started anew after it had to be killed."""

    def __init__(self, payload: tuple[bytes, tuple[str, str] | None]):
        self._payload = payload
        self._process: Any = None
        self._pipe: Any = None

    def call(self, kwargs: dict[str, Any], time_limit: float | None) -> Any:
        """Return what the function returns.

        Raises:
            TimeoutError: If it takes longer than ``time_limit`` seconds; the process is killed.
            ProcessDiedError: If the process ends.
            Exception: Whatever the function raises.
        """
        if self._process is None:
            self._start()
        self._pipe.send_bytes(pickle.dumps(kwargs))
        return self._receive(time_limit, f"took longer than {time_limit} s and was killed")

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with JAX can hang
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._payload), daemon=True)
        self._process.start()
        theirs.close()
        self._receive(START_SECONDS, f"did not start within {START_SECONDS} s")

    def _receive(self, seconds: float | None, too_late: str) -> Any:
        try:
            if not self._pipe.poll(seconds):
                self.close()
                raise TimeoutError(too_late)
            is_value, value = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise ProcessDiedError(f"its process ended with {_meaning(code)}") from None
        if not is_value:
            raise value
        return value


def _close_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.close()


def _serve(pipe: connection.Connection, payload: tuple[bytes, tuple[str, str] | None]) -> None:
    """Answer calls until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the trainer's
    try:
        pickled, source = payload
        if source is not None:
            _load(*source)
        fn = pickle.loads(pickled)
    except BaseException as error:
        pipe.send_bytes(_packed(False, error))
        return
    pipe.send_bytes(_packed(True, None))
    while True:
        try:
            kwargs = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = _packed(True, fn(**kwargs))
        except Exception as error:
            answer = _packed(False, error)
        pipe.send_bytes(answer)


def _packed(is_value: bool, value: object) -> bytes:
    """Return an answer as bytes; an exception that cannot be pickled becomes its description."""
    try:
        packed = pickle.dumps((is_value, value))
        pickle.loads(packed)  # an exception with arguments of its own may pickle and not unpickle
    except Exception as error:
        told = value if not is_value else error
        return pickle.dumps((False, RuntimeError(f"{type(told).__name__}: {told}")))
    return packed


def _source_of(fn: Any) -> tuple[str, str] | None:
    """Return name and file of a module that a child could not find by its name alone."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, types.MethodType):
        fn = fn.__self__
    owner = fn if isinstance(fn, (types.FunctionType, type)) else type(fn)
    file = vars(sys.modules[owner.__module__]).get("__file__")
    return None if file is None or owner.__module__ == "__main__" else (owner.__module__, file)


def _load(name: str, file: str) -> None:
    """Execute a file as a module of this name, unless the name is enough to find it."""
    try:
        if importlib.util.find_spec(name) is not None:
            return
    except ModuleNotFoundError:  # its package is not there
        pass
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _meaning(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
