"""The decoder layer and what every layer of one forward pass shares."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import projection
from tunix.ops import attention, cached_attention, norm, rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What all layers of one call see: where each token stands and whom it may attend to."""

    positions: Int[Array, "B T"]
    sin: Float[Array, "B T 1 h"]
    cos: Float[Array, "B T 1 h"]
    segment_ids: Int[Array, "B T"] | None
    prefix_ids: Int[Array, "B T"] | None
    attention_mask: Bool[Array, "B T T"] | None
    lengths: Int[Array, " B"] | None
    """Filled slots of every row of the cache; ``None`` without a cache."""
    adapters: bool


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich, 2019)."""

    def __init__(self, config: config_lib.TransformerConfig):
        ones = jnp.ones((config.embed_dim,), config.dtype)
        self.scale = nnx.Param(ones, logical_axes=("norm",))
        self.eps = config.norm_eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return ``x`` with a mean square of one per token, scaled, in float32."""
        return norm.rms_norm(x, self.scale[...], eps=self.eps)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions (Ainslie et al., 2023)."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        d, n, k = config.embed_dim, config.num_heads, config.num_kv_heads
        h = config.head_dim
        make = projection.Projection
        self.q_proj = make(d, n * h, ("embed", "heads"), config, rngs=rngs)
        self.k_proj = make(d, k * h, ("embed", "kv_heads"), config, rngs=rngs)
        self.v_proj = make(d, k * h, ("embed", "kv_heads"), config, rngs=rngs)
        self.o_proj = make(n * h, d, ("heads", "embed"), config, rngs=rngs)
        self.config = config

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: cache_lib.LayerCache | None
    ) -> tuple[Float[Array, "B T D"], cache_lib.LayerCache | None]:
        """Return what each token reads from those it may see, and the extended cache."""
        config, adapters = self.config, context.adapters
        heads = (*x.shape[:2], -1, config.head_dim)
        q = self.q_proj(x, adapters=adapters).reshape(heads)
        k = self.k_proj(x, adapters=adapters).reshape(heads)
        v = self.v_proj(x, adapters=adapters).reshape(heads)
        q = rope.apply_rope(q, context.sin, context.cos)
        k = rope.apply_rope(k, context.sin, context.cos)
        settings = {"scale": config.query_scale, "precision": self.q_proj.precision}
        if cache is None or context.lengths is None:
            out = attention.attend(
                q,
                k,
                v,
                positions=context.positions,
                segment_ids=context.segment_ids,
                prefix_ids=context.prefix_ids,
                attention_mask=context.attention_mask,
                **settings,
            )
        else:
            cache = cache.write(k, v, context.positions)
            out = cached_attention.attend_cached(
                q, cache.k, cache.v, lengths=context.lengths, **settings
            )
        return self.o_proj(out.reshape(*x.shape[:2], -1), adapters=adapters), cache


class MLP(nnx.Module):
    """Gated feed-forward network with a SiLU gate (Shazeer, 2020: SwiGLU)."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        d, f = config.embed_dim, config.hidden_dim
        self.gate_proj = projection.Projection(d, f, ("embed", "mlp"), config, rngs=rngs)
        self.up_proj = projection.Projection(d, f, ("embed", "mlp"), config, rngs=rngs)
        self.down_proj = projection.Projection(f, d, ("mlp", "embed"), config, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], *, adapters: bool) -> Float[Array, "B T D"]:
        """Return the network's output for every token."""
        gate = jax.nn.silu(self.gate_proj(x, adapters=adapters))
        return self.down_proj(gate * self.up_proj(x, adapters=adapters), adapters=adapters)


class DecoderLayer(nnx.Module):
    """Pre-norm residual layer: attention, then MLP."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: cache_lib.LayerCache | None = None
    ) -> tuple[Float[Array, "B T D"], cache_lib.LayerCache | None]:
        """Return the residual stream after this layer, and the layer's extended cache."""
        y, cache = self.self_attn(self.input_layernorm(x), context, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x), adapters=context.adapters), cache
