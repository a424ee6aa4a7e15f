"""One rollout of the policy: sampled, rewarded, and turned into groups with advantages."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tunix.rl import abstract_reward_manager, trajectory
from tunix.rl.collecting import prompt_batch
from tunix.rl.objectives import advantages as advantages_lib
from tunix.rl.rollout import base_rollout
from tunix.rl.scoring import reward_shaping, rewards
from tunix.utils import calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Completions and what the reward functions said of them, prompt-major."""

    output: base_rollout.RolloutOutput
    prompts: Sequence[str]
    """Prompt of every completion."""
    columns: Mapping[str, Sequence[Any]]
    """Columns of the data, one value per completion, and those of the rollout."""
    rewards: rewards.RewardResult


def score(
    output: base_rollout.RolloutOutput,
    batch: Mapping[str, Sequence[Any]],
    reward_manager: abstract_reward_manager.AbstractRewardManager,
    *,
    num_samples: int,
) -> Scored:
    """Return the completions with their rewards.

    Raises:
        RewardError: If a reward function fails.
    """
    columns = {
        name: prompt_batch.repeated(values, num_samples)
        for name, values in batch.items()
        if name != prompt_batch.PROMPTS
    }
    columns[prompt_batch.FINISH_REASONS] = [one.finish_reason for one in output.completions]
    columns[prompt_batch.PROMPT_IDS] = prompt_batch.repeated(output.prompt_tokens, num_samples)
    columns[prompt_batch.COMPLETION_IDS] = [one.token_ids for one in output.completions]
    prompts = prompt_batch.repeated(output.prompts, num_samples)
    result = reward_manager(prompts, output.text, columns)
    rewards.require_rewards(result.total, type(reward_manager).__name__, prompts, output.text)
    return Scored(output=output, prompts=prompts, columns=columns, rewards=result)


def group(
    scored: Scored,
    advantage_fn: advantages_lib.AdvantageFn,
    *,
    num_samples: int,
    policy_version: int,
) -> list[trajectory.Group]:
    """Return one group per prompt, with the advantage of every completion.

    Raises:
        ValueError: If the advantages are not one finite number per completion.
    """
    keys = scored.columns.get(prompt_batch.PROMPT_KEY)
    added = (prompt_batch.PROMPT_KEY, *prompt_batch.ROLLOUT_COLUMNS)
    columns = {name: values for name, values in scored.columns.items() if name not in added}
    by_prompt = scored.rewards.total.reshape(-1, num_samples)
    advantages = advantages_lib.estimate(
        advantage_fn, by_prompt, lengths=lengths_of(scored).reshape(-1, num_samples).astype(float)
    )
    return [
        trajectory.Group(
            prompt=scored.output.prompts[p],
            prompt_key=None if keys is None else keys[p * num_samples],
            columns={name: values[p * num_samples] for name, values in columns.items()},
            trajectories=[
                trajectory.Trajectory.of_completion(
                    scored.output.prompt_tokens[p],
                    scored.output.completions[i].token_ids,
                    scored.output.completions[i].logps,
                    policy_version,
                    finish_reason=scored.output.completions[i].finish_reason,
                    text=scored.output.text[i],
                    rewards=scored.rewards.scores_of(i),
                    reward=float(scored.rewards.total[i]),
                    advantage=float(advantages[p, i % num_samples]),
                )
                for i in range(p * num_samples, (p + 1) * num_samples)
            ],
        )
        for p in range(len(by_prompt))
    ]


def with_length_penalty(
    scored: Scored, penalty: Callable[[Int[np.ndarray, " B"]], Float[np.ndarray, " B"]]
) -> Scored:
    """Return the completions with a reward more, which depends on their tokens' number."""
    shaping = penalty(lengths_of(scored))
    result = dataclasses.replace(
        scored.rewards,
        total=scored.rewards.total + shaping,
        per_function={**scored.rewards.per_function, reward_shaping.OVERLONG: shaping},
    )
    return dataclasses.replace(scored, rewards=result)


def lengths_of(scored: Scored) -> Int[np.ndarray, " B"]:
    """Return the number of tokens of every completion."""
    return np.asarray([len(one.token_ids) for one in scored.output.completions])


def measured(
    scored: Scored,
    groups: Sequence[trajectory.Group],
    metric_fns: Iterable[Callable[..., Mapping[str, Any]]],
) -> Iterator[Mapping[str, Any]]:
    """Yield what the user's metric functions say of a rollout."""
    advantages = np.asarray([t.advantage for group in groups for t in group.trajectories])
    given = {
        "prompts": scored.prompts,
        "completions": scored.output.text,
        "rewards": scored.rewards.total,
        "advantages": advantages,
    }
    for metric_fn in metric_fns:
        calls.require("metric_fn", metric_fn, [], [*given, *scored.columns])
        yield metric_fn(**given, **scored.columns)
