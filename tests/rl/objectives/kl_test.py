import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl.objectives import kl

LOG2 = float(np.log(2.0))


def at(estimator, log_ratio):
    """Value for ``log p - log q = log_ratio``."""
    return float(estimator(jnp.array([log_ratio]), jnp.zeros(1))[0])


@pytest.mark.parametrize(
    ("estimator", "log_ratio", "expected"),
    [
        pytest.param(kl.k1, LOG2, LOG2, id="k1 is the log-ratio"),
        pytest.param(kl.k1, -LOG2, -LOG2, id="k1 may be negative"),
        pytest.param(kl.k2, LOG2, LOG2**2 / 2, id="k2 is half the square"),
        pytest.param(kl.k1, 19.5, 19.5, id="just within the clamp"),
        pytest.param(kl.k1, 20.5, 20.0, id="k1 is clamped to 20"),
        pytest.param(kl.k1, -20.5, -20.0, id="on both sides"),
        pytest.param(kl.k3, LOG2, 0.5 - 1.0 + LOG2, id="k3 where the policy is likelier"),
        pytest.param(kl.k3, -LOG2, 2.0 - 1.0 - LOG2, id="k3 where the policy is less likely"),
        pytest.param(kl.k3, 0.0, 0.0, id="k3 is zero where both agree"),
    ],
)
def test_value_of_one_token(estimator, log_ratio, expected):
    np.testing.assert_allclose(at(estimator, log_ratio), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        pytest.param(kl.k1, 1.0, id="k1 pushes every token alike"),
        pytest.param(kl.k2, LOG2, id="k2 pushes by the log-ratio"),
        pytest.param(kl.k3, 1.0 - 0.5, id="k3 pushes by 1 - q/p"),
    ],
)
def test_gradient_of_one_token(estimator, expected):
    grad = jax.grad(lambda x: estimator(x, jnp.zeros(1)).sum())(jnp.array([LOG2]))
    np.testing.assert_allclose(grad, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", kl.KL_ESTIMATORS)
def test_a_broken_token_stays_finite(name):
    estimator = kl.KL_ESTIMATORS[name]
    logps = jnp.array([-1e4, 0.0])
    ref = jnp.array([0.0, -1e4])
    value, grad = jax.value_and_grad(lambda x: estimator(x, ref).sum())(logps)
    assert np.isfinite(value)
    assert np.all(np.asarray(grad) == 0.0)


def test_google_tunixs_names_are_known():
    # Its numbers, for log-ratios of 0.5 and -1.
    values = {
        name: kl.KL_ESTIMATORS[name](jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0]))
        for name in ("kl", "mse_kl", "low_var_kl")
    }
    np.testing.assert_allclose(values["kl"], [0.5, -1.0], rtol=1e-6)
    np.testing.assert_allclose(values["mse_kl"], [0.125, 0.5], rtol=1e-6)
    np.testing.assert_allclose(values["low_var_kl"], [0.10653067, 0.71828175], rtol=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_mean_over_samples_is_the_kl(name):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    expected = float((p * np.log(p / q)).sum())
    values = kl.KL_ESTIMATORS[name](jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(float((p * values).sum()), expected, rtol=1e-5)
