"""What comes back for a request, piece by piece and whole."""

import dataclasses
from collections.abc import Sequence
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """What a request drew since its last delta; arrays as of a :class:`Completion`."""

    request_id: int
    token_ids: Int[np.ndarray, " T"]
    logps: Float[np.ndarray, " T"]
    sampled_logps: Float[np.ndarray, " T"]
    version: int
    """How often the engine's weights had been replaced when these were drawn."""
    finish_reason: FinishReason | Literal["aborted"] | None = None
    """Set in the last delta of a request."""


def join(deltas: Sequence[Delta]) -> Completion:
    """Return the completion that the deltas of a request make up.

    Raises:
        RuntimeError: If the request was aborted, by its id or because a step failed.
    """
    reason = deltas[-1].finish_reason
    if reason is None or reason == "aborted":
        raise RuntimeError(
            f"request {deltas[-1].request_id} has no completion: it was "
            + ("aborted" if reason else "not followed to its end")
        )
    return Completion(
        token_ids=np.concatenate([delta.token_ids for delta in deltas]),
        logps=np.concatenate([delta.logps for delta in deltas]),
        sampled_logps=np.concatenate([delta.sampled_logps for delta in deltas]),
        finish_reason=reason,
    )
