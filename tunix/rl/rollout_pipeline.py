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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from tunix.rl import dynamic_sampling, pipelined_turn, rollout_source, trajectory
from tunix.utils import config as config_lib

if TYPE_CHECKING:
    from tunix.rl import rl_learner


class _Stopped(Exception):
    """The pipeline is being closed; unwinds a thread that waits."""


class RolloutPipeline(rollout_source.RolloutSource):
    """Makes rollouts in threads of its own, up to ``off_policy_steps`` ahead.

    Args:
        learner: Makes the rollouts; its ``collect`` runs in these threads.
        train_ds: Batches of prompts, drawn in these threads, one at a time and in order.

    Raises:
        ConfigError: If models of the cluster are offloaded while others are in use.
    """

    def __init__(self, learner: "rl_learner.RLLearner[Any]", train_ds: Iterable[Mapping[str, Any]]):
        super().__init__(learner, train_ds)
        if learner.rl_cluster.config.offload_to_cpu:
            raise config_lib.ConfigError(
                type(learner).__name__,
                [
                    f"off_policy_steps is {learner.off_policy_steps}, so that models work at the "
                    "same time, but offload_to_cpu lets them take turns; leave one of them out"
                ],
            )
        self._ahead = learner.off_policy_steps
        # In this order, where a thread holds several: order, engine, rewards.
        self._order, self._engine, self._rewards = (threading.Lock() for _ in range(3))
        self._changed = threading.Condition()
        self._versions: dict[int, pipelined_turn.Version] = {}
        self._rollouts: dict[int, pipelined_turn.Rollout] = {}
        self._begun = self._done = self._first = self._newest = 0
        self._end: int | None = None
        """First rollout that is not to be made."""
        self._loaded: int | None = None
        """Number of the weights that the engine has."""
        self._is_stopping = False
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Start the threads."""
        super().__enter__()
        self._first = self._begun = self._done = self._learner.global_steps
        self.publish(())
        self._threads = [
            threading.Thread(target=self._work, name=f"rollout-{i}") for i in range(self._ahead + 1)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the threads, each where it next waits."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._versions.clear()
        if kind is None:
            # Who samples from the cluster after training means the trained policy.
            self._learner.rl_cluster.sync_weights()

    def next(self) -> dynamic_sampling.Collected | None:
        """Return the rollout of the next step, or ``None`` at the end of the data.

        Raises:
            Exception: What its thread has raised.
        """
        step = self._learner.global_steps
        with self._learner.rl_cluster.perf.span("wait_rollout"):
            rollout = self._wait(step, lambda one: one.is_done)
        if rollout.error is not None:
            raise rollout.error
        if rollout.collected is None:
            return None
        self._learner.rl_cluster.buffer_metrics(rollout.flight.observed)
        return self._handed_over(rollout.collected, rollout.turn)

    def publish(self, groups: Sequence[trajectory.Group]) -> None:
        """Let the rollouts begin that wait for the weights as they are now; see the base class."""
        cluster, number = self._learner.rl_cluster, self._learner.global_steps
        with cluster.perf.span("sync"):
            weights = cluster.copy_weights()
        version = pipelined_turn.Version(
            number=number,
            weights=weights,
            policy_version=cluster.actor_trainer.train_steps,
            groups=groups,
        )
        with self._changed:
            self._versions[number], self._newest = version, number
            self._rollouts.pop(number - 1, None)
            self._changed.notify_all()

    def position(self) -> dict[str, Any]:
        """Wait until all is sampled that needs older weights, and return it with the position."""
        step = self._learner.global_steps
        flights = []
        for number in range(step, step + self._ahead + 1):
            is_newest = number == step + self._ahead
            rollout = self._wait(number, lambda one, any_=is_newest: any_ or one.is_sampled)
            sampled = () if is_newest else tuple(rollout.turn.sampled)
            # What later ones find carried over follows from the first.
            carried = () if flights else rollout.flight.carried
            flights.append(dataclasses.replace(rollout.flight, sampled=sampled, carried=carried))
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
            self._learner.rl_cluster.sync_weights()
            yield

    def finish(self) -> None:
        """Begin no rollout that a checkpoint of the last step would not hold."""
        with self._changed:
            last = self._learner.global_steps + self._ahead
            if self._begun <= last and self._end is None:
                self._end = last

    @property
    def samples_once(self) -> bool:
        """Whether a rollout leaves the engine as soon as it has sampled."""
        return self._learner.samples_once

    def leave_engine(self, rollout: pipelined_turn.Rollout) -> None:
        """Leave engine and place to the next rollout."""
        self._mark(rollout, is_sampled=True)
        rollout.holds.close()

    @contextlib.contextmanager
    def scoring(self, step: int) -> Iterator[None]:
        """Hold the reward functions once all earlier rollouts are done."""
        self._wait_for(lambda: self._done == step)
        with self._rewards:
            yield

    def _work(self) -> None:
        """Take rollouts through their stages until there is none; what a thread does."""
        try:
            while (rollout := self._begin()) is not None:
                self._collect(rollout)
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, the main thread must not wait for ever
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _begin(self) -> pipelined_turn.Rollout | None:
        """Return the next rollout, which holds the engine; ``None`` if there is no further one."""
        with contextlib.ExitStack() as holds:
            holds.enter_context(self._order)
            with self._learner.rl_cluster.perf.span("wait_trainer"):
                self._wait_for(lambda: self._begun - self._ahead <= self._newest)
            if self._end is not None and self._begun > self._end:
                return None
            rollout = self._opened()
            if rollout.batch is None:
                self._complete(rollout)
                return None
            holds.enter_context(self._engine)
            rollout.holds = holds.pop_all()
        return rollout

    def _opened(self) -> pipelined_turn.Rollout:
        """Return the next rollout with its batch, if the data has one."""
        step = self._begun
        version = self._versions[max(self._first, step - self._ahead)]
        news = version.groups if step - self._ahead == version.number else ()
        rollout = pipelined_turn.Rollout(self, self._open(step, news), version)
        try:
            if step != self._end:
                rollout.batch = self._next_batch()
        except Exception as error:  # the main thread raises it when it comes to this rollout
            rollout.error = error
        with self._changed:
            self._begun += 1
            self._rollouts[step] = rollout
            if rollout.batch is None:
                self._end = step
        self._mark(rollout, is_sampled=rollout.batch is None)
        return rollout

    def _collect(self, rollout: pipelined_turn.Rollout) -> None:
        """Sample and score a rollout that holds the engine."""
        batch, draw = rollout.batch, _no_draw if self._learner.samples_once else self._draw
        assert batch is not None  # else there is nothing to collect
        with rollout.holds, self._learner.turns.taking(rollout.turn):
            try:
                self._load(rollout)
                rollout.collected = self._learner.collect(batch, draw)
            except _Stopped:
                raise
            except BaseException as error:  # the main thread raises it when it comes to it
                rollout.error = error
                if not rollout.is_sampled:
                    # What would have been drawn for it is not known, so nothing can follow.
                    self._end = rollout.flight.step
        self._complete(rollout)

    def _load(self, rollout: pipelined_turn.Rollout) -> None:
        """Give the engine the weights of a rollout, unless it has them."""
        version, rollout.version = rollout.version, None
        assert version is not None  # each rollout is loaded once
        if self._loaded != version.number:
            with self._learner.rl_cluster.perf.span("sync"):
                self._learner.rl_cluster.sync_weights(version.weights)
            self._loaded = version.number
        if rollout.flight.step - self._ahead >= version.number:
            with self._changed:  # the next rollout wants newer ones
                self._versions.pop(version.number)

    def _complete(self, rollout: pipelined_turn.Rollout) -> None:
        """Take note that a rollout is done, in order."""
        step = rollout.flight.step
        self._wait_for(lambda: self._done == step)
        self._done += 1
        self._mark(rollout, is_sampled=True, is_done=True)

    def _mark(
        self, rollout: pipelined_turn.Rollout, *, is_sampled: bool = False, is_done: bool = False
    ) -> None:
        with self._changed:
            rollout.is_sampled |= is_sampled
            rollout.is_done |= is_done
            self._changed.notify_all()

    def _wait_for(self, is_true: Callable[[], bool]) -> None:
        """Wait in a thread of the pipeline.

        Raises:
            _Stopped: If the pipeline is closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or is_true())
            if self._is_stopping:
                raise _Stopped

    def _wait(
        self, step: int, is_ready: Callable[[pipelined_turn.Rollout], bool]
    ) -> pipelined_turn.Rollout:
        """Wait in the main thread until a rollout is ready, and return it."""

        def found() -> bool:
            return step in self._rollouts and is_ready(self._rollouts[step])

        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or found())
            if self._failure is not None:
                raise self._failure
            return self._rollouts[step]


def _no_draw() -> None:
    raise RuntimeError(
        "this learner's collect draws further batches; let its samples_once return False, so that "
        "the rollouts of other steps wait for it"
    )
