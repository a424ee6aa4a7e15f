import dataclasses

from tests.rl import helpers


def test_every_sampled_token_is_trained_the_last_one_too():
    member = helpers.make_groups([[1.0]])[0].trajectories[0]
    assert member.trained_length(mask_truncated=False) == len(member.completion_ids)


def test_a_truncated_completion_is_kept_or_left_out():
    member = helpers.make_groups([[1.0]])[0].trajectories[0]
    for reason, kept in (("stop", len(member.completion_ids)), ("length", 0)):
        one = dataclasses.replace(member, finish_reason=reason)
        assert one.trained_length(mask_truncated=True) == kept


def test_a_group_is_dead_when_no_completion_is_better():
    assert helpers.make_groups([[0.0, 0.0]])[0].is_dead
    assert not helpers.make_groups([[0.0, 0.1]])[0].is_dead
