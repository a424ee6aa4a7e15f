import dataclasses

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import trajectory
from tunix.rl.monitoring import rollout_metrics


def make_group(rewards, lengths, advantages):
    members = [
        trajectory.Trajectory(
            spans=helpers.spans_of(np.zeros(3, np.int32), np.zeros(length)),
            finish_reason="length" if length == 5 else "stop",
            rewards={"right": reward, "short": 0.5},
            reward=reward,
            advantage=advantage,
        )
        for reward, length, advantage in zip(rewards, lengths, advantages, strict=True)
    ]
    return trajectory.Group(prompt="?", trajectories=members)


def with_versions(member, versions):
    prompt, sampled = member.spans
    sampled = dataclasses.replace(sampled, versions=np.asarray(versions))
    return dataclasses.replace(member, spans=(prompt, sampled))


def test_metrics_of_a_rollout_worked_out_by_hand():
    groups = [
        make_group([1.0, 0.0], [2, 5], [0.7, -0.7]),
        make_group([1.0, 1.0], [1, 2], [0.0, 0.0]),
        make_group([0.0, 0.0], [5, 3], [0.0, 0.0]),
        make_group([0.0, 0.0], [3, 3], [0.0, 0.0]),
    ]
    metrics = rollout_metrics.rollout_metrics(groups)
    expected = {
        "reward": 3 / 8,
        "reward_std": (3 / 8 * 5 / 8) ** 0.5,
        "reward/right": 3 / 8,
        "reward/short": 0.5,
        "reward_std/right": (3 / 8 * 5 / 8) ** 0.5,
        "reward_std/short": 0.0,
        "completion_length": 3.0,
        "completion_length_min": 1.0,
        "completion_length_max": 5.0,
        "prompt_length": 3.0,
        "truncated": 2 / 8,
        "dead_groups": 3 / 4,
        "all_right": 1 / 4,
        "all_wrong": 2 / 4,
    }
    assert metrics == pytest.approx(expected)


def test_a_reward_that_does_not_apply_everywhere_is_measured_where_it_does():
    group = make_group([1.0, 0.0], [2, 2], [0.5, -0.5])
    group.trajectories[0].rewards["short"] = None
    metrics = rollout_metrics.rollout_metrics([group])
    assert metrics["reward/short"] == 0.5 and metrics["reward_none/short"] == 0.5
    assert "reward_none/right" not in metrics


def test_updates_of_one_rollout_are_combined_by_kind():
    first = {"loss": 1.0, "ratio_max": 1.0, "mismatch_max": 0.1, "skipped_steps": 0.0, "status": 0}
    second = {"loss": 3.0, "ratio_max": 1.5, "mismatch_max": 0.9, "skipped_steps": 1.0, "status": 1}
    assert rollout_metrics.update_metrics([first, second]) == {
        "loss": 2.0,
        "ratio_max": 1.5,
        "mismatch_max": 0.1,  # after the first update the policy has moved away on purpose
        "skipped_steps": 1.0,
    }


def test_the_sample_size_is_that_of_the_first_update_that_computed_anything():
    empty = {"mismatch_weight": 0.0, "mismatch_weight_square": 0.0, "mismatch_max": 0.0}
    first = {"mismatch_weight": 2.0, "mismatch_weight_square": 5.0, "mismatch_max": 0.2}
    later = {"mismatch_weight": 1.0, "mismatch_weight_square": 9.0, "mismatch_max": 0.9}
    found = rollout_metrics.update_metrics([empty, first, later])
    assert found == {"mismatch_ess": 0.8, "mismatch_max": 0.2}
    assert rollout_metrics.update_metrics([empty]) == {"mismatch_max": 0.0}


def test_an_update_without_a_batch_measures_nothing():
    empty = {"loss": 0.0, "status": 2.0}
    full = {"loss": 1.0, "mismatch_weight": 2.0, "mismatch_weight_square": 5.0, "entropy": 3.0}
    found = rollout_metrics.update_metrics([empty, full])
    assert found == {"loss": 0.5, "entropy": 1.5, "mismatch_ess": 0.8}


def test_metrics_of_the_critic_are_combined_like_those_of_the_actor():
    updates = [
        {"loss": 1.0, "critic/loss": 2.0, "critic/skipped_steps": n, "critic/status": 0.0}
        for n in (0.0, 1.0)
    ]
    assert rollout_metrics.update_metrics(updates) == {
        "loss": 1.0,
        "critic/loss": 2.0,
        "critic/skipped_steps": 1.0,
    }


def test_staleness_counts_tokens_by_hand():
    # 2 tokens of version 3, 5 of versions 3, 3, 4, 4, 5; 5 steps taken.
    group = make_group([1.0, 0.0], [2, 5], [0.5, -0.5])
    old, mixed = group.trajectories
    old, mixed = with_versions(old, [3, 3]), with_versions(mixed, [3, 3, 4, 4, 5])
    group = dataclasses.replace(group, trajectories=[old, mixed])
    found = rollout_metrics.staleness([group], 5)
    assert found == pytest.approx({"staleness": (2 * 4 + 2 * 1) / 7, "staleness_max": 2.0})
    assert rollout_metrics.is_stale([group], 5)
    fresh = dataclasses.replace(group, trajectories=[with_versions(old, [5, 5])])
    assert not rollout_metrics.is_stale([fresh], 5)


def test_what_compares_with_an_older_sampler_is_no_mismatch():
    update = {"loss": 1.0, "mismatch_max": 0.1, "mismatch_weight": 1.0}
    update["mismatch_weight_square"] = 2.0
    expected = {"loss": 1.0, "off_policy_max": 0.1, "off_policy_ess": 0.5}
    assert rollout_metrics.update_metrics([update], is_stale=True) == expected
