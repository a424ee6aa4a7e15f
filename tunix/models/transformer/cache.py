"""Keys and values of the tokens a sampler has already seen.

Row ``b`` is filled from slot 0 to ``lengths[b] - 1`` and a token's slot is its
position. Slots past the length hold anything: they are never attended to and are
overwritten when the row grows, so right-padded prompts need no clean-up.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.models.transformer import config as config_lib


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer (or of all, with a leading axis, in a scanned model)."""

    k: Float[Array, "*L B S K H"]
    v: Float[Array, "*L B S K H"]

    def write(
        self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], slots: Int[Array, "B T"]
    ) -> "LayerCache":
        """Return the cache with the new tokens at ``slots``; slots past the end are dropped."""
        rows = jnp.arange(k.shape[0])[:, None]
        return LayerCache(
            k=self.k.at[rows, slots].set(k.astype(self.k.dtype), mode="drop"),
            v=self.v.at[rows, slots].set(v.astype(self.v.dtype), mode="drop"),
        )


@flax.struct.dataclass
class KVCache:
    """The caches of all layers and how much of each row is filled."""

    layers: LayerCache | tuple[LayerCache, ...]
    """One cache with a leading layer axis (scanned decoder) or one per layer (unrolled)."""
    lengths: Int[Array, " B"]


def init_cache(
    config: config_lib.TransformerConfig,
    batch_size: int,
    cache_size: int,
    dtype: jnp.dtype = jnp.float32,
) -> KVCache:
    """Return an empty cache of ``cache_size`` slots a row, in the layout of ``config``."""
    shape = (batch_size, cache_size, config.num_kv_heads, config.head_dim)

    def empty(shape: tuple[int, ...]) -> LayerCache:
        return LayerCache(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

    lengths = jnp.zeros((batch_size,), jnp.int32)
    if config.scan_layers:
        return KVCache(layers=empty((config.num_layers, *shape)), lengths=lengths)
    return KVCache(layers=tuple(empty(shape) for _ in range(config.num_layers)), lengths=lengths)
