import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl import advantages

WRONG_RIGHT = np.array([[0.0, 0.0, 0.0, 1.0]])  # mean 0.25, sample std 0.5


def test_group_relative_is_the_distance_to_the_mean_in_sample_standard_deviations():
    result = advantages.group_relative(WRONG_RIGHT, eps=0.0)
    np.testing.assert_allclose(result, [[-0.5, -0.5, -0.5, 1.5]], rtol=1e-12)


def test_eps_is_added_to_the_standard_deviation():
    result = advantages.group_relative(WRONG_RIGHT, eps=0.5)
    np.testing.assert_allclose(result, [[-0.25, -0.25, -0.25, 0.75]], rtol=1e-12)


def test_without_normalisation_it_is_the_distance_to_the_mean():
    expected = [[-0.25, -0.25, -0.25, 0.75]]
    np.testing.assert_allclose(advantages.group_relative(WRONG_RIGHT, normalize=False), expected)
    np.testing.assert_allclose(advantages.group_centered(WRONG_RIGHT), expected)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 3 - mean(1, 2), 1 - mean(3, 2), 2 - mean(3, 1)
    result = advantages.leave_one_out(np.array([[3.0, 1.0, 2.0]]))
    np.testing.assert_allclose(result, [[1.5, -1.5, 0.0]], rtol=1e-12)


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
