"""AOT: distributional preference, where a pair is compared with others of its optimizer step.

Answers are matched by rank instead of by prompt (Melnyk et al., 2024, arXiv:2406.05882, eqs. 7 and
9): the loss of a step is that of the sorted log-ratios. Rank and partner depend on the whole step,
so they are found first (:func:`couple`), from the log-probabilities of all its micro-batches; given
them, losses and gradients of pairs add up like those of any other loss, exactly. Axis: ``P`` pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tunix.sft.dpo import preference_losses


class Partners(NamedTuple):
    """What each pair is compared with; constants of the gradient."""

    ref_margin: Float[Array, " P"]
    """The reference's ``log pi_ref(y_w) - log pi_ref(y_l)`` of the same rank as the policy's."""
    rejected_ratio: Float[Array, " P"]
    """The rejected log-ratio of the same rank as the pair's chosen one."""
    chosen_ratio: Float[Array, " P"]
    """The chosen log-ratio of the same rank as the pair's rejected one."""


def couple(
    micro_batches: Sequence[tuple[preference_losses.Pairs, Bool[Array, " P"]]],
) -> list[Partners]:
    """Return the partners of every pair of a step, by micro-batch.

    Args:
        micro_batches: Log-probabilities and which entries are pairs, of all micro-batches.
    """
    sizes = [valid.shape[0] for _, valid in micro_batches]
    pairs, valid = jax.tree.map(lambda *x: jnp.concatenate(x), *micro_batches)
    pairs = jax.lax.stop_gradient(pairs)
    whole = Partners(
        ref_margin=of_same_rank(
            pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected, valid
        ),
        rejected_ratio=of_same_rank(pairs.chosen_ratio, pairs.rejected_ratio, valid),
        chosen_ratio=of_same_rank(pairs.rejected_ratio, pairs.chosen_ratio, valid),
    )
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [
        jax.tree.map(lambda x, a=end - size, b=end: x[a:b], whole)
        for size, end in zip(sizes, ends, strict=True)
    ]


def of_same_rank(
    own: Float[Array, " P"], other: Float[Array, " P"], valid: Bool[Array, " P"]
) -> Float[Array, " P"]:
    """Return for each entry of ``own`` the entry of ``other`` that has its rank; 0 if not valid."""
    # Infinity sorts behind every pair in both, so ranks count pairs alone.
    ranks = jnp.argsort(jnp.argsort(jnp.where(valid, own, jnp.inf)))
    matched = jnp.sort(jnp.where(valid, other, jnp.inf))[ranks]
    return jnp.where(valid, matched, 0.0)


def aot(
    pairs: preference_losses.Pairs,
    partners: Partners,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Array, " P"]:
    """Return the paired AOT loss: sorted policy margins against sorted reference margins.

    ``-log s(beta (m_(i) - m_ref_(i)))`` over ranks ``i``, where ``m = log pi(y_w) - log pi(y_l)``.
    """
    margin = pairs.chosen - pairs.rejected - partners.ref_margin
    return preference_losses.logistic(beta * margin, label_smoothing)


def aot_unpaired(
    pairs: preference_losses.Pairs,
    partners: Partners,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Array, " P"]:
    """Return the unpaired AOT loss: sorted chosen log-ratios against sorted rejected ones.

    ``-log s(beta (r(y_w)_(i) - r(y_l)_(i)))`` over ranks ``i``. The value of a rank is counted at
    its chosen answer; its gradient reaches the rejected answer where that one is.
    """
    at_chosen = beta * (pairs.chosen_ratio - partners.rejected_ratio)
    at_rejected = beta * (partners.chosen_ratio - pairs.rejected_ratio)
    push = preference_losses.logistic(at_rejected, label_smoothing)
    return (
        preference_losses.logistic(at_chosen, label_smoothing) + push - jax.lax.stop_gradient(push)
    )


_OPTIONS = ("beta", "label_smoothing")

# `aot` is TRL's name since 1.0 for what it called `aot_pair` before.
AOT_LOSSES = {
    "aot": preference_losses.PairLoss(aot, _OPTIONS),
    "aot_pair": preference_losses.PairLoss(aot, _OPTIONS),
    "aot_unpaired": preference_losses.PairLoss(aot_unpaired, _OPTIONS),
}
