"""Grouped-query attention within rows of tokens.

Nothing here knows about projections, rope or layers. Heads that share a key head are folded into
the rows of one product, so keys and values are never repeated, and no ``[T, T]`` array is made for
long rows. Axes: ``B`` rows, ``T`` tokens, ``N`` query heads, ``K`` key heads, ``G = N / K``, ``H``
head width; ``n`` chunks of ``t`` tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import attention_tiles, tiled_attention
from tunix.ops import dot as dot_lib
from tunix.ops import visibility as visibility_lib

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
    visibility: visibility_lib.Visibility | None = None,
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    precision: dot_lib.Precision,
) -> Float[Array, "B T N H"]:
    """Return self-attention within rows, in float32.

    A query that sees nothing returns 0 and has no gradient.

    Args:
        q: Queries; ``N`` must be a multiple of ``K``, heads of a group adjacent.
        k: Keys.
        v: Values.
        visibility: Which keys each query sees; ``None`` means those up to itself in the row.
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
    if visibility is None:
        visibility = visibility_lib.Visibility()
    if visibility.prefix_ids is not None and visibility.segment_ids is None:
        raise ValueError("prefix_ids name segments, so they need segment_ids; pass both or neither")
    size = _chunk_size(length, batch * num_heads)
    rules = _rules(visibility, window, length, size)
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


def _rules(
    visibility: visibility_lib.Visibility,
    window: int | Int[Array, ""] | None,
    length: int,
    size: int,
) -> attention_tiles.Rules:
    """Return what is visible, chunk by chunk; what only fills the last chunk comes last."""
    order, mask = visibility.order, visibility.mask
    if mask is not None:
        spare = -length % size
        mask = jnp.pad(mask, ((0, 0), (0, spare), (0, spare)))
    tokens = dataclasses.replace(
        visibility,
        order=None,
        positions=None if window is None else visibility.positions,
        mask=None,
    )
    tokens = jax.tree.map(lambda x: _chunks(x, size), tokens)
    if order is not None:
        tokens = dataclasses.replace(tokens, order=_chunks(order, size, jnp.iinfo(order.dtype).max))
    window = None if window is None else jnp.asarray(window, jnp.int32)
    return attention_tiles.Rules(tokens=tokens, mask=mask, window=window)


def _chunks(x: Array, size: int, filling: int = 0) -> Array:
    """Return ``[B, T, ...]`` as ``[n, B, t, ...]``, padded at the end of each row."""
    padding = [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, constant_values=filling)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)


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
