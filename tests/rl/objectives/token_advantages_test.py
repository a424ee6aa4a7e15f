import jax
import numpy as np
import pytest

from tests.rl import helpers, trajectory_test
from tunix.rl import trajectory
from tunix.rl.objectives import credit, token_advantages
from tunix.rl.objectives import critic as critic_lib


def naive_gae(rewards, values, gamma, lam):
    """The sum of the paper: arXiv:1506.02438, eq. 16."""
    following = np.append(values[1:], 0.0)
    deltas = rewards + gamma * following - values
    n = len(rewards)
    return np.array(
        [
            sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, n))
            for t in range(n)
        ]
    )


def test_estimates_worked_out_by_hand():
    # V = 0.5, 0.25, reward 1 at the end; gamma 0.5, lambda 0.5:
    # delta_1 = 1 - 0.25 = 0.75, delta_0 = 0.5 * 0.25 - 0.5 = -0.375; A_0 = -0.375 + 0.25 * 0.75.
    rewards, values = np.array([0.0, 1.0]), np.array([0.5, 0.25])
    found, returns = token_advantages.gae(rewards, values, gamma=0.5, gae_lambda=0.5)
    np.testing.assert_allclose(found, [-0.1875, 0.75], rtol=1e-6)
    np.testing.assert_allclose(returns, [0.3125, 1.0], rtol=1e-6)


@pytest.mark.parametrize("length", [1, 3, 7, 4096])
def test_estimates_are_the_sum_of_the_paper(length):
    rewards, values = np.random.default_rng(length).normal(size=(2, length))
    found, returns = token_advantages.gae(rewards, values, gamma=0.9, gae_lambda=0.8)
    last = slice(-7, None)
    expected = naive_gae(rewards[last], values[last], 0.9, 0.8)
    np.testing.assert_allclose(found[last], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, found + values, rtol=1e-5, atol=1e-6)
    assert found.dtype == returns.dtype == np.float32


def test_a_completion_without_tokens_has_no_estimate():
    for found in token_advantages.gae(np.zeros(0), np.zeros(0), gamma=1.0, gae_lambda=1.0):
        assert found.shape == (0,)


def test_lambda_one_is_the_return_minus_the_value_and_lambda_zero_the_td_error():
    rewards, values = np.random.default_rng(2).normal(size=(2, 4))
    one, _ = token_advantages.gae(rewards, values, gamma=1.0, gae_lambda=1.0)
    to_go = np.cumsum(rewards[::-1])[::-1]
    np.testing.assert_allclose(one, to_go - values, rtol=1e-5, atol=1e-6)
    zero, _ = token_advantages.gae(rewards, values, gamma=0.5, gae_lambda=0.0)
    following = np.append(values[1:], 0.0)
    np.testing.assert_allclose(zero, rewards + 0.5 * following - values, rtol=1e-5, atol=1e-6)


