"""Which tiles of a square of queries and keys are worth computing, and what is hidden in one.

Nothing here multiplies anything. A row of tokens is cut into ``n`` chunks of ``t``; a tile is one
chunk of queries against one chunk of keys. Whether a tile is needed is decided from the extremes
of its chunks, so the decision costs as little as reading the rules once. Axes: ``B`` rows, ``T``
tokens, ``G`` query heads that share a key head.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix.ops import visibility as visibility_lib

HIDDEN = -1e30
"""Far below any score, and finite: inf - inf would be NaN."""


class Rules(NamedTuple):
    """What decides which keys a query sees, cut into chunks; ``None`` decides nothing."""

    tokens: visibility_lib.Visibility
    """Everything but the mask, as ``[n, B, t]``."""
    mask: Bool[Array, "B T T"] | None
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

    others: Int[Array, "n n"]
    """For each chunk, the others it meets: the first ``counts`` entries of its row, ascending."""
    counts: Int[Array, " n"]
    is_open: Bool[Array, "n n"]
    """For each chunk of queries and each of keys, whether everything is visible."""


def plan(rules: Rules, tiling: Tiling, *, keys_first: bool = False) -> Plan:
    """Return what each chunk of queries, or of keys if ``keys_first``, has to visit."""
    needed, is_open = _survey(rules, tiling)
    if keys_first:
        needed = needed.T
    others = jnp.argsort(~needed, axis=1, stable=True)
    return Plan(others=others, counts=needed.sum(axis=1), is_open=is_open)


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
    side = functools.partial(_side, rules, tiling)
    queries = side(i, -2 if keys_first else -1)
    keys = side(j, -1 if keys_first else -2)
    seen = visibility_lib.sees(queries, keys, window=rules.window)
    if rules.mask is not None:
        shape = (rules.mask.shape[0], tiling.size, tiling.size)
        tile = jax.lax.dynamic_slice(rules.mask, (0, i * tiling.size, j * tiling.size), shape)
        seen = seen & (tile.swapaxes(1, 2) if keys_first else tile)
    return seen


def _side(rules: Rules, tiling: Tiling, i: Int[Array, ""] | int, axis: int) -> visibility_lib.Side:
    """Return the tokens of chunk ``i``; ``axis`` is where the other chunk of a tile has its own."""
    tokens = jax.tree.map(lambda x: x[i], rules.tokens)
    return tokens.side(i * tiling.size + jnp.arange(tiling.size)[None], axis)


def _survey(rules: Rules, tiling: Tiling) -> tuple[Bool[Array, "n n"], Bool[Array, "n n"]]:
    """Return which tiles may have something visible, and which surely have nothing hidden."""
    tokens = rules.tokens
    first = jnp.arange(tiling.num_chunks)[:, None] * tiling.size
    places = first, first + tiling.size - 1
    low, high = order = places if tokens.order is None else _range(tokens.order)
    needed = low[None] <= high[:, None]
    is_open = high[None] <= low[:, None]
    if rules.window is not None:
        low, high = order if tokens.positions is None else _range(tokens.positions)
        needed = needed & (low[:, None] - high[None] < rules.window)
        is_open = is_open & (high[:, None] - low[None] < rules.window)
    if tokens.span_ids is not None:
        spans = _range_of_ids(tokens.span_ids)
        needed = needed | _overlap(spans, spans)
    if tokens.segment_ids is not None:
        keys = _range_of_ids(tokens.segment_ids)
        linked = _overlap(keys, keys)
        if tokens.prefix_ids is not None:
            linked |= _overlap(_range_of_ids(tokens.prefix_ids), keys)
        low, high = _range(tokens.segment_ids)
        uniform = (low == high) & (low != 0)
        needed = needed & linked
        is_open = is_open & uniform[:, None] & uniform[None] & (low[:, None] == low[None])
    if rules.mask is not None:
        is_open = is_open & False
    return needed.any(axis=2), is_open.all(axis=2)


def _range(x: Int[Array, "n B t"]) -> tuple[Int[Array, "n B"], Int[Array, "n B"]]:
    return x.min(axis=2), x.max(axis=2)


def _range_of_ids(ids: Int[Array, "n B t"]) -> tuple[Int[Array, "n B"], Int[Array, "n B"]]:
    """Return the least and greatest id of each chunk other than 0; an empty range if none."""
    limits = jnp.iinfo(ids.dtype)
    lowest = jnp.where(ids == 0, limits.max, ids).min(axis=2)
    return lowest, jnp.where(ids == 0, limits.min, ids).max(axis=2)


def _overlap(queries: tuple[Array, Array], keys: tuple[Array, Array]) -> Bool[Array, "n n B"]:
    low, high = queries
    key_low, key_high = keys
    return (low[:, None] <= key_high[None]) & (key_low[None] <= high[:, None])
