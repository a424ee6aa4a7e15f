"""Log-probabilities of target tokens straight from hidden states, without ``[N, V]`` logits.

The output head and the softmax are computed a chunk of tokens at a time, forward and backward, so
memory does not grow with ``N * V``. Nothing here knows about models, batches or losses. Axes:
``N`` tokens, ``D`` channels, ``V`` vocabulary, ``C`` tokens of a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import cross_entropy_chunks, token_chunks, vocab_tiles
from tunix.ops import dot as dot_lib


class LinearLogprob(NamedTuple):
    """What the head says of each token."""

    logps: Float[Array, " N"]
    """Log-probability of the target."""
    entropy: Float[Array, " N"] | None
    """Entropy of the whole distribution in nats, where asked for."""


def linear_logprob(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    num_valid: Int[Array, ""] | None = None,
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
        num_valid: Tokens from here on are padding: they have log-probability and entropy 0, no
            gradient, and cost nothing but the rest of a chunk. Use it on one device: chunks are
            runs of tokens then, which gathers those that are sharded.
        temperature: Divides the logits; a constant of the gradient.
        softcap: Bound of the logits before the temperature.
        with_entropy: Whether to return the (differentiable) entropy too.
        head_needs_grad: False saves the ``[V, D]`` accumulator of a frozen head.
        chunk_size: Tokens per chunk; ``None`` picks it.
        precision: How products are computed; the softmax is always float32.
    """
    is_padded = num_valid is not None
    if chunk_size is None:
        chunk_size = vocab_tiles.default_chunk(hidden.shape[0], is_padded)
    settings = vocab_tiles.Settings(
        chunk=token_chunks.chunk_size(hidden.shape[0], chunk_size),
        softcap=softcap,
        with_entropy=with_entropy,
        head_needs_grad=head_needs_grad,
        precision=precision,
    )
    if not head_needs_grad:
        head = jax.lax.stop_gradient(head)
    inverse = jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))
    logps, entropy = vocab_tiles.logprob(settings, hidden, head, targets, inverse, num_valid)
    return LinearLogprob(logps, entropy if with_entropy else None)


def linear_cross_entropy(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    num_valid: Int[Array, ""] | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    head_needs_grad: bool = True,
    chunk_size: int | None = None,
    precision: dot_lib.Precision,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """Return the weighted sum of the tokens' losses, and their log-probabilities as constants.

    The loss of a token is ``(1 - s) * nll + s * mean over the vocabulary of -log p + z_loss *
    logsumexp(logits) ** 2`` with ``s`` the label smoothing. The sum is linear in the losses, so its
    gradients are formed in the forward pass where that is faster than computing logits again.

    Args:
        hidden: Hidden states after the final norm.
        head: Output matrix; float32 or bfloat16.
        targets: Token ids; those of weight 0 may be any valid id.
        weights: Weight of each token in the sum.
        num_valid: Tokens from here on are padding, see :func:`linear_logprob`.
        softcap: Bound ``c`` of the logits, as ``c * tanh(logits / c)``.
        label_smoothing: Share of the target's probability given to the whole vocabulary.
        z_loss: Weight of the squared normaliser (PaLM, arXiv:2204.02311, section 5).
        head_needs_grad: False saves the ``[V, D]`` accumulator of a frozen head.
        chunk_size: Tokens per chunk; ``None`` picks it.
        precision: How products are computed; the softmax is always float32.
    """
    is_plain = not label_smoothing and not z_loss
    if is_plain and head_needs_grad and jax.default_backend() == "cpu":
        # Computing logits twice costs a CPU less than summing up [V, D] once per chunk.
        logps = linear_logprob(
            hidden,
            head,
            targets,
            num_valid=num_valid,
            softcap=softcap,
            chunk_size=chunk_size,
            precision=precision,
        ).logps
        if num_valid is not None:  # a weight of padding may be anything
            weights = jnp.where(jnp.arange(weights.shape[0]) < num_valid, weights, 0.0)
        return -(weights * logps).sum(), jax.lax.stop_gradient(logps)
    limit = cross_entropy_chunks.default_chunk(head.shape[0]) if chunk_size is None else chunk_size
    settings = cross_entropy_chunks.Settings(
        chunk=token_chunks.chunk_size(hidden.shape[0], limit),
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        head_needs_grad=head_needs_grad,
        precision=precision,
    )
    if not head_needs_grad:
        head = jax.lax.stop_gradient(head)
    loss_sum, logps = cross_entropy_chunks.cross_entropy(
        settings, hidden, head, targets, weights, num_valid
    )
    return loss_sum, jax.lax.stop_gradient(logps)
