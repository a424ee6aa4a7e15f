"""Weights that make up for a sampler whose probabilities are not quite the trainer's.

A completion drawn with probability ``q`` and learned as if drawn with ``p`` biases the
gradient; weighing it with ``w = p / q`` removes the bias, and limiting ``w`` bounds the
variance (Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy RL
training", https://fengyao.notion.site/off-policy-rl; Ionides, 2008, "Truncated importance
sampling"). Every function maps the log-ratio ``log p - log q`` of each token to a weight
of each token, a constant of the gradient. Axis: ``N`` tokens, of several sequences.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from tunix.rl.objectives import kl, losses

CorrectionFn = Callable[..., Float[Array, " N"]]
"""``fn(log_ratio [N], mask [N], *, sequence, limit) -> weights [N]``, where ``sequence`` says which
sequence each token belongs to (see :func:`tunix.rl.objectives.losses.sequence_sum`)."""


def truncated_token(
    log_ratio: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"],
    limit: float,
) -> Float[Array, " N"]:
    """Return ``min(w, limit)`` of each token's own ratio: biased, of bounded variance."""
    del sequence
    return jnp.minimum(_weights(log_ratio, mask), limit)


def truncated_sequence(
    log_ratio: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"],
    limit: float,
) -> Float[Array, " N"]:
    """Return ``min(w, limit)`` of the whole sequence at each of its tokens.

    The product of the tokens' ratios: without the limit exactly unbiased, but of a variance
    that grows with the length.
    """
    return jnp.minimum(_weights(_summed(log_ratio, mask, sequence), mask), limit)


def masked_token(
    log_ratio: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"],
    limit: float,
) -> Float[Array, " N"]:
    """Return ``w`` of each token, and 0 where it lies outside ``[1 / limit, limit]``.

    A token on which the two disagree that much teaches nothing (IcePop: Ling team, 2025,
    "Small leak can sink a great ship").
    """
    del sequence
    return _masked(_weights(log_ratio, mask), limit)


def masked_sequence(
    log_ratio: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    sequence: Int[Array, " N"],
    limit: float,
) -> Float[Array, " N"]:
    """Return ``w`` of the whole sequence, and 0 where it lies outside ``[1 / limit, limit]``."""
    return _masked(_weights(_summed(log_ratio, mask, sequence), mask), limit)


def mismatch_metrics(
    logps: Float[Array, " N"], sampler_logps: Float[Array, " N"], mask: Bool[Array, " N"]
) -> tuple[dict[str, tuple[Float[Array, ""], Float[Array, ""]]], dict[str, Float[Array, ""]]]:
    """Return how far the trainer's log-probabilities are from the sampler's.

    Both should be the same number: a difference before the first update means that
    the two do not compute the same policy, and that every ratio is off by as much.

    Returns:
        Sums with weights: ``mismatch_abs``, the absolute difference of log-probabilities,
        ``mismatch_kl``, KL(sampler || trainer) estimated with k3, and ``mismatch_weight`` and
        ``mismatch_weight_square``, of which :func:`effective_sample_size` is made. Largest
        values: ``mismatch_max``, of the difference, and ``mismatch_ratio_max``.
    """
    difference = jax.lax.stop_gradient(_clamped(logps - sampler_logps, mask))
    size, weight = jnp.abs(difference), jnp.where(mask, jnp.exp(difference), 0.0)
    count = mask.sum().astype(jnp.float32)
    sums = {
        "mismatch_abs": size,
        "mismatch_kl": jnp.expm1(difference) - difference,
        "mismatch_weight": weight,
        "mismatch_weight_square": jnp.square(weight),
    }
    maxima = {
        "mismatch_max": size.max(initial=0.0),
        "mismatch_ratio_max": weight.max(initial=0.0),
    }
    return {name: (values.sum(), count) for name, values in sums.items()}, maxima


def effective_sample_size(mean_weight: float, mean_square: float) -> float:
    """Return the share of tokens that the weighted ones are worth, in (0, 1].

    Kish's ``(sum w)^2 / (n sum w^2)``; 1 if all weights are equal, 0 if there are none.
    """
    return mean_weight**2 / mean_square if mean_square > 0.0 else 0.0


def _clamped(log_ratio: Float[Array, " N"], mask: Bool[Array, " N"]) -> Float[Array, " N"]:
    return kl.clamp_log_ratio(jnp.where(mask, log_ratio, 0.0))


def _weights(log_ratio: Float[Array, " N"], mask: Bool[Array, " N"]) -> Float[Array, " N"]:
    return jnp.exp(jax.lax.stop_gradient(_clamped(log_ratio, mask)))


def _summed(
    log_ratio: Float[Array, " N"], mask: Bool[Array, " N"], sequence: Int[Array, " N"]
) -> Float[Array, " N"]:
    return losses.sequence_sum(jnp.where(mask, log_ratio, 0.0), sequence)


def _masked(weights: Float[Array, " N"], limit: float) -> Float[Array, " N"]:
    return jnp.where((weights >= 1.0 / limit) & (weights <= limit), weights, 0.0)


ROLLOUT_CORRECTIONS: Mapping[str, CorrectionFn] = {
    "truncated-token": truncated_token,
    "truncated-sequence": truncated_sequence,
    "masked-token": masked_token,
    "masked-sequence": masked_sequence,
}
