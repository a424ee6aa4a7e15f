"""Where the loop's rollouts come from: made one at a time, each with the newest weights.

:mod:`tunix.rl.rollout_pipeline` makes them ahead; this is what the two share, and all there is
without staleness.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from tunix.rl import curriculum, dynamic_sampling, in_flight, rollout_turn, trajectory
from tunix.sft import train_data

if TYPE_CHECKING:
    from tunix.rl import rl_learner


class RolloutSource:
    """Draws prompts and has the learner sample and score them, when the loop asks for it.

    Args:
        learner: Makes the rollouts.
        train_ds: Batches of prompts.
    """

    def __init__(self, learner: "rl_learner.RLLearner[Any]", train_ds: Iterable[Mapping[str, Any]]):
        self._learner = learner
        self._observer = train_ds if isinstance(train_ds, curriculum.ObservesGroups) else None
        self._data = train_data.TrainData(train_ds)
        self._batches = 0
        self._replays: dict[int, in_flight.InFlight] = {}
        self._flight: in_flight.InFlight | None = None

    def __enter__(self) -> Self:
        """Start, where the data stands now."""
        self._flight = self._now()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Stop; what is sampled and not used is lost."""

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go to a position; before the start.

        Raises:
            ValueError: If the data is not that of before, or was told of groups with another
                delay, or if what is unfinished could not be continued.
        """
        replays = [in_flight.InFlight.from_json(one) for one in saved["in_flight"]]
        self._replays = {one.step: one for one in replays}
        delay, wanted = saved.get("off_policy_steps", 0), self._learner.off_policy_steps
        if self._observer is not None and delay != wanted:
            raise ValueError(
                f"cannot resume: the run was saved with off_policy_steps {delay}, now it is "
                f"{wanted}, and train_ds draws prompts by what it is told so many steps later; set "
                f"off_policy_steps to {delay}"
            )
        self._batches = replays[0].batches
        self._data.resume(replays[0].data_state, self._batches)
        self._learner.carried = replays[0].carried
        if self._learner.carried and self._learner.algo_config.partial_rollout_tokens is None:
            raise ValueError(
                f"cannot resume: the checkpoint has {len(self._learner.carried)} prompts with "
                "unfinished completions; set partial_rollout_tokens again"
            )

    def next(self) -> dynamic_sampling.Collected | None:
        """Return the rollout of the next step, or ``None`` at the end of the data."""
        step = self._learner.global_steps
        flight = self._open(step)
        if (batch := self._next_batch()) is None:
            return None
        turn = rollout_turn.Turn(
            step=step,
            policy_version=self._learner.rl_cluster.actor_trainer.train_steps,
            replay=flight.sampled,
        )
        with self._learner.turns.taking(turn):
            collected = self._learner.collect(batch, self._draw)
        return self._handed_over(collected, turn)

    def publish(self, groups: Sequence[trajectory.Group]) -> None:
        """Take note that the step on the last rollout is complete, as the policy is by now.

        Args:
            groups: What became of the rollout.
        """
        with self._learner.rl_cluster.perf.span("sync"):
            self._learner.rl_cluster.sync_weights()
        if self._observer is not None:
            self._learner.rl_cluster.buffer_metrics(self._observer.observe(groups))
        self._flight = self._now()

    def position(self) -> dict[str, Any]:
        """Return what :meth:`resume` needs to continue behind the last complete step."""
        assert self._flight is not None  # there is none before the start
        return {
            "off_policy_steps": self._learner.off_policy_steps,
            "in_flight": [self._flight.to_json()],
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Have nothing sampled and scored in the body, and the newest weights in the rollout."""
        yield

    def finish(self) -> None:
        """Take note that no further step will follow."""

    def _now(self) -> in_flight.InFlight:
        """Return where the next rollout begins."""
        return in_flight.InFlight(
            step=self._learner.global_steps,
            batches=self._batches,
            data_state=self._data.state(),
            carried=self._learner.carried,
        )

    def _open(self, step: int, news: Sequence[trajectory.Group] = ()) -> in_flight.InFlight:
        """Begin a rollout: let the data observe the news, and note where it stands."""
        replay = self._replays.pop(step, None)
        if replay is not None:
            if self._observer is not None and replay.data_state:
                self._data.resume(replay.data_state, replay.batches)
            return dataclasses.replace(replay, carried=self._learner.carried)
        observed = self._observer.observe(news) if self._observer is not None and news else {}
        return in_flight.InFlight(
            step=step,
            batches=self._batches,
            data_state=self._data.state(),
            observed=observed,
            carried=self._learner.carried,
        )

    def _next_batch(self) -> Mapping[str, Any] | None:
        """Return the batch of a rollout: empty if there is only left what is carried over."""
        batch = self._draw()
        return {} if batch is None and self._learner.carried else batch

    def _draw(self) -> Mapping[str, Any] | None:
        """Return the next batch of the data, or ``None`` at its end."""
        batches = self._data.take(1)
        self._batches += len(batches)
        return batches[0] if batches else None

    def _handed_over(
        self, collected: dynamic_sampling.Collected, turn: rollout_turn.Turn
    ) -> dynamic_sampling.Collected:
        """Return a rollout whose metrics count from now on for the step in progress."""
        for metrics in turn.metrics:
            self._learner.rl_cluster.buffer_metrics(metrics)
        return collected
