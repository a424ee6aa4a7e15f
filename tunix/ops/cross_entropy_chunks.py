"""Weighted cross-entropy a chunk of tokens at a time, with gradients formed on the way forward.

The sum is linear in the losses of the tokens, so their gradients are known as soon as the logits
are: the backward pass only scales them, and nothing is computed twice. Axes: ``N`` tokens in ``n``
chunks of ``C``, ``D`` channels, ``V`` entries of the vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import dot as dot_lib
from tunix.ops import token_chunks

CHUNK_LOGITS = 8_000_000
"""Logits of a chunk: more would not stay in the cache of a CPU."""

LEAST_CHUNK, GREATEST_CHUNK = 128, 512
"""Tokens of a chunk: fewer would not fill a product."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static part of :func:`cross_entropy`."""

    chunk: int
    softcap: float | None
    label_smoothing: float
    z_loss: float
    head_needs_grad: bool
    precision: dot_lib.Precision


def cross_entropy(
    settings: Settings,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    num_valid: Int[Array, ""] | None,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """Return the weighted sum of the losses, and log-probabilities that have no gradient."""
    return _cross_entropy(settings, hidden, head, targets, weights, num_valid)


def default_chunk(vocab_size: int) -> int:
    """Return how many tokens are best computed at a time."""
    return max(LEAST_CHUNK, min(GREATEST_CHUNK, CHUNK_LOGITS // vocab_size))


def _token_losses(settings, logits, targets):
    """Return loss, log-probability and normaliser of each token of a chunk."""
    maximum = logits.max(axis=-1)
    normalizer = maximum + jnp.log(jnp.exp(logits - maximum[:, None]).sum(axis=-1))
    logps = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - normalizer
    losses = -logps
    if settings.label_smoothing:
        everyone = normalizer - logits.mean(axis=-1)
        losses = losses + settings.label_smoothing * (everyone + logps)
    if settings.z_loss:
        losses = losses + settings.z_loss * normalizer * normalizer
    return losses, logps, normalizer


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(settings, hidden, head, targets, weights, num_valid) -> Any:
    operand = token_chunks.operand(head, settings.precision)

    def run_chunk(total, chunk):
        x, target, weight = chunk
        logits, _ = token_chunks.logits(x, operand, settings.softcap, settings.precision)
        losses, logps, _ = _token_losses(settings, logits, target)
        return total + (weight * losses).sum(), (logps,)

    total, (logps,) = token_chunks.over_chunks(
        run_chunk, jnp.float32(0.0), (hidden, targets, weights), settings.chunk, num_valid
    )
    return total, logps


def _forward(settings, hidden, head, targets, weights, num_valid):
    operand = token_chunks.operand(head, settings.precision)
    smoothing, vocab_size = settings.label_smoothing, head.shape[0]

    def run_chunk(carry, chunk):
        total, d_head = carry
        x, target, weight = chunk
        logits, slope = token_chunks.logits(x, operand, settings.softcap, settings.precision)
        losses, logps, normalizer = _token_losses(settings, logits, target)
        pull = weight * (1.0 + 2.0 * settings.z_loss * normalizer)
        hit = token_chunks.is_target(target, 0, vocab_size)
        grads = jnp.exp(logits - normalizer[:, None]) * pull[:, None]
        grads = grads - jnp.where(hit, weight[:, None] * (1.0 - smoothing), 0.0)
        if smoothing:
            grads = grads - weight[:, None] * (smoothing / vocab_size)
        if slope is not None:
            grads = grads * slope
        grads = token_chunks.operand(grads, settings.precision)
        d_x = dot_lib.dot(grads, operand, precision=settings.precision)
        if d_head is not None:
            x_t = dot_lib.transposed(token_chunks.operand(x, settings.precision))
            d_head = d_head + dot_lib.dot(x_t, grads, precision=settings.precision)
        return (total + (weight * losses).sum(), d_head), (d_x, losses, logps)

    # Summed up transposed: the product then only transposes the hidden states, not the logits.
    d_head = jnp.zeros(head.shape[::-1], jnp.float32) if settings.head_needs_grad else None
    (total, d_head), (d_hidden, losses, logps) = token_chunks.over_chunks(
        run_chunk,
        (jnp.float32(0.0), d_head),
        (hidden, targets, weights),
        settings.chunk,
        num_valid,
    )
    d_hidden = d_hidden.astype(hidden.dtype)
    d_head = None if d_head is None else d_head.T.astype(head.dtype)
    return (total, logps), (d_hidden, d_head, losses.astype(weights.dtype))


def _backward(settings, residuals, cotangents):
    d_hidden, d_head, losses = residuals
    d_total, _ = cotangents  # the log-probabilities are returned as constants
    d_hidden, losses = (d_total.astype(x.dtype) * x for x in (d_hidden, losses))
    d_head = None if d_head is None else d_total.astype(d_head.dtype) * d_head
    return d_hidden, d_head, None, losses, None


_cross_entropy.defvjp(_forward, _backward)
