"""The functions that gates go through."""

import jax
from jaxtyping import Array, Float

from tunix.models.transformer import config as config_lib


def activate(x: Float[Array, "*b f"], activation: config_lib.Activation) -> Float[Array, "*b f"]:
    """Return ``x`` through the named activation."""
    if activation == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")
