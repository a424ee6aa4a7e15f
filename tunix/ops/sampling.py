"""Draws one token per row from next-token logits, without sorting the vocabulary.

Nothing here knows about models, slots, stop tokens or loops. Every setting is an
array with one entry per row, so rows of one batch may differ in all of them and
no setting recompiles anything. Axes: ``B`` rows, ``V`` vocabulary, ``N`` blocks
of the vocabulary, ``W`` tokens in a block.

How a draw works: top-k, top-p and min-p all keep the tokens above some height,
so :mod:`tunix.ops.truncation` turns them into two thresholds per row. The
weights of the kept tokens are summed block by block, one uniform picks a block
and a second one a token inside it. The sum over the blocks is the kept mass,
hence the exact log-probability of the draw. Paths that no row of the batch
needs are skipped at run time.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tunix.ops import truncation

BLOCK_WIDTH = 128
"""Tokens in a block: near the square root of common vocabulary sizes."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingArrays:
    """How each row is sampled; the neutral value switches a setting off."""

    temperature: Float[Array, " B"]
    """Divides the logits; 0 takes the most likely token."""

    top_k: Int[Array, " B"]
    """Keep the k most likely tokens; 0, or any ``k >= V``, keeps all."""

    top_p: Float[Array, " B"]
    """Keep the smallest set of most likely tokens with at least this mass; 1 keeps all."""

    min_p: Float[Array, " B"]
    """Keep tokens at least this fraction as likely as the most likely one; 0 keeps all."""

    repetition_penalty: Float[Array, " B"]
    """Divides positive and multiplies negative logits of seen tokens; 1 changes nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """One token per row and how likely it was."""

    tokens: Int[Array, " B"]

    logps: Float[Array, " B"]
    """Under the policy ``softmax(logits / temperature)``: before any penalty, ban or truncation.
    Greedy rows use temperature 1."""

    sampled_logps: Float[Array, " B"]
    """Under the distribution that was really drawn from, renormalised; 0 for greedy rows."""


def sample(
    logits: Float[Array, "B V"],
    params: SamplingArrays,
    keys: Key[Array, " B"],
    seen: Bool[Array, "B V"] | None = None,
    *,
    banned: Bool[Array, "B V"] | Bool[Array, " V"] | None = None,
) -> Draw:
    """Draw the next token of each row.

    Order: ban, repetition penalty (Keskar et al., 2019), temperature, top-k,
    top-p of the top-k mass (Holtzman et al., 2020), min-p (Nguyen et al., 2024).
    Tokens that tie at a boundary are kept together.

    Args:
        logits: Next-token scores in float32; ``-inf`` means impossible.
        params: Settings of each row.
        keys: One key per row, used once.
        seen: True where a row's repetition penalty applies; ``None`` ignores the penalty.
        banned: Tokens that a row, or all, may not draw; at least one token must be left.
    """
    is_greedy = params.temperature <= 0.0
    keeps_all = (params.top_k <= 0) & (params.top_p >= 1.0) & (params.min_p <= 0.0)
    is_plain = jnp.all(is_greedy | keeps_all)
    if seen is not None:
        is_plain &= jnp.all(params.repetition_penalty == 1.0)
    if banned is not None:
        is_plain &= ~jnp.any(banned)
    # Two for a draw: one has 23 random bits, too few for a token in a million.
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    return jax.lax.cond(
        is_plain,
        lambda: _draw_plain(logits, params, uniforms),
        lambda: _draw_restricted(logits, _adjust(logits, params, seen, banned), params, uniforms),
    )


def _adjust(
    logits: Float[Array, "B V"],
    params: SamplingArrays,
    seen: Bool[Array, "B V"] | None,
    banned: Bool[Array, "B V"] | Bool[Array, " V"] | None,
) -> Float[Array, "B V"]:
    """Return the logits after repetition penalty and bans."""
    if seen is not None:
        penalty = params.repetition_penalty[:, None]
        penalised = jnp.where(logits > 0.0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, penalised, logits)
    if banned is not None:
        logits = jnp.where(banned, -jnp.inf, logits)
    return logits


def _draw_plain(
    logits: Float[Array, "B V"], params: SamplingArrays, uniforms: Float[Array, "B 2"]
) -> Draw:
    """Draw from the policy itself, or take its most likely token."""
    everything = truncation.keep_everything(logits.shape[0])
    tokens, logps = _draw_kept(logits, logits.max(axis=1), everything, params, uniforms)
    is_greedy = params.temperature <= 0.0
    return Draw(tokens=tokens, logps=logps, sampled_logps=jnp.where(is_greedy, 0.0, logps))


def _draw_restricted(
    policy: Float[Array, "B V"],
    logits: Float[Array, "B V"],
    params: SamplingArrays,
    uniforms: Float[Array, "B 2"],
) -> Draw:
    """Draw from the truncated, adjusted ``logits`` of ``policy``."""
    is_greedy = params.temperature <= 0.0
    temperature = _divisor(params.temperature)
    top = logits.max(axis=1)
    thresholds = truncation.find_thresholds(
        logits,
        top,
        temperature,
        # Greedy rows need no threshold, and must not make the others wait for one.
        top_k=jnp.where(is_greedy, 0, params.top_k),
        top_p=jnp.where(is_greedy, 1.0, params.top_p),
        min_p=jnp.where(is_greedy, 0.0, params.min_p),
    )
    tokens, sampled_logps = _draw_kept(logits, top, thresholds, params, uniforms)
    return Draw(
        tokens=tokens,
        logps=_policy_logps(policy, tokens, temperature),
        sampled_logps=jnp.where(is_greedy, 0.0, sampled_logps),
    )


def _draw_kept(
    logits: Float[Array, "B V"],
    top: Float[Array, " B"],
    thresholds: truncation.Thresholds,
    params: SamplingArrays,
    uniforms: Float[Array, "B 2"],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Return a token of each row and its log-probability among the kept ones."""
    temperature = _divisor(params.temperature)
    blocks = _blocked(logits)

    def weigh(block: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        return truncation.kept_weights(block, top, temperature, thresholds)

    masses = weigh(blocks).sum(axis=2)
    drawn = _pick_token(blocks, masses, weigh, uniforms)
    tokens = jnp.where(params.temperature <= 0.0, _argmax(blocks), drawn)
    return tokens, (_at(logits, tokens) - top) / temperature - jnp.log(masses.sum(axis=1))


def _divisor(temperature: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return what logits are divided by; greedy rows are looked at with temperature 1."""
    return jnp.where(temperature <= 0.0, 1.0, temperature)


def _policy_logps(
    policy: Float[Array, "B V"], tokens: Int[Array, " B"], temperature: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Return the log-probability of one token of each row, over the whole vocabulary."""
    top = policy.max(axis=1)
    everything = truncation.keep_everything(top.shape[0])
    mass = truncation.kept_weights(policy, top, temperature, everything).sum(axis=1)
    return (_at(policy, tokens) - top) / temperature - jnp.log(mass)


def _blocked(logits: Float[Array, "B V"]) -> Float[Array, "B N W"]:
    """Cut the vocabulary into blocks; missing tokens are impossible."""
    missing = -logits.shape[1] % BLOCK_WIDTH
    if missing:
        logits = jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    return logits.reshape(logits.shape[0], -1, BLOCK_WIDTH)


def _argmax(blocks: Float[Array, "B N W"]) -> Int[Array, " B"]:
    """Return the first position of each row's maximum.

    In two levels, because XLA's CPU argmax is 30 times slower than its maximum.
    """
    block = jnp.argmax(blocks.max(axis=2), axis=1)
    inside = jnp.argmax(_row_block(blocks, block), axis=1)
    return (block * BLOCK_WIDTH + inside).astype(jnp.int32)


def _pick_token(
    blocks: Float[Array, "B N W"],
    masses: Float[Array, "B N"],
    weigh: Callable[[Array], Array],
    uniforms: Float[Array, "B 2"],
) -> Int[Array, " B"]:
    """Draw a block by its mass, then a token inside it."""
    block = _pick(masses, uniforms[:, 0])
    inside = _pick(weigh(_row_block(blocks, block)), uniforms[:, 1])
    return (block * BLOCK_WIDTH + inside).astype(jnp.int32)


def _pick(weights: Float[Array, "B N"], uniforms: Float[Array, " B"]) -> Int[Array, " B"]:
    """Return an index of each row, drawn by its weight; an index of weight 0 never comes."""
    cdf = jnp.cumsum(weights, axis=1)
    total = cdf[:, -1:]
    drawn = (cdf <= uniforms[:, None] * total).sum(axis=1)
    # The product may round up to the total: stop at the last index that has weight.
    return jnp.minimum(drawn, (cdf < total).sum(axis=1))


def _row_block(blocks: Float[Array, "B N W"], index: Int[Array, " B"]) -> Float[Array, "B W"]:
    """Return one block of each row."""
    return jnp.take_along_axis(blocks, index[:, None, None], axis=1)[:, 0]


def _at(values: Float[Array, "B V"], index: Int[Array, " B"]) -> Float[Array, " B"]:
    """Return one value of each row."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
