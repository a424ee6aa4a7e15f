"""The decoder every family shares: tokens in, hidden states or logits out."""

import dataclasses
import inspect
from typing import Any, TypeGuard

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import embedding_noise as noise_lib
from tunix.models.transformer import layer as layer_lib
from tunix.models.transformer import projection
from tunix.ops import dot as dot_lib
from tunix.ops import rope
from tunix.ops import visibility as visibility_lib


@flax.struct.dataclass
class OutputHead:
    """The matrix that turns hidden states into logits.

    Losses and log-probabilities take this instead of logits, so that no
    ``[B, T, V]`` array ever exists.
    """

    weight: Float[Array, "V D"]
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    """Bound ``c`` of the logits, as ``c * tanh(logits / c)``."""

    def logits(
        self, hidden: Float[Array, "*b D"], *, precision: dot_lib.Precision
    ) -> Float[Array, "*b V"]:
        """Return float32 logits."""
        logits = dot_lib.dot_nt(hidden, self.weight, precision=precision)
        if self.softcap is None:
            return logits
        return self.softcap * jnp.tanh(logits / self.softcap)


class Table(nnx.Module):
    """A ``[vocab, embed]`` matrix: token embeddings or an untied output head."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.embed_dim)
        w = projection.INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.w = nnx.Param(w.astype(config.dtype), logical_axes=("vocab", "embed"))


class Decoder(nnx.Module):
    """A causal language model.

    Parameters are addressed by the Hugging Face names of their parts:
    ``embed_tokens.w``, ``layers.self_attn.q_proj.w`` (``layers.3.self_attn...``
    when unrolled), ``norm.scale`` and, if the head is not tied, ``lm_head.w``.
    """

    layer_class: type[layer_lib.DecoderLayer] = layer_lib.DecoderLayer
    """What the layers are made of; a subclass whose layers really differ sets its own."""

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = Table(config, rngs=rngs)
        self.layers = _make_layers(self.layer_class, config, rngs)
        self.norm = layer_lib.RMSNorm(config, config.embed_dim)
        self.adapter_dropout: adapter_lib.AdapterDropout | None = nnx.data(None)
        self.embedding_noise: noise_lib.EmbeddingNoise | None = nnx.data(None)
        if not config.weight_tying:
            self.lm_head = Table(config, rngs=rngs)

    def __call__(
        self,
        input_tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        cache: cache_lib.KVCache | None = None,
        attention_mask: Bool[Array, "B T T"] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        **options: Any,
    ) -> tuple[Float[Array, "B T V"], cache_lib.KVCache | None]:
        """Return float32 logits and the updated cache.

        Args:
            input_tokens: Token ids.
            positions: Position of each token; by default its index in the row, counted from the
                cache's length where there is a cache.
            cache: Keys and values of earlier tokens.
            attention_mask: True where query ``t`` may see key ``s``, on top of causality.
            segment_ids: Packing: a token sees earlier tokens of its own segment. 0 is padding.
            **options: As for :meth:`hidden`.
        """
        visibility = visibility_lib.Visibility(positions, segment_ids, mask=attention_mask)
        hidden, cache = self.hidden(input_tokens, visibility, cache, **options)
        precision = dot_lib.resolve_precision(self.config.precision)
        return self.output_head().logits(hidden, precision=precision), cache

    def hidden(
        self,
        input_tokens: Int[Array, "B T"],
        visibility: visibility_lib.Visibility | None = None,
        cache: cache_lib.KVCache | None = None,
        *,
        input_embeddings: Float[Array, "B T D"] | None = None,
        adapters: bool = True,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], cache_lib.KVCache | None]:
        """Return float32 hidden states after the final norm, and the updated cache.

        Args:
            input_tokens: Token ids.
            visibility: Where each token stands and whom it sees; by default a row is one sequence.
            cache: Keys and values of earlier tokens. The new ones are written behind
                them, and every token attends to all earlier ones of its row.
            input_embeddings: What the first layer gets instead of :meth:`embed` of the tokens,
                where something other than tokens is mixed in.
            adapters: False computes the base model, without LoRA.
            dropout_key: Drops inputs of adapters, as their dropout says; without a key
                (inference, and log-probabilities that are compared) nothing is dropped.

        Raises:
            ValueError: If a cache comes with visibility: a cached row is one causal sequence and
                its slots are its positions.
        """
        if visibility is None:
            visibility = visibility_lib.Visibility()
        if cache is None:
            lengths, positions = None, visibility.positions_in(input_tokens.shape)
        elif jax.tree.leaves(visibility):
            raise ValueError(
                "a cached call takes tokens only: positions, masks and segments follow from "
                "cache.lengths; pass None for them"
            )
        else:
            lengths = cache.lengths
            positions = visibility.positions_in(input_tokens.shape) + lengths[:, None]
        rotation, local_rotation = _rotations(self.config, positions)
        context = layer_lib.Context(
            visibility=visibility,
            rotation=rotation,
            local_rotation=local_rotation,
            lengths=lengths,
            adapters=adapter_lib.AdapterUse(active=adapters, dropout_key=dropout_key),
        )
        x = self.embed(input_tokens) if input_embeddings is None else input_embeddings
        if cache is None:
            x = _run_layers(self.layers, self.config, x, context)
        else:
            x, layers = _run_cached_layers(self.layers, self.config, x, context, cache.layers)
            lengths = cache.lengths + input_tokens.shape[1]
            cache = cache_lib.KVCache(layers=layers, lengths=lengths)
        return self.norm(x), cache

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return what the first layer gets for these tokens, in float32."""
        x = self.embed_tokens.w[...][tokens].astype(jnp.float32)
        return x * self.config.embed_dim**0.5 if self.config.scale_embeddings else x

    def dropout_key(self) -> PRNGKeyArray | None:
        """Return the key of one training pass; ``None`` if no adapter drops, or in evaluation."""
        return None if self.adapter_dropout is None else self.adapter_dropout()

    def noisy_embeddings(
        self, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None
    ) -> Float[Array, "B T D"] | None:
        """Return embeddings with noise for one training pass; ``None`` if the model has none."""
        noise = self.embedding_noise
        return None if noise is None else noise(self.embed(tokens), segment_ids)

    def output_head(self) -> OutputHead:
        """Return the output matrix; the embedding itself where the two are tied."""
        table = self.embed_tokens if self.config.weight_tying else self.lm_head
        return OutputHead(weight=table.w[...], softcap=self.config.final_logit_softcap)

    def get_model_input(self) -> dict[str, Any]:
        """Return one small valid input, for tools that need to trace the model.

        Two rows, so that every mesh axis of size two finds something to shard.
        """
        rows, tokens = 2, 1
        return {
            "input_tokens": jnp.ones((rows, tokens), jnp.int32),
            "positions": jnp.ones((rows, tokens), jnp.int32),
            "cache": None,
            "attention_mask": jnp.ones((rows, tokens, tokens), jnp.bool_),
        }

    @property
    def num_embed(self) -> int:
        """Size of the vocabulary."""
        return self.config.vocab_size

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.config.num_layers

    @property
    def embed_dim(self) -> int:
        """Width of the residual stream."""
        return self.config.embed_dim


