"""The key-value cache of one layer: how it is stored, extended and attended to.

Nothing here knows about layers, models or requests. Keys are stored with slots
last and values with slots before the head width, so that both products of a
decoding step read the cache in memory order, without transposing it. Axes: ``B``
rows of new tokens, ``R`` rows of the cache, ``T`` new tokens, ``S`` slots, ``N``
query heads, ``K`` key heads, ``H`` head width.

A bfloat16 cache holds the same bits as uint16: XLA's CPU backend scatters a row
into integers in place, but into bfloat16 by converting the whole cache to float32
and back.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from tunix.ops import dot as dot_lib

SLOT_CHUNK = 128
"""Slots that are scored at a time; only as many chunks as are filled are visited."""

# Far below any score, and finite: inf - inf would be NaN.
_HIDDEN = -1e30
# Rows that see nothing get this maximum, so that exp(_HIDDEN - maximum) is exactly 0.
_LEAST_MAXIMUM = -1e20


def empty(
    batch: int, size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> tuple[Num[Array, "B K H S"], Num[Array, "B K S H"]]:
    """Return keys and values of ``size`` slots a row; nothing is in them."""
    stored = jnp.uint16 if jnp.dtype(dtype) == jnp.bfloat16 else dtype
    return (
        jnp.zeros((batch, num_kv_heads, head_dim, size), stored),
        jnp.zeros((batch, num_kv_heads, size, head_dim), stored),
    )


def write(
    k_cache: Num[Array, "R K H S"],
    v_cache: Num[Array, "R K S H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    slots: Int[Array, "B T"],
    rows: Int[Array, " B"] | None = None,
) -> tuple[Num[Array, "R K H S"], Num[Array, "R K S H"]]:
    """Return the cache with new keys and values at ``slots``.

    Args:
        k_cache: Keys of earlier tokens.
        v_cache: Values of earlier tokens.
        k: Keys of new tokens.
        v: Values of new tokens.
        slots: Where the new ones go; slots past the end are dropped.
        rows: Which row of the cache; by default the tokens' own. Rows past the end are dropped.
    """
    rows = (jnp.arange(k.shape[0]) if rows is None else rows)[:, None]
    return (
        k_cache.at[rows, :, :, slots].set(_store(k, k_cache.dtype), mode="drop"),
        v_cache.at[rows, :, slots].set(_store(v, v_cache.dtype), mode="drop"),
    )


def attend_cached(
    q: Float[Array, "B T N H"],
    k_cache: Num[Array, "R K H S"],
    v_cache: Num[Array, "R K S H"],
    *,
    lengths: Int[Array, " B"],
    rows: Int[Array, " B"] | None = None,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    precision: dot_lib.Precision,
) -> Float[Array, "B T N H"]:
    """Return attention of new tokens to a cache that already holds their keys, in float32.

    Query ``t`` of row ``b`` has slot ``lengths[b] + t`` and sees the slots up to its own. Only the
    filled part of the cache is read, whatever its size. Not differentiable.

    Args:
        q: Queries of the new tokens.
        k_cache: Keys, as :func:`write` stores them.
        v_cache: Values.
        lengths: Slots filled before the new tokens of each row.
        rows: Which row of the cache each row of queries reads, its own by default. Several may
            read the same, so that a long row can be extended in pieces side by side.
        scale: Factor of the scores, applied first.
        window: How many latest slots are visible, the query's own included; may be traced.
        softcap: Bound ``c`` of the scores, as ``c * tanh(score / c)``.
        precision: How products are computed; the softmax is always float32.

    Raises:
        ValueError: if ``N`` is not a multiple of ``K``.
    """
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads, size = v_cache.shape[1:3]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"query heads must be a multiple of key heads, got {num_heads} and {num_kv_heads}"
        )
    group = num_heads // num_kv_heads
    q = (q * scale).reshape(batch, length, num_kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    multiply = _products(length, precision)
    # Decoding fills slot by slot, so that half a chunk is wasted on average; a prompt is not.
    chunk = min(SLOT_CHUNK // 2 if length == 1 else SLOT_CHUNK, size)
    slots = lengths[:, None] + jnp.arange(length)

    def step(i, carry):
        best, total, out = carry
        # The last chunk is moved back to end with the cache; its overlap is hidden.
        start = jnp.minimum(i * chunk, size - chunk)
        k = jax.lax.dynamic_slice_in_dim(k_cache, start, chunk, axis=3)
        v = jax.lax.dynamic_slice_in_dim(v_cache, start, chunk, axis=2)
        if rows is not None:
            k, v = jnp.take(k, rows, axis=0, mode="clip"), jnp.take(v, rows, axis=0, mode="clip")
        scores = multiply(q, k)
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        key_slots = start + jnp.arange(chunk)
        visible = (key_slots <= slots[:, :, None]) & (key_slots >= i * chunk)
        if window is not None:
            visible &= slots[:, :, None] - key_slots < window
        scores = jnp.where(visible[:, None, None], scores, _HIDDEN)
        new_best = jnp.maximum(best, scores.max(axis=-1))
        weights = jnp.exp(scores - new_best[..., None])
        shrink = jnp.exp(best - new_best)
        total = total * shrink + weights.sum(axis=-1)
        return new_best, total, out * shrink[..., None] + multiply(weights, v)

    each = (batch, num_kv_heads, group, length)
    init = (jnp.full(each, _LEAST_MAXIMUM), jnp.zeros(each), jnp.zeros((*each, head_dim)))
    end = jnp.minimum((jnp.max(lengths) + length + chunk - 1) // chunk, -(-size // chunk))
    first = jnp.int32(0)
    if window is not None:
        first = jnp.maximum(jnp.min(lengths) - window + 1, 0) // chunk
    _, total, out = jax.lax.fori_loop(first, end, step, init)
    out = out / jnp.where(total == 0.0, 1.0, total)[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)


def _store(x: Float[Array, "B T K H"], dtype: jnp.dtype) -> Num[Array, "B T K H"]:
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def _products(
    length: int, precision: dot_lib.Precision
) -> Callable[[Float[Array, "B K G T X"], Num[Array, "B K X Y"]], Float[Array, "B K G T Y"]]:
    """Return how so many queries are multiplied with stored keys or values."""
    if length > 1 or jax.default_backend() != "cpu":
        return functools.partial(_multiply, precision=precision)
    return _multiply_one_fast if precision == "fast" else _multiply_one


def _multiply(
    a: Float[Array, "B K G T X"], stored: Num[Array, "B K X Y"], precision: dot_lib.Precision
) -> Float[Array, "B K G T Y"]:
    """Multiply as matrices."""
    if stored.dtype == jnp.uint16:
        stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
    batch, heads, group, length, width = a.shape
    rows = a.reshape(batch * heads, group * length, width)
    matrix = stored.reshape(batch * heads, width, -1)
    out = dot_lib.batched_dot_nn(rows, matrix, precision=precision)
    return out.reshape(*a.shape[:-1], -1)


def _multiply_one(
    a: Float[Array, "B K G 1 X"], stored: Num[Array, "B K X Y"]
) -> Float[Array, "B K G 1 Y"]:
    """Multiply one vector with each matrix, as a sum that XLA fuses with reading the cache.

    On CPU two to three times faster than a matrix product, which would copy each chunk first.
    """
    if stored.dtype == jnp.uint16:
        # Shifting the bits into place keeps the fusion in one loop; a cast from bfloat16 does not.
        stored = jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    products = a[:, :, :, 0, :, None] * stored[:, :, None].astype(jnp.float32)
    return products.sum(axis=3)[:, :, :, None]


def _multiply_one_fast(
    a: Float[Array, "B K G 1 X"], stored: Num[Array, "B K X Y"]
) -> Float[Array, "B K G 1 Y"]:
    """Multiply operands rounded to bfloat16, as products do in ``fast`` precision."""
    return _multiply_one(a.astype(jnp.bfloat16).astype(jnp.float32), stored)
