"""How per-token losses become one number: as a sum and the weight to divide it by.

Nothing here divides by a total: sums and weights of micro-batches add up, and only
the trainer divides, once per optimizer step. So the loss does not depend on how a
batch was split. Axes: ``S`` sequences, ``C`` completion tokens.

A sequence without a single token in the mask (padding, or masked because it was
truncated) counts nowhere: neither in the sum nor in the weight.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

Sums = tuple[Float[Array, ""], Float[Array, ""]]
Aggregation = Callable[..., Sums]
"""``fn(losses [S, C], mask [S, C], *, max_length) -> (loss_sum, weight_sum)``."""


def token_mean(losses: Float[Array, "S C"], mask: Bool[Array, "S C"], *, max_length: int) -> Sums:
    """Weigh every token alike (DAPO: Yu et al., 2025, arXiv:2503.14476, eq. 12).

    Long completions count more. ``max_length`` plays no role.
    """
    del max_length
    return jnp.where(mask, losses, 0.0).sum(), _count(mask)


def sequence_mean_token_mean(
    losses: Float[Array, "S C"], mask: Bool[Array, "S C"], *, max_length: int
) -> Sums:
    """Weigh every sequence alike, and a sequence's tokens alike within it.

    The original GRPO (arXiv:2402.03300, eq. 3): a token of a long completion counts
    less than one of a short completion. ``max_length`` plays no role.
    """
    del max_length
    lengths = jnp.maximum(mask.sum(axis=1), 1)
    per_sequence = jnp.where(mask, losses, 0.0).sum(axis=1) / lengths
    return per_sequence.sum(), _count(mask.any(axis=1))


def sequence_mean_token_sum(
    losses: Float[Array, "S C"], mask: Bool[Array, "S C"], *, max_length: int
) -> Sums:
    """Sum a sequence's tokens and weigh every sequence alike; ``max_length`` plays no role."""
    del max_length
    return jnp.where(mask, losses, 0.0).sum(), _count(mask.any(axis=1))


def sequence_mean_token_scale(
    losses: Float[Array, "S C"], mask: Bool[Array, "S C"], *, max_length: int
) -> Sums:
    """Divide every sequence's sum by the same constant, the longest length allowed.

    Free of length bias (Dr. GRPO: Liu et al., 2025, arXiv:2503.20783, section 3.2).
    """
    loss_sum, sequences = sequence_mean_token_sum(losses, mask, max_length=max_length)
    return loss_sum, sequences * max_length


def _count(held: Bool[Array, "..."]) -> Float[Array, ""]:
    return held.sum().astype(jnp.float32)


AGGREGATIONS: Mapping[str, Aggregation] = {
    "token-mean": token_mean,
    "sequence-mean-token-mean": sequence_mean_token_mean,
    "sequence-mean-token-sum": sequence_mean_token_sum,
    "sequence-mean-token-scale": sequence_mean_token_scale,
}
