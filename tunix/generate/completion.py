"""What comes back for a prompt."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled continuation, unpadded, on the host."""

    token_ids: Int[np.ndarray, " T"]
    """Includes the stop token if the continuation ended itself."""

    logps: Float[np.ndarray, " T"]
    """Log-probability of each token under the policy ``softmax(logits / temperature)`` of the
    whole vocabulary: what a trainer recomputes. Greedy requests use temperature 1."""

    sampled_logps: Float[np.ndarray, " T"]
    """Log-probability under the distribution really drawn from, after penalties, top-k, top-p
    and min-p, renormalised; 0 for greedy requests."""

    finish_reason: FinishReason
    """``stop``: ended by one of its stop tokens. ``length``: cut at ``max_new_tokens``."""
