"""The decoder every family shares: tokens in, hidden states or logits out."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import layer as layer_lib
from tunix.models.transformer import projection
from tunix.ops import dot as dot_lib
from tunix.ops import rope


@flax.struct.dataclass
class OutputHead:
    """The matrix that turns hidden states into logits.

    Losses and log-probabilities take this instead of logits, so that no
    ``[B, T, V]`` array ever exists.
    """

    weight: Float[Array, "V D"]


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

    def __init__(self, config: config_lib.TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = Table(config, rngs=rngs)
        self.layers = _make_layers(config, rngs)
        self.norm = layer_lib.RMSNorm(config)
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
        prefix_ids: Int[Array, "B T"] | None = None,
        adapters: bool = True,
    ) -> tuple[Float[Array, "B T V"], cache_lib.KVCache | None]:
        """Return float32 logits and the updated cache; arguments as for :meth:`hidden`."""
        hidden, cache = self.hidden(
            input_tokens,
            positions,
            cache,
            attention_mask,
            segment_ids=segment_ids,
            prefix_ids=prefix_ids,
            adapters=adapters,
        )
        precision = dot_lib.resolve_precision(self.config.precision)
        return dot_lib.dot_nt(hidden, self.output_head().weight, precision=precision), cache

    def hidden(
        self,
        input_tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        cache: cache_lib.KVCache | None = None,
        attention_mask: Bool[Array, "B T T"] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        prefix_ids: Int[Array, "B T"] | None = None,
        adapters: bool = True,
    ) -> tuple[Float[Array, "B T D"], cache_lib.KVCache | None]:
        """Return float32 hidden states after the final norm, and the updated cache.

        Args:
            input_tokens: Token ids.
            positions: Rotary position of each token; by default its index in the row,
                counted from the cache's length where there is a cache.
            cache: Keys and values of earlier tokens. The new ones are written behind
                them, and every token attends to all earlier ones of its row.
            attention_mask: True where query ``t`` may see key ``s``, on top of causality.
            segment_ids: Packing: a token sees earlier tokens of its own segment. 0 is padding.
            prefix_ids: The one other segment a token may see, e.g. the prompt that several
                completions share.
            adapters: False computes the base model, without LoRA.

        Raises:
            ValueError: If a cache comes with a mask, segments or positions of its own: a
                cached row is one causal sequence and its slots are its positions.
        """
        lengths = None if cache is None else cache.lengths
        if cache is not None:
            given = (positions, attention_mask, segment_ids, prefix_ids)
            if any(argument is not None for argument in given):
                raise ValueError(
                    "a cached call takes tokens only: positions, attention_mask, segment_ids and "
                    "prefix_ids follow from cache.lengths; pass None for them"
                )
        context = self._context(
            input_tokens, positions, lengths, attention_mask, segment_ids, prefix_ids, adapters
        )
        x = self.embed_tokens.w[...][input_tokens].astype(jnp.float32)
        if cache is None:
            x = _run_layers(self.layers, self.config, x, context)
        else:
            x, layers = _run_cached_layers(self.layers, self.config, x, context, cache.layers)
            lengths = cache.lengths + input_tokens.shape[1]
            cache = cache_lib.KVCache(layers=layers, lengths=lengths)
        return self.norm(x), cache

    def output_head(self) -> OutputHead:
        """Return the output matrix; the embedding itself where the two are tied."""
        table = self.embed_tokens if self.config.weight_tying else self.lm_head
        return OutputHead(weight=table.w[...])

    @property
    def num_embed(self) -> int:
        """Size of the vocabulary."""
        return self.config.vocab_size

    def _context(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None,
        lengths: Int[Array, " B"] | None,
        attention_mask: Bool[Array, "B T T"] | None,
        segment_ids: Int[Array, "B T"] | None,
        prefix_ids: Int[Array, "B T"] | None,
        adapters: bool,
    ) -> layer_lib.Context:
        config = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
            if lengths is not None:
                positions = positions + lengths[:, None]
        frequencies = rope.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        sin, cos = rope.rope_angles(positions, frequencies)
        return layer_lib.Context(
            positions=positions,
            sin=sin,
            cos=cos,
            segment_ids=segment_ids,
            prefix_ids=prefix_ids,
            attention_mask=attention_mask,
            lengths=lengths,
            adapters=adapters,
        )


def _make_layers(config: config_lib.TransformerConfig, rngs: nnx.Rngs) -> Any:
    """Return one layer with stacked parameters, or a list of layers."""
    if not config.scan_layers:
        return nnx.List(
            [layer_lib.DecoderLayer(config, rngs=rngs) for _ in range(config.num_layers)]
        )

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> layer_lib.DecoderLayer:
        return layer_lib.DecoderLayer(config, rngs=rngs)

    return stacked(rngs)


def _run_layers(
    layers: Any, config: config_lib.TransformerConfig, x: Float[Array, "B T D"], context: Any
) -> Float[Array, "B T D"]:
    """Apply all layers; each is recomputed in the backward pass as ``config.remat`` says."""
    if not config.scan_layers:
        for one in layers:
            graphdef, state = nnx.split(one)

            def apply(x, state, graphdef=graphdef):
                return nnx.merge(graphdef, state)(x, context)[0]

            x = _remat(apply, config.remat, prevent_cse=True)(x, state)
        return x

    graphdef, stacked = nnx.split(layers)

    def body(x, state):
        return nnx.merge(graphdef, state)(x, context)[0], None

    # Inside a scan XLA cannot merge the recomputation with the forward pass anyway.
    return jax.lax.scan(_remat(body, config.remat, prevent_cse=False), x, stacked)[0]


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
        for one, cache in zip(layers, caches, strict=True):
            x, cache = one(x, context, cache)
            filled.append(cache)
        return x, tuple(filled)

    graphdef, stacked = nnx.split(layers)

    def body(x, state_and_cache):
        state, cache = state_and_cache
        return nnx.merge(graphdef, state)(x, context, cache)

    return jax.lax.scan(body, x, (stacked, caches))


def _remat(fn: Any, policy: config_lib.Remat, *, prevent_cse: bool) -> Any:
    if policy == "none":
        return fn
    return jax.checkpoint(
        fn, policy=getattr(jax.checkpoint_policies, policy), prevent_cse=prevent_cse
    )


def with_config(model: Decoder, **changes: Any) -> Decoder:
    """Return the same weights under a changed config (``precision``, ``remat``); nothing is copied.

    Raises:
        ConfigError: If a changed field is invalid.
    """
    config = dataclasses.replace(model.config, **changes)
    abstract = nnx.eval_shape(lambda: type(model)(config, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(abstract), nnx.state(model))
