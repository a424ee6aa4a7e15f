"""Many tokens for many slots in one compiled loop.

Pure functions over a donated state; which request sits in which slot is the
engine's business. Axes: ``B`` slots, ``S`` positions of the cache, ``C`` steps of
a block, ``E`` stop tokens, ``V`` vocabulary, ``D`` model width.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.ops import dot, sampling

HostOrDevice = Array | np.ndarray

NO_TOKEN = -1
"""Fills unused places of stop-token arrays; no token has this id."""


@flax.struct.dataclass
class SlotSettings:
    """What the request in each slot asks for; filled on the host, read on the device."""

    temperature: Float[HostOrDevice, " B"]
    top_k: Int[HostOrDevice, " B"]
    top_p: Float[HostOrDevice, " B"]
    min_p: Float[HostOrDevice, " B"]
    repetition_penalty: Float[HostOrDevice, " B"]
    stop_ids: Int[HostOrDevice, "B E"]
    """Padded with ``NO_TOKEN``."""
    max_new_tokens: Int[HostOrDevice, " B"]
    keys: UInt32[HostOrDevice, "B W"]
    """Data of the request's key."""
    index: Int[HostOrDevice, " B"]
    """Which sample of its key the request is; draws depend on the two and on nothing else."""


@flax.struct.dataclass
class Turn:
    """What the host wants of one block."""

    occupied: Bool[HostOrDevice, " B"]
    """Slots with a request that has started; what runs in another has been aborted."""
    idle_lengths: Int[HostOrDevice, " B"]
    """What to keep of the rows of idle slots: their first tokens, so many."""
    return_at_idle: Int[HostOrDevice, ""]
    """The block ends early once this many slots have nothing to do."""
    max_steps: Int[HostOrDevice, ""]
    """The block ends after so many steps, at most ``C``."""


@flax.struct.dataclass
class DecodeState:
    """Everything a slot has so far; lives on the device and is donated from call to call."""

    cache: cache_lib.KVCache
    hidden: Float[Array, "B D"]
    """Of the newest token in the cache: the next token is drawn from it."""
    prompt_hidden: Float[Array, "B D"]
    """Of the last token of the prompt that the slot's row begins with."""
    counts: Int[Array, " B"]
    """Tokens drawn for the slot's request."""
    active: Bool[Array, " B"]
    history: Int[Array, "B S"]
    """Prompt and drawn tokens by position, for the repetition penalty."""


@flax.struct.dataclass
class Block:
    """Tokens of up to ``C`` steps; a slot's are the leading ones, as many as its count grew."""

    tokens: Int[Array, "B C"]
    logps: Float[Array, "B C"]
    sampled_logps: Float[Array, "B C"]


def empty_state(
    config: config_lib.TransformerConfig, *, slots: int, cache_size: int, dtype: jnp.dtype
) -> DecodeState:
    """Return a state in which no slot has a request."""
    return DecodeState(
        cache=cache_lib.init_cache(config, slots, cache_size, dtype),
        hidden=jnp.zeros((slots, config.embed_dim)),
        prompt_hidden=jnp.zeros((slots, config.embed_dim)),
        counts=jnp.zeros(slots, jnp.int32),
        active=jnp.zeros(slots, bool),
        history=jnp.zeros((slots, cache_size), jnp.int32),
    )


