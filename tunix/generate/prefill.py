"""Runs prompts through the model, in pieces of one shape, into the rows of their slots.

A prompt is cut into tiles; one call runs a fixed number of them, of as many prompts as
they belong to, so that one program serves all lengths and a long prompt takes several
calls. Requests of the same prompt copy what another's tiles have left. Axes: ``N`` tiles
of a call, ``T`` tokens of a tile, ``C`` requests that start, ``B`` slots.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tunix.generate import decode_loop
from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import decoder

TILE = 16
"""Tokens of a tile: on average half of one is padding in each prompt."""

COPY_CHUNK = 128
"""Tokens that are copied at a time, so that a copy costs what the prompt is long."""


def prefill(
    model: decoder.Decoder,
    state: decode_loop.DecodeState,
    tokens: Int[Array, "N T"],
    slots: Int[Array, " N"],
    starts: Int[Array, " N"],
    ends: Int[Array, " N"],
) -> decode_loop.DecodeState:
    """Return the state with tiles of prompts at the beginning of the rows of their slots.

    What a tile has behind the end of its prompt is computed but never seen: the continuation
    overwrites it.

    Args:
        model: Unrolled decoder.
        state: Donate it.
        tokens: Padded on the right.
        slots: Whose prompt each tile belongs to; ``B`` for an unused tile.
        starts: Position of the first token of each tile; those before it are in the row, or in
            other tiles of this call.
        ends: Length of the whole prompt.
    """
    positions = starts[:, None] + jnp.arange(TILE)
    layers = tuple(dataclasses.replace(layer, rows=slots) for layer in _layers(state.cache))
    cache = cache_lib.KVCache(layers=layers, lengths=starts)
    hidden, filled = model.hidden(tokens, cache=cache)
    assert filled is not None
    last = ends - 1 - starts
    unfinished = last >= TILE
    newest = jnp.take_along_axis(hidden, jnp.clip(last, 0, TILE - 1)[:, None, None], axis=1)[:, 0]
    ended = jnp.where(unfinished, state.active.shape[0], slots)  # out of range: dropped
    return dataclasses.replace(
        state,
        cache=cache_lib.KVCache(
            layers=tuple(dataclasses.replace(layer, rows=None) for layer in _layers(filled)),
            lengths=state.cache.lengths,
        ),
        prompt_hidden=state.prompt_hidden.at[ended].set(newest, mode="drop"),
        history=state.history.at[slots[:, None], positions].set(tokens, mode="drop"),
    )


def start(
    state: decode_loop.DecodeState,
    sources: Int[Array, " C"],
    targets: Int[Array, " C"],
    lengths: Int[Array, " C"],
    count: Int[Array, ""],
) -> decode_loop.DecodeState:
    """Start ``count`` requests in the slots ``targets``.

    Args:
        state: Donate it.
        sources: Slots whose rows begin with the requests' prompts; a request's own, or another
            one, from which it is copied.
        targets: Each at most once, and no source of another.
        lengths: Of the prompts.
        count: How many of the entries are meant; what follows is ignored.
    """

    def start_one(i: Int[Array, ""], state: decode_loop.DecodeState) -> decode_loop.DecodeState:
        source, target, length = sources[i], targets[i], lengths[i]
        state = _copy_prompt(state, source, target, length)
        hidden = state.prompt_hidden[source]
        return dataclasses.replace(
            state,
            cache=dataclasses.replace(
                state.cache, lengths=state.cache.lengths.at[target].set(length)
            ),
            hidden=state.hidden.at[target].set(hidden),
            prompt_hidden=state.prompt_hidden.at[target].set(hidden),
            counts=state.counts.at[target].set(0),
            active=state.active.at[target].set(True),
        )

    return jax.lax.fori_loop(0, count, start_one, state)


def _copy_prompt(
    state: decode_loop.DecodeState,
    source: Int[Array, ""],
    target: Int[Array, ""],
    length: Int[Array, ""],
) -> decode_loop.DecodeState:
    """Copy what a row begins with to another row, unless it is the same."""
    size = state.history.shape[1]
    chunk = min(COPY_CHUNK, size)

    def copy(i: Int[Array, ""], arrays: Any) -> Any:
        # The last chunk is moved back to end with the cache.
        begin = jnp.minimum(i * chunk, size - chunk)

        def move(array: Array, axis: int) -> Array:
            shape = [1, *array.shape[1:]]
            shape[axis] = chunk
            at = [jnp.int32(0)] * array.ndim
            at[axis] = begin
            piece = jax.lax.dynamic_slice(array, [source, *at[1:]], shape)
            # Fused with its reading, the array could not be written in place.
            piece = jax.lax.optimization_barrier(piece)
            return jax.lax.dynamic_update_slice(array, piece, [target, *at[1:]])

        layers, history = arrays
        moved = tuple(
            dataclasses.replace(layer, k=move(layer.k, 3), v=move(layer.v, 2)) for layer in layers
        )
        return moved, move(history, 1)

    chunks = jnp.where(source == target, 0, (length + chunk - 1) // chunk)
    layers, history = jax.lax.fori_loop(0, chunks, copy, (_layers(state.cache), state.history))
    return dataclasses.replace(
        state, cache=dataclasses.replace(state.cache, layers=layers), history=history
    )


def _layers(cache: cache_lib.KVCache) -> tuple[cache_lib.LayerCache, ...]:
    """Return the caches of the layers, of which a sampler has one each."""
    assert isinstance(cache.layers, tuple)
    return cache.layers