def _rotations(
    config: config_lib.TransformerConfig, positions: Int[Array, "B T"]
) -> tuple[rope.Rotation, rope.Rotation | None]:
    """Return the rotation of every token, and that of local layers where it differs."""
    width = config.head_dim
    rotation = rope.rotation(positions, width, config.rope_theta, config.rope_scaling)
    if config.local_rope_theta is None:
        return rotation, None
    return rotation, rope.rotation(positions, width, config.local_rope_theta)


def _make_layers(
    layer_class: type[layer_lib.DecoderLayer],
    config: config_lib.TransformerConfig,
    rngs: nnx.Rngs,
) -> Any:
    """Return one layer with stacked parameters, or a list of layers."""
    if not config.scan_layers:
        return nnx.List([layer_class(config, rngs=rngs) for _ in range(config.num_layers)])

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> layer_lib.DecoderLayer:
        return layer_class(config, rngs=rngs)

    return stacked(rngs)


def _run_layers(
    layers: Any, config: config_lib.TransformerConfig, x: Float[Array, "B T D"], context: Any
) -> Float[Array, "B T D"]:
    """Apply all layers; each is recomputed in the backward pass as ``config.remat`` says."""
    keys = _dropout_keys(context, config.num_layers)
    if not config.scan_layers:
        for i, (layer, is_local) in enumerate(zip(layers, config.is_local, strict=True)):
            own = context if keys is None else context.in_layer(keys[i])
            if config.remat == "none":  # the layer itself: qwix adds parameters to it in passing
                x = layer(x, own, is_local=is_local)[0]
                continue
            graphdef, state = nnx.split(layer)

            def apply(x, state, graphdef=graphdef, is_local=is_local, own=own):
                return nnx.merge(graphdef, state)(x, own, is_local=is_local)[0]

            x = _remat(apply, config.remat, prevent_cse=True)(x, state)
        return x

    graphdef, stacked = nnx.split(layers)
    is_local, per_layer = _locality(config)

    def body(x, inputs):
        state, own, key = inputs
        kind = is_local if own is None else own
        return nnx.merge(graphdef, state)(x, context.in_layer(key), is_local=kind)[0], None

    # Inside a scan XLA cannot merge the recomputation with the forward pass anyway.
    body = _remat(body, config.remat, prevent_cse=False)
    return jax.lax.scan(body, x, (stacked, per_layer, keys))[0]


