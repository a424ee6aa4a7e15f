import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import helpers
from tunix.rl import credit, packing, token_advantages
from tunix.rl import critic as critic_lib

MASK = np.array([[True, True, True], [True, False, False]])


def naive_gae(rewards, values, gamma, lam):
    """The sum of the paper, one completion without padding: arXiv:1506.02438, eq. 16."""
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
    rewards, values = np.array([[0.0, 1.0]]), np.array([[0.5, 0.25]])
    found, returns = token_advantages.gae(
        rewards, values, np.ones((1, 2), bool), gamma=0.5, gae_lambda=0.5
    )
    np.testing.assert_allclose(found, [[-0.1875, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0.3125, 1.0]], rtol=1e-6)


def test_ragged_rows_are_the_sum_of_the_paper_for_each():
    rng = np.random.default_rng(0)
    lengths, width = [5, 1, 7, 3], 7
    mask = np.arange(width) < np.array(lengths)[:, None]
    rewards, values = rng.normal(size=(2, 4, width))
    noisy = (np.where(mask, x, np.nan) for x in (rewards, values))
    found, returns = token_advantages.gae(*noisy, mask, gamma=0.9, gae_lambda=0.8)
    for row, n in enumerate(lengths):
        expected = naive_gae(rewards[row, :n], values[row, :n], 0.9, 0.8)
        np.testing.assert_allclose(found[row, :n], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            returns[row, :n], expected + values[row, :n], rtol=1e-5, atol=1e-6
        )
    assert np.all(np.asarray(found)[~mask] == 0.0)
    assert np.all(np.asarray(returns)[~mask] == 0.0)


def test_what_is_not_the_policys_inside_a_completion_takes_no_time():
    # A tool's answer between two turns: as if it were not there.
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 1, 6))
    mask = np.array([[True, True, False, False, True, True]])
    found, _ = token_advantages.gae(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    expected = naive_gae(rewards[mask], values[mask], 0.9, 0.7)
    np.testing.assert_allclose(np.asarray(found)[mask], expected, rtol=1e-5)


def test_lambda_one_is_the_return_minus_the_value_and_lambda_zero_the_td_error():
    rewards, values = np.random.default_rng(2).normal(size=(2, 2, 4))
    mask = np.ones((2, 4), bool)
    one, _ = token_advantages.gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(one, to_go - values, rtol=1e-5, atol=1e-6)
    zero, _ = token_advantages.gae(rewards, values, mask, gamma=0.5, gae_lambda=0.0)
    following = np.append(values[:, 1:], np.zeros((2, 1)), axis=1)
    np.testing.assert_allclose(zero, rewards + 0.5 * following - values, rtol=1e-5, atol=1e-6)


def test_a_perfect_critic_leaves_no_advantage():
    rewards = np.array([[0.5, -1.0, 2.0]])
    values = np.array([[1.5, 1.0, 2.0]])
    found, returns = token_advantages.gae(rewards, values, MASK[:1], gamma=1.0, gae_lambda=0.95)
    np.testing.assert_allclose(found, np.zeros((1, 3)), atol=1e-6)
    np.testing.assert_allclose(returns, values, rtol=1e-6)


def test_a_fraction_of_a_reward_stays_a_fraction():
    # Integer token ids once decided the dtype elsewhere: 0.75 became 0 and -1.5 became -1.
    rewards = token_advantages.token_rewards(np.array([0.75, -1.5]), np.zeros((2, 3)), MASK)
    np.testing.assert_array_equal(rewards, [[0.0, 0.0, 0.75], [-1.5, 0.0, 0.0]])


def test_every_token_pays_and_the_last_one_earns():
    penalties = np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 9.0]])
    rewards = token_advantages.token_rewards(np.array([1.0, 2.0]), penalties, MASK)
    np.testing.assert_allclose(rewards, [[-0.1, -0.2, 0.7], [1.6, 0.0, 0.0]], rtol=1e-6)


