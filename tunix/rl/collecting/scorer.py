"""From completions to groups, as a learner says: rewards, what shapes them, advantages."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunix.perf import span
from tunix.rl import abstract_reward_manager, trajectory
from tunix.rl.collecting import experience, prompt_batch
from tunix.rl.objectives import advantages as advantages_lib
from tunix.rl.rollout import base_rollout

MetricFn = Callable[..., Mapping[str, Any]]
"""``fn(prompts, completions, rewards, advantages, **columns) -> {name: number}``, or
``{name: (value, reduce)}``; called once per rollout with one value per completion."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """What a rollout's completions earn."""

    reward_manager: abstract_reward_manager.AbstractRewardManager
    advantage_fn: advantages_lib.AdvantageFn
    shape_rewards: Callable[[experience.Scored], experience.Scored]
    """Returns the completions with the rewards that count."""
    metric_fns: Sequence[MetricFn]
    num_samples: int
    """Completions of every prompt."""
    perf: span.SpanTimer

    def check(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the columns of a batch as lists.

        Raises:
            PromptBatchError: If it is none.
            RewardError: If a reward function reads a column that it lacks.
        """
        columns = prompt_batch.check(batch)
        self.reward_manager.check_columns([*columns, *prompt_batch.ROLLOUT_COLUMNS])
        return columns

    def score(
        self,
        output: base_rollout.RolloutOutput,
        columns: Mapping[str, Sequence[Any]],
        *,
        policy_version: int,
    ) -> tuple[list[trajectory.Group], list[Mapping[str, Any]]]:
        """Return completions as groups, rewarded and with advantages, and what was measured.

        Raises:
            RewardError: If a reward function fails.
        """
        count = self.num_samples
        with self.perf.span("score"):
            scored = experience.score(output, columns, self.reward_manager, num_samples=count)
            scored = self.shape_rewards(scored)
            groups = experience.group(
                scored, self.advantage_fn, num_samples=count, policy_version=policy_version
            )
            measured = experience.measured(scored, groups, self.metric_fns)
            return groups, [scored.rewards.costs, *measured]
