"""Log-probabilities and entropies a tile of tokens and vocabulary at a time, forward and backward.

The forward pass keeps a running softmax over blocks of the vocabulary and saves one normaliser per
token. The backward pass computes each tile of logits again, so any loss may follow; a block of the
head's gradient is finished in one product over all tokens of a chunk, not summed up in memory. On
CPU a tile stays in the cache. Axes: ``N`` tokens in ``n`` chunks of ``C``, ``D`` channels, ``V``
entries of the vocabulary in ``m`` blocks of ``W``.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import dot as dot_lib
from tunix.ops import token_chunks

CPU_TOKENS, CPU_BLOCK = 2048, 1024
"""Tokens and vocabulary entries of a tile on CPU: its logits are 8 to 16 MB."""

PADDED_CPU_TOKENS = (128, 512)
"""The same where a batch may hold fewer tokens than its shape: a quarter of it, within these."""

ACCELERATOR_TOKENS = 512
"""Tokens of a chunk elsewhere, where the whole vocabulary is one block: it may be sharded."""

_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static part of :func:`logprob`."""

    chunk: int
    softcap: float | None
    with_entropy: bool
    head_needs_grad: bool
    precision: dot_lib.Precision


def logprob(
    settings: Settings,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    inverse_temperature: Float[Array, ""],
    num_valid: Int[Array, ""] | None,
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Return log-probability of the target and entropy (0 unless asked for) of each token."""
    return _logprob(settings, hidden, head, targets, inverse_temperature, num_valid)


def default_chunk(num_tokens: int, is_padded: bool) -> int:
    """Return how many tokens are best computed at a time on this device.

    Args:
        num_tokens: How many there are.
        is_padded: Whether chunks of padding are left out, which small ones do better.
    """
    if jax.default_backend() != "cpu":
        return ACCELERATOR_TOKENS
    least, most = PADDED_CPU_TOKENS
    return max(least, min(most, num_tokens // 4)) if is_padded else CPU_TOKENS


def block_size(vocab_size: int) -> int:
    """Return how many entries of the vocabulary make a block; not always a divisor."""
    if jax.default_backend() != "cpu" or vocab_size <= CPU_BLOCK:
        return vocab_size
    for size in range(2 * CPU_BLOCK, CPU_BLOCK // 2 - 1, -16):
        if vocab_size % size == 0:
            return size
    return CPU_BLOCK


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprob(settings, hidden, head, targets, inverse_temperature, num_valid) -> Any:
    return _forward(settings, hidden, head, targets, inverse_temperature, num_valid)[0]


def _blocks(head: Float[Array, "V D"], precision: dot_lib.Precision) -> Float[Array, "m W D"]:
    """Return the head in blocks, padded with zeros where the vocabulary does not divide."""
    size = block_size(head.shape[0])
    padded = jnp.pad(token_chunks.operand(head, precision), ((0, -head.shape[0] % size), (0, 0)))
    return padded.reshape(-1, size, head.shape[1])


def _tile(settings, x, block, first, vocab_size, inverse_temperature):
    """Return scaled logits, impossible where the block is padding, and the slope of the cap."""
    logits, slope = token_chunks.logits(x, block, settings.softcap, settings.precision)
    logits = logits * inverse_temperature
    if vocab_size % block.shape[0]:
        exists = first + jnp.arange(block.shape[0]) < vocab_size
        logits = jnp.where(exists, logits, _LOWEST)
    return logits, slope


def _forward(settings, hidden, head, targets, inverse_temperature, num_valid):
    vocab_size = head.shape[0]
    blocks = _blocks(head, settings.precision)
    size = blocks.shape[1]

    def run_chunk(_, chunk):
        x, target = chunk
        x = token_chunks.operand(x, settings.precision)

        def add_block(carry, block):
            best, total, at_target, moment = carry
            weights, first = block
            logits, _ = _tile(settings, x, weights, first, vocab_size, inverse_temperature)
            new_best = jnp.maximum(best, logits.max(axis=1))
            shrink = jnp.exp(best - new_best)
            shifted = logits - new_best[:, None]
            masses = jnp.exp(shifted)
            if settings.with_entropy:
                # The sum of exp(z - best) * (z - best), carried over to the new maximum.
                moment = shrink * (moment + total * (best - new_best))
                moment = moment + (masses * shifted).sum(axis=1)
            total = total * shrink + masses.sum(axis=1)
            inside = (target >= first) & (target < first + size)
            index = jnp.clip(target - first, 0, size - 1)[:, None]
            found = jnp.take_along_axis(logits, index, axis=1)[:, 0]
            return (new_best, total, jnp.where(inside, found, at_target), moment), None

        zeros = jnp.zeros(target.shape, jnp.float32)
        init = (jnp.full(target.shape, _LOWEST), zeros, zeros, zeros)
        firsts = jnp.arange(blocks.shape[0]) * size
        (best, total, at_target, moment), _ = token_chunks.scan(add_block, init, (blocks, firsts))
        log_total = jnp.log(total)
        entropy = log_total - moment / total if settings.with_entropy else zeros
        return None, (at_target - best - log_total, entropy, best + log_total)

    _, (logps, entropy, normalizer) = token_chunks.over_chunks(
        run_chunk, None, (hidden, targets), settings.chunk, num_valid
    )
    residuals = (hidden, head, targets, inverse_temperature, num_valid, normalizer, entropy)
    return (logps, entropy), residuals


def _backward(settings, residuals, cotangents):
    hidden, head, targets, inverse_temperature, num_valid, normalizer, entropy = residuals
    vocab_size, width = head.shape
    blocks = _blocks(head, settings.precision)
    size = blocks.shape[1]

    def run_chunk(d_head, chunk):
        x, target, normalizer, entropy, d_logp, d_entropy = chunk
        x = token_chunks.operand(x, settings.precision)

        def pull_block(d_x, block):
            weights, first = block
            logits, slope = _tile(settings, x, weights, first, vocab_size, inverse_temperature)
            log_probs = logits - normalizer[:, None]
            pull = d_logp[:, None]
            if settings.with_entropy:
                pull = pull + d_entropy[:, None] * (log_probs + entropy[:, None])
            hit = token_chunks.is_target(target, first, size)
            grads = jnp.where(hit, d_logp[:, None], 0.0) - jnp.exp(log_probs) * pull
            grads = grads * inverse_temperature
            if slope is not None:
                grads = grads * slope
            grads = token_chunks.operand(grads, settings.precision)
            d_x = d_x + dot_lib.dot(grads, weights, precision=settings.precision)
            if not settings.head_needs_grad:
                return d_x, None
            return d_x, dot_lib.dot(dot_lib.transposed(grads), x, precision=settings.precision)

        firsts = jnp.arange(blocks.shape[0]) * size
        d_x, d_blocks = token_chunks.scan(pull_block, jnp.zeros(x.shape), (blocks, firsts))
        if d_head is not None and d_blocks is not None:
            d_head = d_head + d_blocks.reshape(-1, width)[:vocab_size]
        return d_head, (d_x,)

    per_token = (hidden, targets, normalizer, entropy, *cotangents)
    d_head = jnp.zeros(head.shape, jnp.float32) if settings.head_needs_grad else None
    d_head, (d_hidden,) = token_chunks.over_chunks(
        run_chunk, d_head, per_token, settings.chunk, num_valid
    )
    d_head = None if d_head is None else d_head.astype(head.dtype)
    return d_hidden.astype(hidden.dtype), d_head, None, None, None


_logprob.defvjp(_forward, _backward)
