"""Processes that call one function again and again, and can be killed while they do.

What goes on in them is in ``reward_child.py``.
"""

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.util  # what it does at the end comes after what is registered here
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from tunix.rl.scoring import process_channel, reward_child
from tunix.utils import daemon_threads, error_text

START_SECONDS = 300.0
"""How long a child may take to import the function's module."""

TAKE_SECONDS = 5.0
"""How long a process may take to say that it has a call, where the call's own limit is shorter:
that is for the function, while arguments may be large and the machine busy."""

ATTEMPTS = 3
"""Processes that are started for one call before it is given up."""


_NAME = "tunix reward function"
_UNGUARDED = 113
"""Exit code of a process that would start others while it still executes the script again."""


_is_over = threading.Event()
"""Set as the program ends, before its children are, which is then waited for."""

atexit.register(_is_over.set)


class ProcessError(RuntimeError):
    """What a call in a process ended with, in words."""


class RaisedError(ProcessError):
    """The function raised: the type, text and line of its exception."""


class ProcessDiedError(ProcessError):
    """The process that ran a function ended: it crashed, or the system killed it."""


class UnusableError(ProcessError):
    """The process cannot start, or what goes in or comes out cannot pass between processes."""


class OutOfTimeError(TimeoutError):
    """A call took longer than it may; not what the function itself raises."""


