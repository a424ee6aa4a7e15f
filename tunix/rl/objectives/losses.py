"""Policy-gradient losses as pure functions of arrays.

Nothing here knows about models, meshes, tokenizers or configs: a loss takes the
log-ratio of the policy being trained to the one that sampled, and returns one loss
per token; :mod:`tunix.rl.objectives.aggregation` says what each weighs. Metrics are
(sum, weight) pairs, like the loss. Axis: ``N`` tokens, of several sequences one after the other.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from tunix.rl.objectives import kl

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]

ImportanceFn = Callable[..., Float[Array, " N"]]
"""``fn(logps, old_logps, mask, *, sequence) -> log-ratio``, where arrays are ``[N]`` and
``sequence`` says which sequence each token belongs to (see :func:`sequence_sum`)."""

PolicyLossFn = Callable[..., tuple[Float[Array, " N"], Metrics]]
"""``fn(log_ratio, advantages, mask, *, clip_low, clip_high) -> (losses, metrics)``, where arrays
are ``[N]``; ``clip_dual`` comes too where the settings ask for it."""


def masked_sum(
    x: Float[Array, " N"], mask: Bool[Array, " N"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of ``x`` where ``mask`` holds, and how often it holds."""
    return jnp.where(mask, x, 0.0).sum(), mask.sum().astype(jnp.float32)


def sequence_sum(x: Float[Array, " N"], sequence: Int[Array, " N"]) -> Float[Array, " N"]:
    """Return at every token the sum over its sequence, whose ids are below ``N`` and rise."""
    sums = jax.ops.segment_sum(x, sequence, num_segments=x.shape[0], indices_are_sorted=True)
    return sums[sequence]


def token_log_ratio(
    logps: Float[Array, " N"],
    old_logps: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"] | None = None,
) -> Float[Array, " N"]:
    """Return each token's own log-ratio, 0 outside the mask (PPO, GRPO)."""
    del sequence
    # Mask the inputs, not only the result: 0 * NaN is NaN in the backward pass.
    return kl.clamp_log_ratio(jnp.where(mask, logps - old_logps, 0.0))


def sequence_log_ratio(
    logps: Float[Array, " N"],
    old_logps: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"],
) -> Float[Array, " N"]:
    """Return the sequence's mean log-ratio at every token, with the token's own gradient.

    The length-normalised sequence ratio ``s`` of GSPO in its token form,
    ``sg[s] * p / sg[p]`` (Zheng et al., 2025, arXiv:2507.18071, eqs. 7 and 13-14):
    all tokens of a sequence are clipped together, and each pushes only itself, with its own
    advantage.
    """
    own = token_log_ratio(logps, old_logps, mask)
    at_zero = own - jax.lax.stop_gradient(own)
    return jnp.where(mask, jax.lax.stop_gradient(_mean(own, mask, sequence)) + at_zero, 0.0)


def sequence_mean_log_ratio(
    logps: Float[Array, " N"],
    old_logps: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"],
) -> Float[Array, " N"]:
    """Return the sequence's mean log-ratio at every token, with the gradient of the mean.

    GSPO itself (arXiv:2507.18071, eqs. 5-7). Where all tokens of a sequence have one advantage,
    loss and gradient are those of the token form.
    """
    own = token_log_ratio(logps, old_logps, mask)
    return jnp.where(mask, _mean(own, mask, sequence), 0.0)


