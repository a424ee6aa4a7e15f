"""Keys and values of the tokens a sampler has already seen.

Row ``b`` is filled from slot 0 to ``lengths[b] - 1`` and a token's slot is its
position. Slots past the length hold anything: they are never attended to and are
overwritten when the row grows, so right-padded prompts need no clean-up.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from tunix.models.transformer import config as config_lib
from tunix.ops import cached_attention


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer (or of all, with a leading axis, in a scanned model).

    Stored as :mod:`tunix.ops.cached_attention` likes to read them.
    """

    k: Num[Array, "*L R K H S"]
    v: Num[Array, "*L R K S H"]
    rows: Int[Array, " B"] | None = None
    """Which row each row of new tokens extends; by default its own, one for each."""

    def write(
        self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], slots: Int[Array, "B T"]
    ) -> "LayerCache":
        """Return the cache with the new tokens at ``slots``; slots past the end are dropped."""
        k, v = cached_attention.write(self.k, self.v, k, v, slots, self.rows)
        return dataclasses.replace(self, k=k, v=v)


@flax.struct.dataclass
class KVCache:
    """The caches of all layers and how much of each row is filled."""

    layers: LayerCache | tuple[LayerCache, ...]
    """One cache with a leading layer axis (scanned decoder) or one per layer (unrolled)."""
    lengths: Int[Array, " B"]
    """Of what each row of new tokens extends."""


def init_cache(
    config: config_lib.TransformerConfig,
    batch_size: int,
    cache_size: int,
    dtype: jnp.dtype = jnp.float32,
) -> KVCache:
    """Return an empty cache of ``cache_size`` slots a row, in the layout of ``config``."""
    lengths = jnp.zeros((batch_size,), jnp.int32)

    def empty() -> LayerCache:
        heads, width = config.num_kv_heads, config.head_dim
        return LayerCache(*cached_attention.empty(batch_size, cache_size, heads, width, dtype))

    if config.scan_layers:
        stored = empty()
        k, v = (jnp.zeros((config.num_layers, *x.shape), x.dtype) for x in (stored.k, stored.v))
        return KVCache(layers=LayerCache(k=k, v=v), lengths=lengths)
    return KVCache(layers=tuple(empty() for _ in range(config.num_layers)), lengths=lengths)