def test_a_perfect_critic_leaves_no_advantage():
    rewards, values = np.array([0.5, -1.0, 2.0]), np.array([1.5, 1.0, 2.0])
    found, returns = token_advantages.gae(rewards, values, gamma=1.0, gae_lambda=0.95)
    np.testing.assert_allclose(found, np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(returns, values, rtol=1e-6)


def test_a_fraction_of_a_reward_stays_a_fraction():
    # Integer token ids once decided the dtype elsewhere: 0.75 became 0 and -1.5 became -1.
    rewards = token_advantages.token_rewards(0.75, np.zeros(3))
    np.testing.assert_array_equal(rewards, [0.0, 0.0, 0.75])
    np.testing.assert_array_equal(token_advantages.token_rewards(-1.5, np.zeros(1)), [-1.5])


def test_every_token_pays_and_the_last_one_earns():
    rewards = token_advantages.token_rewards(1.0, np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(rewards, [-0.1, -0.2, 0.7], rtol=1e-6)


def test_a_completion_without_a_token_earns_nowhere():
    assert token_advantages.token_rewards(1.0, np.zeros(0)).shape == (0,)


def test_a_token_is_charged_for_itself_and_what_follows():
    found = token_advantages.returns_to_go(np.array([-0.1, -0.2, 0.7]))
    np.testing.assert_allclose(found, [0.4, 0.5, 0.7], rtol=1e-5)


# Of two completions, of three tokens and one.
VALUES = np.array([1.0, 2.0, 3.0, 6.0])


def test_whitened_tokens_have_mean_zero_and_deviation_one():
    found = token_advantages.whiten(VALUES)
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 over four.
    expected = np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(3.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    softened = token_advantages.whiten(VALUES, eps=0.5)
    by_hand = np.array([-2.0, -1.0, 0.0, 3.0]) / (np.sqrt(3.5) + 0.5)
    np.testing.assert_allclose(softened, by_hand, rtol=1e-6, atol=1e-7)


def test_whitening_that_keeps_the_mean_changes_the_deviation_alone():
    found = token_advantages.whiten(VALUES, keep_mean=True)
    expected = 3.0 + np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(3.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    equal = token_advantages.whiten(np.full(4, 0.1, np.float32), keep_mean=True)
    np.testing.assert_array_equal(equal, np.full(4, np.float32(0.1)))


def test_rewards_at_the_end_whitened_worked_out_by_hand():
    # Four tokens, rewards 0, 0, 1, 1: mean 1/2, deviation 1/2. A token without a reward gets
    # 1/2 - 1 = -1/2, one with it 1/2 + 1 = 3/2: of two right answers the longer earns less.
    rewards = [token_advantages.token_rewards(1.0, np.zeros(n)) for n in (3, 1)]
    found = token_advantages.whiten(np.concatenate(rewards), keep_mean=True)
    np.testing.assert_allclose(found, [-0.5, -0.5, 1.5, 1.5], rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 4])
def test_equal_values_whiten_to_exactly_zero(count):
    np.testing.assert_array_equal(token_advantages.whiten(np.full(count, 0.1)), np.zeros(count))
    # The float32 mean of three times -7.3 is not -7.3.
    values = np.full(3, -7.3, np.float32)
    np.testing.assert_array_equal(token_advantages.whiten(values), np.zeros(3))


def test_what_is_not_the_policys_inside_a_trajectory_takes_no_time():
    # A tool's answer between two turns: as if it were not there.
    one = trajectory_test.dialogue(reward=1.0)
    group = trajectory.Group(prompt="?", trajectories=[one])
    rewards = one.reward_of_tokens
    (found,) = credit.members_of(credit.charge_tokens([group], [np.zeros(3, np.float32)]))
    np.testing.assert_array_equal(found.token_advantages, np.zeros(3))  # an advantage of 0
    estimate, _ = token_advantages.gae(rewards, np.zeros(3), gamma=0.5, gae_lambda=1.0)
    # A turn's reward of 1/4 at its second token, and 1 at the only token of the next turn.
    np.testing.assert_allclose(estimate, [0.5 * (0.25 + 0.5), 0.25 + 0.5, 1.0])


def test_packing_changes_neither_values_nor_advantages():
    actor, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0, -1.0, 0.5], [0.2, 0.3, 1.0]])
    critic = critic_lib.create_critic_model(actor)
    critic.value_head[...] = jax.random.normal(jax.random.key(0), critic.value_head.shape)
    packed = helpers.per_trajectory(groups, lambda batch: critic_lib.token_values(critic, batch))
    alone = [
        critic_lib.token_values(critic, batch)[: int(batch.num_targets)]
        for batch in helpers.one_by_one(groups)
    ]
    assert np.abs(np.concatenate(packed)).max() > 0.1
    for found, expected in zip(packed, alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        rewards = np.full(len(found), 0.1)
        estimates = [
            token_advantages.gae(rewards, np.asarray(x), gamma=0.9, gae_lambda=0.9)[0]
            for x in (found, expected)
        ]
        np.testing.assert_allclose(*estimates, atol=1e-5)
