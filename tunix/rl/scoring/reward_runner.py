"""Runs one reward function on all completions, wherever its settings say."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunix.rl.scoring import reward_child, reward_process, reward_settings
from tunix.utils import daemon_threads, error_text


class WrongValueError(ValueError):
    """What a function returned cannot be its scores."""


MISTAKES = (reward_process.UnusableError, WrongValueError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one reward function."""

    values: Any
    """A list with one entry per completion, ``None`` where nothing can be counted; of a function
    of batches, what it returned if that is no list, or a list that is too short or too long."""
    failures: Mapping[int, Exception]
    """Why a completion has no value of the function's own, by index."""
    whole: Exception | None
    """Why the batch as a whole failed, if it did."""
    seconds: float
    restarts: int | None
    """Processes started in place of others; ``None`` where none are used."""

    @property
    def mistakes(self) -> dict[int, Exception]:
        """The failures that are no accidents, which ``on_error`` does not cover."""
        return {i: e for i, e in self.failures.items() if isinstance(e, MISTAKES)}


class RewardRunner:
    """Runs a function and keeps its processes between calls.

    Args:
        settings: The function and how to run it.
    """

    def __init__(self, settings: reward_settings.Reward):
        self.settings = settings
        self._pool: reward_process.ProcessPool | None = None

    def run(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> Outcome:
        """Return what the function says, with failures kept apart."""
        start, before = time.perf_counter(), 0 if self._pool is None else self._pool.restarts
        settings = self.settings
        results = self._calls(settings.arguments(prompts, completions, columns), len(completions))
        whole: Exception | None = None
        if settings.takes_samples:
            values: Any = results
        elif isinstance(results[0], Exception):
            whole = results[0]
            values = self._one_by_one(whole, prompts, completions, columns)
        else:
            values = results[0]
        failures: dict[int, Exception] = {}
        if whole is not None or settings.takes_samples:
            failures = {i: v for i, v in enumerate(values) if isinstance(v, Exception)}
            substitute = None if settings.on_error == "raise" else settings.on_error
            values = [substitute if i in failures else value for i, value in enumerate(values)]
        seconds = time.perf_counter() - start
        restarts = None if self._pool is None else self._pool.restarts - before
        return Outcome(
            values=values, failures=failures, whole=whole, seconds=seconds, restarts=restarts
        )

    def close(self) -> None:
        """End the function's processes, if it has any."""
        if self._pool is not None:
            self._pool.close()

    def _one_by_one(
        self,
        error: Exception,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[Any]:
        """Return value or exception of every completion alone, after the batch has failed.

        One call at a time finds the fault and saves the rest. Where time ran out it would take
        even longer, and where every sample alone is fine the batch is at fault: then all fail.
        """
        everything: list[Any] = [error] * len(completions)
        if isinstance(error, (reward_process.OutOfTimeError, *MISTAKES)):
            return everything
        alone: list[Any] = []
        for i in range(len(completions)):
            one = {name: [values[i]] for name, values in columns.items()}
            (kwargs,) = self.settings.arguments([prompts[i]], [completions[i]], one)
            (result,) = self._calls([kwargs], 1)
            if isinstance(result, list) and len(result) == 1:
                alone.append(result[0])
                continue
            is_failure = isinstance(result, Exception)
            alone.append(result if is_failure else _WRONG_ALONE)
            if self.settings.on_error == "raise" or isinstance(alone[-1], MISTAKES):
                return [*alone, *[None] * (len(completions) - len(alone))]
        return alone if any(isinstance(v, Exception) for v in alone) else everything

    def _calls(self, calls: list[dict[str, Any]], num_completions: int) -> list[Any]:
        """Return value or exception of every call."""
        settings = self.settings
        most = None if settings.takes_samples else num_completions
        if settings.is_async:
            return _awaited(settings, calls, most)
        if settings.run_in == "process":
            if self._pool is None:
                self._pool = reward_process.ProcessPool(settings.fn, settings.num_workers)
            return self._pool.run(calls, time_limit=settings.time_limit, most=most)
        if settings.num_workers == 1:
            return [_in_thread(settings, kwargs, most) for kwargs in calls]
        return daemon_threads.map_all(
            lambda kwargs: _in_thread(settings, kwargs, most), calls, settings.num_workers
        )


_WRONG_ALONE = WrongValueError("it did not return a list of one number for one completion")


def _in_thread(settings: reward_settings.Reward, kwargs: dict[str, Any], most: int | None) -> Any:
    """Return value or exception of one call in this thread, or in one that may be abandoned."""
    limit = settings.time_limit
    if limit is None:
        return _caught(settings, kwargs, most)
    results: list[Any] = []
    _run_at_most(limit, lambda: results.append(_caught(settings, kwargs, most)))
    return results[0] if results else _late(limit)


def _run_at_most(seconds: float, action: Callable[[], object]) -> None:
    """Wait for what a thread does; after so many seconds it is left to itself."""
    # A daemon, so that a call that never returns does not keep the program from ending.
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))


def _caught(settings: reward_settings.Reward, kwargs: dict[str, Any], most: int | None) -> Any:
    try:
        return reward_child.called(settings.fn, kwargs, most)
    except BaseException as error:  # never in the main thread: no interrupt of the user's
        return _as_failure(error)


def _as_failure(error: BaseException) -> Exception:
    """Return what a user's function raised; what would end more than itself is put in words."""
    if isinstance(error, SystemExit):
        return RuntimeError(f"it called sys.exit({error_text.shown(error.code)})")
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"it raised {error_text.shown(error)}")


def _awaited(
    settings: reward_settings.Reward, calls: list[dict[str, Any]], most: int | None
) -> list[Any]:
    """Return value or exception of every call of an async function."""
    limit, results, ended = settings.time_limit, {}, []

    def run() -> None:
        try:
            asyncio.run(_gather(settings, calls, most, results))
        except BaseException as error:  # a call has stopped the loop, or cancelled the others
            ended.append(_as_failure(error))

    if limit is None:
        run()
    else:
        # Every call has its own limit; this one ends those that never let the loop go on.
        rounds = 1 + -(-len(calls) // settings.num_workers)
        _run_at_most(rounds * limit, run)
    missing = ended[0] if ended else _late(limit)
    return [results.get(i, missing) for i in range(len(calls))]


async def _gather(
    settings: reward_settings.Reward,
    calls: list[dict[str, Any]],
    most: int | None,
    results: dict[int, Any],
) -> None:
    """Put value or exception of every call into ``results``, by its number."""
    slots, limit = asyncio.Semaphore(settings.num_workers), settings.time_limit

    async def call(kwargs: dict[str, Any]) -> Any:
        async with slots:
            start, deadline = time.perf_counter(), asyncio.timeout(limit)
            try:
                async with deadline:
                    with reward_child.one_process():
                        value = await settings.fn(**kwargs)
                    value = value if most is None else reward_child.collected(value, most)
            except BaseException as error:
                return _late(limit) if deadline.expired() else _as_failure(error)
            # A call that blocks the loop is over before anyone could cancel it.
            is_late = limit is not None and time.perf_counter() - start > limit
            return _late(limit) if is_late else value

    async def note(i: int, kwargs: dict[str, Any]) -> None:
        results[i] = await call(kwargs)

    await asyncio.gather(*(note(i, kwargs) for i, kwargs in enumerate(calls)))


def _late(limit: float | None) -> reward_process.OutOfTimeError:
    return reward_process.OutOfTimeError(f"took longer than {limit} s")
