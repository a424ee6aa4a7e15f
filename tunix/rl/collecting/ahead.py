"""Rollouts made ahead of the trainer, each with weights of a fixed age.

Rollout ``r`` (from 0) is sampled with the weights after ``r - k`` steps, never with newer ones that
happen to be there, so a run is a function of its seed and not of the timing of threads. A
thread for every rollout that can be under way (``k + 1``) takes it through its stages; an
engine samples for one at a time, reward functions score one at a time, both in order. So
``sample(r + 1)`` overlaps with ``score(r)`` and with the training before them.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from tunix.rl import trajectory
from tunix.rl.collecting import collector, in_flight, rollout_state, source


class _Stopped(Exception):
    """The source is being closed; unwinds a thread that waits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Version:
    """The policy after so many steps."""

    number: int
    weights: nnx.State
    policy_version: int
    groups: Sequence[trajectory.Group]
    """What became of the rollout of the last step."""


@dataclasses.dataclass(kw_only=True, eq=False)
class _Pending:
    """A rollout that has begun; what several threads look at is guarded by the source."""

    flight: in_flight.InFlight
    version: _Version | None
    """Its weights, until the engine has them."""
    rollout: rollout_state.Rollout | None = None
    batch: Mapping[str, Any] | None = None
    holds: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    """Its place in the order, and the engine, as long as it samples."""
    collected: collector.Collected | None = None
    """What it yields once it is done; ``None`` at the end of the data."""
    error: BaseException | None = None
    is_sampled: bool = False
    is_done: bool = False


