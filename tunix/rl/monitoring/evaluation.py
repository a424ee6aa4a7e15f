"""How good a policy is on questions that it was not trained on: sampled, or greedy."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from tunix.rl import abstract_reward_manager, rl_cluster
from tunix.rl.collecting import experience, prompt_batch
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib

RIGHT = 1.0
"""The score from which on a reply counts as right."""

TOTAL = "reward"
"""What accuracy is about where a reward manager has no functions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The completions of a whole evaluation set and what they earned."""

    prompts: Sequence[str]
    completions: Sequence[str]
    finish_reasons: Sequence[str]
    rewards: Float[np.ndarray, " B"]
    per_function: Mapping[str, Float[np.ndarray, " B"]]
    lengths: Sequence[int]
    accuracy_function: str
    """The function whose score says which completions are right; else :data:`TOTAL`."""
    failed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Completions that a function failed for, by its name."""

    @property
    def mean_reward(self) -> float:
        """Mean reward; every completion counts alike."""
        return float(self.rewards.mean())

    @property
    def accuracy(self) -> float:
        """Share of completions that are right."""
        return float(self.right.mean())

    @property
    def right(self) -> Bool[np.ndarray, " B"]:
        """Which completions have a score of at least 1 from ``accuracy_function``."""
        if not self.per_function:
            return self.rewards >= RIGHT
        return self.per_function[self.accuracy_function] >= RIGHT  # where it does not apply: no

    @property
    def metrics(self) -> dict[str, float]:
        """The means, as they are logged."""
        return {
            "reward": self.mean_reward,
            "accuracy": self.accuracy,
            **{
                f"reward/{name}": float(np.nanmean(values))
                for name, values in self.per_function.items()
                if not np.isnan(values).all()
            },
            **{
                f"reward_failed/{name}": count / len(self.completions)
                for name, count in self.failed.items()
            },
            "completion_length": float(np.mean(self.lengths)),
            "truncated": float(np.mean([r == "length" for r in self.finish_reasons])),
        }


def evaluate(
    cluster: rl_cluster.RLCluster,
    batches: Iterable[Mapping[str, Any]],
    reward_fns: (
        abstract_reward_manager.AbstractRewardManager
        | rewards.RewardFn
        | Sequence[rewards.RewardFn]
    ),
    *,
    key: PRNGKeyArray,
    temperature: float | None = None,
    num_samples: int = 1,
) -> Evaluation:
    """Return how the current policy answers all questions.

    The whole set is sampled at once, so that the engine's slots stay full, and every
    completion counts alike, wherever a batch ends.

    Args:
        cluster: Samples with the settings of ``Mode.EVAL``.
        batches: Questions: columns of lists, ``prompts`` among them.
        reward_fns: What replies are scored with.
        key: Decides the draws.
        temperature: Another temperature than the settings'; 0 is greedy.
        num_samples: Completions per question.

    Raises:
        PromptBatchError: If there are no questions.
        ConfigError: If the settings' ``accuracy_function`` is none.
        RewardError: If a reward function fails.
    """
    if not isinstance(reward_fns, abstract_reward_manager.AbstractRewardManager):
        reward_fns = rewards.RewardManager(reward_fns)
    batch = prompt_batch.concatenate(batches)
    reward_fns.check_columns([*batch, *prompt_batch.ROLLOUT_COLUMNS])
    settings = cluster.config.rollout(rl_cluster.Mode.EVAL)
    if temperature is not None:
        settings = dataclasses.replace(settings, temperature=temperature)
    output = cluster.generate(
        batch[prompt_batch.PROMPTS], rollout_config=settings, num_samples=num_samples, key=key
    )
    scored = experience.score(output, batch, reward_fns, num_samples=num_samples)
    return Evaluation(
        prompts=scored.prompts,
        completions=output.text,
        finish_reasons=scored.columns[prompt_batch.FINISH_REASONS],
        rewards=scored.rewards.total,
        per_function=scored.rewards.per_function,
        lengths=[len(one.token_ids) for one in output.completions],
        accuracy_function=accuracy_function(
            cluster.config.training_config, list(scored.rewards.per_function)
        ),
        failed=scored.rewards.failed,
    )


def accuracy_function(config: rl_cluster.RLTrainingConfig, names: Sequence[str]) -> str:
    """Return the function that accuracy is about: the one that is named, or the first, if any.

    Raises:
        ConfigError: If there is none of this name.
    """
    name = config.accuracy_function
    if name is None:
        return names[0] if names else TOTAL
    if name not in names:
        hint = config_lib.did_you_mean(name, names)
        problem = f"accuracy_function {name!r} is not one of {list(names)}{hint}"
        raise config_lib.ConfigError("evaluation", [problem])
    return name
