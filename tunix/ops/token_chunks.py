"""What the fused output heads share: chunks of tokens, logits and their operands.

Axes: ``N`` tokens, ``C`` tokens of a chunk, ``D`` channels, ``V`` entries of the vocabulary.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from tunix.ops import dot as dot_lib


def chunk_size(num_tokens: int, limit: int) -> int:
    """Return the size of equal chunks no larger than ``limit``, so that padding is small."""
    num_chunks = max(1, -(-num_tokens // limit))
    return max(1, -(-num_tokens // num_chunks))


def split(x: Shaped[Array, "N *rest"], chunk: int) -> Shaped[Array, "n C *rest"]:
    """Return ``x`` in chunks, padded with zeros.

    A chunk takes every n-th token, not a run of them: tokens sharded over devices then stay
    sharded within each chunk.
    """
    num_chunks = max(1, -(-x.shape[0] // chunk))
    padding = [(0, num_chunks * chunk - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(chunk, num_chunks, *x.shape[1:]).swapaxes(0, 1)


def join(x: Shaped[Array, "n C *rest"], num_tokens: int) -> Shaped[Array, "N *rest"]:
    """Undo :func:`split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:num_tokens]


def operand(x: Array, precision: dot_lib.Precision) -> Array:
    """Return ``x`` in the type that products read, to cast a big operand once, not in a loop."""
    return x.astype(jnp.bfloat16 if precision == "fast" else jnp.float32)


def logits(
    hidden: Float[Array, "C D"],
    head: Float[Array, "V D"],
    softcap: float | None,
    precision: dot_lib.Precision,
) -> tuple[Float[Array, "C V"], Float[Array, "C V"] | None]:
    """Return the logits, and the derivative of the cap where there is one."""
    scores = dot_lib.dot_nt(hidden, head, precision=precision)
    if softcap is None:
        return scores, None
    tanh = jnp.tanh(scores / softcap)
    return softcap * tanh, 1.0 - tanh * tanh


def is_target(targets: Int[Array, " C"], first: Int[Array, ""] | int, size: int) -> Array:
    """Return where each token's target is among ``size`` entries from ``first`` on, ``[C, size]``.

    A comparison, not a scatter: it becomes part of the loop that uses it.
    """
    return (targets - first)[:, None] == jnp.arange(size)
