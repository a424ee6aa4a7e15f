"""Policy-gradient losses as pure functions of arrays.

Nothing here knows about models, meshes, tokenizers or configs: a loss takes the
log-ratio of the policy being trained to the one that sampled, and returns one loss
per token; :mod:`tunix.rl.aggregation` turns those into a number. Metrics are
(sum, weight) pairs, like the loss. Axes: ``S`` sequences, ``C`` completion tokens.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from tunix.rl import kl

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]

ImportanceFn = Callable[
    [Float[Array, "S C"], Float[Array, "S C"], Bool[Array, "S C"]], Float[Array, "S C"]
]
"""``fn(logps, old_logps, mask) -> log-ratio``."""

PolicyLossFn = Callable[..., tuple[Float[Array, "S C"], Metrics]]
"""``fn(log_ratio, advantages [S], mask, *, clip_low, clip_high) -> (losses, metrics)``."""


def masked_sum(
    x: Float[Array, "S C"], mask: Bool[Array, "S C"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of ``x`` where ``mask`` holds, and how often it holds."""
    return jnp.where(mask, x, 0.0).sum(), mask.sum().astype(jnp.float32)


def token_log_ratio(
    logps: Float[Array, "S C"], old_logps: Float[Array, "S C"], mask: Bool[Array, "S C"]
) -> Float[Array, "S C"]:
    """Return each token's own log-ratio, 0 outside the mask (PPO, GRPO)."""
    # Mask the inputs, not only the result: 0 * NaN is NaN in the backward pass.
    return kl.clamp_log_ratio(jnp.where(mask, logps - old_logps, 0.0))


def sequence_log_ratio(
    logps: Float[Array, "S C"], old_logps: Float[Array, "S C"], mask: Bool[Array, "S C"]
) -> Float[Array, "S C"]:
    """Return the sequence's mean log-ratio at every token, with the token's own gradient.

    The length-normalised sequence ratio ``s`` of GSPO in its token form,
    ``sg[s] * p / sg[p]`` (Zheng et al., 2025, arXiv:2507.18071, eqs. 7 and 13-14):
    all tokens of a sequence are clipped together, and each pushes only itself.
    """
    own = token_log_ratio(logps, old_logps, mask)
    lengths = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    mean = own.sum(axis=1, keepdims=True) / lengths
    at_zero = own - jax.lax.stop_gradient(own)
    return jnp.where(mask, jax.lax.stop_gradient(mean) + at_zero, 0.0)


def clipped_surrogate(
    log_ratio: Float[Array, "S C"],
    advantages: Float[Array, " S"],
    mask: Bool[Array, "S C"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, "S C"], Metrics]:
    """Return the clipped surrogate loss of every token.

    With ``r = exp(log_ratio)`` the loss of one token is
    ``-min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)``, so a token whose
    ratio has already moved past the clip in the direction its advantage asks
    for contributes no gradient (Schulman et al., 2017, arXiv:1707.06347, eq. 7;
    the asymmetric clip is DAPO's, arXiv:2503.14476, eq. 10).

    Args:
        log_ratio: Log of the importance ratio; 0 outside the mask.
        advantages: Advantage of each sequence, the same for all its tokens.
        mask: True where a token was sampled by the policy and its log-probability
            computed; decides only what the metrics count.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far the ratio may rise above 1.

    Returns:
        The loss of every token (meaningless outside the mask), and
        ``clip_fraction`` / ``approx_kl`` (k3, from the old policy) for logging.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    unclipped_gain = ratio * advantages[:, None]
    clipped_gain = clipped * advantages[:, None]

    is_clipped = (clipped_gain < unclipped_gain).astype(jnp.float32)
    metrics = {
        "clip_fraction": masked_sum(is_clipped, mask),
        "approx_kl": masked_sum(jax.lax.stop_gradient(ratio - 1.0 - log_ratio), mask),
    }
    return -jnp.minimum(unclipped_gain, clipped_gain), metrics


def sampler_mismatch(
    logps: Float[Array, "S C"], sampler_logps: Float[Array, "S C"], mask: Bool[Array, "S C"]
) -> tuple[Metrics, dict[str, Float[Array, ""]]]:
    """Return how far the trainer's log-probabilities are from the sampler's.

    Both should be the same number: a difference before the first update means that
    the two do not compute the same policy, and that every ratio is off by as much.

    Returns:
        Sums with weights: ``mismatch_abs``, the absolute difference, and ``mismatch_kl``,
        KL(sampler || trainer) estimated with k3. And ``mismatch_max``, the largest difference.
    """
    difference = jax.lax.stop_gradient(token_log_ratio(logps, sampler_logps, mask))
    size = jnp.abs(difference)
    sums = {
        "mismatch_abs": masked_sum(size, mask),
        "mismatch_kl": masked_sum(jnp.expm1(difference) - difference, mask),
    }
    return sums, {"mismatch_max": size.max(initial=0.0)}


IMPORTANCE_RATIOS: Mapping[str, ImportanceFn] = {
    "grpo": token_log_ratio,
    "gspo-token": sequence_log_ratio,
}

POLICY_LOSSES: Mapping[str, PolicyLossFn] = {"grpo": clipped_surrogate}
