"""KTO: answers judged one by one, as good or bad, against how far the policy has moved.

A pure function of log-ratios ``r = log pi(y|x) - log pi_ref(y|x)``; one loss per answer, no means.
Axis: ``S`` answers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def kto(
    ratio: Float[Array, " S"],
    is_desirable: Bool[Array, " S"],
    kl: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, " S"]:
    """Return the loss of each answer (Ethayarajh et al., 2024, arXiv:2402.01306, eqs. 7 and 8).

    ``w_d (1 - s(beta (r - z)))`` of a desirable and ``w_u (1 - s(beta (z - r)))`` of an
    undesirable answer, with the sigmoid ``s``.

    Args:
        ratio: Log-ratio of each answer.
        is_desirable: Which answers are good.
        kl: The reference point ``z``, see :func:`reference_point`; a constant of the gradient.
        beta: How fast utility saturates.
        desirable_weight: ``w_d``.
        undesirable_weight: ``w_u``.
    """
    kl = jax.lax.stop_gradient(kl)
    good = desirable_weight * jax.nn.sigmoid(-beta * (ratio - kl))
    bad = undesirable_weight * jax.nn.sigmoid(-beta * (kl - ratio))
    return jnp.where(is_desirable, good, bad)


def reference_point(ratio_sum: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return the estimate of ``KL(policy || reference)``, never below 0.

    The mean log-ratio of answers that belong to other prompts (section 4.1 of the paper).

    Args:
        ratio_sum: Sum of the log-ratios of mismatched prompts and answers.
        count: How many there are; 0 gives 0.
    """
    return jnp.maximum(ratio_sum / jnp.maximum(count, 1.0), 0.0)