def _dropout_keys(context: layer_lib.Context, num_layers: int) -> PRNGKeyArray | None:
    """Return one key for every layer, where there is dropout."""
    key = context.adapters.dropout_key
    return None if key is None else jax.random.split(key, num_layers)


def _run_cached_layers(
    layers: Any,
    config: config_lib.TransformerConfig,
    x: Float[Array, "B T D"],
    context: layer_lib.Context,
    caches: Any,
) -> tuple[Float[Array, "B T D"], Any]:
    """Apply all layers, reading and extending their caches."""
    if not config.scan_layers:
        filled = []
        for layer, cache, is_local in zip(layers, caches, config.is_local, strict=True):
            x, cache = layer(x, context, cache, is_local)
            filled.append(cache)
        return x, tuple(filled)

    graphdef, stacked = nnx.split(layers)
    is_local, per_layer = _locality(config)

    def body(x, inputs):
        state, cache, own = inputs
        return nnx.merge(graphdef, state)(x, context, cache, is_local if own is None else own)

    return jax.lax.scan(body, x, (stacked, caches, per_layer))


def _locality(config: config_lib.TransformerConfig) -> tuple[bool, Bool[Array, " L"] | None]:
    """Return the kind of all layers, or where they differ an array to scan over."""
    kinds = config.is_local
    return kinds[0], None if len(set(kinds)) == 1 else jnp.asarray(kinds)


def _remat(fn: Any, policy: config_lib.Remat, *, prevent_cse: bool) -> Any:
    if policy == "none":
        return fn
    return jax.checkpoint(
        fn, policy=getattr(jax.checkpoint_policies, policy), prevent_cse=prevent_cse
    )


def has_hidden(model: Any) -> TypeGuard[Decoder]:
    """Return whether losses may take ``model.hidden``: a decoder whose call nobody has wrapped.

    qwix swaps in a class whose ``__call__`` computes with adapters or few bits; unless ``hidden``
    is wrapped, too, it would compute without them. Such a model is called as any other module is.
    """
    if not isinstance(model, Decoder):
        return False
    call, hidden = type(model).__call__, type(model).hidden
    return inspect.unwrap(call) is call or inspect.unwrap(hidden) is not hidden


def require_hidden(model: Decoder) -> None:
    """Raise if ``model.hidden`` leaves out what a wrapper has added to the model's call.

    For where there is no other way than hidden states, see :func:`has_hidden`.

    Raises:
        TypeError: If ``__call__`` is wrapped and ``hidden`` is not.
    """
    if not has_hidden(model):
        raise TypeError(
            f"the call of this {type(model).__name__} is wrapped, and hidden states are needed "
            "here, from its method hidden, which is not: wrap that instead. With qwix, pass "
            "methods=('hidden',) to apply_lora_to_model or quantize_model"
        )


def with_config(model: Decoder, **changes: Any) -> Decoder:
    """Return the same weights under a changed config (``precision``, ``remat``); nothing is copied.

    Raises:
        ConfigError: If a changed field is invalid.
    """
    config = dataclasses.replace(model.config, **changes)
    abstract = nnx.eval_shape(lambda: type(model)(config, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(abstract), nnx.state(model))
