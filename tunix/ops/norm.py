"""Normalisation over the last axis. Nothing here knows about layers or parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "*rows D"],
    scale: Float[Array, " D"],
    *,
    eps: float,
    scale_offset: float = 0.0,
) -> Float[Array, "*rows D"]:
    """Return ``x / rms(x) * (scale + scale_offset)`` in float32 (arXiv:1910.07467).

    Args:
        x: Values to normalise, in any float dtype.
        scale: One factor per channel.
        eps: Added to the mean square.
        scale_offset: 1 for checkpoints that store the scale minus one.
    """
    # float32 on purpose: a bfloat16 mean of squares has three digits.
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    factor = scale.astype(jnp.float32)
    if scale_offset:
        factor = factor + scale_offset
    return x * jax.lax.rsqrt(mean_square + eps) * factor


def layer_norm(
    x: Float[Array, "*rows D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    *,
    eps: float,
) -> Float[Array, "*rows D"]:
    """Return ``(x - mean(x)) / std(x) * scale + bias`` in float32 (arXiv:1607.06450).

    Args:
        x: Values to normalise, in any float dtype.
        scale: One factor per channel.
        bias: One offset per channel.
        eps: Added to the variance.
    """
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + eps)
    return normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)
