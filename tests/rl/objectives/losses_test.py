import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl.objectives import aggregation, kl, losses

CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def ids(*lengths):
    """Which sequence each token belongs to."""
    return jnp.repeat(jnp.arange(len(lengths)), jnp.asarray(lengths))


def mean_of_sequences(per_token, lengths):
    """The sum over sequences of the mean over their tokens."""
    weights, _ = aggregation.sequence_mean_token_mean(np.asarray(lengths), max_length=9)
    return (per_token * np.repeat(weights, lengths)).sum()


def surrogate(ratio, advantage, mask=None, **clip):
    """Loss per token of one sequence, given its importance ratios."""
    log_ratio = jnp.log(jnp.asarray(ratio))
    mask = jnp.ones(log_ratio.shape, bool) if mask is None else jnp.asarray(mask)
    return losses.clipped_surrogate(
        log_ratio, jnp.full(log_ratio.shape, advantage), mask, **{**CLIP, **clip}
    )


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
    np.testing.assert_allclose(surrogate([ratio], advantage)[0], [expected], rtol=1e-6)


def test_the_upper_clip_can_be_wider_than_the_lower():
    per_token, _ = surrogate([1.5, 1.25, 0.5], 1.0, clip_high=0.4)
    np.testing.assert_allclose(per_token, [-1.4, -1.25, -0.5], rtol=1e-6)
    per_token, _ = surrogate([0.5], -1.0, clip_high=0.4)
    np.testing.assert_allclose(per_token, [0.8], rtol=1e-6)


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
    mask = jnp.array([True, False])

    def loss(logps):
        log_ratio = losses.IMPORTANCE_RATIOS[name](
            logps, jnp.array([0.0, jnp.nan]), mask, sequence=ids(2)
        )
        per_token, _ = losses.clipped_surrogate(log_ratio, jnp.ones(2), mask, **CLIP)
        return jnp.where(mask, per_token, 0.0).sum()

    value, grad = jax.value_and_grad(loss)(jnp.array([0.1, jnp.inf]))
    np.testing.assert_allclose(value, -np.exp(0.1), rtol=1e-6)
    np.testing.assert_allclose(grad, [-np.exp(0.1), 0.0], rtol=1e-6)


def test_a_token_ratio_is_the_difference_of_log_probabilities():
    logps, old = jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0])
    mask = jnp.ones(2, bool)
    np.testing.assert_allclose(losses.token_log_ratio(logps, old, mask), [0.5, -1.0])


def test_a_broken_log_ratio_is_clamped_and_carries_no_gradient():
    mask = jnp.ones(1, bool)
    value, grad = jax.value_and_grad(
        lambda x: losses.token_log_ratio(x, jnp.full(1, -1e4), mask).sum()
    )(jnp.zeros(1))
    assert value == kl.MAX_LOG_RATIO
    assert grad[0] == 0.0


def test_a_sequence_ratio_is_the_mean_over_its_own_length():
    # Lengths 2 and 1: means (0.5 - 1.5) / 2 and 0.3.
    logps = jnp.array([0.5, -1.5, 0.3, 9.0, 9.0])
    mask = jnp.array([True, True, True, False, False])
    for ratio in (losses.sequence_log_ratio, losses.sequence_mean_log_ratio):
        result = ratio(logps, jnp.zeros(5), mask, sequence=jnp.array([0, 0, 1, 4, 4]))
        np.testing.assert_allclose(result, [-0.5, -0.5, 0.3, 0.0, 0.0], rtol=1e-6)


def test_a_sequence_ratio_gives_every_token_its_own_gradient():
    # d/dlogp_t of sum_t' s * a_t' is s * a_t: a token feels its own weight only.
    mask, weights = jnp.ones(2, bool), jnp.array([2.0, 3.0])

    def weighted(logps):
        log_ratio = losses.sequence_log_ratio(logps, jnp.zeros(2), mask, sequence=ids(2))
        return (jnp.exp(log_ratio) * weights).sum()

    grad = jax.grad(weighted)(jnp.array([0.2, 0.4]))
    np.testing.assert_allclose(grad, np.exp(0.3) * np.array([2.0, 3.0]), rtol=1e-6)


