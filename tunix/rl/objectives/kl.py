"""Per-token estimators of KL(policy || reference) from samples of the policy.

All take log-probabilities of the sampled tokens only; see Schulman, "Approximating
KL Divergence" (2020, http://joschu.net/blog/kl-approx.html) for the names. The
log-ratio is clamped first, so that one broken token cannot overflow ``exp`` and
poison a batch. Axis: ``N`` tokens.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ±20 (``exp(20)`` is about 5e8, far beyond any healthy ratio)."""

KLEstimator = Callable[[Float[Array, " N"], Float[Array, " N"]], Float[Array, " N"]]


def clamp_log_ratio(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the log-ratio limited to ``±MAX_LOG_RATIO``; no gradient beyond the limit."""
    return jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def k1(logps: Float[Array, " N"], ref_logps: Float[Array, " N"]) -> Float[Array, " N"]:
    """Return ``log p - log q``: unbiased, high variance, may be negative."""
    return clamp_log_ratio(logps - ref_logps)


def k2(logps: Float[Array, " N"], ref_logps: Float[Array, " N"]) -> Float[Array, " N"]:
    """Return ``(log p - log q)² / 2``: biased, low variance; its gradient is that of the KL."""
    return 0.5 * jnp.square(clamp_log_ratio(logps - ref_logps))


def k3(logps: Float[Array, " N"], ref_logps: Float[Array, " N"]) -> Float[Array, " N"]:
    """Return ``q/p - 1 - log(q/p)``: unbiased, low variance, never negative."""
    log_ratio = clamp_log_ratio(ref_logps - logps)
    return jnp.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: Mapping[str, KLEstimator] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "kl": k1,
    "mse_kl": k2,
    "low_var_kl": k3,
}
"""By Schulman's names, and by those of google-tunix."""
