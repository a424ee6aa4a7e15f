"""Softmax attention a tile at a time, forward and backward, with exact skipping of empty tiles.

The scores of a row of tokens never exist at once: the forward pass keeps a running softmax over
chunks of keys and saves one normaliser per query; the backward pass computes each tile again
(FlashAttention-2, arXiv:2307.08691). The loops are loops of the compiled program, so temporaries
are those of one tile and compile time does not grow with the length. Heads that share a key head
are folded into the rows of one product, so keys and values are never repeated. Axes: ``B`` rows of
``T`` tokens, ``N`` query heads, ``K`` key heads, ``G = N / K``, ``H`` head width; ``n`` chunks of
``t`` tokens, ``R`` rows times key heads (rows first).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import attention_tiles
from tunix.ops import dot as dot_lib
from tunix.ops import visibility as visibility_lib

LEAST_CHUNK, GREATEST_CHUNK = 64, 256
"""Tokens of a chunk: small ones skip more of what is hidden, big ones multiply faster."""

TILE_SCORES = 600_000
"""Scores of a tile over all rows and heads that still stay in the cache of a CPU."""

ACCELERATOR_CHUNK = 1024
"""Tokens of a chunk on a GPU or TPU, where starting a product costs more than its waste."""

# Rows that see nothing get this maximum, so that exp(HIDDEN - maximum) is exactly 0.
_LEAST_MAXIMUM = -1e20


@dataclasses.dataclass(frozen=True)
class _Settings:
    softcap: float | None
    precision: dot_lib.Precision


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visibility: visibility_lib.Visibility,
    *,
    scale: float,
    window: int | Int[Array, ""] | None,
    softcap: float | None,
    precision: dot_lib.Precision,
) -> Float[Array, "B T N H"]:
    """Return what :func:`tunix.ops.attention.attend` does, whatever is asked for."""
    batch, length, num_heads, _ = q.shape
    num_kv_heads = k.shape[2]
    size = _chunk_size(length, batch * num_heads)
    out: Any = _attend_chunks(
        _Settings(softcap=softcap, precision=precision),
        _fold_queries(_chunks(q * scale, size), num_kv_heads),
        _fold_keys(_chunks(k, size)),
        _fold_keys(_chunks(v, size)),
        _rules(visibility, window, length, size),
    )
    return _unfold(out, batch)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_chunks(settings, q, k, v, rules) -> Any:
    return _forward(settings, q, k, v, rules)[0]


def _forward(settings, q, k, v, rules):
    num_chunks, rows, group, size, width = q.shape
    tiling = attention_tiles.Tiling(num_chunks, size, group)
    plan = attention_tiles.plan(rules, tiling)

    def attend_chunk(_, chunk):
        i, q_i = chunk
        q_i = q_i.reshape(rows, group * size, width)

        def add_keys(step, carry):
            best, total, out = carry
            j = plan.others[i, step]
            scores = dot_lib.batched_dot_nt(q_i, k[j], precision=settings.precision)
            scores = _cap(scores, settings.softcap)
            scores = _add(scores, attention_tiles.bias(rules, tiling, plan.is_open, i, j))
            new_best = jnp.maximum(best, scores.max(axis=-1))
            weights = jnp.exp(scores - new_best[..., None])
            shrink = jnp.exp(best - new_best)
            total = total * shrink + weights.sum(axis=-1)
            update = dot_lib.batched_dot_nn(weights, v[j], precision=settings.precision)
            return new_best, total, out * shrink[..., None] + update

        shape = (rows, group * size)
        init = (jnp.full(shape, _LEAST_MAXIMUM), jnp.zeros(shape), jnp.zeros((*shape, width)))
        best, total, out = _repeat(num_chunks, plan.counts[i], add_keys, init)
        total = jnp.where(total == 0.0, 1.0, total)
        return None, ((out / total[..., None]).reshape(q.shape[1:]), best + jnp.log(total))

    _, (out, normalizer) = _over_chunks(attend_chunk, None, (jnp.arange(num_chunks), q))
    return out, (q, k, v, rules, out, normalizer)


def _backward(settings, residuals, d_out):
    q, k, v, rules, out, normalizer = residuals
    num_chunks, rows, group, size, width = q.shape
    tiling = attention_tiles.Tiling(num_chunks, size, group)
    plan = attention_tiles.plan(rules, tiling, keys_first=True)
    flat = (num_chunks, rows, group * size, width)
    # What the softmax subtracts from the cotangent of every weight of a query.
    common = (d_out * out).sum(axis=-1).reshape(normalizer.shape)
    q, d_out = q.reshape(flat), d_out.reshape(flat)
    product_nt = functools.partial(dot_lib.batched_dot_nt, precision=settings.precision)
    product_nn = functools.partial(dot_lib.batched_dot_nn, precision=settings.precision)

    def pull_chunk(d_q, chunk):
        j, k_j, v_j = chunk

        def add_queries(step, carry):
            d_q, d_k, d_v = carry
            i = plan.others[j, step]
            # Keys come first: three of the five products then need no transposition.
            scores = product_nt(k_j, q[i])
            capped = _cap(scores, settings.softcap)
            bias = attention_tiles.bias(rules, tiling, plan.is_open, i, j, keys_first=True)
            weights = jnp.exp(_add(capped, bias) - normalizer[i][:, None, :])
            d_scores = weights * (product_nt(v_j, d_out[i]) - common[i][:, None, :])
            if settings.softcap is not None:
                d_scores = d_scores * (1.0 - (capped / settings.softcap) ** 2)
            d_v = d_v + product_nn(weights, d_out[i])
            d_k = d_k + product_nn(d_scores, q[i])
            d_q_i = product_nn(dot_lib.transposed(_operand(d_scores, settings)), k_j)
            return d_q.at[i].add(d_q_i), d_k, d_v

        init = (d_q, jnp.zeros(k_j.shape, jnp.float32), jnp.zeros(v_j.shape, jnp.float32))
        d_q, d_k, d_v = _repeat(num_chunks, plan.counts[j], add_queries, init)
        return d_q, (d_k, d_v)

    chunks = (jnp.arange(num_chunks), k, v)
    d_q, (d_k, d_v) = _over_chunks(pull_chunk, jnp.zeros(flat, jnp.float32), chunks)
    d_q = d_q.reshape(out.shape)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend_chunks.defvjp(_forward, _backward)


def _repeat(num_chunks: int, count: Array, body: Callable, init: tuple) -> tuple:
    """Run ``body`` ``count`` times; with a single chunk there is one tile and no loop."""
    return body(0, init) if num_chunks == 1 else jax.lax.fori_loop(0, count, body, init)


def _over_chunks(body: Callable, carry: Array | None, chunks: tuple) -> tuple:
    if chunks[0].shape[0] > 1:
        return jax.lax.scan(body, carry, chunks)
    carry, outputs = body(carry, jax.tree.map(lambda x: x[0], chunks))
    return carry, jax.tree.map(lambda x: x[None], outputs)


def _add(tile: Float[Array, "R X Y"], bias: Float[Array, "#B X Y"]) -> Float[Array, "R X Y"]:
    """Add the bias of a row of tokens to the scores of all its key heads."""
    heads = tile.reshape(bias.shape[0], -1, *bias.shape[1:])
    return (heads + bias[:, None]).reshape(tile.shape)


def _operand(x: Array, settings: _Settings) -> Array:
    return x.astype(jnp.bfloat16) if settings.precision == "fast" else x


def _cap(scores: Array, softcap: float | None) -> Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


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
