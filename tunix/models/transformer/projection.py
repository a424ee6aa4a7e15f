"""One weight matrix, the product that applies it, and its low-rank adapter.

A module of its own because adapters, checkpoints and sharding rules address
weights by module path: ``layers.self_attn.q_proj`` holds ``w``, ``b`` if it has
a bias, and ``lora_a``, ``lora_b`` once adapted.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tunix.models.transformer import config as config_lib
from tunix.ops import dot as dot_lib

INIT_STD = 0.02
"""Standard deviation of freshly initialised matrices, as in GPT-2 and Llama."""


class Projection(nnx.Module):
    """``y = x @ w (+ b) (+ lora_scale * (x @ lora_a) @ lora_b)``, weights stored ``[in, out]``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: tuple[str, str],
        config: config_lib.TransformerConfig,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (in_features, out_features)
        w = INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.w = nnx.Param(w.astype(config.dtype), logical_axes=axes)
        self.b: nnx.Param | None = None
        if bias:
            self.b = nnx.Param(jnp.zeros((out_features,), config.dtype), logical_axes=axes[1:])
        self.precision: dot_lib.Precision = dot_lib.resolve_precision(config.precision)
        self.lora_scale: float | None = None

    def __call__(self, x: Float[Array, "*b i"], *, adapters: bool = True) -> Float[Array, "*b o"]:
        """Return the projected ``x`` in float32; ``adapters=False`` is the base model."""
        y = dot_lib.dot(x, self.w[...], precision=self.precision)
        if self.b is not None:
            y = y + self.b[...].astype(jnp.float32)
        if self.lora_scale is not None and adapters:
            low = dot_lib.dot(x, self.lora_a[...], precision=self.precision)
            y = y + self.lora_scale * dot_lib.dot(low, self.lora_b[...], precision=self.precision)
        return y

    def add_adapter(self, lora_a: Array, lora_b: Array, scale: float) -> None:
        """Attach a low-rank adapter; leading axes (stacked layers) are allowed on both factors."""
        in_axis, out_axis = self.w.get_metadata("logical_axes")
        self.lora_a = nnx.LoRAParam(lora_a, logical_axes=(in_axis, None))
        self.lora_b = nnx.LoRAParam(lora_b, logical_axes=(None, out_axis))
        self.lora_scale = scale

    def drop_adapter(self) -> None:
        """Remove the adapter without merging it."""
        del self.lora_a, self.lora_b
        self.lora_scale = None
