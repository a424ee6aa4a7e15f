import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl.objectives import advantages

WRONG_RIGHT = np.array([[0.0, 0.0, 0.0, 1.0]])  # mean 0.25, sample std 0.5


def test_group_relative_is_the_distance_to_the_mean_in_sample_standard_deviations():
    result = advantages.group_relative(WRONG_RIGHT, eps=0.0)
    np.testing.assert_allclose(result, [[-0.5, -0.5, -0.5, 1.5]], rtol=1e-12)


def test_eps_is_added_to_the_standard_deviation():
    result = advantages.group_relative(WRONG_RIGHT, eps=0.5)
    np.testing.assert_allclose(result, [[-0.25, -0.25, -0.25, 0.75]], rtol=1e-12)


def test_the_default_eps_is_a_ten_thousandth():
    np.testing.assert_allclose(
        advantages.group_relative(WRONG_RIGHT), [[-0.25, -0.25, -0.25, 0.75]] / np.float64(0.5001)
    )


def test_without_normalisation_it_is_the_distance_to_the_mean():
    expected = [[-0.25, -0.25, -0.25, 0.75]]
    np.testing.assert_allclose(advantages.group_relative(WRONG_RIGHT, normalize=False), expected)
    np.testing.assert_allclose(advantages.group_centered(WRONG_RIGHT), expected)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 3 - mean(1, 2), 1 - mean(3, 2), 2 - mean(3, 1)
    result = advantages.leave_one_out(np.array([[3.0, 1.0, 2.0]]))
    np.testing.assert_allclose(result, [[1.5, -1.5, 0.0]], rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_a_group_of_one_has_nothing_to_be_compared_with(asarray):
    np.testing.assert_array_equal(advantages.group_relative(asarray([[1.5], [0.2]])), [[0.0]] * 2)


def test_groups_do_not_see_each_other():
    rewards = np.array([[0.0, 1.0], [10.0, 12.0]])
    np.testing.assert_allclose(advantages.group_centered(rewards), [[-0.5, 0.5], [-1.0, 1.0]])


@pytest.mark.parametrize(
    "estimator",
    [advantages.group_relative, advantages.group_centered, advantages.leave_one_out],
)
@pytest.mark.parametrize("value", [0.1, 1.0, -7.3, 1e6])
def test_equal_rewards_give_exactly_zero(estimator, value):
    # The mean of three times 0.1 is not 0.1; a group like this must still be dead.
    for rewards in (np.full((1, 3), value), jnp.full((1, 3), value)):
        assert np.all(np.asarray(estimator(rewards)) == 0.0)


def test_integer_rewards_are_rejected():
    # Integers would cut rewards of 0.5 down to 0.
    with pytest.raises(Exception, match="rewards"):
        advantages.group_relative(np.array([[0, 1]]))


def test_numpy_and_jax_agree():
    rewards = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for estimator in (advantages.group_relative, advantages.leave_one_out):
        np.testing.assert_allclose(
            estimator(rewards), estimator(jnp.asarray(rewards)), rtol=1e-5, atol=1e-6
        )


def test_a_long_completion_weighs_more_in_the_baseline():
    # Baseline (1 * 3 + 3 * 1) / 4 = 1.5, where the plain mean is 2.
    result = advantages.length_weighted(np.array([[3.0, 1.0]]), lengths=np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(result, [[1.5, -0.5]])


def test_the_length_weighted_baseline_has_the_least_variance():
    # If squared gradient norms are the lengths, the variance is the mean of l * (r - b)^2.
    rewards, lengths = np.array([[3.0, 1.0, 0.0]]), np.array([[1.0, 4.0, 2.0]])
    baseline = (rewards - advantages.length_weighted(rewards, lengths=lengths))[0, 0]
    grid = np.linspace(-1.0, 4.0, 5001)
    variance = [(lengths * (rewards - b) ** 2).mean() for b in grid]
    np.testing.assert_allclose(baseline, grid[np.argmin(variance)], atol=1e-3)


def test_batch_whitening_compares_with_the_whole_batch():
    # Mean 2, population deviation sqrt((4 + 1 + 0 + 9) / 4).
    rewards = np.array([[0.0], [1.0], [2.0], [5.0]])
    expected = (rewards - 2.0) / np.sqrt(14 / 4)
    np.testing.assert_allclose(advantages.batch_whitened(rewards), expected, rtol=1e-6)
    softened = advantages.batch_whitened(rewards, eps=0.5)
    np.testing.assert_allclose(softened, (rewards - 2.0) / (np.sqrt(14 / 4) + 0.5), rtol=1e-6)


def test_the_group_baseline_is_whitened_over_the_batch():
    # Centred: -1 1 -2 2, whose mean square is 2.5. A dead group stays dead.
    rewards = np.array([[0.0, 2.0], [3.0, 7.0]])
    expected = np.array([[-1.0, 1.0], [-2.0, 2.0]]) / np.sqrt(2.5)
    result = advantages.group_centered_batch_whitened(rewards)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    softened = advantages.group_centered_batch_whitened(rewards, eps=0.5)
    centred = expected * np.sqrt(2.5)
    np.testing.assert_allclose(softened, centred / (np.sqrt(2.5) + 0.5), rtol=1e-6)
    with_dead = advantages.group_centered_batch_whitened(np.array([[0.1, 0.1], [0.0, 1.0]]))
    np.testing.assert_array_equal(with_dead[0], [0.0, 0.0])


@pytest.mark.parametrize("value", [0.1, 1e6])
def test_a_batch_of_equal_rewards_is_exactly_zero(value):
    rewards = np.full((3, 3), value)
    assert np.all(advantages.batch_whitened(rewards) == 0.0)
    assert np.all(advantages.group_centered_batch_whitened(rewards) == 0.0)
    assert np.all(advantages.length_weighted(rewards, lengths=rewards) == 0.0)


def test_leave_one_out_needs_others():
    with pytest.raises(ValueError, match="at least 2 completions"):
        advantages.leave_one_out(np.array([[1.0]]))


def test_leave_one_out_is_the_centred_reward_scaled():
    # r - mean of others = G / (G - 1) * (r - mean of all).
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_allclose(
        advantages.leave_one_out(rewards), 5 / 4 * advantages.group_centered(rewards), rtol=1e-12
    )


def test_an_estimator_gets_the_lengths_if_it_names_them():
    rewards, lengths = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
    found = advantages.estimate(lambda r, *, lengths: r * lengths, rewards, lengths=lengths)
    np.testing.assert_array_equal(found, [[3.0, 8.0]])
    found = advantages.estimate(lambda r: r, rewards, lengths=lengths)
    np.testing.assert_array_equal(found, rewards)


def test_every_group_has_its_own_baseline():
    # Three prompts of two, so that no axis can be taken for the other.
    rewards = np.array([[0.0, 1.0], [4.0, 4.0], [3.0, -3.0]])
    expected = np.array([[-1.0, 1.0], [0.0, 0.0], [6.0, -6.0]])
    np.testing.assert_allclose(advantages.leave_one_out(rewards), expected)
    np.testing.assert_allclose(
        advantages.length_weighted(rewards, lengths=np.ones((3, 2))), expected / 2
    )
    # The sample deviation of a and b is |a - b| / sqrt(2).
    np.testing.assert_allclose(
        advantages.group_relative(rewards[[0, 2]], eps=0.0),
        np.array([[-1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2),
    )


def test_an_estimator_that_returns_another_shape_is_refused():
    rewards = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"returned shape \(3, 1\) for rewards of shape \(3, 2\)"):
        advantages.estimate(lambda r: r[:, :1], rewards, lengths=rewards)


def test_an_estimate_that_is_not_finite_is_refused_with_its_prompt():
    values = np.zeros((4, 2))
    values[2, 1], values[3, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"not finite for the rewards of prompt 2$"):
        advantages.estimate(lambda r: values, np.zeros((4, 2)), lengths=np.ones((4, 2)))


@pytest.mark.parametrize("name", advantages.ADVANTAGE_ESTIMATORS)
def test_every_estimator_pushes_up_what_was_better(name):
    rewards, lengths = np.array([[0.0, 1.0], [0.2, 0.4]]), np.full((2, 2), 3.0)
    fn = advantages.ADVANTAGE_ESTIMATORS[name]
    found = advantages.estimate(fn, rewards, lengths=lengths)
    assert np.all(found[:, 1] > found[:, 0])