def test_a_completion_without_a_token_earns_nowhere():
    rewards = token_advantages.token_rewards(
        np.array([1.0]), np.zeros((1, 3)), np.zeros((1, 3), bool)
    )
    np.testing.assert_array_equal(rewards, np.zeros((1, 3)))


def test_a_token_is_charged_for_itself_and_what_follows():
    rewards = np.array([[-0.1, -0.2, 0.7], [1.6, 5.0, 5.0]])
    found = token_advantages.returns_to_go(rewards, MASK)
    np.testing.assert_allclose(found, [[0.4, 0.5, 0.7], [1.6, 0.0, 0.0]], rtol=1e-5)


def test_whitened_tokens_have_mean_zero_and_deviation_one():
    values = np.array([[1.0, 2.0, 3.0], [6.0, np.nan, 100.0]])
    found = np.asarray(token_advantages.whiten(values, MASK))
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 over four.
    expected = np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(3.5)
    np.testing.assert_allclose(found[MASK], expected, rtol=1e-6, atol=1e-7)
    assert np.all(found[~MASK] == 0.0)
    softened = np.asarray(token_advantages.whiten(values, MASK, eps=0.5))
    by_hand = np.array([-2.0, -1.0, 0.0, 3.0]) / (np.sqrt(3.5) + 0.5)
    np.testing.assert_allclose(softened[MASK], by_hand, rtol=1e-6, atol=1e-7)


def test_whitening_that_keeps_the_mean_changes_the_deviation_alone():
    values = np.array([[1.0, 2.0, 3.0], [6.0, np.nan, 100.0]])
    found = np.asarray(token_advantages.whiten(values, MASK, keep_mean=True))
    expected = 3.0 + np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(3.5)
    np.testing.assert_allclose(found[MASK], expected, rtol=1e-6)
    assert np.all(found[~MASK] == 0.0)
    equal = token_advantages.whiten(np.full((2, 3), 0.1, np.float32), MASK, keep_mean=True)
    np.testing.assert_array_equal(equal, np.where(MASK, np.float32(0.1), 0.0))


def test_rewards_at_the_end_whitened_worked_out_by_hand():
    # Four tokens, rewards 0, 0, 1, 1: mean 1/2, deviation 1/2. A token without a reward gets
    # 1/2 - 1 = -1/2, one with it 1/2 + 1 = 3/2: of two right answers the longer earns less.
    rewards = token_advantages.token_rewards(np.ones(2), np.zeros((2, 3)), MASK)
    found = np.asarray(token_advantages.whiten(rewards, MASK, keep_mean=True))
    np.testing.assert_allclose(found, [[-0.5, -0.5, 1.5], [1.5, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("mask", [MASK, np.zeros((2, 3), bool)])
def test_equal_values_whiten_to_exactly_zero(mask):
    found = token_advantages.whiten(np.full((2, 3), 0.1), mask)
    np.testing.assert_array_equal(found, np.zeros((2, 3)))
    # The float32 mean of three times -7.3 is not -7.3.
    found = token_advantages.whiten(np.full((1, 4), -7.3), np.arange(4)[None] < 3)
    np.testing.assert_array_equal(found, np.zeros((1, 4)))


def test_packing_changes_neither_values_nor_advantages():
    actor, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0, -1.0, 0.5], [0.2, 0.3, 1.0]])
    critic = critic_lib.create_critic_model(actor)
    critic.value_head[...] = jax.random.normal(jax.random.key(0), critic.value_head.shape)
    mask = credit.sampled_mask(groups, 6)
    results = []
    for layout_fn in (packing.pack_groups, packing.pad_rows):
        batch = helpers.one_batch(groups, layout_fn=layout_fn)
        values = critic_lib.token_values(critic, batch)
        assert float(jnp.abs(values).max()) > 0.1
        found, _ = token_advantages.gae(
            np.full(mask.shape, 0.1), values, mask, gamma=0.9, gae_lambda=0.9
        )
        results.append(found)
    np.testing.assert_allclose(*results, atol=1e-5)
