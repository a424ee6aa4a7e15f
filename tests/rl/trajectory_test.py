import dataclasses

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import trajectory


def span(author, ids, **known):
    if author == "policy":
        size = len(ids)
        known = {
            "logps": -0.5 * np.arange(1, size + 1, dtype=np.float32),
            "versions": np.full(size, known.pop("version", 0)),
            "trained": True,
            **known,
        }
    return trajectory.Span(token_ids=np.asarray(ids, np.int32), author=author, **known)


def dialogue(**known):
    """Two turns with an answer of the environment between them, and one behind."""
    one = trajectory.Trajectory(spans=(span("prompt", [1, 2]),), **known)
    for further in (
        span("policy", [3, 4], version=5, reward=0.25),
        span("environment", [5, 6, 7]),
        span("policy", [8], turn=1, version=6),
        span("environment", [9]),
    ):
        one = one.appended(further)
    return one


def test_every_sampled_token_is_trained_the_last_one_too():
    member = helpers.make_groups([[1.0]])[0].trajectories[0]
    assert member.trained_length(mask_truncated=False) == len(member.trained_ids)
    assert member.is_trained.all()


def test_a_truncated_completion_is_kept_or_left_out():
    member = helpers.make_groups([[1.0]])[0].trajectories[0]
    for reason, kept in (("stop", len(member.trained_ids)), ("length", 0)):
        one = dataclasses.replace(member, finish_reason=reason)
        assert one.trained_length(mask_truncated=True) == kept


def test_a_group_is_dead_when_no_completion_is_better():
    assert helpers.make_groups([[0.0, 0.0]])[0].is_dead
    assert not helpers.make_groups([[0.0, 0.1]])[0].is_dead


def test_what_the_environment_wrote_is_read_and_not_trained():
    one = dialogue()
    np.testing.assert_array_equal(one.prompt_ids, [1, 2])
    np.testing.assert_array_equal(one.answer_ids, [3, 4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(one.is_trained, [1, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(one.trained_ids, [3, 4, 8])
    np.testing.assert_array_equal(one.trained_logps, [-0.5, -1.0, -0.5])
    np.testing.assert_array_equal(one.trained_versions, [5, 5, 6])
    assert (one.num_trained, one.num_sampled, one.policy_version) == (3, 3, 6)


def test_rewards_stand_at_the_whole_at_turns_and_at_tokens():
    one = dialogue(reward=1.0)
    np.testing.assert_array_equal(one.reward_of_tokens, [0.0, 0.25, 1.0])
    assert one.total_reward == 1.25
    one = dataclasses.replace(one, token_rewards=np.asarray([0.5, 0.0, -0.5], np.float32))
    np.testing.assert_array_equal(one.reward_of_tokens, [0.5, 0.25, 0.5])
    assert one.total_reward == 1.25


def test_a_fork_shares_its_prefix_and_trains_it_once():
    one = dialogue()
    sibling = one.fork(3).appended(span("policy", [9, 9], turn=1))
    np.testing.assert_array_equal(sibling.answer_ids, [3, 4, 5, 6, 7, 9, 9])
    np.testing.assert_array_equal(sibling.trained_ids, [9, 9])
    assert (sibling.num_trained, sibling.num_sampled) == (2, 4)
    assert len(one.spans) == 5
    # What was earned before the fork counts when siblings are compared, and credits no token.
    assert sibling.total_reward == 0.25
    np.testing.assert_array_equal(sibling.reward_of_tokens, [0.0, 0.0])


def test_a_trajectory_that_goes_on_has_no_end():
    one = trajectory.Trajectory(spans=(span("prompt", [1]),))
    assert one.finish_reason is None and not one.truncated and one.policy_version is None
    assert len(one.trained_ids) == len(one.answer_ids) == one.num_trained == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="environment cannot be trained"):
        span("environment", [1], trained=True)
    with pytest.raises(ValueError, match="needs the logps and versions"):
        trajectory.Span(token_ids=np.ones(1, np.int32), author="policy")
    with pytest.raises(ValueError, match="1 logps for 2 tokens"):
        span("policy", [1, 2], logps=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="begins with a prompt"):
        trajectory.Trajectory(spans=(span("policy", [1]),))
    with pytest.raises(ValueError, match="2 values for 3 trained tokens"):
        dataclasses.replace(dialogue(), values=np.zeros(2, np.float32))
