"""Finds the heights above which top-k, top-p and min-p keep tokens, without a sort.

Each of the three keeps the tokens above some height of a row, so their
intersection is two thresholds: one on logits (top-k: a temperature so high that
all weights round to 1 must not blur it) and one on weights (top-p and min-p).
Axes: ``B`` rows, ``V`` vocabulary, ``C`` the largest few values of a row.

The largest few values decide most rows of a trained model. Rows they do not
decide (flat ones, large k) go through a bisection over the bits of a float32,
exact after at most 32 passes, each a masked sum: 50 times cheaper than a sort
on CPU.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CANDIDATES = 64
"""How many of a row's largest values are looked at before a search."""

_GROUP_WIDTH = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """A token is kept iff its logit and its weight both reach these."""

    logit: Float[Array, " B"]
    weight: Float[Array, " B"]


def keep_everything(rows: int) -> Thresholds:
    """Return the thresholds that every token reaches."""
    return Thresholds(logit=jnp.full(rows, -jnp.inf), weight=jnp.zeros(rows))


def kept_weights(
    logits: Float[Array, "B ..."],
    top: Float[Array, " B"],
    temperature: Float[Array, " B"],
    thresholds: Thresholds,
) -> Float[Array, "B ..."]:
    """Return ``exp((logits - top) / temperature)`` of kept tokens and 0 of all others."""

    def per_row(x: Float[Array, " B"]) -> Float[Array, "B ..."]:
        return x.reshape(x.shape + (1,) * (logits.ndim - 1))

    # The difference first: logits / temperature may overflow where this cannot.
    weights = jnp.exp((logits - per_row(top)) / per_row(temperature))
    kept = (logits >= per_row(thresholds.logit)) & (weights >= per_row(thresholds.weight))
    return jnp.where(kept, weights, 0.0)


def find_thresholds(
    logits: Float[Array, "B V"],
    top: Float[Array, " B"],
    temperature: Float[Array, " B"],
    *,
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
) -> Thresholds:
    """Return the thresholds of each row; top-p counts the mass that top-k kept.

    Args:
        logits: Scores, ``-inf`` where impossible.
        top: The maximum of each row.
        temperature: Positive; weights are ``exp((logits - top) / temperature)``.
        top_k: 0, or any ``k >= V``, keeps all.
        top_p: 1 or more keeps all.
        min_p: 0 keeps all. The heaviest token has weight 1, so this is a threshold already.
    """
    rows, vocab = logits.shape
    limits_k = (top_k > 0) & (top_k < vocab)
    limits_p = top_p < 1.0

    def search() -> Thresholds:
        largest = _largest(logits)
        kth = _kth_largest(logits, largest, jnp.where(limits_k, top_k, 1), limits_k)
        by_k = Thresholds(logit=jnp.where(limits_k, kth, -jnp.inf), weight=jnp.zeros(rows))
        nucleus = jax.lax.cond(
            jnp.any(limits_p),
            lambda: _nucleus_floor(logits, largest, top, temperature, by_k, top_p, limits_p),
            lambda: jnp.zeros(rows),
        )
        return dataclasses.replace(by_k, weight=nucleus)

    found = jax.lax.cond(jnp.any(limits_k | limits_p), search, lambda: keep_everything(rows))
    return dataclasses.replace(found, weight=jnp.maximum(found.weight, min_p))


