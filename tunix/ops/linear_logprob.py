"""Log-probabilities of target tokens straight from hidden states, without ``[N, V]`` logits.

The output head and the softmax are computed a chunk of tokens at a time, forward and backward, so
memory does not grow with ``N * V``. Nothing here knows about models, batches or losses. Axes:
``N`` tokens, ``D`` channels, ``V`` vocabulary, ``C`` tokens of a chunk.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import dot as dot_lib

DEFAULT_CHUNK = 256


class LinearLogprob(NamedTuple):
    """What the head says of each token."""

    logps: Float[Array, " N"]
    """Log-probability of the target."""
    entropy: Float[Array, " N"] | None
    """Entropy of the whole distribution in nats, where asked for."""


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The static part of both functions."""

    chunk: int
    softcap: float | None
    head_needs_grad: bool
    precision: dot_lib.Precision
    with_entropy: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0


def linear_logprob(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    head_needs_grad: bool = True,
    chunk_size: int | None = None,
    precision: dot_lib.Precision,
) -> LinearLogprob:
    """Return ``log softmax(logits / temperature)[target]`` of each token, in float32.

    ``logits = hidden @ head.T``, capped to ``softcap * tanh(logits / softcap)`` if asked for. Any
    loss may follow: the backward pass recomputes the logits of a chunk from the saved normaliser.

    Args:
        hidden: Hidden states after the final norm.
        head: Output matrix; float32 or bfloat16.
        targets: Token ids; those of padded entries may be any valid id.
        temperature: Divides the logits; a constant of the gradient.
        softcap: Bound of the logits before the temperature.
        with_entropy: Whether to return the (differentiable) entropy too.
        head_needs_grad: False saves the ``[V, D]`` accumulator of a frozen head.
        chunk_size: Tokens per chunk; ``None`` picks it.
        precision: How products are computed; the softmax is always float32.
    """
    settings = _Settings(
        chunk=_chunk_size(hidden.shape[0], chunk_size),
        softcap=softcap,
        head_needs_grad=head_needs_grad,
        precision=precision,
        with_entropy=with_entropy,
    )
    if not head_needs_grad:
        head = jax.lax.stop_gradient(head)
    inverse = jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))
    logps, entropy = _logprob(settings, hidden, head, targets, inverse)
    return LinearLogprob(logps, entropy if with_entropy else None)