def decode_block(
    model: decoder.Decoder,
    head: decoder.OutputHead,
    state: DecodeState,
    settings: SlotSettings,
    turn: Turn,
    *,
    banned: Bool[Array, "B V"],
    steps: int,
) -> tuple[DecodeState, Block]:
    """Draw up to ``steps`` tokens for every active slot.

    Args:
        model: Unrolled decoder.
        head: Its output head.
        state: Donate it.
        settings: Of the requests in the slots.
        turn: What is wanted of this block.
        banned: Tokens that the request in a slot may not draw.
        steps: Length of a block; static.
    """
    precision = dot.resolve_precision(model.config.precision)
    active = state.active & turn.occupied
    lengths = jnp.where(active, state.cache.lengths, turn.idle_lengths)
    state = dataclasses.replace(
        state, active=active, cache=dataclasses.replace(state.cache, lengths=lengths)
    )
    slots = state.active.shape[0]
    block = Block(
        tokens=jnp.zeros((slots, steps), jnp.int32),
        logps=jnp.zeros((slots, steps)),
        sampled_logps=jnp.zeros((slots, steps)),
    )

    def is_unfinished(carry: tuple) -> Bool[Array, ""]:
        step, state, _ = carry
        return (step < turn.max_steps) & (jnp.sum(~state.active) < turn.return_at_idle)

    def advance(carry: tuple) -> tuple:
        step, state, block = carry
        logits = head.logits(state.hidden, precision=precision)
        draw = _draw(logits, state, settings, banned)
        block = Block(
            tokens=block.tokens.at[:, step].set(draw.tokens),
            logps=block.logps.at[:, step].set(draw.logps),
            sampled_logps=block.sampled_logps.at[:, step].set(draw.sampled_logps),
        )
        state = _record(state, draw.tokens, settings, turn)
        return step + 1, _feed(model, state, draw.tokens), block

    _, state, block = jax.lax.while_loop(is_unfinished, advance, (jnp.int32(0), state, block))
    return state, block


def _draw(
    logits: Float[Array, "B V"],
    state: DecodeState,
    settings: SlotSettings,
    banned: Bool[Array, "B V"],
) -> sampling.Draw:
    """Draw the next token of each slot; idle slots are greedy, which costs nothing."""
    slots, size = state.history.shape
    wanted = sampling.SamplingArrays(
        temperature=jnp.where(state.active, settings.temperature, 0.0),
        top_k=jnp.asarray(settings.top_k),
        top_p=jnp.asarray(settings.top_p),
        min_p=jnp.asarray(settings.min_p),
        repetition_penalty=jnp.where(state.active, settings.repetition_penalty, 1.0),
    )

    def find_seen() -> Bool[Array, "B V"]:
        is_filled = jnp.arange(size) < state.cache.lengths[:, None]
        tokens = jnp.where(is_filled, state.history, logits.shape[1])  # out of range: dropped
        unseen = jnp.zeros(logits.shape, bool)
        return unseen.at[jnp.arange(slots)[:, None], tokens].set(True, mode="drop")

    seen = jax.lax.cond(
        jnp.any(wanted.repetition_penalty != 1.0),
        find_seen,
        lambda: jnp.zeros(logits.shape, bool),
    )
    keys = jax.vmap(
        lambda key, index, count: jax.random.fold_in(jax.random.fold_in(key, index), count)
    )(jax.random.wrap_key_data(jnp.asarray(settings.keys)), settings.index, state.counts)
    banned = banned & state.active[:, None]
    return sampling.sample(logits, wanted, keys, seen, banned=banned)


def _record(
    state: DecodeState, tokens: Int[Array, " B"], settings: SlotSettings, turn: Turn
) -> DecodeState:
    """Count the new tokens and retire the slots that they end."""
    counts = state.counts + state.active
    stopped = jnp.any(tokens[:, None] == settings.stop_ids, axis=1)
    active = state.active & ~stopped & (counts < settings.max_new_tokens)
    rows = jnp.arange(tokens.shape[0])
    return dataclasses.replace(
        state,
        counts=counts,
        active=active,
        history=state.history.at[rows, state.cache.lengths].set(tokens, mode="drop"),
        # An idle slot writes, too, and makes nobody attend further than needed: at what it keeps.
        cache=dataclasses.replace(
            state.cache, lengths=jnp.where(active, state.cache.lengths, turn.idle_lengths)
        ),
    )


def _feed(model: decoder.Decoder, state: DecodeState, tokens: Int[Array, " B"]) -> DecodeState:
    """Run the new tokens through the model, unless no slot has a use for it."""

    def run(carry: tuple) -> tuple:
        _, _, cache = carry
        hidden, cache = model.hidden(tokens[:, None], cache=cache)
        return jnp.zeros((), bool), hidden[:, 0], cache

    # A loop of at most one turn: unlike a conditional it updates the cache in place.
    _, hidden, cache = jax.lax.while_loop(
        lambda carry: carry[0], run, (jnp.any(state.active), state.hidden, state.cache)
    )
    return dataclasses.replace(state, hidden=hidden, cache=cache)
