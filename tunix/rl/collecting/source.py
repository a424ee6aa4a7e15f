"""Where the loop's rollouts come from: made one at a time, each with the newest weights.

:mod:`tunix.rl.collecting.ahead` makes them ahead; this is what the two share, and all there is
without staleness.
"""

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunix.rl import rl_cluster, trajectory
from tunix.rl.collecting import collector as collector_lib
from tunix.rl.collecting import curriculum, in_flight, rollout_state
from tunix.sft.loop import train_data


class RolloutSource:
    """Draws prompts and has a collector make rollouts of them, when the loop asks for one.

    Steps are counted in rollouts trained on, in the whole run.

    Args:
        cluster: Has the policy and the engine.
        collector: Makes the rollouts.
        new_rollout: Returns what the collector makes one with; called by the names of
            ``Rollout``'s arguments, but for sampler and scorer.
        train_ds: Batches of prompts.
        off_policy_steps: How many steps before the newest weights a rollout is sampled with.
    """

    def __init__(
        self,
        cluster: rl_cluster.RLCluster,
        collector: collector_lib.Collector,
        new_rollout: Callable[..., rollout_state.Rollout],
        train_ds: Iterable[Mapping[str, Any]],
        *,
        off_policy_steps: int = 0,
    ):
        self._cluster, self._collector, self._new_rollout = cluster, collector, new_rollout
        self._ahead = off_policy_steps
        self.num_rollouts = operator.length_hint(train_ds) if collector.takes_one_batch else 0
        """How many rollouts the data is good for; 0 if that is not known."""
        self._observer = train_ds if isinstance(train_ds, curriculum.ObservesGroups) else None
        self._data = train_data.TrainData(train_ds)
        self._batches = 0
        self._replays: dict[int, in_flight.InFlight] = {}
        self._flight: in_flight.InFlight | None = None

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Make rollouts in the body, from that of ``step`` on, where the data stands now.

        What is sampled and not used at the end is lost.
        """
        self._flight = self._now(step)
        yield

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go to a position; before the start.

        Raises:
            ValueError: If the data is not that of before, or was told of groups with another
                delay, or if what is unfinished could not be continued.
        """
        replays = [in_flight.InFlight.from_json(one) for one in saved["in_flight"]]
        self._replays = {one.step: one for one in replays}
        delay, wanted = saved.get("off_policy_steps", 0), self._ahead
        if self._observer is not None and delay != wanted:
            raise ValueError(
                f"cannot resume: the run was saved with off_policy_steps {delay}, now it is "
                f"{wanted}, and train_ds draws prompts by what it is told so many steps later; set "
                f"off_policy_steps to {delay}"
            )
        self._batches = replays[0].batches
        self._data.resume(replays[0].data_state, self._batches)
        self._collector.resume(replays[0].carried)

    def next(self, step: int) -> collector_lib.Collected | None:
        """Return the rollout of a step, or ``None`` at the end of the data."""
        flight = self._open(step)
        if (batch := self._next_batch()) is None:
            return None
        rollout = self._new_rollout(
            step=step,
            policy_version=self._cluster.actor_trainer.train_steps,
            draw=self._draw,
            replay=flight.sampled,
        )
        collected = self._collector.collect(batch, rollout)
        self._measured(rollout)
        return collected

    def publish(self, step: int, groups: Sequence[trajectory.Group]) -> None:
        """Take note that the policy is by now that of a step.

        Args:
            step: The step that follows.
            groups: What became of the rollout of the one before.
        """
        with self._cluster.perf.span("sync"):
            self._cluster.sync_weights()
        if self._observer is not None:
            self._cluster.buffer_metrics(self._observer.observe(groups))
        self._flight = self._now(step)

    def position(self, step: int) -> dict[str, Any]:
        """Return what :meth:`resume` needs to continue with a step, the one that follows."""
        assert self._flight is not None  # there is none before the start
        return {"off_policy_steps": self._ahead, "in_flight": [self._flight.to_json()]}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Have nothing sampled and scored in the body, and the newest weights in the rollout."""
        yield

    def finish(self, step: int) -> None:
        """Take note that no step from this one on will be taken."""

    def _now(self, step: int) -> in_flight.InFlight:
        """Return where the rollout of a step begins, if it begins now."""
        return in_flight.InFlight(
            step=step,
            batches=self._batches,
            data_state=self._data.state(),
            carried=self._collector.carried,
        )

    def _open(self, step: int, news: Sequence[trajectory.Group] = ()) -> in_flight.InFlight:
        """Begin a rollout: let the data observe the news, and note where it stands."""
        replay = self._replays.pop(step, None)
        if replay is not None:
            if self._observer is not None and replay.data_state:
                self._data.resume(replay.data_state, replay.batches)
            return dataclasses.replace(replay, carried=self._collector.carried)
        observed = self._observer.observe(news) if self._observer is not None and news else {}
        return dataclasses.replace(self._now(step), observed=observed)

    def _next_batch(self) -> Mapping[str, Any] | None:
        """Return the batch of a rollout: empty if there is only left what is carried over."""
        batch = self._draw()
        return {} if batch is None and self._collector.carried else batch

    def _draw(self) -> Mapping[str, Any] | None:
        """Return the next batch of the data, or ``None`` at its end."""
        batches = self._data.take(1)
        self._batches += len(batches)
        return batches[0] if batches else None

    def _measured(self, rollout: rollout_state.Rollout) -> None:
        """Have a rollout's metrics count from now on for the step in progress."""
        for metrics in rollout.metrics:
            self._cluster.buffer_metrics(metrics)