def test_all_tokens_of_a_sequence_are_clipped_together():
    # The mean log-ratio is past the clip, although the second token alone is not.
    mask = jnp.ones(2, bool)

    def loss(logps):
        log_ratio = losses.sequence_log_ratio(logps, jnp.zeros(2), mask, sequence=ids(2))
        return losses.clipped_surrogate(log_ratio, jnp.ones(2), mask, **CLIP)[0].sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.array([0.9, 0.0])), [0.0, 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        pytest.param(10.0, -1.0, 3.0, id="the loss of a bad token made likely is bounded"),
        pytest.param(2.0, -1.0, 2.0, id="below the bound nothing changes"),
        pytest.param(0.5, -1.0, 0.8, id="the lower clip stays"),
        pytest.param(10.0, 1.0, -1.2, id="a good token is clipped as ever"),
    ],
)
def test_dual_clip_of_one_token(ratio, advantage, expected):
    per_token, _ = surrogate([ratio], advantage, clip_dual=3.0)
    np.testing.assert_allclose(per_token, [expected], rtol=1e-5)


def test_a_token_beyond_the_dual_clip_has_no_gradient():
    def loss(ratio, **clip):
        return surrogate(ratio, -1.0, **clip)[0].sum()

    assert jax.grad(loss)(jnp.array([10.0]))[0] == 1.0
    assert jax.grad(lambda r: loss(r, clip_dual=3.0))(jnp.array([10.0]))[0] == 0.0
    _, metrics = surrogate([10.0, 1.0], -1.0, clip_dual=3.0)
    np.testing.assert_allclose(metrics["clip_fraction_dual"], (1.0, 2.0))


def test_a_token_exactly_at_the_dual_clip_is_not_beyond_it():
    def loss(log_ratio):
        advantages, mask = jnp.array([-1.0]), jnp.ones(1, bool)
        found, metrics = losses.clipped_surrogate(
            log_ratio, advantages, mask, clip_dual=1.0, **CLIP
        )
        return found.sum(), metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.zeros(1))
    assert (float(value), float(gradient[0])) == (1.0, 1.0)
    np.testing.assert_array_equal(metrics["clip_fraction_dual"], (0.0, 1.0))


def test_clip_fractions_tell_the_sides_apart():
    log_ratio = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
    advantages = jnp.array([1.0, -1.0, 1.0, -1.0])
    mask = jnp.ones(4, bool)
    _, metrics = losses.clipped_surrogate(log_ratio, advantages, mask, **CLIP)
    np.testing.assert_allclose(metrics["clip_fraction"], (2.0, 4.0))
    np.testing.assert_allclose(metrics["clip_fraction_high"], (1.0, 4.0))
    np.testing.assert_allclose(metrics["clip_fraction_low"], (1.0, 4.0))


def written_out_surrogate(ratio, advantage, low, high, dual):
    """The loss and its derivative by the log-ratio, as TRL and verl write them, in NumPy."""
    first, second = -advantage * ratio, -advantage * np.clip(ratio, 1 - low, 1 + high)
    loss = np.maximum(first, second)
    slope = np.where(first >= second, first, 0.0)
    bounded = (advantage < 0) & (loss > -advantage * dual)
    return np.where(bounded, -advantage * dual, loss), np.where(bounded, 0.0, slope)


def test_values_and_gradients_are_those_of_the_formula_written_out():
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(scale=0.8, size=42).astype(np.float32)
    advantages = rng.normal(size=42).astype(np.float32)
    mask = jnp.ones(42, bool)

    def loss(x):
        options = {"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 2.0}
        per_token, _ = losses.clipped_surrogate(x, jnp.asarray(advantages), mask, **options)
        return per_token.sum(), per_token

    (_, values), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(log_ratio))
    ratio = np.exp(log_ratio.astype(np.float64))
    expected, slope = written_out_surrogate(ratio, advantages, 0.2, 0.28, 2.0)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-6)


def test_cispo_weighs_the_gradient_of_the_log_probability():
    # d/dlogp of -sg[clip(r)] * A * logp is -clip(r) * A: no token is without gradient.
    ratio, advantages = np.array([5.0, 1.1, 0.1]), jnp.array([1.0, -2.0, 3.0])
    mask = jnp.ones(3, bool)

    def loss(x):
        return losses.clipped_importance(x, advantages, mask, clip_low=1.0, clip_high=1.0)[0].sum()

    value, gradient = jax.value_and_grad(loss)(jnp.log(jnp.asarray(ratio, jnp.float32)))
    np.testing.assert_allclose(gradient, [-2.0, 2.2, -0.3], rtol=1e-6)
    np.testing.assert_allclose(value, -2.0 + 2.2 - 0.3, rtol=1e-5)


