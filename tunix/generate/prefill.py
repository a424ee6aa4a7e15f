"""Runs prompts through the model once, and copies what they left to slots.

A group of samples of one prompt shares one prefill: its keys and values are
copied to the slot of each. Axes: ``P`` prompts of a batch, ``L`` length of its
bucket, ``N`` copies.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.generate import decode_loop
from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import decoder

SMALLEST_BUCKET = 16


@flax.struct.dataclass
class Prefilled:
    """Prompts that are ready to be continued."""

    cache: cache_lib.KVCache
    hidden: Float[Array, "P D"]
    """Of each prompt's last token."""
    tokens: Int[Array, "P L"]


def buckets(cache_size: int) -> tuple[int, ...]:
    """Return the prompt lengths that have a program: 16, 32, 48, 64, 96, ..., the cache's size.

    Between two powers of two there is their mean, so that padding is at most a third of a
    prompt (longer than 32) and a fifth on average.
    """
    sizes, size = [], SMALLEST_BUCKET
    while size < cache_size:
        sizes.append(size)
        if size > SMALLEST_BUCKET and size * 3 // 2 < cache_size:
            sizes.append(size * 3 // 2)
        size *= 2
    return (*sizes, cache_size)


def prefill(
    model: decoder.Decoder,
    tokens: Int[Array, "P L"],
    lengths: Int[Array, " P"],
    *,
    dtype: jnp.dtype,
) -> Prefilled:
    """Run right-padded prompts; rows of length 0 are unused.

    What stands behind a prompt's length is computed but never seen: cache slots past the
    length are invisible, and the continuation overwrites them.
    """
    rows, size = tokens.shape
    cache = cache_lib.init_cache(model.config, rows, size, dtype)
    hidden, filled = model.hidden(tokens, cache=cache)
    assert filled is not None
    last = jnp.maximum(lengths - 1, 0)
    return Prefilled(
        cache=cache_lib.KVCache(layers=filled.layers, lengths=lengths),
        hidden=jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0],
        tokens=tokens,
    )


def insert(
    state: decode_loop.DecodeState,
    prefilled: Prefilled,
    rows: Int[Array, " N"],
    slots: Int[Array, " N"],
    count: Int[Array, ""],
) -> decode_loop.DecodeState:
    """Start ``count`` requests: copy prefilled row ``rows[i]`` to slot ``slots[i]``.

    Args:
        state: Donate it.
        prefilled: Prompts of one bucket, no longer than the cache.
        rows: May name a row several times.
        slots: Idle slots, each at most once.
        count: How many of the entries are meant; what follows is ignored.
    """

    def copy(i: Int[Array, ""], state: decode_loop.DecodeState) -> decode_loop.DecodeState:
        row, slot = rows[i], slots[i]

        def move(target: Array, source: Array) -> Array:
            piece = jax.lax.dynamic_slice_in_dim(source, row, 1, axis=0)
            return jax.lax.dynamic_update_slice(
                target, piece.astype(target.dtype), (slot, *[0] * (target.ndim - 1))
            )

        layers: Any = jax.tree.map(move, state.cache.layers, prefilled.cache.layers)
        return decode_loop.DecodeState(
            cache=cache_lib.KVCache(
                layers=layers, lengths=move(state.cache.lengths, prefilled.cache.lengths)
            ),
            hidden=move(state.hidden, prefilled.hidden),
            counts=state.counts.at[slot].set(0),
            active=state.active.at[slot].set(True),
            history=move(state.history, prefilled.tokens),
        )

    return jax.lax.fori_loop(0, count, copy, state)