class ProcessPool:
    """Calls one function in processes, each of which serves one call at a time.

    Args:
        fn: Found by name in a module, or an object of a class that is.
        num_workers: How many processes; they start when they are first needed.
    """

    def __init__(self, fn: Callable[..., Any], num_workers: int):
        payload = (pickle.dumps(fn), _source_of(fn))
        self._workers = [_Worker(payload) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._finalizer = weakref.finalize(self, _close_all, self._workers)

    @property
    def restarts(self) -> int:
        """How many processes have been started in place of others."""
        return sum(max(0, worker.starts - 1) for worker in self._workers)

    def run(
        self, calls: list[dict[str, Any]], *, time_limit: float | None, most: int | None
    ) -> list[Any | BaseException]:
        """Return the value of every call, or the exception it ended with.

        Args:
            calls: Keyword arguments.
            time_limit: Seconds for each; a process that takes longer is killed.
            most: As in :func:`tunix.rl.scoring.reward_child.called`.
        """
        unusable: list[UnusableError] = []

        def call(kwargs: dict[str, Any]) -> Any:
            worker = self._idle.get()
            try:
                # What one call has shown to be impossible is not waited for again.
                return unusable[0] if unusable else worker.call(_message(kwargs, most), time_limit)
            except UnusableError as error:
                unusable.append(error)
                return error
            except Exception as error:
                return error
            finally:
                self._idle.put(worker)

        return daemon_threads.map_all(call, calls, len(self._workers))

    def close(self) -> None:
        """End all processes."""
        self._finalizer()


class _Worker:
    """One process, started anew after it ended or had to be killed."""

    def __init__(self, payload: reward_child.Payload):
        self._payload = payload
        self._process: Any = None
        self._channel: Any = None
        self.starts = 0

    def call(self, message: bytes, time_limit: float | None) -> Any:
        """Return what the function returns.

        Raises:
            OutOfTimeError: If it takes longer than ``time_limit`` seconds; the process is killed.
            RaisedError: If the function raises.
            ProcessDiedError: If the process ends.
            UnusableError: If no process can start, or the value cannot come here.
        """
        self._hand_over(message, time_limit)
        try:
            answer = self._channel.receive(deadline=_deadline(time_limit))
        except TimeoutError:
            self.close()
            raise OutOfTimeError(f"took longer than {time_limit} s and was killed") from None
        except EOFError:
            raise ProcessDiedError(self._ending()) from None
        except process_channel.TooLongError:
            answer = b""
        kind, content = answer[:1], answer[1:]
        if kind == reward_child.VALUE:
            try:
                return pickle.loads(content)
            except BaseException as error:  # never in the main thread: no interrupt of the user's
                raise UnusableError(
                    "what it returned cannot be read outside of its process "
                    f"({error_text.describe(error)}); return numbers"
                ) from None
        if kind in (reward_child.RAISED, reward_child.UNUSABLE):
            raise (RaisedError if kind == reward_child.RAISED else UnusableError)(content.decode())
        self.close()
        raise ProcessDiedError("its process sent something that is no answer, and was killed")

    def close(self) -> None:
        """Kill the process and what it has started, if there is one."""
        if self._process is None:
            return
        self._channel.close()
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, AttributeError):  # not on Windows
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # before it had a group of its own
        self._process.join()
        self._process = self._channel = None

    def _hand_over(self, message: bytes, time_limit: float | None) -> None:
        """Have a process take a call; one that ended, or was stopped, while idle is replaced."""
        for _ in range(ATTEMPTS):
            if self._process is None:
                self._start()
            deadline = _deadline(
                START_SECONDS if time_limit is None else max(time_limit, TAKE_SECONDS)
            )
            with contextlib.suppress(EOFError, TimeoutError, process_channel.TooLongError):
                self._channel.send(message, deadline=deadline)
                if self._channel.receive(deadline=deadline) == reward_child.TAKEN:
                    return
            self.close()
        raise ProcessDiedError(f"{ATTEMPTS} processes ended, or hung, before they took the call")

    def _start(self) -> None:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                self._launch()
                answer = self._channel.receive(deadline=_deadline(START_SECONDS))
            except TimeoutError:
                self.close()
                raise UnusableError(f"its process did not start in {START_SECONDS} s") from None
            except EOFError:
                self._process.join(1.0)
                if self._process.exitcode == _UNGUARDED:
                    self.close()
                    raise UnusableError(
                        "its process executes the script again, and that starts the processes "
                        "again: put what the script does under if __name__ == '__main__':"
                    ) from None
                reason = self._ending()
                continue
            except OSError as error:  # no memory, or no process, is left for now
                reason = error_text.describe(error)
                continue
            if answer == reward_child.READY:
                self.starts += 1
                return
            self.close()
            raise UnusableError(f"its process cannot start: {answer[1:].decode()}")
        raise UnusableError(f"its process cannot start, tried {ATTEMPTS} times: {reason}")

    def _launch(self) -> None:
        current = multiprocessing.current_process()
        if current.name == _NAME and getattr(current, "_inheriting", False):
            os._exit(_UNGUARDED)  # an error would be told of by every process
        context = multiprocessing.get_context("spawn")  # a fork of a process with JAX can hang
        ours, theirs = socket.socketpair()
        given = (theirs, self._payload)
        process = context.Process(target=reward_child.serve, args=given, daemon=True, name=_NAME)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process = process
        self._channel = process_channel.Channel(
            ours, is_alive=process.is_alive, most_bytes=reward_child.MOST_ANSWER_BYTES
        )
        if _is_over.is_set():
            self.close()
            raise UnusableError("the program ends")

    def _ending(self) -> str:
        """Return what became of the process that does not answer any more."""
        self._process.join(1.0)
        code = self._process.exitcode
        self.close()
        if code is None:
            return "its process closed its connection, and was killed"
        return f"its process ended with {_meaning(code)}"


def _message(kwargs: Mapping[str, Any], most: int | None) -> bytes:
    """Return a call as bytes."""

    def fault_of(value: object) -> str | None:
        try:
            pickle.dumps(value)
        except BaseException as error:  # pickle raises whatever the object does
            return error_text.describe(error)
        return None

    try:
        return pickle.dumps((kwargs, most))
    except BaseException as error:
        faults = [f"{n} ({why})" for n, value in kwargs.items() if (why := fault_of(value))]
        raise UnusableError(
            f"these arguments cannot go to another process: "
            f"{', '.join(faults) or error_text.describe(error)}; use run_in='thread'"
        ) from None


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _close_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.close()


def _source_of(fn: Any) -> tuple[str, str] | None:
    """Return name and file of a module that a child could not find by its name alone."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, types.MethodType):
        fn = fn.__self__
    owner = fn if isinstance(fn, (types.FunctionType, type)) else type(fn)
    file = getattr(sys.modules.get(owner.__module__), "__file__", None)
    return None if file is None or owner.__module__ == "__main__" else (owner.__module__, file)


def _meaning(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    known = -code in {int(one) for one in signal.Signals}
    return f"signal {signal.Signals(-code).name if known else -code}"
