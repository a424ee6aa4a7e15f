"""The decoder layer and what every layer of one forward pass shares."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tunix.models.transformer import activation, moe, projection
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.ops import attention, cached_attention, norm, rope
from tunix.ops import visibility as visibility_lib

IsLocal = bool | Bool[Array, ""]
"""Whether a layer attends to a window: known, or traced where one program scans over layers."""

_NO_WINDOW = jnp.iinfo(jnp.int32).max // 2
"""A window that reaches every token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What all layers of one call see: where each token stands and whom it may attend to."""

    visibility: visibility_lib.Visibility
    rotation: rope.Rotation
    local_rotation: rope.Rotation | None
    """Of local layers, where it differs."""
    lengths: Int[Array, " B"] | None
    """Filled slots of every row of the cache; ``None`` without a cache."""
    adapters: adapter_lib.AdapterUse

    def in_layer(self, dropout_key: PRNGKeyArray | None) -> "Context":
        """Return the same for one layer, whose dropout has a key of its own."""
        adapters = dataclasses.replace(self.adapters, dropout_key=dropout_key)
        return dataclasses.replace(self, adapters=adapters)

    def rotation_of(self, is_local: IsLocal) -> rope.Rotation:
        """Return the rotation of a layer."""
        if self.local_rotation is None:
            return self.rotation
        if isinstance(is_local, bool):
            return self.local_rotation if is_local else self.rotation
        pairs = zip(self.local_rotation, self.rotation, strict=True)
        return rope.Rotation(*(jnp.where(is_local, local, other) for local, other in pairs))


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich, 2019)."""

    def __init__(self, config: config_lib.TransformerConfig, width: int):
        scale = jnp.full((width,), 1.0 - config.norm_scale_offset, config.dtype)
        self.scale = nnx.Param(scale, logical_axes=("norm",))
        self.eps = config.norm_eps
        self.scale_offset = config.norm_scale_offset

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Return ``x`` with a mean square of one per row, scaled, in float32."""
        return norm.rms_norm(x, self.scale[...], eps=self.eps, scale_offset=self.scale_offset)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions (Ainslie et al., 2023)."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        d, n, k = config.embed_dim, config.num_heads, config.num_kv_heads
        h, bias = config.head_dim, config.qkv_bias
        make = projection.Projection
        self.q_proj = make(d, n * h, ("embed", "heads"), config, bias=bias, rngs=rngs)
        self.k_proj = make(d, k * h, ("embed", "kv_heads"), config, bias=bias, rngs=rngs)
        self.v_proj = make(d, k * h, ("embed", "kv_heads"), config, bias=bias, rngs=rngs)
        self.o_proj = make(n * h, d, ("heads", "embed"), config, bias=config.o_bias, rngs=rngs)
        if config.qk_norm:
            self.q_norm = RMSNorm(config, h)
            self.k_norm = RMSNorm(config, h)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        cache: cache_lib.LayerCache | None,
        is_local: IsLocal,
    ) -> tuple[Float[Array, "B T D"], cache_lib.LayerCache | None]:
        """Return what each token reads from those it may see, and the extended cache."""
        config, adapters = self.config, context.adapters
        heads = (*x.shape[:2], -1, config.head_dim)
        q = self.q_proj(x, adapters=adapters).reshape(heads)
        k = self.k_proj(x, adapters=adapters).reshape(heads)
        v = self.v_proj(x, adapters=adapters).reshape(heads)
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        rotation = context.rotation_of(is_local)
        q, k = rope.apply_rope(q, *rotation), rope.apply_rope(k, *rotation)
        settings = {
            "scale": config.query_scale,
            "window": _window(config, is_local),
            "softcap": config.attn_logit_softcap,
            "precision": self.q_proj.precision,
        }
        if cache is None or context.lengths is None:
            out = attention.attend(q, k, v, context.visibility, **settings)
        else:
            lengths = context.lengths
            cache = cache.write(k, v, lengths[:, None] + jnp.arange(x.shape[1]))
            out = cached_attention.attend_cached(
                q, cache.k, cache.v, lengths=lengths, rows=cache.rows, **settings
            )
        return self.o_proj(out.reshape(*x.shape[:2], -1), adapters=adapters), cache


class MLP(nnx.Module):
    """Gated feed-forward network (Shazeer, 2020: SwiGLU, GEGLU)."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        d, f, bias = config.embed_dim, config.hidden_dim, config.mlp_bias
        make = projection.Projection
        self.gate_proj = make(d, f, ("embed", "mlp"), config, bias=bias, rngs=rngs)
        self.up_proj = make(d, f, ("embed", "mlp"), config, bias=bias, rngs=rngs)
        self.down_proj = make(f, d, ("mlp", "embed"), config, bias=bias, rngs=rngs)
        self.activation: config_lib.Activation = config.activation

    def __call__(
        self, x: Float[Array, "B T D"], *, adapters: adapter_lib.AdapterUse
    ) -> Float[Array, "B T D"]:
        """Return the network's output for every token."""
        gate = activation.activate(self.gate_proj(x, adapters=adapters), self.activation)
        return self.down_proj(gate * self.up_proj(x, adapters=adapters), adapters=adapters)


class DecoderLayer(nnx.Module):
    """Residual layer: attention, then MLP, each behind a norm or between two (``sandwich_norms``).

    With two norms ``post_attention_layernorm`` is the one behind attention, as in Gemma 2;
    otherwise it is the one before the MLP, as in Llama. The names are those of the files.
    """

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config, config.embed_dim)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config, config.embed_dim)
        experts = config.num_experts is not None
        self.mlp = moe.MoE(config, rngs=rngs) if experts else MLP(config, rngs=rngs)
        self.sandwich_norms = config.sandwich_norms
        if config.sandwich_norms:
            self.pre_feedforward_layernorm = RMSNorm(config, config.embed_dim)
            self.post_feedforward_layernorm = RMSNorm(config, config.embed_dim)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        cache: cache_lib.LayerCache | None = None,
        is_local: IsLocal = False,
    ) -> tuple[Float[Array, "B T D"], cache_lib.LayerCache | None]:
        """Return the residual stream after this layer, and the layer's extended cache."""
        y, cache = self.self_attn(self.input_layernorm(x), context, cache, is_local)
        if not self.sandwich_norms:
            x = x + y
            y = self.mlp(self.post_attention_layernorm(x), adapters=context.adapters)
            return x + y, cache
        x = x + self.post_attention_layernorm(y)
        y = self.mlp(self.pre_feedforward_layernorm(x), adapters=context.adapters)
        return x + self.post_feedforward_layernorm(y), cache


def _window(config: config_lib.TransformerConfig, is_local: IsLocal) -> int | Int[Array, ""] | None:
    """Return how far a layer looks back."""
    if isinstance(is_local, bool):
        return config.sliding_window_size if is_local else None
    return jnp.where(is_local, config.sliding_window_size or _NO_WINDOW, _NO_WINDOW)
