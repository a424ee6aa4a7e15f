"""Grouped-query attention within rows of tokens.

Nothing here knows about projections, rope or layers. Heads that share a key head are folded into
the rows of one product, so keys and values are never repeated, and no ``[T, T]`` array is made for
long rows. Axes: ``B`` rows, ``T`` tokens, ``N`` query heads, ``K`` key heads, ``G = N / K``, ``H``
head width; ``n`` chunks of ``t`` tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix.ops import attention_tiles, tiled_attention
from tunix.ops import dot as dot_lib

LEAST_CHUNK, GREATEST_CHUNK = 64, 256
"""Tokens of a chunk: small ones skip more of what is hidden, big ones multiply faster."""

TILE_SCORES = 600_000
"""Scores of a tile over all rows and heads that still stay in the cache of a CPU."""

ACCELERATOR_CHUNK = 1024
"""Tokens of a chunk on a GPU or TPU, where starting a product costs more than its waste."""


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    prefix_ids: Int[Array, "B T"] | None = None,
    span_ids: Int[Array, "B T"] | None = None,
    attention_mask: Bool[Array, "B T T"] | None = None,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    precision: dot_lib.Precision,
) -> Float[Array, "B T N H"]:
    """Return causal self-attention within rows, in float32.

    Query ``i`` sees key ``j`` iff ``j <= i`` in row order and every given rule holds: they are in
    the same segment, or ``j`` is in the segment that ``i`` names as its prefix; ``positions[i] -
    positions[j] < window``; ``attention_mask[i, j]``. Tokens of one span see each other in spite of
    order and window, not of the other rules. Segment 0 is padding: it sees nothing and is not seen.
    A query that sees nothing returns 0 and has no gradient.

    Args:
        q: Queries; ``N`` must be a multiple of ``K``, heads of a group adjacent.
        k: Keys.
        v: Values.
        positions: Position of each token, used by ``window`` only; ``None`` means its row index.
        segment_ids: Which sequence of a packed row each token belongs to; ``None`` means one.
        prefix_ids: A second segment that each token sees, 0 for none; needs ``segment_ids``.
        span_ids: Spans within which attention has no direction, 0 for none: an image's tokens.
        attention_mask: A further restriction of what is visible.
        scale: Factor of the scores, applied first.
        window: How many latest positions are visible, the query's own included; may be traced.
        softcap: Bound ``c`` of the scores, as ``c * tanh(score / c)``.
        precision: How products are computed; the softmax is always float32.

    Raises:
        ValueError: if ``N`` is not a multiple of ``K``, or ``prefix_ids`` comes alone.
    """
    batch, length, num_heads, _ = q.shape
    num_kv_heads = k.shape[2]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"query heads must be a multiple of key heads, got {num_heads} and {num_kv_heads}"
        )
    if prefix_ids is not None and segment_ids is None:
        raise ValueError("prefix_ids name segments, so they need segment_ids; pass both or neither")
    size = _chunk_size(length, batch * num_heads)
    if attention_mask is not None:
        spare = -length % size
        attention_mask = jnp.pad(attention_mask, ((0, 0), (0, spare), (0, spare)))
    rules = attention_tiles.Rules(
        positions=None if positions is None or window is None else _chunks(positions, size),
        segment_ids=None if segment_ids is None else _chunks(segment_ids, size),
        prefix_ids=None if prefix_ids is None else _chunks(prefix_ids, size),
        span_ids=None if span_ids is None else _chunks(span_ids, size),
        attention_mask=attention_mask,
        window=None if window is None else jnp.asarray(window, jnp.int32),
    )
    settings = tiled_attention.Settings(softcap=softcap, precision=precision)
    out = tiled_attention.tiled_attention(
        settings,
        _fold_queries(_chunks(q * scale, size), num_kv_heads),
        _fold_keys(_chunks(k, size)),
        _fold_keys(_chunks(v, size)),
        rules,
    )
    return _unfold(out, batch)[:, :length]


def _chunk_size(length: int, rows: int) -> int:
    """Return the tokens of a chunk, such that equal chunks leave little padding."""
    if jax.default_backend() == "cpu":
        limit = GREATEST_CHUNK
        while limit > LEAST_CHUNK and rows * limit * limit > TILE_SCORES:
            limit //= 2
    else:
        limit = ACCELERATOR_CHUNK
    if length <= limit:
        return length
    num_chunks = -(-length // limit)
    return -(-length // (8 * num_chunks)) * 8


def _chunks(x: Array, size: int) -> Array:
    """Return ``[B, T, ...]`` as ``[n, B, t, ...]``, padded with zeros at the end of each row."""
    padding = [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)


def _fold_queries(q: Float[Array, "n B t N H"], num_kv_heads: int) -> Float[Array, "n BK G t H"]:
    chunks, batch, size, num_heads, width = q.shape
    q = q.reshape(chunks, batch, size, num_kv_heads, num_heads // num_kv_heads, width)
    return q.transpose(0, 1, 3, 4, 2, 5).reshape(chunks, batch * num_kv_heads, -1, size, width)


def _fold_keys(k: Float[Array, "n B t K H"]) -> Float[Array, "n BK t H"]:
    chunks, batch, size, num_kv_heads, width = k.shape
    return k.transpose(0, 1, 3, 2, 4).reshape(chunks, batch * num_kv_heads, size, width)


def _unfold(out: Float[Array, "n BK G t H"], batch: int) -> Float[Array, "B nt N H"]:
    chunks, _, group, size, width = out.shape
    out = out.reshape(chunks, batch, -1, group, size, width).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(batch, chunks * size, -1, width)
