"""What the fused output heads share: a loop over chunks of tokens, logits and their operands.

Axes: ``N`` tokens, ``C`` tokens of a chunk, ``D`` channels, ``V`` entries of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from tunix.ops import dot as dot_lib


def chunk_size(num_tokens: int, limit: int) -> int:
    """Return the size of equal chunks no larger than ``limit``, so that padding is small."""
    num_chunks = max(1, -(-num_tokens // limit))
    return max(1, -(-num_tokens // num_chunks))


def over_chunks(
    body: Callable[[Any, tuple[Array, ...]], tuple[Any, tuple[Array, ...]]],
    carry: Any,
    xs: tuple[Shaped[Array, "N *_"], ...],
    chunk: int,
    num_valid: Int[Array, ""] | None,
) -> tuple[Any, tuple[Shaped[Array, "N *_"], ...]]:
    """Carry ``body(carry, chunk of xs) -> (carry, outputs)`` over all tokens, in chunks.

    Args:
        body: Handles ``chunk`` tokens; gets zeros in place of padding.
        carry: Its first carry.
        xs: Values of the tokens.
        chunk: How many tokens it gets at a time.
        num_valid: Tokens from here on are padding: their outputs are 0, and chunks of nothing
            else are not computed.

    Returns:
        The last carry, and the outputs of all tokens.
    """
    if num_valid is not None:
        return _over_valid(body, carry, xs, chunk, num_valid)
    num_tokens = xs[0].shape[0]
    carry, outputs = scan(body, carry, tuple(_split(x, chunk) for x in xs))
    return carry, tuple(_join(y, num_tokens) for y in outputs)


def scan(body: Callable[..., Any], carry: Any, xs: tuple[Array, ...]) -> Any:
    """Scan, but without a loop where there is one turn: adding to zeros is then simplified."""
    if xs[0].shape[0] != 1:
        return jax.lax.scan(body, carry, xs)
    carry, outputs = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], outputs)


def _over_valid(body, carry, xs, chunk, num_valid):
    num_tokens = xs[0].shape[0]
    # A chunk is a run of tokens: only so does padding at the end leave whole chunks out.
    xs = tuple(_padded(x, chunk) for x in xs)

    def clean(values, start):
        def of(x):
            valid = (start + jnp.arange(chunk) < num_valid).reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(valid, x, jnp.zeros((), x.dtype))

        return tuple(map(of, values))

    def turn(index, state):
        carry, outputs = state
        start = index * chunk
        parts = tuple(jax.lax.dynamic_slice_in_dim(x, start, chunk) for x in xs)
        carry, found = body(carry, clean(parts, start))
        update = jax.lax.dynamic_update_slice_in_dim
        pairs = zip(outputs, clean(found, start), strict=True)
        return carry, tuple(update(whole, part, start, axis=0) for whole, part in pairs)

    shapes = jax.eval_shape(body, carry, tuple(x[:chunk] for x in xs))[1]
    outputs = tuple(jnp.zeros((len(xs[0]), *y.shape[1:]), y.dtype) for y in shapes)
    num_chunks = (num_valid + chunk - 1) // chunk
    carry, outputs = jax.lax.fori_loop(0, num_chunks, turn, (carry, outputs))
    return carry, tuple(y[:num_tokens] for y in outputs)


def _padded(x: Shaped[Array, "N *_"], chunk: int) -> Array:
    num_chunks = max(1, -(-x.shape[0] // chunk))
    return jnp.pad(x, [(0, num_chunks * chunk - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def _split(x: Shaped[Array, "N *rest"], chunk: int) -> Shaped[Array, "n C *rest"]:
    """Return ``x`` in chunks, padded with zeros.

    A chunk takes every n-th token, not a run of them: tokens sharded over devices then stay
    sharded within each chunk.
    """
    x = _padded(x, chunk)
    return x.reshape(chunk, -1, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Shaped[Array, "n C *rest"], num_tokens: int) -> Shaped[Array, "N *rest"]:
    """Undo :func:`_split`."""
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