def test_cispo_can_bound_the_weight_from_below():
    _, metrics = losses.clipped_importance(
        jnp.log(jnp.array([0.1, 1.0])), jnp.ones(2), jnp.ones(2, bool), **CLIP
    )
    np.testing.assert_allclose(metrics["clip_fraction_low"], (1.0, 2.0))


def test_gspo_and_its_token_form_agree_where_a_sequence_has_one_advantage():
    rng = np.random.default_rng(3)
    logps, mask = jnp.asarray(rng.normal(size=10), jnp.float32), jnp.ones(10, bool)
    advantages = jnp.repeat(jnp.array([1.0, -0.5, 2.0]), jnp.array([5, 2, 3]))

    def gradient(name, advantages):
        def loss(logps):
            log_ratio = losses.IMPORTANCE_RATIOS[name](
                logps, jnp.zeros(10), mask, sequence=ids(5, 2, 3)
            )
            per_token, _ = losses.clipped_surrogate(
                log_ratio, advantages, mask, clip_low=0.4, clip_high=0.4
            )
            return mean_of_sequences(per_token, [5, 2, 3])

        return jax.grad(loss)(logps)

    np.testing.assert_allclose(
        gradient("gspo", advantages), gradient("gspo-token", advantages), rtol=1e-5, atol=1e-7
    )
    # Where tokens differ, only the token form pushes each by its own.
    uneven = advantages.at[5].set(3.0)
    assert np.abs(gradient("gspo", uneven) - gradient("gspo-token", uneven)).max() > 1e-2


def test_gspo_is_the_formula_written_out():
    # s = exp(mean log-ratio): lengths 2 and 1; d s / d logp_t = s / length.
    def loss(logps):
        mask = jnp.ones(3, bool)
        log_ratio = losses.sequence_mean_log_ratio(logps, jnp.zeros(3), mask, sequence=ids(2, 1))
        per_token, _ = losses.clipped_surrogate(
            log_ratio, jnp.ones(3), mask, clip_low=0.5, clip_high=0.5
        )
        return mean_of_sequences(per_token, [2, 1])

    value, gradient = jax.value_and_grad(loss)(jnp.array([0.3, -0.1, 0.2]))
    first, second = np.exp(0.1), np.exp(0.2)
    np.testing.assert_allclose(value, -first - second, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-first / 2, -first / 2, -second], rtol=1e-6)


def value_loss(value, old, returns, clip_range):
    shape = (1,)
    return losses.clipped_value(
        jnp.full(shape, value),
        jnp.full(shape, old),
        jnp.full(shape, returns),
        jnp.ones(shape, bool),
        clip_range=clip_range,
    )[0][0]


@pytest.mark.parametrize(
    ("value", "clip_range", "expected", "slope"),
    [
        pytest.param(0.1, 0.2, 0.5 * 0.9**2, -0.9, id="within the clip: half the square"),
        pytest.param(0.5, 0.2, 0.5 * 0.8**2, 0.0, id="moved towards the return: no gradient"),
        pytest.param(-0.5, 0.2, 0.5 * 1.5**2, -1.5, id="moved away: not clipped"),
        pytest.param(0.5, None, 0.5 * 0.5**2, -0.5, id="no clip"),
    ],
)
def test_value_loss_of_one_token(value, clip_range, expected, slope):
    found, gradient = jax.value_and_grad(value_loss)(value, 0.0, 1.0, clip_range)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_values_that_the_clip_decides_are_counted():
    # Values 0.1, 0.5, -0.5 around an old value of 0, return 1, clip 0.2: only the second, whose
    # clipped error 0.8 ** 2 exceeds 0.5 ** 2, is decided by the clip.
    values, zeros = jnp.array([0.1, 0.5, -0.5, 9.0]), jnp.zeros(4)
    mask = jnp.array([True, True, True, False])
    _, metrics = losses.clipped_value(values, zeros, zeros + 1.0, mask, clip_range=0.2)
    np.testing.assert_allclose(metrics["value_clip_fraction"], (1.0, 3.0))
    np.testing.assert_allclose(metrics["value_error"], (0.81 + 0.25 + 2.25, 3.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["value_mean"], (0.1, 3.0), rtol=1e-5)


def test_padding_of_the_value_loss_may_be_nan():
    mask = jnp.array([True, False])
    bad = jnp.array([0.5, jnp.nan])

    def loss(values):
        per_token, metrics = losses.clipped_value(values, bad, bad, mask, clip_range=0.2)
        return per_token.sum(), metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(bad)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
    np.testing.assert_allclose(metrics["return_mean"], (0.5, 1.0))
