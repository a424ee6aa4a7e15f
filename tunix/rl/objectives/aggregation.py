"""What every token weighs in the loss, as pure functions of lengths.

The loss of a step is ``sum(weight * loss)`` over its tokens, divided by what its sequences weigh.
Nothing here divides by a total: sums and weights of chunks add up, and only the trainer divides,
once per optimizer step. So the loss does not depend on how a batch was split. Axis: ``S``
sequences; one without a trained token (masked because it was truncated) counts nowhere, and comes
to no function here.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

Lengths = Int[np.ndarray, " S"]
Weights = tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]
Aggregation = Callable[..., Weights]
"""``fn(lengths [S], *, max_length) -> (what each token of a sequence weighs [S], what the sequence
adds to the weight that divides [S])``; lengths are positive."""


def token_mean(lengths: Lengths, *, max_length: int) -> Weights:
    """Weigh every token alike (DAPO: Yu et al., 2025, arXiv:2503.14476, eq. 12).

    Long completions count more. ``max_length`` plays no role.
    """
    del max_length
    return np.ones(len(lengths)), lengths.astype(float)


def sequence_mean_token_mean(lengths: Lengths, *, max_length: int) -> Weights:
    """Weigh every sequence alike, and a sequence's tokens alike within it.

    The original GRPO (arXiv:2402.03300, eq. 3): a token of a long completion counts
    less than one of a short completion. ``max_length`` plays no role.
    """
    del max_length
    return 1.0 / lengths, np.ones(len(lengths))


def sequence_mean_token_sum(lengths: Lengths, *, max_length: int) -> Weights:
    """Sum a sequence's tokens and weigh every sequence alike; ``max_length`` plays no role."""
    del max_length
    return np.ones(len(lengths)), np.ones(len(lengths))


def sequence_mean_token_scale(lengths: Lengths, *, max_length: int) -> Weights:
    """Divide every sequence's sum by the same constant, the longest length allowed.

    Free of length bias (Dr. GRPO: Liu et al., 2025, arXiv:2503.20783, section 3.2).
    """
    return np.ones(len(lengths)), np.full(len(lengths), float(max_length))


AGGREGATIONS: Mapping[str, Aggregation] = {
    "token-mean": token_mean,
    "sequence-mean-token-mean": sequence_mean_token_mean,
    "sequence-mean-token-sum": sequence_mean_token_sum,
    "sequence-mean-token-scale": sequence_mean_token_scale,
}


def weigh(fn: Aggregation, lengths: Lengths, *, max_length: int) -> Weights:
    """Return the weights of ``fn``; 0 of sequences without a trained token.

    Raises:
        ValueError: If they are not two finite numbers per sequence.
    """
    tokens, sequences = np.zeros((2, len(lengths)))
    held = lengths > 0
    found = [np.asarray(x, float) for x in fn(lengths[held], max_length=max_length)]
    if [x.shape for x in found] != [(held.sum(),)] * 2 or not np.isfinite(found).all():
        raise ValueError(
            "the aggregation must return what a token of each sequence weighs and what each "
            f"sequence adds to the divisor, two finite arrays of shape ({held.sum()},); got shapes "
            f"{[x.shape for x in found]}"
        )
    tokens[held], sequences[held] = found
    return tokens, sequences
