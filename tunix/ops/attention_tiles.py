"""Which tiles of a square of queries and keys are worth computing, and what is hidden in one.

Nothing here multiplies anything. A row of tokens is cut into ``n`` chunks of ``t``; a tile is one
chunk of queries against one chunk of keys. Whether a tile is needed is decided from the extremes
of its chunks, so the decision costs as little as reading the rules once. Axes: ``B`` rows, ``T``
tokens, ``G`` query heads that share a key head.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1e30
"""Far below any score, and finite: inf - inf would be NaN."""


class Rules(NamedTuple):
    """What decides, besides row order, which keys a query sees; ``None`` decides nothing."""

    positions: Int[Array, "n B t"] | None
    segment_ids: Int[Array, "n B t"] | None
    prefix_ids: Int[Array, "n B t"] | None
    span_ids: Int[Array, "n B t"] | None
    """Tokens of one span other than 0 see each other, whatever their order and the window."""
    attention_mask: Bool[Array, "B T T"] | None
    window: Int[Array, ""] | None
    """An array, because one program serves the layers of a scan with windows and without."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static shape of the square and of its tiles."""

    num_chunks: int
    size: int
    group: int


class Plan(NamedTuple):
    """Which tiles to visit, and which of them hide nothing."""

    order: Int[Array, "n n"]
    """For each chunk, the others it meets: the first ``counts`` entries of its row, ascending."""
    counts: Int[Array, " n"]
    is_open: Bool[Array, "n n"]
    """For each chunk of queries and each of keys, whether everything is visible."""


def plan(rules: Rules, tiling: Tiling, *, keys_first: bool = False) -> Plan:
    """Return what each chunk of queries, or of keys if ``keys_first``, has to visit."""
    needed, is_open = _survey(rules, tiling)
    if keys_first:
        needed = needed.T
    order = jnp.argsort(~needed, axis=1, stable=True)
    return Plan(order=order, counts=needed.sum(axis=1), is_open=is_open)


def bias(
    rules: Rules,
    tiling: Tiling,
    is_open: Bool[Array, "n n"],
    i: Int[Array, ""] | int,
    j: Int[Array, ""] | int,
    *,
    keys_first: bool = False,
) -> Float[Array, "#B X Y"]:
    """Return what to add to the scores of queries of chunk ``i`` and keys of chunk ``j``.

    It is 0 where the key is visible and ``HIDDEN`` where not. The queries, repeated for the
    heads of a group, are on axis 1, or on axis 2 if ``keys_first``.
    """

    def closed() -> Array:
        values = jnp.where(_visible(rules, tiling, i, j, keys_first=keys_first), 0.0, HIDDEN)
        return jnp.tile(values, (1, 1, tiling.group) if keys_first else (1, tiling.group, 1))

    # A branch, not only to skip the work: without one the compiler would fuse the rules into
    # every use of the scores, and evaluate them again for every head.
    shape = jax.eval_shape(closed).shape
    return jax.lax.cond(is_open[i, j], lambda: jnp.zeros(shape), closed)


def _visible(
    rules: Rules,
    tiling: Tiling,
    i: Int[Array, ""] | int,
    j: Int[Array, ""] | int,
    *,
    keys_first: bool,
) -> Bool[Array, "#B t t"]:
    size = tiling.size

    def queries(x: Array) -> Array:
        return x[:, None, :] if keys_first else x[:, :, None]

    def keys(x: Array) -> Array:
        return x[:, :, None] if keys_first else x[:, None, :]

    query_index = queries(i * size + jnp.arange(size)[None])
    key_index = keys(j * size + jnp.arange(size)[None])
    seen = key_index <= query_index
    if rules.window is not None:
        if rules.positions is None:
            age = query_index - key_index
        else:
            age = queries(rules.positions[i]) - keys(rules.positions[j])
        seen = seen & (age < rules.window)
    if rules.span_ids is not None:
        span = queries(rules.span_ids[i])
        seen = seen | ((span == keys(rules.span_ids[j])) & (span != 0))
    if rules.segment_ids is not None:
        query_segment, key_segment = queries(rules.segment_ids[i]), keys(rules.segment_ids[j])
        together = key_segment == query_segment
        if rules.prefix_ids is not None:
            together |= key_segment == queries(rules.prefix_ids[i])
        seen = seen & together & (query_segment != 0) & (key_segment != 0)
    if rules.attention_mask is not None:
        shape = (rules.attention_mask.shape[0], size, size)
        tile = jax.lax.dynamic_slice(rules.attention_mask, (0, i * size, j * size), shape)
        seen = seen & (tile.swapaxes(1, 2) if keys_first else tile)
    return seen


def _survey(rules: Rules, tiling: Tiling) -> tuple[Bool[Array, "n n"], Bool[Array, "n n"]]:
    """Return which tiles may have something visible, and which surely have nothing hidden."""
    size, window = tiling.size, rules.window
    index = jnp.arange(tiling.num_chunks)[:, None]
    needed = index[None] <= index[:, None]
    is_open = index[None] < index[:, None]
    if window is not None:
        if rules.positions is None:
            low, high = index * size, index * size + size - 1
        else:
            low, high = rules.positions.min(axis=2), rules.positions.max(axis=2)
        needed = needed & (low[:, None] - high[None] < window)
        is_open = is_open & (high[:, None] - low[None] < window)
    if rules.span_ids is not None:
        spans = _range_of_ids(rules.span_ids)
        needed = needed | _overlap(spans, spans)
    if rules.segment_ids is not None:
        keys = _range_of_ids(rules.segment_ids)
        linked = _overlap(keys, keys)
        if rules.prefix_ids is not None:
            linked |= _overlap(_range_of_ids(rules.prefix_ids), keys)
        low, high = rules.segment_ids.min(axis=2), rules.segment_ids.max(axis=2)
        uniform = (low == high) & (low != 0)
        needed = needed & linked
        is_open = is_open & uniform[:, None] & uniform[None] & (low[:, None] == low[None])
    if rules.attention_mask is not None:
        is_open = is_open & False
    return needed.any(axis=2), is_open.all(axis=2)


def _range_of_ids(ids: Int[Array, "n B t"]) -> tuple[Int[Array, "n B"], Int[Array, "n B"]]:
    """Return the least and greatest id of each chunk other than 0; an empty range if none."""
    limits = jnp.iinfo(ids.dtype)
    lowest = jnp.where(ids == 0, limits.max, ids).min(axis=2)
    return lowest, jnp.where(ids == 0, limits.min, ids).max(axis=2)


def _overlap(queries: tuple[Array, Array], keys: tuple[Array, Array]) -> Bool[Array, "n n B"]:
    low, high = queries
    key_low, key_high = keys
    return (low[:, None] <= key_high[None]) & (key_low[None] <= high[:, None])
