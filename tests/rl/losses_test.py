import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl import aggregation, kl, losses

CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def surrogate(ratio, advantage, mask=None, **clip):
    """Loss per token of one sequence, given its importance ratios."""
    log_ratio = jnp.log(jnp.asarray([ratio]))
    mask = jnp.ones(log_ratio.shape, bool) if mask is None else jnp.asarray([mask])
    return losses.clipped_surrogate(log_ratio, jnp.full(log_ratio.shape, advantage), mask, **{**CLIP, **clip})


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        pytest.param(1.0, 2.0, -2.0, id="on-policy loss is minus the advantage"),
        pytest.param(1.5, 1.0, -1.2, id="a gain is capped at 1 + clip_high"),
        pytest.param(0.5, 1.0, -0.5, id="a good token made unlikely is not capped"),
        pytest.param(0.5, -1.0, 0.8, id="a bad token is pushed down to 1 - clip_low"),
        pytest.param(1.5, -1.0, 1.5, id="a bad token made likely is not capped"),
    ],
)
def test_value_of_one_token(ratio, advantage, expected):
    np.testing.assert_allclose(surrogate([ratio], advantage)[0], [[expected]], rtol=1e-6)


def test_the_upper_clip_can_be_wider_than_the_lower():
    per_token, _ = surrogate([1.5, 1.25, 0.5], 1.0, clip_high=0.4)
    np.testing.assert_allclose(per_token, [[-1.4, -1.25, -0.5]], rtol=1e-6)
    per_token, _ = surrogate([0.5], -1.0, clip_high=0.4)
    np.testing.assert_allclose(per_token, [[0.8]], rtol=1e-6)


def test_no_gradient_once_a_ratio_is_past_its_clip():
    grad = jax.grad(lambda r: surrogate(r, 1.0)[0].sum())(jnp.array([1.5, 1.1]))
    assert grad[0] == 0.0
    np.testing.assert_allclose(grad[1], -1.0, rtol=1e-6)


def test_metrics_are_sums_with_their_weights():
    _, metrics = surrogate([1.5, 1.0, 0.5], 1.0)
    np.testing.assert_allclose(metrics["clip_fraction"], (1.0, 3.0))
    expected_kl = (0.5 - np.log(1.5)) + 0.0 + (-0.5 - np.log(0.5))
    np.testing.assert_allclose(metrics["approx_kl"], (expected_kl, 3.0), rtol=1e-6)


def test_metrics_of_an_empty_mask_have_no_weight():
    _, metrics = surrogate([1.5], 1.0, mask=[False])
    for total, weight in metrics.values():
        assert (float(total), float(weight)) == (0.0, 0.0)


@pytest.mark.parametrize("name", losses.IMPORTANCE_RATIOS)
def test_masked_positions_change_neither_value_nor_gradient(name):
    mask = jnp.array([[True, False]])

    def loss(logps):
        log_ratio = losses.IMPORTANCE_RATIOS[name](logps, jnp.array([[0.0, jnp.nan]]), mask)
        per_token, _ = losses.clipped_surrogate(log_ratio, jnp.ones((1, 2)), mask, **CLIP)
        return aggregation.token_mean(per_token, mask, max_length=2)[0]

    value, grad = jax.value_and_grad(loss)(jnp.array([[0.1, jnp.inf]]))
    np.testing.assert_allclose(value, -np.exp(0.1), rtol=1e-6)
    np.testing.assert_allclose(grad, [[-np.exp(0.1), 0.0]], rtol=1e-6)


def test_a_token_ratio_is_the_difference_of_log_probabilities():
    logps, old = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -1.0]])
    mask = jnp.ones((1, 2), bool)
    np.testing.assert_allclose(losses.token_log_ratio(logps, old, mask), [[0.5, -1.0]])


def test_a_broken_log_ratio_is_clamped_and_carries_no_gradient():
    mask = jnp.ones((1, 1), bool)
    value, grad = jax.value_and_grad(
        lambda x: losses.token_log_ratio(x, jnp.full((1, 1), -1e4), mask).sum()
    )(jnp.zeros((1, 1)))
    assert value == kl.MAX_LOG_RATIO
    assert grad[0, 0] == 0.0


def test_a_sequence_ratio_is_the_mean_over_its_own_length():
    # Lengths 2 and 1: means (0.5 - 1.5) / 2 and 0.3.
    logps = jnp.array([[0.5, -1.5, 9.0], [0.3, 9.0, 9.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    result = losses.sequence_log_ratio(logps, jnp.zeros((2, 3)), mask)
    np.testing.assert_allclose(result, [[-0.5, -0.5, 0.0], [0.3, 0.0, 0.0]], rtol=1e-6)


def test_a_sequence_ratio_gives_every_token_its_own_gradient():
    # d/dlogp_t of sum_t' s * a_t' is s * a_t: a token feels its own weight only.
    mask, weights = jnp.ones((1, 2), bool), jnp.array([[2.0, 3.0]])

    def weighted(logps):
        log_ratio = losses.sequence_log_ratio(logps, jnp.zeros((1, 2)), mask)
        return (jnp.exp(log_ratio) * weights).sum()

    grad = jax.grad(weighted)(jnp.array([[0.2, 0.4]]))
    np.testing.assert_allclose(grad, np.exp(0.3) * np.array([[2.0, 3.0]]), rtol=1e-6)


def test_all_tokens_of_a_sequence_are_clipped_together():
    # The mean log-ratio is past the clip, although the second token alone is not.
    mask = jnp.ones((1, 2), bool)

    def loss(logps):
        log_ratio = losses.sequence_log_ratio(logps, jnp.zeros((1, 2)), mask)
        return losses.clipped_surrogate(log_ratio, jnp.ones((1, 2)), mask, **CLIP)[0].sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.array([[0.9, 0.0]])), [[0.0, 0.0]])