class AheadSource(source.RolloutSource):
    """Has rollouts made in threads of its own, up to ``off_policy_steps`` ahead.

    Batches of prompts are drawn in these threads, too, one at a time and in order. Arguments are
    those of the base class.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        # In this order, where a thread holds several: order, engine, rewards.
        self._order, self._engine, self._rewards = (threading.Lock() for _ in range(3))
        self._changed = threading.Condition()
        self._versions: dict[int, _Version] = {}
        self._pending: dict[int, _Pending] = {}
        self._begun = self._done = self._first = self._newest = 0
        self._end: int | None = None
        """First rollout that is not to be made."""
        self._loaded: int | None = None
        """Number of the weights that the engine has."""
        self._is_stopping = False
        self._failure: BaseException | None = None

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Make rollouts in the body; at its end the threads end, each where it next waits."""
        with super().running(step):
            self._first = self._begun = self._done = step
            self.publish(step, ())
            threads = [
                threading.Thread(target=self._work, name=f"rollout-{i}")
                for i in range(self._ahead + 1)
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                with self._changed:
                    self._is_stopping = True
                    self._changed.notify_all()
                for thread in threads:
                    thread.join()
                self._versions.clear()
        # Who samples from the cluster after training means the trained policy.
        self._cluster.sync_weights()

    def next(self, step: int) -> collector.Collected | None:
        """Return the rollout of a step, or ``None`` at the end of the data.

        Raises:
            Exception: What its thread has raised.
        """
        with self._cluster.perf.span("wait_rollout"):
            pending = self._wait(step, lambda one: one.is_done)
        if pending.error is not None:
            raise pending.error
        if pending.rollout is not None:
            self._cluster.buffer_metrics(pending.flight.observed)
            self._measured(pending.rollout)
        return pending.collected

    def publish(self, step: int, groups: Sequence[trajectory.Group]) -> None:
        """Let the rollouts begin that wait for the weights as they are now; see the base class."""
        with self._cluster.perf.span("sync"):
            weights = self._cluster.copy_weights()
        version = _Version(
            number=step,
            weights=weights,
            policy_version=self._cluster.actor_trainer.train_steps,
            groups=groups,
        )
        with self._changed:
            self._versions[step], self._newest = version, step
            self._pending.pop(step - 1, None)
            self._changed.notify_all()

    def position(self, step: int) -> dict[str, Any]:
        """Wait until all is sampled that needs older weights, and return it with the position."""
        flights = []
        for number in range(step, step + self._ahead + 1):
            is_newest = number == step + self._ahead
            pending = self._wait(number, lambda one, any_=is_newest: any_ or one.is_sampled)
            rollout = None if is_newest else pending.rollout
            sampled = () if rollout is None else tuple(rollout.sampled)
            # What later ones find carried over follows from the first.
            carried = () if flights else pending.flight.carried
            flights.append(dataclasses.replace(pending.flight, sampled=sampled, carried=carried))
            if self._end == number:
                break
        return {
            "off_policy_steps": self._ahead,
            "in_flight": [flight.to_json() for flight in flights],
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold engine and rewards, and have the newest weights in the engine."""
        with self._engine, self._rewards:
            self._loaded = None
            self._cluster.sync_weights()
            yield

    def finish(self, step: int) -> None:
        """Begin no rollout that a checkpoint of the last step would not hold."""
        with self._changed:
            last = step + self._ahead
            if self._begun <= last and self._end is None:
                self._end = last

    def _work(self) -> None:
        """Take rollouts through their stages until there is none; what a thread does."""
        try:
            while (pending := self._begin()) is not None:
                self._collect(pending)
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, the main thread must not wait for ever
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _begin(self) -> _Pending | None:
        """Return the next rollout, which holds the engine; ``None`` if there is no further one."""
        with contextlib.ExitStack() as holds:
            holds.enter_context(self._order)
            with self._cluster.perf.span("wait_trainer"):
                self._wait_for(lambda: self._begun - self._ahead <= self._newest)
            if self._end is not None and self._begun > self._end:
                return None
            pending = self._opened()
            if pending.batch is None:
                self._complete(pending)
                return None
            holds.enter_context(self._engine)
            pending.holds = holds.pop_all()
        return pending

    def _opened(self) -> _Pending:
        """Return the next rollout with its batch, if the data has one."""
        step = self._begun
        version = self._versions[max(self._first, step - self._ahead)]
        news = version.groups if step - self._ahead == version.number else ()
        pending = _Pending(flight=self._open(step, news), version=version)
        try:
            if step != self._end:
                pending.batch = self._next_batch()
        except Exception as error:  # the main thread raises it when it comes to this rollout
            pending.error = error
        if pending.batch is not None:
            pending.rollout = self._new_rollout(
                step=step,
                policy_version=version.policy_version,
                draw=self._draw,
                replay=pending.flight.sampled,
                release=lambda: self._release(pending),
                scoring=lambda: self._scoring(step),
            )
        with self._changed:
            self._begun += 1
            self._pending[step] = pending
            if pending.batch is None:
                self._end = step
        self._mark(pending, is_sampled=pending.batch is None)
        return pending

    def _collect(self, pending: _Pending) -> None:
        """Make a rollout that holds the engine."""
        assert pending.batch is not None and pending.rollout is not None  # else it has not begun
        with pending.holds:
            try:
                self._load(pending)
                pending.collected = self._collector.collect(pending.batch, pending.rollout)
            except _Stopped:
                raise
            except BaseException as error:  # the main thread raises it when it comes to it
                pending.error = error
                if not pending.is_sampled:
                    # What would have been drawn for it is not known, so nothing can follow.
                    self._end = pending.flight.step
        self._complete(pending)

    def _load(self, pending: _Pending) -> None:
        """Give the engine the weights of a rollout, unless it has them."""
        version, pending.version = pending.version, None
        assert version is not None  # each rollout is loaded once
        if self._loaded != version.number:
            with self._cluster.perf.span("sync"):
                self._cluster.sync_weights(version.weights)
            self._loaded = version.number
        if pending.flight.step - self._ahead >= version.number:
            with self._changed:  # the next rollout wants newer ones
                self._versions.pop(version.number)

    def _release(self, pending: _Pending) -> None:
        """Leave engine and place to the next rollout."""
        self._mark(pending, is_sampled=True)
        pending.holds.close()

    @contextlib.contextmanager
    def _scoring(self, step: int) -> Iterator[None]:
        """Hold the reward functions once all earlier rollouts are done."""
        self._wait_for(lambda: self._done == step)
        with self._rewards:
            yield

    def _complete(self, pending: _Pending) -> None:
        """Take note that a rollout is done, in order."""
        step = pending.flight.step
        self._wait_for(lambda: self._done == step)
        self._done += 1
        self._mark(pending, is_sampled=True, is_done=True)

    def _mark(self, pending: _Pending, *, is_sampled: bool = False, is_done: bool = False) -> None:
        with self._changed:
            pending.is_sampled |= is_sampled
            pending.is_done |= is_done
            self._changed.notify_all()

    def _wait_for(self, is_true: Callable[[], bool]) -> None:
        """Wait in a thread of the source.

        Raises:
            _Stopped: If it is closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or is_true())
            if self._is_stopping:
                raise _Stopped

    def _wait(self, step: int, is_ready: Callable[[_Pending], bool]) -> _Pending:
        """Wait in the main thread until a rollout is ready, and return it."""

        def found() -> bool:
            return step in self._pending and is_ready(self._pending[step])

        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or found())
            if self._failure is not None:
                raise self._failure
            return self._pending[step]