def linear_cross_entropy(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    head_needs_grad: bool = True,
    chunk_size: int | None = None,
    precision: dot_lib.Precision,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """Return the weighted sum of the tokens' losses, and their log-probabilities as constants.

    The loss of a token is ``(1 - s) * nll + s * mean over the vocabulary of -log p + z_loss *
    logsumexp(logits) ** 2`` with ``s`` the label smoothing. Being linear in it, the sum's gradients
    are formed in the forward pass: nothing is recomputed.

    Args:
        hidden: Hidden states after the final norm.
        head: Output matrix; float32 or bfloat16.
        targets: Token ids; those of weight 0 may be any valid id.
        weights: Weight of each token in the sum.
        softcap: Bound ``c`` of the logits, as ``c * tanh(logits / c)``.
        label_smoothing: Share of the target's probability given to the whole vocabulary.
        z_loss: Weight of the squared normaliser (PaLM, arXiv:2204.02311, section 5).
        head_needs_grad: False saves the ``[V, D]`` accumulator of a frozen head.
        chunk_size: Tokens per chunk; ``None`` picks it.
        precision: How products are computed; the softmax is always float32.
    """
    settings = _Settings(
        chunk=_chunk_size(hidden.shape[0], chunk_size),
        softcap=softcap,
        head_needs_grad=head_needs_grad,
        precision=precision,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    if not head_needs_grad:
        head = jax.lax.stop_gradient(head)
    loss_sum, logps = _cross_entropy(settings, hidden, head, targets, weights)
    return loss_sum, jax.lax.stop_gradient(logps)


def _chunk_size(num_tokens: int, chunk_size: int | None) -> int:
    """Return the size of equal chunks no larger than asked for, so that padding is small."""
    limit = DEFAULT_CHUNK if chunk_size is None else chunk_size
    num_chunks = max(1, -(-num_tokens // limit))
    return max(1, -(-num_tokens // num_chunks))


def _chunked(x: Array, chunk: int) -> Array:
    """Return ``x`` as ``[chunks, chunk, ...]``, padded with zeros.

    A chunk takes every n-th token, not a run of them: tokens sharded over devices then stay
    sharded within each chunk.
    """
    num_chunks = max(1, -(-x.shape[0] // chunk))
    padding = [(0, num_chunks * chunk - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(chunk, num_chunks, *x.shape[1:]).swapaxes(0, 1)


def _joined(x: Array, num_tokens: int) -> Array:
    """Undo :func:`_chunked`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:num_tokens]


def _operand(x: Array, precision: dot_lib.Precision) -> Array:
    """Cast a big operand once, outside the loop over chunks."""
    return x.astype(jnp.bfloat16 if precision == "fast" else jnp.float32)


def _logits(settings: _Settings, hidden: Array, head: Array) -> tuple[Array, Array | None]:
    """Return the logits of a chunk, and the derivative of the cap where there is one."""
    logits = dot_lib.dot_nt(hidden, head, precision=settings.precision)
    if settings.softcap is None:
        return logits, None
    tanh = jnp.tanh(logits / settings.softcap)
    return settings.softcap * tanh, 1.0 - tanh * tanh


def _log_normalizer(logits: Float[Array, "C V"]) -> Float[Array, " C"]:
    maximum = logits.max(axis=-1)
    return maximum + jnp.log(jnp.exp(logits - maximum[:, None]).sum(axis=-1))


def _at_target(logits: Float[Array, "C V"], targets: Int[Array, " C"]) -> Float[Array, " C"]:
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


def _is_target(targets: Int[Array, " C"], vocab_size: int) -> Array:
    return targets[:, None] == jnp.arange(vocab_size)


def _products_of_logit_grads(
    settings: _Settings, grads: Float[Array, "C V"], hidden: Array, head: Array
) -> tuple[Array, Array | None]:
    """Return the gradients of a chunk's hidden states and of the head."""
    grads = _operand(grads, settings.precision)
    d_hidden = dot_lib.dot(grads, head, precision=settings.precision)
    if not settings.head_needs_grad:
        return d_hidden, None
    if settings.precision == "exact":
        return d_hidden, dot_lib.dot(grads.T, hidden, precision="exact")
    return d_hidden, dot_lib.dot(dot_lib.transposed(grads), hidden, precision="fast")


def _logprob_forward(settings, hidden, head, targets, inverse_temperature):
    return _logprob_fwd(settings, hidden, head, targets, inverse_temperature)[0]


_logprob = jax.custom_vjp(_logprob_forward, nondiff_argnums=(0,))


def _logprob_fwd(settings, hidden, head, targets, inverse_temperature):
    operand = _operand(head, settings.precision)

    def body(carry, chunk):
        x, target = chunk
        logits = _logits(settings, x, operand)[0] * inverse_temperature
        normalizer = _log_normalizer(logits)
        entropy = jnp.zeros_like(normalizer)
        if settings.with_entropy:
            log_probs = logits - normalizer[:, None]
            entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1)
        return carry, (_at_target(logits, target) - normalizer, entropy, normalizer)

    chunks = (_chunked(hidden, settings.chunk), _chunked(targets, settings.chunk))
    outputs = jax.lax.scan(body, None, chunks)[1]
    logps, entropy, normalizer = (_joined(x, hidden.shape[0]) for x in outputs)
    residuals = (hidden, head, targets, inverse_temperature, normalizer, entropy)
    return (logps, entropy), residuals


def _logprob_bwd(settings, residuals, cotangents):
    hidden, head, targets, inverse_temperature, normalizer, entropy = residuals
    operand = _operand(head, settings.precision)

    def body(d_head, chunk):
        x, target, normalizer, entropy, d_logp, d_entropy = chunk
        logits, slope = _logits(settings, x, operand)
        log_probs = logits * inverse_temperature - normalizer[:, None]
        pull = d_logp[:, None]
        if settings.with_entropy:
            pull = pull + d_entropy[:, None] * (log_probs + entropy[:, None])
        hit = jnp.where(_is_target(target, head.shape[0]), d_logp[:, None], 0.0)
        grads = (hit - jnp.exp(log_probs) * pull) * inverse_temperature
        if slope is not None:
            grads = grads * slope
        d_x, d_head_chunk = _products_of_logit_grads(settings, grads, x, operand)
        if d_head is not None:
            d_head = d_head + d_head_chunk
        return d_head, d_x

    per_token = (hidden, targets, normalizer, entropy, *cotangents)
    chunks = tuple(_chunked(x, settings.chunk) for x in per_token)
    accumulator = jnp.zeros(head.shape, jnp.float32) if settings.head_needs_grad else None
    d_head, d_hidden = jax.lax.scan(body, accumulator, chunks)
    d_hidden = _joined(d_hidden, hidden.shape[0]).astype(hidden.dtype)
    return d_hidden, None if d_head is None else d_head.astype(head.dtype), None, None


_logprob.defvjp(_logprob_fwd, _logprob_bwd)


def _token_losses(settings, logits, targets):
    """Return loss, log-probability and normaliser of each token of a chunk."""
    normalizer = _log_normalizer(logits)
    logps = _at_target(logits, targets) - normalizer
    losses = -logps
    if settings.label_smoothing:
        everyone = normalizer - logits.mean(axis=-1)
        losses = losses + settings.label_smoothing * (everyone + logps)
    if settings.z_loss:
        losses = losses + settings.z_loss * normalizer * normalizer
    return losses, logps, normalizer


def _cross_entropy_forward(settings, hidden, head, targets, weights):
    operand = _operand(head, settings.precision)

    def body(total, chunk):
        x, target, weight = chunk
        losses, logps, _ = _token_losses(settings, _logits(settings, x, operand)[0], target)
        return total + (weight * losses).sum(), logps

    chunks = tuple(_chunked(x, settings.chunk) for x in (hidden, targets, weights))
    total, logps = jax.lax.scan(body, jnp.float32(0.0), chunks)
    return total, _joined(logps, hidden.shape[0])


_cross_entropy = jax.custom_vjp(_cross_entropy_forward, nondiff_argnums=(0,))


def _cross_entropy_fwd(settings, hidden, head, targets, weights):
    operand = _operand(head, settings.precision)

    def body(carry, chunk):
        total, d_head = carry
        x, target, weight = chunk
        logits, slope = _logits(settings, x, operand)
        losses, logps, normalizer = _token_losses(settings, logits, target)
        smoothing, vocab_size = settings.label_smoothing, head.shape[0]
        pull = weight * (1.0 + 2.0 * settings.z_loss * normalizer)
        hit = jnp.where(_is_target(target, vocab_size), weight[:, None] * (1.0 - smoothing), 0.0)
        grads = jnp.exp(logits - normalizer[:, None]) * pull[:, None] - hit
        if smoothing:
            grads = grads - weight[:, None] * (smoothing / vocab_size)
        if slope is not None:
            grads = grads * slope
        d_x, d_head_chunk = _products_of_logit_grads(settings, grads, x, operand)
        if d_head is not None:
            d_head = d_head + d_head_chunk
        return (total + (weight * losses).sum(), d_head), (d_x, losses, logps)

    chunks = tuple(_chunked(x, settings.chunk) for x in (hidden, targets, weights))
    accumulator = jnp.zeros(head.shape, jnp.float32) if settings.head_needs_grad else None
    (total, d_head), outputs = jax.lax.scan(body, (jnp.float32(0.0), accumulator), chunks)
    d_hidden, losses, logps = (_joined(x, hidden.shape[0]) for x in outputs)
    d_hidden = d_hidden.astype(hidden.dtype)
    if d_head is not None:
        d_head = d_head.astype(head.dtype)
    return (total, logps), (d_hidden, d_head, losses.astype(weights.dtype))


def _cross_entropy_bwd(settings, residuals, cotangents):
    d_hidden, d_head, losses = residuals
    d_total, _ = cotangents  # the log-probabilities are returned as constants
    d_hidden, losses = (d_total.astype(x.dtype) * x for x in (d_hidden, losses))
    d_head = None if d_head is None else d_total.astype(d_head.dtype) * d_head
    return d_hidden, d_head, None, losses


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)
