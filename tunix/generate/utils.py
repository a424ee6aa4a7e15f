"""Arithmetic on padded token arrays, for scripts and tests written for google-tunix.

Nothing in this library pads to a common length, so nothing in it calls these.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from tunix.utils import reference_names

__getattr__ = reference_names.hints(__name__)


def next_power_of_2(x: int) -> int:
    """Return the smallest power of two that is at least ``x``; 1 for ``x`` below 1."""
    return 1 << max(x - 1, 0).bit_length()


def pad_to_length(
    x: Shaped[np.ndarray, "..."],
    target_length: int,
    pad_value: int = 0,
    left: bool = False,
    axis: int = 0,
) -> Shaped[np.ndarray, "..."]:
    """Return ``x`` filled up along ``axis``, and as it is where it is no shorter."""
    missing = max(target_length - x.shape[axis], 0)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (missing, 0) if left else (0, missing)
    return np.pad(x, widths, constant_values=pad_value)


def find_first_non_pad_idx(ids: Int[Array, " T"], pad_id: int) -> Int[Array, ""]:
    """Return where the first token stands that is not padding; 0 if all are."""
    return jnp.argmax(jnp.asarray(ids) != pad_id)


def find_last_non_pad_idx(ids: Int[Array, " T"], pad_id: int) -> Int[Array, ""]:
    """Return where the last token stands that is not padding; the last place if all are."""
    ids = jnp.asarray(ids)
    return len(ids) - 1 - jnp.argmax(ids[::-1] != pad_id)


def find_first_eos_idx(ids: Int[Array, " T"], eos_id: int | Int[Array, " E"]) -> Int[Array, ""]:
    """Return where the first of the given tokens stands, the length if none does."""
    is_end = jnp.isin(jnp.asarray(ids), jnp.asarray(eos_id))
    return jnp.where(is_end.any(), jnp.argmax(is_end), len(is_end))


def build_positions_from_mask(input_mask: Bool[Array, "B T"] | Int[Array, "B T"]) -> Array:
    """Return the index of each real token among the real tokens of its row; 0 before the first."""
    return jnp.maximum(jnp.cumsum(input_mask.astype(jnp.int32), axis=-1) - 1, 0)


def make_causal_attn_mask(
    input_mask: Bool[Array, "B T"] | Int[Array, "B T"], cache_size: int
) -> Bool[Array, "B T S"]:
    """Return which slots of a cache each query may see: earlier real tokens and its own.

    Args:
        input_mask: True (or 1) where a token is real.
        cache_size: Slots of the cache; those past the row are hidden.
    """
    length = input_mask.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), jnp.bool_))
    seen = causal[None] & input_mask[:, None, :].astype(jnp.bool_)
    return jnp.pad(seen, ((0, 0), (0, 0), (0, cache_size - length)))
