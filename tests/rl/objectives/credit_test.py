import dataclasses

import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl.objectives import advantages, credit, log_ratio


def groups_with(rewards, lengths):
    """One group per row, with rewards and completions of these lengths."""
    groups = helpers.make_groups(np.zeros_like(rewards))
    for group, row, sizes in zip(groups, rewards, lengths, strict=True):
        for i, (reward, size) in enumerate(zip(row, sizes, strict=True)):
            group.trajectories[i] = dataclasses.replace(
                group.trajectories[i],
                reward=reward,
                advantage=reward,
                spans=helpers.spans_of(group.prompt_ids, np.arange(size)),
                finish_reason="stop",
            )
    return groups


PENALTIES = [np.array([0.1, 0.2], np.float32), np.array([0.3], np.float32)]


def test_a_completion_pays_before_it_is_compared():
    groups = groups_with([[1.0, 0.5]], [[2, 1]])
    charged = credit.charge_rewards(groups, PENALTIES, advantages.leave_one_out)
    # 1 - 0.3 = 0.7 against 0.5 - 0.3 = 0.2.
    found = [one.advantage for one in credit.members_of(charged)]
    np.testing.assert_allclose(found, [0.5, -0.5], rtol=1e-6)
    assert [one.reward for one in credit.members_of(charged)] == [1.0, 0.5]


def test_a_token_pays_for_itself_and_what_follows():
    charged = credit.charge_tokens(groups_with([[1.0, 0.5]], [[2, 1]]), PENALTIES)
    first, second = credit.members_of(charged)
    np.testing.assert_allclose(first.token_advantages, [0.7, 0.8], rtol=1e-6)
    np.testing.assert_allclose(second.token_advantages, [0.2], rtol=1e-6)
    np.testing.assert_allclose(first.advantage, 0.75, rtol=1e-6)


def test_whitening_counts_tokens_of_the_whole_rollout():
    groups = groups_with([[1.0, 4.0], [2.0, 0.0]], [[2, 1], [1, 1]])
    found = credit.whitened(groups, mask_truncated=False)
    values = np.concatenate([one.token_advantages for one in credit.members_of(found)])
    # 1, 1, 4, 2, 0: mean 1.6.
    raw = np.array([1.0, 1.0, 4.0, 2.0, 0.0])
    np.testing.assert_allclose(values, (raw - raw.mean()) / raw.std(), rtol=1e-5)


def test_masked_completions_do_not_count_when_whitening():
    groups = groups_with([[1.0, 4.0], [2.0, 0.0]], [[2, 1], [1, 1]])
    groups[0].trajectories[1] = dataclasses.replace(
        groups[0].trajectories[1], finish_reason="length"
    )
    found = credit.members_of(credit.whitened(groups, mask_truncated=True))
    assert found[1].token_advantages[0] == 0.0
    kept = np.concatenate([found[i].token_advantages for i in (0, 2, 3)])
    raw = np.array([1.0, 1.0, 2.0, 0.0])
    np.testing.assert_allclose(kept, (raw - raw.mean()) / raw.std(), rtol=1e-5)


def test_values_and_returns_stay_with_their_tokens():
    groups = groups_with([[1.0, 0.5]], [[2, 1]])
    twice = [2 * own for own in PENALTIES]
    with_values = credit.with_values(groups, PENALTIES, twice)
    for one, own in zip(credit.members_of(with_values), PENALTIES, strict=True):
        np.testing.assert_array_equal(one.values, own)
        np.testing.assert_array_equal(one.returns, 2 * own)
    batch = helpers.one_batch(with_values)
    np.testing.assert_array_equal(batch.values[:3], np.concatenate(PENALTIES))
    np.testing.assert_array_equal(batch.returns[:3], np.concatenate(twice))
    assert helpers.one_batch(groups).values is None


@pytest.mark.filterwarnings("error")
def test_a_completion_without_tokens_has_no_advantage_and_no_ratio():
    (group,) = helpers.make_groups([[1.0, -1.0]])
    spans = helpers.spans_of(group.prompt_ids, np.zeros(0))
    empty = dataclasses.replace(group.trajectories[0], spans=spans)
    group = dataclasses.replace(group, trajectories=[empty, group.trajectories[1]])
    found = credit.with_token_advantages(
        [group], [np.full(one.num_trained, 0.5, np.float32) for one in group.trajectories]
    )
    assert [t.advantage for t in found[0].trajectories] == [0.0, 0.5]
    first, second = log_ratio.with_log_ratios(
        [group], [np.zeros(one.num_trained) for one in group.trajectories]
    )[0].trajectories
    assert first.log_ratio is None
    np.testing.assert_allclose(second.log_ratio, -second.trained_logps.mean(), rtol=1e-6)


def test_groups_of_different_sizes_are_not_compared_by_their_rewards():
    groups = helpers.make_groups([[1.0, 2.0], [1.0]])
    penalties = [np.zeros(one.num_trained) for one in credit.members_of(groups)]
    with pytest.raises(ValueError, match=r"groups of one size, got \[1, 2\] trajectories"):
        credit.charge_rewards(groups, penalties, advantages.leave_one_out)
