"""Gemma 3's image tower (SigLIP, arXiv:2303.15343) and the projector from it into the text.

Nothing here knows tokens. Axes: ``I`` images, ``P`` patches of an image, ``S`` vectors of an image
after pooling, ``W`` width of the tower, ``D`` width of the text.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tunix.models.gemma3 import vision_config
from tunix.models.transformer import activation, projection
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import config as config_lib
from tunix.ops import attention, norm, visibility
from tunix.ops import dot as dot_lib
from tunix.utils import reference_names

SigLIPConfig = vision_config.SigLIPConfig

_CHANNELS = 3


class LayerNorm(nnx.Module):
    """Normalisation to mean 0 and variance 1 with a learned scale and bias."""

    def __init__(self, width: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((width,), dtype), logical_axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((width,), dtype), logical_axes=("norm",))
        self.eps = eps

    def __call__(self, x: Float[Array, "I P W"]) -> Float[Array, "I P W"]:
        """Return normalised rows in float32."""
        return norm.layer_norm(x, self.scale[...], self.bias[...], eps=self.eps)


class PatchEmbedding(nnx.Module):
    """Patches and where they are, as vectors: a strided convolution is one product per patch."""

    def __init__(self, config: SigLIPConfig, text: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        shape = (*config.patch_size, _CHANNELS, config.width)
        w = projection.INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.w = nnx.Param(w.astype(text.dtype), logical_axes=(None, None, None, "embed"))
        self.b = nnx.Param(jnp.zeros((config.width,), text.dtype), logical_axes=("embed",))
        shape = (config.grid_side**2, config.width)
        positions = projection.INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.positions = nnx.Param(positions.astype(text.dtype), logical_axes=(None, "embed"))
        self.precision: dot_lib.Precision = dot_lib.resolve_precision(text.precision)
        self.config = config

    def __call__(self, images: Float[Array, "I H W C"]) -> Float[Array, "I P W"]:
        """Return one vector per patch, row by row."""
        side, (height, width) = self.config.grid_side, self.config.patch_size
        patches = images.reshape(-1, side, height, side, width, _CHANNELS)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape[0], side * side, -1)
        w = self.w[...].reshape(-1, self.config.width)
        x = dot_lib.dot(patches, w, precision=self.precision)
        bias = self.b[...].astype(jnp.float32) + self.positions[...].astype(jnp.float32)
        return x + bias


class VisionAttention(nnx.Module):
    """Self-attention among all patches of an image."""

    def __init__(self, config: SigLIPConfig, text: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        make = functools.partial(projection.Projection, config=text, bias=True, rngs=rngs)
        self.q_proj = make(width, width, ("embed", "heads"))
        self.k_proj = make(width, width, ("embed", "heads"))
        self.v_proj = make(width, width, ("embed", "heads"))
        self.out_proj = make(width, width, ("heads", "embed"))
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "I P W"]) -> Float[Array, "I P W"]:
        """Return what each patch reads from the others."""
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        out = attention.attend(
            q,
            k,
            v,
            # One span: no direction.
            visibility.Visibility(span_ids=jnp.ones(x.shape[:2], jnp.int32)),
            scale=q.shape[-1] ** -0.5,
            precision=self.q_proj.precision,
        )
        return self.out_proj(out.reshape(x.shape))


class MlpBlock(nnx.Module):
    """Feed-forward network with one hidden layer."""

    def __init__(self, config: SigLIPConfig, text: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        make = functools.partial(projection.Projection, config=text, bias=True, rngs=rngs)
        self.fc1 = make(config.width, config.mlp_dim, ("embed", "mlp"))
        self.fc2 = make(config.mlp_dim, config.width, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "I P W"]) -> Float[Array, "I P W"]:
        """Return the network's output for every patch."""
        hidden = activation.activate(self.fc1(x), "gelu_tanh")
        return self.fc2(hidden)


class EncoderBlock(nnx.Module):
    """Residual block: attention, then MLP, each behind a norm."""

    def __init__(self, config: SigLIPConfig, text: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.width, config.norm_eps, text.dtype)
        self.self_attn = VisionAttention(config, text, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.width, config.norm_eps, text.dtype)
        self.mlp = MlpBlock(config, text, rngs=rngs)

    def __call__(self, x: Float[Array, "I P W"]) -> Float[Array, "I P W"]:
        """Return the residual stream after this block."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SigLiP(nnx.Module):
    """The image tower; its blocks are always stacked and scanned.

    Args:
        config: Architecture.
        text: The decoder's config, for how weights are stored, multiplied and recomputed.
        frozen: Whether the weights are variables that no trainer changes.
        rngs: Where fresh weights come from.
    """

    def __init__(
        self,
        config: SigLIPConfig,
        text: config_lib.TransformerConfig,
        *,
        frozen: bool,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat: config_lib.Remat = text.remat
        self.embeddings = PatchEmbedding(config, text, rngs=rngs)

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> EncoderBlock:
            return EncoderBlock(config, text, rngs=rngs)

        self.layers = stacked(rngs)
        self.post_layernorm = LayerNorm(config.width, config.norm_eps, text.dtype)
        if frozen:
            _freeze(self)

    def __call__(self, images: Float[Array, "I H W C"]) -> Float[Array, "I P W"]:
        """Return one vector per patch.

        Args:
            images: Normalised pixels, ``(value - mean) / std``.

        Raises:
            ValueError: If the images are not of the size of the config.
        """
        expected = (self.config.image_height, self.config.image_width, _CHANNELS)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images must be [images, height, width, channels] with the last three {expected}, "
                f"got {images.shape}; resize them with tunix.processors.image_processor"
            )
        x = self.embeddings(images)
        graphdef, blocks = nnx.split(self.layers)

        def body(x: Array, block: Any) -> tuple[Array, None]:
            return nnx.merge(graphdef, block)(x), None

        if self.remat != "none":
            policy = getattr(jax.checkpoint_policies, self.remat)
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return self.post_layernorm(jax.lax.scan(body, x, blocks)[0])


class MultiModalProjector(nnx.Module):
    """Pools the patches of an image to a smaller square and maps them into the text's space."""

    def __init__(self, config: SigLIPConfig, text: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        # Files hold the scale minus one, as everywhere in Gemma.
        self.norm_scale = nnx.Param(jnp.zeros((config.width,), text.dtype), logical_axes=("norm",))
        axes = ("mlp", "embed")
        self.proj = projection.Projection(config.width, text.embed_dim, axes, text, rngs=rngs)
        self.config = config

    def __call__(self, x: Float[Array, "I P W"]) -> Float[Array, "I S D"]:
        """Return the vectors that take the place of an image's tokens, row by row."""
        side = self.config.tokens_per_side
        pool = self.config.grid_side // side
        squares = x.reshape(-1, side, pool, side, pool, x.shape[-1])
        pooled = squares.mean(axis=(2, 4)).reshape(x.shape[0], side * side, -1)
        eps = self.config.norm_eps
        normal = norm.rms_norm(pooled, self.norm_scale[...], eps=eps, scale_offset=1.0)
        return self.proj(normal)


def _freeze(module: nnx.Module) -> None:
    """Turn all parameters of ``module`` into weights that no trainer changes."""
    for _, part in nnx.iter_modules(module):
        for name, variable in list(vars(part).items()):
            if isinstance(variable, nnx.Param):
                frozen = adapter_lib.Frozen(
                    variable[...], logical_axes=variable.get_metadata("logical_axes")
                )
                setattr(part, name, frozen)


__getattr__ = reference_names.hints(__name__)
