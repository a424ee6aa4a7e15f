"""Who sees whom in packed rows, as a mask, for models that know no segments."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def segment_mask(
    segment_ids: Int[Array, "R T"], prefix_ids: Int[Array, "R T"]
) -> Bool[Array, "R T T"]:
    """Return True where query ``t`` may see key ``s``.

    A token sees the earlier tokens of its own segment and of its prefix, and itself. Padding
    (segment 0) sees itself alone, because a softmax over nothing is NaN.
    """
    keys = segment_ids[:, None, :]
    same = (keys == segment_ids[:, :, None]) | (keys == prefix_ids[:, :, None])
    causal = jnp.tril(jnp.ones(same.shape[1:], bool))
    return (causal & same & (keys != 0)) | jnp.eye(same.shape[1], dtype=bool)
