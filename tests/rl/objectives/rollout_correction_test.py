import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl.objectives import kl, rollout_correction

LOG2, LOG3 = np.log(2.0), np.log(3.0)
# Ratios 2, 1/3 | 3, 3 and padding.
LOG_RATIO = jnp.array([[LOG2, -LOG3, jnp.nan], [LOG3, LOG3, 7.0]], jnp.float32)
MASK = jnp.array([[True, True, False], [True, True, False]])


def by_rows(fn, log_ratio, mask, limit):
    """The weights of sequences that lie in rows."""
    sequence = jnp.repeat(jnp.arange(log_ratio.shape[0]), log_ratio.shape[1])
    flat = fn(log_ratio.ravel(), mask.ravel(), sequence=sequence, limit=limit)
    return flat.reshape(log_ratio.shape)


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        pytest.param("truncated-token", 2.5, [[2, 1 / 3], [2.5, 2.5]], id="each token capped"),
        pytest.param("truncated-sequence", 5.0, [[2 / 3, 2 / 3], [5, 5]], id="product capped"),
        pytest.param("masked-token", 2.5, [[2, 0], [0, 0]], id="tokens outside dropped"),
        pytest.param("masked-sequence", 2.5, [[2 / 3, 2 / 3], [0, 0]], id="sequences dropped"),
    ],
)
def test_weights_worked_out_by_hand(name, limit, expected):
    weights = by_rows(rollout_correction.ROLLOUT_CORRECTIONS[name], LOG_RATIO, MASK, limit)
    np.testing.assert_allclose(weights[:, :2], expected, rtol=1e-5)


@pytest.mark.parametrize("name", rollout_correction.ROLLOUT_CORRECTIONS)
def test_agreement_weighs_one_and_weights_are_constants(name):
    fn = rollout_correction.ROLLOUT_CORRECTIONS[name]
    np.testing.assert_array_equal(by_rows(fn, jnp.zeros((2, 3)), MASK, 1.0)[:, :2], 1.0)
    gradient = jax.grad(lambda x: by_rows(fn, x, MASK, 5.0).sum())(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("name", rollout_correction.ROLLOUT_CORRECTIONS)
def test_a_broken_token_stays_finite(name):
    fn = rollout_correction.ROLLOUT_CORRECTIONS[name]
    weights = by_rows(fn, jnp.full((1, 2), 1e4), jnp.ones((1, 2), bool), 2.0)
    assert np.all(np.isfinite(weights))


def expected_gradient(p_logits, q, reward, weigh):
    """E over the sampler's two-token draws of weight * reward * grad log p: exact, no sampling."""
    p = np.exp(p_logits) / np.exp(p_logits).sum()
    total = np.zeros_like(p)
    for a in range(3):
        for b in range(3):
            tokens = np.array([a, b])
            log_ratio = jnp.asarray(np.log(p[tokens] / q[tokens])[None], jnp.float32)
            weights = np.asarray(weigh(log_ratio, jnp.ones((1, 2), bool)))[0]
            for token, weight in zip(tokens, weights, strict=True):
                score = np.eye(3)[token] - p
                total += q[a] * q[b] * weight * reward[a] * reward[b] * score
    return total


def test_the_sequence_weight_restores_the_gradient_of_a_noisy_sampler():
    # A bandit of two draws from three arms; the sampler's probabilities are off by noise.
    logits, reward = np.array([0.3, -0.2, 0.5]), np.array([1.0, 0.2, 0.6])
    p = np.exp(logits) / np.exp(logits).sum()
    q = np.array([0.5, 0.3, 0.2])
    correct = expected_gradient(logits, p, reward, lambda r, m: jnp.ones(r.shape))
    biased = expected_gradient(logits, q, reward, lambda r, m: jnp.ones(r.shape))
    assert np.abs(biased - correct).max() > 0.05

    def restored(name, limit):
        fn = rollout_correction.ROLLOUT_CORRECTIONS[name]
        return expected_gradient(logits, q, reward, lambda r, m: by_rows(fn, r, m, limit))

    np.testing.assert_allclose(restored("truncated-sequence", 100.0), correct, atol=1e-6)
    np.testing.assert_allclose(restored("masked-sequence", 100.0), correct, atol=1e-6)
    # Weights of single tokens ignore what the others did: better than nothing, not exact.
    token = np.abs(restored("truncated-token", 100.0) - correct).max()
    assert 1e-3 < token < np.abs(biased - correct).max()
    # A tight limit costs exactness.
    assert np.abs(restored("truncated-sequence", 1.2) - correct).max() > 1e-3


def test_mismatch_is_measured_in_log_probability():
    logps, sampler = jnp.array([-1.0, -2.0, 5.0]), jnp.array([-1.0, -2.5, jnp.nan])
    mask = jnp.array([True, True, False])
    sums, maxima = rollout_correction.mismatch_metrics(logps, sampler, mask)
    np.testing.assert_allclose(sums["mismatch_abs"], (0.5, 2.0), rtol=1e-6)
    np.testing.assert_allclose(sums["mismatch_kl"], (np.exp(0.5) - 1.5, 2.0), rtol=1e-5)
    np.testing.assert_allclose(sums["mismatch_weight"], (1 + np.exp(0.5), 2.0), rtol=1e-6)
    np.testing.assert_allclose(sums["mismatch_weight_square"], (1 + np.exp(1.0), 2.0), rtol=1e-6)
    np.testing.assert_allclose(maxima["mismatch_max"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(maxima["mismatch_ratio_max"], np.exp(0.5), rtol=1e-6)


def test_the_effective_sample_size_of_equal_weights_is_all_of_them():
    assert rollout_correction.effective_sample_size(3.0, 9.0) == 1.0
    # Weights 1 and 3: 16 / (2 * 10).
    assert rollout_correction.effective_sample_size(2.0, 5.0) == 0.8
    assert rollout_correction.effective_sample_size(0.0, 0.0) == 0.0


def test_log_ratios_are_clamped_like_everywhere():
    sums, maxima = rollout_correction.mismatch_metrics(
        jnp.full(1, 1e4), jnp.zeros(1), jnp.ones(1, bool)
    )
    assert maxima["mismatch_max"] == kl.MAX_LOG_RATIO
    assert np.isfinite(sums["mismatch_weight_square"][0])
