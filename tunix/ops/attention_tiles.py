"""Which tiles of a square of queries and keys are worth computing, and what is visible in one.

Nothing here multiplies anything. A row of tokens is cut into ``n`` chunks of ``t``; a tile is one
chunk of queries against one chunk of keys. Axes: ``B`` rows, ``t`` tokens of a chunk.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Rules(NamedTuple):
    """What decides, besides row order, which keys a query sees; ``None`` decides nothing."""

    positions: Int[Array, "n B t"] | None
    segment_ids: Int[Array, "n B t"] | None
    prefix_ids: Int[Array, "n B t"] | None
    attention_mask: Bool[Array, "B T T"] | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """For each chunk, which others it meets: the first ``counts[i]`` entries of ``order[i]``."""

    order: Int[Array, "n n"]
    counts: Int[Array, " n"]


def visible(
    rules: Rules, i: Int[Array, ""], j: Int[Array, ""], *, size: int, window: int | None
) -> Bool[Array, "#B t t"]:
    """Return which keys of chunk ``j`` each query of chunk ``i`` sees."""
    query_index = i * size + jnp.arange(size)[:, None]
    key_index = j * size + jnp.arange(size)[None, :]
    seen = (key_index <= query_index)[None]
    if window is not None:
        if rules.positions is None:
            age = (query_index - key_index)[None]
        else:
            age = rules.positions[i][:, :, None] - rules.positions[j][:, None, :]
        seen = seen & (age < window)
    if rules.segment_ids is not None:
        query_segment = rules.segment_ids[i][:, :, None]
        key_segment = rules.segment_ids[j][:, None, :]
        together = key_segment == query_segment
        if rules.prefix_ids is not None:
            together |= key_segment == rules.prefix_ids[i][:, :, None]
        seen = seen & together & (query_segment != 0) & (key_segment != 0)
    if rules.attention_mask is not None:
        start = (0, i * size, j * size)
        seen = seen & jax.lax.dynamic_slice(
            rules.attention_mask, start, (rules.attention_mask.shape[0], size, size)
        )
    return seen


def needed(rules: Rules, num_chunks: int, *, size: int, window: int | None) -> Bool[Array, "n n"]:
    """Return which tiles may have anything visible, looking at the extremes of each chunk only.

    A tile left out has nothing visible in any row; one that is kept may have nothing either.
    """
    index = jnp.arange(num_chunks)
    keep = (index[None, :] <= index[:, None])[:, :, None]
    if window is not None:
        if rules.positions is None:
            youngest = (index[:, None] - index[None, :] - 1) * size + 1
            keep = keep & (youngest < window)[:, :, None]
        else:
            oldest_query, newest_key = rules.positions.min(axis=2), rules.positions.max(axis=2)
            keep = keep & (oldest_query[:, None] - newest_key[None, :] < window)
    if rules.segment_ids is not None:
        key_range = _range_of_ids(rules.segment_ids)
        linked = _overlap(key_range, key_range)
        if rules.prefix_ids is not None:
            linked |= _overlap(_range_of_ids(rules.prefix_ids), key_range)
        keep = keep & linked
    return keep.any(axis=2)


def plan(keep: Bool[Array, "n n"]) -> Plan:
    """Return for each first index the second ones to visit, in ascending order."""
    return Plan(order=jnp.argsort(~keep, axis=1, stable=True), counts=keep.sum(axis=1))


def _range_of_ids(ids: Int[Array, "n B t"]) -> tuple[Int[Array, "n B"], Int[Array, "n B"]]:
    """Return the least and greatest id of each chunk other than 0; an empty range if none."""
    limits = jnp.iinfo(ids.dtype)
    lowest = jnp.where(ids == 0, limits.max, ids).min(axis=2)
    return lowest, jnp.where(ids == 0, limits.min, ids).max(axis=2)


def _overlap(queries: tuple[Array, Array], keys: tuple[Array, Array]) -> Bool[Array, "n n B"]:
    low, high = queries
    key_low, key_high = keys
    return (low[:, None] <= key_high[None]) & (key_low[None] <= high[:, None])
