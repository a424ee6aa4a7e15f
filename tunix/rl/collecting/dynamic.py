"""Filling a batch with groups that teach something (DAPO: arXiv:2503.14476, section 3.2).

A group whose completions all earn the same teaches nothing about the task. Its prompt is
replaced by new ones until the batch is full, the data ends, or a number of rounds is reached.
"""

import dataclasses

from tunix.rl import trajectory
from tunix.rl.collecting import collector, rollout_state
from tunix.rl.scoring import reward_shaping


class DynamicCollector(collector.Collector):
    """Samples batches until as many groups have a signal as the first has prompts.

    Without a single such group the first ones are returned without advantages, so that the step
    is taken and changes nothing.

    Args:
        max_rounds: Batches that may be sampled in all.
    """

    def __init__(self, max_rounds: int):
        self._max_rounds = max_rounds

    def collect(
        self, batch: rollout_state.Columns, rollout: rollout_state.Rollout
    ) -> collector.Collected:
        """Return the groups, as many as the batch has prompts if they can be had.

        Metrics are ``sampling_rounds``, ``sampled_groups``, ``discarded_groups`` (those with a
        signal that were not needed) and ``batch_fill``, the share of a full batch.
        """
        size = len(next(iter(batch.values())))
        sampled: list[trajectory.Group] = []
        columns: rollout_state.Columns | None = batch
        rounds = 0
        while columns is not None:
            sampled += rollout.groups(columns)
            rounds += 1
            if sum(map(has_signal, sampled)) >= size or rounds == self._max_rounds:
                break
            columns = rollout.draw()
        live = [group for group in sampled if has_signal(group)]
        kept = (live or sampled)[:size]
        chosen = {id(group) for group in kept}
        return collector.Collected(
            groups=kept if live else [_silenced(group) for group in kept],
            discarded=[group for group in sampled if id(group) not in chosen],
            metrics={
                "sampling_rounds": float(rounds),
                "sampled_groups": float(len(sampled)),
                "discarded_groups": float(max(len(live) - size, 0)),
                "batch_fill": min(len(live) / size, 1.0),
            },
        )


def has_signal(group: trajectory.Group) -> bool:
    """Return whether some completions of a group earn more than others, however long they are.

    What the shaping by length takes does not count: a group that is all right or all wrong is to
    be replaced (eq. 11), also where some of its completions are too long.
    """
    earned = [
        one.reward - (one.rewards.get(reward_shaping.OVERLONG) or 0.0) for one in group.trajectories
    ]
    # The shaping was added to the reward and is subtracted again: equal but for rounding.
    differ = max(earned) - min(earned) > 1e-9 * max(map(abs, earned))
    return differ and not group.is_dead


def _silenced(group: trajectory.Group) -> trajectory.Group:
    """Return the group with advantages of 0."""
    members = [dataclasses.replace(one, advantage=0.0) for one in group.trajectories]
    return dataclasses.replace(group, trajectories=members)
