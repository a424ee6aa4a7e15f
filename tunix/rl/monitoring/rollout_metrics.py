"""What a rollout looked like, in numbers: pure functions of its groups."""

from collections.abc import Sequence

import numpy as np

from tunix.rl import trajectory
from tunix.rl.objectives import rollout_correction


def rollout_metrics(groups: Sequence[trajectory.Group]) -> dict[str, float]:
    """Return the metrics of one rollout.

    ``reward`` and ``reward_std`` are over all completions, ``reward/NAME`` and ``reward_std/NAME``
    over those that one function applies to; ``reward_none/NAME`` is the share of the others, if
    there are any. Lengths are in tokens, the stop token included. ``dead_groups`` is the share of
    prompts whose completions all have advantage 0 and teach nothing; ``all_right`` and
    ``all_wrong`` are those of them whose rewards are all positive, or none of them is.
    """
    members = [t for group in groups for t in group.trajectories]
    rewards = np.asarray([t.reward for t in members])
    lengths = np.asarray([t.num_sampled for t in members])
    dead = [group for group in groups if group.is_dead]
    right = [all(t.reward > 0.0 for t in group.trajectories) for group in dead]
    wrong = [all(t.reward <= 0.0 for t in group.trajectories) for group in dead]
    metrics = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(),
        **_reward_metrics(members),
        "completion_length": lengths.mean(),
        "completion_length_min": lengths.min(),
        "completion_length_max": lengths.max(),
        "prompt_length": np.mean([len(group.prompt_ids) for group in groups]),
        "truncated": np.mean([t.truncated for t in members]),
        "dead_groups": len(dead) / len(groups),
        "all_right": sum(right) / len(groups),
        "all_wrong": sum(wrong) / len(groups),
    }
    return {name: float(value) for name, value in metrics.items()}


def _reward_metrics(members: Sequence[trajectory.Trajectory]) -> dict[str, float]:
    """Return mean and standard deviation of every reward function, and where it has no say."""
    metrics: dict[str, float] = {}
    for name in members[0].rewards:
        given = [t.rewards[name] for t in members]
        scores = np.asarray([score for score in given if score is not None])
        if len(scores):
            metrics[f"reward/{name}"] = scores.mean()
            metrics[f"reward_std/{name}"] = scores.std()
        if len(scores) < len(given):
            metrics[f"reward_none/{name}"] = 1.0 - len(scores) / len(given)
    return metrics


def staleness(groups: Sequence[trajectory.Group], train_steps: int) -> dict[str, float]:
    """Return how old the policies were that drew the tokens, in optimizer steps.

    Args:
        groups: A rollout that is about to be trained on.
        train_steps: Optimizer steps taken so far.

    Returns:
        ``staleness``, the mean over all tokens, and ``staleness_max``.
    """
    versions = [t.trained_versions for group in groups for t in group.trajectories]
    ages = train_steps - np.concatenate(versions)
    return {"staleness": float(ages.mean()), "staleness_max": float(ages.max())}


def is_stale(groups: Sequence[trajectory.Group], train_steps: int) -> bool:
    """Return whether any token was drawn by an older policy than that of now."""
    return staleness(groups, train_steps)["staleness_max"] > 0.0


def update_metrics(
    updates: Sequence[dict[str, float]], *, is_stale: bool = False
) -> dict[str, float]:
    """Return the metrics of all optimizer steps of one rollout as one.

    Means over the steps; but the largest of what is a maximum, the last of what is a counter,
    and the first of what compares with the sampler: later steps have moved away from it.

    Args:
        updates: The metrics of each.
        is_stale: Whether an older policy has sampled. What compares with the sampler is then
            called ``off_policy_...`` in place of ``mismatch_...``: it measures how far training
            has moved, and would hide whether sampler and trainer compute the same.
    """
    # A step without a batch, before any, does not know what is measured of one.
    known = {name: 0.0 for update in updates for name in update if kind_of(name) != "status"}
    updates = [known | update for update in updates]
    # The first that computed anything: until then the policy has not moved.
    compared = next((u for u in updates if u.get("mismatch_weight_square")), updates[0])
    combined = {name: float(np.mean([update[name] for update in updates])) for name in known}
    for name in known:
        values = [update[name] for update in updates]
        if name.startswith("mismatch_"):
            combined[name] = compared[name]
        elif name.endswith("_max"):
            combined[name] = max(values)
        elif kind_of(name) == "skipped_steps":
            combined[name] = values[-1]
    weight, square = (
        combined.pop(name, 0.0) for name in ("mismatch_weight", "mismatch_weight_square")
    )
    if square > 0.0:
        # Of sums over all micro-batches: the mean of their sample sizes would be another number.
        combined["mismatch_ess"] = rollout_correction.effective_sample_size(weight, square)
    if not is_stale:
        return combined
    return {
        name.replace("mismatch_", "off_policy_", 1) if name.startswith("mismatch_") else name: value
        for name, value in combined.items()
    }


def kind_of(name: str) -> str:
    """Return the name of a metric without the role it belongs to."""
    return name.rpartition("/")[2]
