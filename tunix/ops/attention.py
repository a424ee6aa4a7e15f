"""Grouped-query attention within rows of tokens.

Nothing here knows about projections, rope or layers. Heads that share a key head are folded into
the rows of one product, so keys and values are never repeated, and no ``[T, T]`` array is made for
long rows. Axes: ``B`` rows, ``T`` query tokens, ``S`` cache slots, ``N`` query heads, ``K`` key
heads, ``G = N / K``, ``H`` head width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix.ops import dot as dot_lib

QUERY_CHUNK = 256

# Far below any score, and finite: inf - inf would be NaN.
_HIDDEN = -1e30
# Rows that see nothing get this maximum, so that exp(_HIDDEN - maximum) is exactly 0.
_LEAST_MAXIMUM = -1e20


@dataclasses.dataclass(frozen=True)
class _Visibility:
    """What decides, besides row order, which keys a query sees."""

    positions: Array | None
    segment_ids: Array | None
    prefix_ids: Array | None
    attention_mask: Array | None
    window: int | None

    def mask(self, queries: slice, keys: slice) -> Bool[Array, "#B T S"]:
        """Return which of ``keys`` each of ``queries`` sees (contiguous index ranges)."""
        query_index = jnp.arange(queries.start, queries.stop)[:, None]
        key_index = jnp.arange(keys.start, keys.stop)[None, :]
        visible = (key_index <= query_index)[None]
        if self.window is not None:
            if self.positions is None:
                age = (query_index - key_index)[None]
            else:
                age = self.positions[:, queries, None] - self.positions[:, None, keys]
            visible = visible & (age < self.window)
        if self.segment_ids is not None:
            query_segment = self.segment_ids[:, queries, None]
            key_segment = self.segment_ids[:, None, keys]
            together = key_segment == query_segment
            if self.prefix_ids is not None:
                together |= key_segment == self.prefix_ids[:, queries, None]
            visible = visible & together & (query_segment != 0) & (key_segment != 0)
        if self.attention_mask is not None:
            visible = visible & self.attention_mask[:, queries, keys]
        return visible


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    prefix_ids: Int[Array, "B T"] | None = None,
    attention_mask: Bool[Array, "B T T"] | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    precision: dot_lib.Precision,
) -> Float[Array, "B T N H"]:
    """Return causal self-attention within rows, in float32.

    Query ``i`` sees key ``j`` iff ``j <= i`` in row order and every given rule holds: they are in
    the same segment, or ``j`` is in the segment that ``i`` names as its prefix; ``positions[i] -
    positions[j] < window``; ``attention_mask[i, j]``. Segment 0 is padding: it sees nothing and is
    not seen. A query that sees nothing returns 0 and has no gradient.

    Args:
        q: Queries; ``N`` must be a multiple of ``K``, heads of a group adjacent.
        k: Keys.
        v: Values.
        positions: Position of each token, used by ``window`` only; ``None`` means its row index.
        segment_ids: Which sequence of a packed row each token belongs to; ``None`` means one.
        prefix_ids: A second segment that each token sees, 0 for none; needs ``segment_ids``.
        attention_mask: A further restriction of what is visible.
        scale: Factor of the scores, applied first.
        window: How many latest positions are visible, the query's own included.
        softcap: Bound ``c`` of the scores, as ``c * tanh(score / c)``.
        precision: How products are computed; the softmax is always float32.

    Raises:
        ValueError: if ``N`` is not a multiple of ``K``, or ``prefix_ids`` comes alone.
    """
    length, num_heads, num_kv_heads = q.shape[1], q.shape[2], k.shape[2]
    _check_heads(num_heads, num_kv_heads)
    if prefix_ids is not None and segment_ids is None:
        raise ValueError("prefix_ids name segments, so they need segment_ids; pass both or neither")
    visibility = _Visibility(positions, segment_ids, prefix_ids, attention_mask, window)
    q = _fold_queries(q * scale, num_kv_heads)
    k, v = _fold_keys(k), _fold_keys(v)

    def chunk(q: Array, k: Array, v: Array, mask: Array) -> Array:
        return _attend_chunk(q, k, v, mask, softcap, precision)

    outputs = []
    for start in range(0, length, QUERY_CHUNK):
        queries = slice(start, min(start + QUERY_CHUNK, length))
        oldest = 0
        if window is not None and positions is None:
            oldest = max(0, start - window + 1)
        keys = slice(oldest, queries.stop)
        # Recompute the scores of a chunk in its backward pass: keeping them all is [T, T].
        run = chunk if length <= QUERY_CHUNK else jax.checkpoint(chunk)
        outputs.append(
            run(q[:, :, queries], k[:, keys], v[:, keys], visibility.mask(queries, keys))
        )
    return _unfold(jnp.concatenate(outputs, axis=2), q.shape[0] // num_kv_heads)


def _check_heads(num_heads: int, num_kv_heads: int) -> None:
    if num_heads % num_kv_heads:
        raise ValueError(
            f"query heads must be a multiple of key heads, got {num_heads} and {num_kv_heads}"
        )


def _fold_queries(q: Array, num_kv_heads: int) -> Float[Array, "BK G T H"]:
    batch, length, num_heads, head_dim = q.shape
    group = num_heads // num_kv_heads
    q = q.reshape(batch, length, num_kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    return q.reshape(batch * num_kv_heads, group, length, head_dim)


def _fold_keys(k: Array) -> Float[Array, "BK T H"]:
    batch, length, num_kv_heads, head_dim = k.shape
    return k.transpose(0, 2, 1, 3).reshape(batch * num_kv_heads, length, head_dim)


def _unfold(out: Float[Array, "BK G T H"], batch: int) -> Float[Array, "B T N H"]:
    _, group, length, head_dim = out.shape
    out = out.reshape(batch, -1, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, -1, head_dim)


def _attend_chunk(
    q: Float[Array, "BK G T H"],
    k: Float[Array, "BK S H"],
    v: Float[Array, "BK S H"],
    mask: Bool[Array, "#B T S"],
    softcap: float | None,
    precision: dot_lib.Precision,
) -> Float[Array, "BK G T H"]:
    folded, group, length, head_dim = q.shape
    rows = q.reshape(folded, group * length, head_dim)
    scores = _cap(dot_lib.batched_dot_nt(rows, k, precision=precision), softcap)
    heads = folded // mask.shape[0] if mask.shape[0] > 1 else 1
    scores = scores.reshape(-1, heads * group, length, k.shape[1])
    weights = _masked_softmax(scores, mask[:, None])
    weights = weights.reshape(folded, group * length, k.shape[1])
    return dot_lib.batched_dot_nn(weights, v, precision=precision).reshape(q.shape)


def _masked_softmax(scores: Array, mask: Array) -> Array:
    scores = jnp.where(mask, scores, _HIDDEN)
    maximum = jnp.maximum(scores.max(axis=-1, keepdims=True), _LEAST_MAXIMUM)
    weights = jnp.exp(scores - jax.lax.stop_gradient(maximum))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total == 0.0, 1.0, total)


def _cap(scores: Array, softcap: float | None) -> Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