def _largest(logits: Float[Array, "B V"]) -> Float[Array, "B C"]:
    """Return the largest values of each row, in descending order.

    The C largest values lie in the C groups with the largest maxima, so only
    those groups are ranked token by token: 10 times cheaper than ``top_k`` of all.
    """
    rows, vocab = logits.shape
    groups = -(-vocab // _GROUP_WIDTH)
    if groups <= CANDIDATES:
        return jax.lax.top_k(logits, min(CANDIDATES, vocab))[0]
    missing = groups * _GROUP_WIDTH - vocab
    if missing:
        logits = jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    grouped = logits.reshape(rows, groups, _GROUP_WIDTH)
    best = jax.lax.top_k(grouped.max(axis=2), CANDIDATES)[1]
    pool = jnp.take_along_axis(grouped, best[:, :, None], axis=1)
    return jax.lax.top_k(pool.reshape(rows, -1), CANDIDATES)[0]


def _kth_largest(
    logits: Float[Array, "B V"],
    largest: Float[Array, "B C"],
    k: Int[Array, " B"],
    wanted: Bool[Array, " B"],
) -> Float[Array, " B"]:
    """Return the k-th largest logit of each row, duplicates counted."""
    count = largest.shape[1]
    listed = jnp.take_along_axis(largest, jnp.clip(k - 1, 0, count - 1)[:, None], axis=1)[:, 0]
    is_listed = k <= count

    def search() -> Float[Array, " B"]:
        def too_low(height: Int[Array, " B"]) -> Bool[Array, " B"]:
            return (logits > _from_ordered_bits(height)[:, None]).sum(axis=1) >= k

        low, high = _ordered_bits(logits.min(axis=1)) - 1, _ordered_bits(largest[:, -1])
        return _from_ordered_bits(_bisect(too_low, jnp.minimum(low, high), high))

    searched = jax.lax.cond(jnp.any(wanted & ~is_listed), search, lambda: listed)
    return jnp.where(is_listed, listed, searched)


def _nucleus_floor(
    logits: Float[Array, "B V"],
    largest: Float[Array, "B C"],
    top: Float[Array, " B"],
    temperature: Float[Array, " B"],
    by_k: Thresholds,
    top_p: Float[Array, " B"],
    wanted: Bool[Array, " B"],
) -> Float[Array, " B"]:
    """Return the least weight that top-p keeps; 0 for rows without top-p.

    A token is kept iff the mass strictly above it is less than ``top_p`` of all
    mass that top-k kept: the smallest such set, plus what ties with its last token.
    """
    weights = kept_weights(logits, top, temperature, by_k)
    wanted_mass = top_p * weights.sum(axis=1)

    listed = kept_weights(largest, top, temperature, by_k)
    mass_until = jnp.cumsum(listed, axis=1)
    is_decided = mass_until[:, -1] >= wanted_mass
    # Where the mass up to a token reaches the wanted one, no lighter token is kept.
    last = (mass_until < wanted_mass[:, None]).sum(axis=1)
    floor = jnp.take_along_axis(listed, jnp.minimum(last, listed.shape[1] - 1)[:, None], axis=1)[
        :, 0
    ]

    def search() -> Float[Array, " B"]:
        def too_low(height: Int[Array, " B"]) -> Bool[Array, " B"]:
            above = weights > _from_ordered_bits(height)[:, None]
            return jnp.where(above, weights, 0.0).sum(axis=1) >= wanted_mass

        # Bounds to start from. All tokens no heavier than (1 - p) / V of the mass weigh at most
        # 1 - p of it together, so the mass above each is too large; the safety factor is for
        # rounding. And what the listed tokens did not decide lies below them.
        least = 0.99 * (1.0 - top_p) * weights.sum(axis=1) / weights.shape[1]
        low, high = _ordered_bits(jnp.maximum(least, 0.0)) - 1, _ordered_bits(listed[:, -1])
        return _from_ordered_bits(_bisect(too_low, jnp.minimum(low, high), high))

    searched = jax.lax.cond(jnp.any(wanted & ~is_decided), search, lambda: floor)
    # Row by row, so that a row's floor does not depend on what the others needed.
    return jnp.where(wanted, jnp.where(is_decided, floor, searched), 0.0)


def _bisect(
    too_low: Callable[[Int[Array, " B"]], Bool[Array, " B"]],
    low: Int[Array, " B"],
    high: Int[Array, " B"],
) -> Int[Array, " B"]:
    """Return the least height in ``(low, high]`` that is not too low; ``high`` never is.

    Heights are floats as :func:`_ordered_bits`, so that halving an interval ends.
    """

    def halve(bounds):
        low, high = bounds
        # The mean of two integers whose sum may overflow.
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        # A row that is done must stay while others go on: its ``low`` may be no number at all.
        below = (middle == low) | too_low(middle)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.while_loop(lambda b: jnp.any(b[0] + 1 < b[1]), halve, (low, high))[1]


def _ordered_bits(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return integers that are ordered like the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _from_ordered_bits(ordered: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return the floats behind :func:`_ordered_bits`."""
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