def clipped_surrogate(
    log_ratio: Float[Array, " N"],
    advantages: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float | None = None,
) -> tuple[Float[Array, " N"], Metrics]:
    """Return the clipped surrogate loss of every token.

    With ``r = exp(log_ratio)`` the loss of one token is
    ``-min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)``, so a token whose
    ratio has already moved past the clip in the direction its advantage asks
    for contributes no gradient (Schulman et al., 2017, arXiv:1707.06347, eq. 7;
    the asymmetric clip is DAPO's, arXiv:2503.14476, eq. 10).

    Args:
        log_ratio: Log of the importance ratio; 0 outside the mask.
        advantages: Advantage of each token.
        mask: True where a token was sampled by the policy and its log-probability
            computed; decides only what the metrics count.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far the ratio may rise above 1.
        clip_dual: Bounds the loss of a token of negative advantage to ``-clip_dual * A``,
            however large its ratio (dual clip: Ye et al., 2019, arXiv:1912.09729, eq. 5).

    Returns:
        The loss of every token (meaningless outside the mask), and ``clip_fraction``,
        ``clip_fraction_low`` and ``clip_fraction_high`` (its parts), ``clip_fraction_dual``
        where there is a dual clip, and ``approx_kl`` (k3, from the old policy) for logging.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    unclipped_gain, clipped_gain = ratio * advantages, clipped * advantages
    gain = jnp.minimum(unclipped_gain, clipped_gain)
    is_clipped = clipped_gain < unclipped_gain
    metrics = _clip_metrics(is_clipped, log_ratio, mask)
    if clip_dual is not None:
        bound = clip_dual * advantages
        is_bounded = (advantages < 0.0) & (gain < bound)
        metrics["clip_fraction_dual"] = masked_sum(is_bounded.astype(jnp.float32), mask)
        gain = jnp.where(is_bounded, bound, gain)
    return -gain, metrics


def clipped_importance(
    log_ratio: Float[Array, " N"],
    advantages: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, " N"], Metrics]:
    """Return the loss of every token, whose importance ratio is clipped and not learned from.

    The gradient is that of ``-sg[clip(r, 1 - clip_low, 1 + clip_high)] * A * log p``: unlike
    under the surrogate, no token is ever without gradient (CISPO: MiniMax, 2025,
    arXiv:2506.13585, eqs. 4-5; ``clip_low`` of 1 is no lower bound, as there). The value is
    ``-clip(r) * A``.

    Args:
        log_ratio: Log of the importance ratio; 0 outside the mask.
        advantages: Advantage of each token.
        mask: True where a token was sampled; decides only what the metrics count.
        clip_low: How far the weight may fall below 1.
        clip_high: How far the weight may rise above 1.

    Returns:
        The loss of every token (meaningless outside the mask), and metrics as of
        :func:`clipped_surrogate`; ``clip_fraction`` counts clipped weights.
    """
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    weight = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    one = 1.0 + log_ratio - jax.lax.stop_gradient(log_ratio)
    return -weight * advantages * one, _clip_metrics(weight != ratio, log_ratio, mask)


def clipped_value(
    values: Float[Array, " N"],
    old_values: Float[Array, " N"],
    returns: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    clip_range: float | None,
) -> tuple[Float[Array, " N"], Metrics]:
    """Return half the squared error of every value, clipped like a policy.

    ``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2``: a value that has already moved
    by ``c`` towards its return has no gradient (Engstrom et al., 2020, arXiv:2005.12729, section
    3, item 1, after the PPO of OpenAI Baselines).

    Args:
        values: Values that are being learned.
        old_values: Values at the rollout.
        returns: What they should be; a constant.
        mask: True where a token was sampled; the rest may hold anything.
        clip_range: ``c``; ``None`` does not clip.

    Returns:
        The loss of every token, 0 outside the mask; ``value_mean``, ``return_mean``,
        ``value_error`` (the squared error) and, if clipped, ``value_clip_fraction``.
    """
    values, old_values, returns = (
        jnp.where(mask, x, 0.0) for x in (values, old_values, jax.lax.stop_gradient(returns))
    )
    error = jnp.square(values - returns)
    metrics = {
        "value_mean": masked_sum(values, mask),
        "return_mean": masked_sum(returns, mask),
        "value_error": masked_sum(error, mask),
    }
    if clip_range is None:
        return 0.5 * error, metrics
    old_values = jax.lax.stop_gradient(old_values)
    clipped = jnp.clip(values, old_values - clip_range, old_values + clip_range)
    clipped_error = jnp.square(clipped - returns)
    is_clipped = (clipped_error > error).astype(jnp.float32)
    metrics["value_clip_fraction"] = masked_sum(is_clipped, mask)
    return 0.5 * jnp.maximum(error, clipped_error), metrics


def _mean(
    x: Float[Array, " N"], mask: Bool[Array, " N"], sequence: Int[Array, " N"]
) -> Float[Array, " N"]:
    """Return each sequence's mean over its mask, 0 for an empty one; ``x`` is 0 outside it."""
    counts = sequence_sum(mask.astype(jnp.float32), sequence)
    return sequence_sum(x, sequence) / jnp.maximum(counts, 1.0)


def _clip_metrics(
    is_clipped: Bool[Array, " N"], log_ratio: Float[Array, " N"], mask: Bool[Array, " N"]
) -> Metrics:
    sides = {
        "clip_fraction": is_clipped,
        "clip_fraction_low": is_clipped & (log_ratio < 0.0),
        "clip_fraction_high": is_clipped & (log_ratio > 0.0),
    }
    shares = {name: masked_sum(x.astype(jnp.float32), mask) for name, x in sides.items()}
    moved = jax.lax.stop_gradient(jnp.expm1(log_ratio) - log_ratio)
    return shares | {"approx_kl": masked_sum(moved, mask)}


IMPORTANCE_RATIOS: Mapping[str, ImportanceFn] = {
    "grpo": token_log_ratio,
    "gspo": sequence_mean_log_ratio,
    "gspo-token": sequence_log_ratio,
}

POLICY_LOSSES: Mapping[str, PolicyLossFn] = {
    "grpo": clipped_surrogate,
    "ppo": clipped_surrogate,
    "cispo": clipped_importance,
}
